"""Element type and shape of what a node writes: ONNX's own inference, with a short way for the most frequent nodes."""

from __future__ import annotations

import functools
import math

import numpy as np
import onnx
from onnx import helper, numpy_helper

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Node, TensorType

_SAME_AS_INPUT = frozenset({
    "Relu", "Identity", "Sigmoid", "Tanh", "Clip", "HardSwish", "HardSigmoid", "LeakyRelu", "Elu", "Erf", "Sqrt",
    "Exp", "Neg", "Softmax", "LRN", "Gelu", "Reciprocal", "Mish", "BatchNormalization", "LayerNormalization",
    "MeanVarianceNormalization",
})  # fmt: skip
_LARGEST_VALUE = 4096
"""Elements of a constant beyond which it cannot be a shape, an axis or a size that shapes depend on."""

_INDEX_TYPES = (onnx.TensorProto.INT64, onnx.TensorProto.INT32)
_READS_FLOATS = frozenset({"Resize", "Upsample", "Range", "TopK"})
"""Operators whose output's shape depends on numbers that are no integers."""


class TypingError(Exception):
    """Why a node's outputs have no type; `next` is what to do about it."""

    def __init__(self, found: str, next: str) -> None:
        self.next = next
        super().__init__(found)


@functools.lru_cache(maxsize=4096)
def type_proto(type_: TensorType) -> onnx.TypeProto:
    """The type as ONNX writes it."""
    return helper.make_tensor_type_proto(type_.element, type_.shape)


@functools.lru_cache(maxsize=1024)
def schema_of(op: str, opset: int, domain: str) -> onnx.defs.OpSchema | None:
    """ONNX's schema of an operator, None where it has none."""
    try:
        return onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None


@functools.lru_cache(maxsize=1024)
def default_attributes(op: str, opset: int, domain: str) -> tuple[onnx.AttributeProto, ...]:
    """The attributes that a node of this operator has even where nobody wrote them."""
    schema = schema_of(op, opset, domain)
    values = () if schema is None else (a.default_value for a in schema.attributes.values())
    return tuple(value for value in values if value.type)


def output_types(graph: Graph, node: Node, proto: onnx.NodeProto, opset: int) -> list[TensorType]:
    """One type per output; outputs without a name have one without meaning.

    Raises:
        TypingError: no schema, an input that nothing writes, shapes that do not fit or that only a run tells.
    """
    for name in node.inputs:
        if name and name not in graph.types:
            raise TypingError(f"input {name!r}, which nothing writes before", "Sort the nodes, or check the file.")
    schema = schema_of(node.op, opset, node.domain)
    if schema is None:
        raise TypingError(f"an operator that ONNX does not have in opset {opset}", "Use ONNX's own operators.")
    known = _quickly(graph, node)
    if known is not None:
        return [known]
    values = {}
    for name in node.inputs:
        constant = graph.constants.get(name)
        if constant is None or math.prod(constant.type.shape) > _LARGEST_VALUE:
            continue
        if constant.type.element in _INDEX_TYPES or node.op in _READS_FLOATS:
            values[name] = numpy_helper.from_array(np.ascontiguousarray(constant.value), name)
    try:
        inferred = onnx.shape_inference.infer_node_outputs(
            schema,
            proto,
            {name: type_proto(graph.types[name]) for name in node.inputs if name},
            values,
            opset_imports=[helper.make_opsetid(node.domain, opset)] if schema.has_function else None,
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError, RuntimeError, ValueError) as error:
        raise TypingError(f"shapes that do not fit ({' '.join(str(error).split())})", "Check the file.") from error
    return [_checked(name, inferred.get(name)) if name else TensorType(0, ()) for name in node.outputs]


def _checked(name: str, type_: onnx.TypeProto | None) -> TensorType:
    tensor = type_.tensor_type if type_ is not None and type_.HasField("tensor_type") else None
    if tensor is None or not tensor.HasField("shape") or not all(d.HasField("dim_value") for d in tensor.shape.dim):
        raise TypingError(f"an output {name!r} whose shape only a run tells", "Export it with static shapes.")
    return TensorType(tensor.elem_type, tuple(dim.dim_value for dim in tensor.shape.dim))


def _quickly(graph: Graph, node: Node) -> TensorType | None:
    """The output's type for the operators that most nodes are; None where ONNX is to be asked."""
    if node.domain or len(node.outputs) != 1 or not node.inputs:
        return None
    first = graph.types[node.inputs[0]]
    if node.op in _SAME_AS_INPUT:
        return first
    if node.op in ("Add", "Mul", "Sub", "Div") and graph.types[node.inputs[1]] == first:
        return first
    if node.op != "Conv" or node.text("auto_pad", "NOTSET") != "NOTSET":
        return None
    weight = graph.types[node.inputs[1]].shape
    rank = len(weight) - 2
    if len(first.shape) != len(weight) or first.shape[1] != weight[1] * node.integer("group", 1):
        return None
    pads = node.integers("pads") or (0,) * (2 * rank)
    strides = node.integers("strides") or (1,) * rank
    dilations = node.integers("dilations") or (1,) * rank
    windows = (dilations[i] * (weight[2 + i] - 1) + 1 for i in range(rank))
    padded = (first.shape[2 + i] + pads[i] + pads[rank + i] for i in range(rank))
    sizes = ((n - window) // stride + 1 for n, window, stride in zip(padded, windows, strides, strict=True))
    return TensorType(first.element, (first.shape[0], weight[0], *sizes))
