"""What lint rules ask of a network: types, weights, who makes and reads a tensor, where computing begins and ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from akd_deploy.target import Target

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that nearly all the time of a network goes into."""


@dataclass(frozen=True)
class LintGraph:
    """A checked, shape-inferred network beside the target it is meant for."""

    model: onnx.ModelProto
    target: Target
    channel_multiple: int

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    @property
    def opset(self) -> int:
        """Of ONNX's own operators, 0 where the network uses none."""
        return next((o.version for o in self.model.opset_import if o.domain in ("", "ai.onnx")), 0)

    @cached_property
    def weights(self) -> Mapping[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        return [value for value in self.model.graph.input if value.name not in self.weights]

    @cached_property
    def outputs(self) -> set[str]:
        return {value.name for value in self.model.graph.output}

    @cached_property
    def maker(self) -> Mapping[str, onnx.NodeProto]:
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def readers(self) -> Mapping[str, list[onnx.NodeProto]]:
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def types(self) -> Mapping[str, int]:
        """Tensor → ONNX element type, 0 where inference could not tell."""
        graph = self.model.graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        return types | {name: tensor.data_type for name, tensor in self.weights.items()}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """Tensor → shape, None for a dimension that is not known; tensors of unknown rank are left out."""
        graph = self.model.graph
        return {
            v.name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in v.type.tensor_type.shape.dim)
            for v in (*graph.input, *graph.value_info, *graph.output)
            if v.type.tensor_type.HasField("shape")
        }

    def maker_op(self, name: str) -> str | None:
        """The operator that makes a tensor, None for inputs and weights."""
        node = self.maker.get(name)
        return None if node is None else node.op_type

    def weight_of(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The constant weight of a weighted node, looked for behind a DequantizeLinear or Cast; None without one."""
        name = node.input[1]
        while name in self.maker and self.maker[name].op_type in ("DequantizeLinear", "QuantizeLinear", "Cast"):
            name = self.maker[name].input[0]
        if self.maker_op(name) == "Constant":
            return next((a.t for a in self.maker[name].attribute if a.name == "value"), None)
        return self.weights.get(name)

    def weighted(self) -> Iterator[tuple[onnx.NodeProto, onnx.TensorProto]]:
        """Every weighted node that has a constant weight."""
        for node in self.nodes:
            if node.op_type in WEIGHTED and len(node.input) > 1:
                tensor = self.weight_of(node)
                if tensor is not None:
                    yield node, tensor

    @cached_property
    def after_weights(self) -> set[str]:
        """Tensors that some weighted node has gone into."""
        found: set[str] = set()
        for node in self.nodes:
            if node.op_type in WEIGHTED or found.intersection(node.input):
                found.update(node.output)
        return found

    @cached_property
    def before_weights(self) -> set[str]:
        """Tensors that go into some weighted node, directly or not."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            if node.op_type in WEIGHTED or found.intersection(node.output):
                found.update(node.input)
        return found


def channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> tuple[int, int]:
    """Input and output channels of a weighted node, from its weight's shape."""
    dims = tuple(weight.dims)
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "Conv":
        return dims[1] * attributes.get("group", 1), dims[0]
    if node.op_type == "ConvTranspose":
        return dims[0], dims[1] * attributes.get("group", 1)
    if node.op_type == "Gemm" and attributes.get("transB", 0):
        return dims[1], dims[0]
    return (dims[-2], dims[-1]) if len(dims) > 1 else (dims[0], 1)


def float_values(tensor: onnx.TensorProto) -> np.ndarray | None:
    """The values of a floating tensor as float64, None for other types."""
    if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16):
        return None
    return np.asarray(numpy_helper.to_array(tensor)).astype(np.float64)
