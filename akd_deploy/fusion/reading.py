"""Read an ONNX network into a graph with every shape known, and everything that is known before it runs."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from akd_deploy.errors import UsageError
from akd_deploy.fusion.evaluate import evaluate
from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Constant, Node, TensorType, constant_from
from akd_deploy.fusion.types_of_outputs import TypingError, output_types, schema_of, type_proto

CONTROL_FLOW = frozenset({"If", "Loop", "Scan", "SequenceMap"})

NEVER_CONSTANT = frozenset({
    "DequantizeLinear", "DynamicQuantizeLinear", "RandomNormal", "RandomUniform",
    "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli",
})  # fmt: skip
"""Operators the runtime executes even if it knows all their inputs."""

INLINED = frozenset({"HardSwish", "Mish", "GroupNormalization", "CenterCropPad", "AffineGrid"})
"""ONNX's functions that the runtime has no kernel for on a CPU: it executes what they consist of."""

_OTHER_FLOATS = frozenset({
    onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE,
})  # fmt: skip
_OLDEST_OVERRIDABLE = 4
"""From this version of the file format, an initialiser that is also an input may be overridden: it is no constant."""


def graph_from_model(model: onnx.ModelProto) -> Graph:
    """The network with static shapes; constants are initialisers, `Constant` nodes and what follows from them.

    Raises:
        UsageError: control flow, a function or an operator without a schema, a shape that only a run tells, or
            another precision than float32; the message names the node or the input.
    """
    opsets = {entry.domain or "ai.onnx": entry.version for entry in model.opset_import}
    functions = {(function.domain, function.name) for function in model.functions}
    initialisers = {tensor.name: tensor for tensor in model.graph.initializer}
    inputs = {v.name: _input_type(v) for v in model.graph.input if v.name not in initialisers}
    graph = Graph(inputs, [value.name for value in model.graph.output], opsets.get("ai.onnx", 0))
    overridable = {value.name for value in model.graph.input if model.ir_version >= _OLDEST_OVERRIDABLE}
    for name, tensor in initialisers.items():
        constant = constant_from(tensor)
        if name in overridable:
            graph.types[name] = graph.stored[name] = constant.type
        else:
            graph.add_given(constant, name)
    for proto in model.graph.node:
        if (proto.domain, proto.op_type) in functions:
            raise _refusal(proto, "a function of the file's own", "Inline the file's functions first.")
        _read_node(graph, proto, opsets.get(proto.domain or "ai.onnx", 1))
    return graph


def inline_functions(graph: Graph) -> bool:
    """Replace operators that the runtime has no kernel for by what ONNX defines them as."""
    changed = False
    for node in graph.nodes:
        if node.op in INLINED and not node.domain:
            _inline(graph, node)
            changed = True
    return changed


def _refusal(proto: onnx.NodeProto, found: str, next: str) -> UsageError:
    name = proto.name or (proto.output[0] if proto.output else "")
    return UsageError(
        asked="the kernels of a network by fusion rules",
        found=f"{found}: node {name!r} ({proto.op_type})",
        next=next,
    )


def _input_type(value: onnx.ValueInfoProto) -> TensorType:
    tensor = value.type.tensor_type
    dims = [dim.dim_value for dim in tensor.shape.dim if dim.HasField("dim_value")]
    if not value.type.HasField("tensor_type") or not tensor.HasField("shape") or len(dims) != len(tensor.shape.dim):
        raise UsageError(
            asked=f"input {value.name!r} with a fixed shape",
            found="a dynamic dimension" if tensor.HasField("shape") else "no tensor type or no shape",
            next="Latency depends on every dimension: export the network with a fixed shape.",
        )
    return TensorType(tensor.elem_type, tuple(dims))


def _read_node(graph: Graph, proto: onnx.NodeProto, opset: int) -> None:
    domain = "" if proto.domain == "ai.onnx" else proto.domain
    if proto.op_type in CONTROL_FLOW:
        raise _refusal(proto, "control flow", "Export the network without branches and loops.")
    if proto.op_type == "Constant" and not domain:
        graph.add_given(_constant_of(proto), proto.output[0])
        return
    node = Node(proto.op_type, proto.input, proto.output, proto.name, domain, {a.name: a for a in proto.attribute})
    try:
        types = output_types(graph, node, proto, opset)
    except TypingError as error:
        raise _refusal(proto, str(error), error.next) from error
    graph.add(node, types)
    _note_constants(graph, node, proto, opset)
    for name in node.outputs:
        if name and name not in graph.constants and graph.types[name].element in _OTHER_FLOATS:
            raise _refusal(
                proto,
                f"{graph.types[name].dtype} numbers, which the rules are not made for",
                "Use the float32 network, or read the kernels off the runtime.",
            )


def _constant_of(proto: onnx.NodeProto) -> Constant:
    (attribute,) = proto.attribute
    if attribute.name == "value":
        return constant_from(attribute.t)
    if attribute.name not in ("value_float", "value_floats", "value_int", "value_ints"):
        raise _refusal(proto, f"a constant given as {attribute.name}", "Write it as a tensor.")
    value = np.asarray(helper.get_attribute_value(attribute), np.float32 if "float" in attribute.name else np.int64)
    return Constant(TensorType(helper.np_dtype_to_tensor_dtype(value.dtype), tuple(value.shape)), lambda: value)


def _note_constants(graph: Graph, node: Node, proto: onnx.NodeProto, opset: int) -> None:
    """If a node's outputs are known before the network runs, say so; a rule may then remove it."""
    if node.domain or node.op in NEVER_CONSTANT:
        return
    sources: Sequence[Constant | TensorType | None]
    if node.op in ("Shape", "Size"):
        sources = [graph.types[node.inputs[0]]]
    elif all(name in graph.constants for name in node.inputs if name):
        sources = [graph.constants[name] if name else None for name in node.inputs]
    else:
        return
    results = functools.cache(lambda: evaluate(proto, sources, opset))
    for i, name in enumerate(node.outputs):
        if name:
            graph.constants[name] = Constant(graph.types[name], functools.partial(lambda i: results()[i], i))


def _inline(graph: Graph, node: Node) -> None:
    proto = onnx.NodeProto(op_type=node.op, name=node.name, input=node.inputs, output=node.outputs)
    proto.attribute.extend(node.attributes.values())
    schema = schema_of(node.op, graph.opset, "")
    assert schema is not None, node
    if schema.has_context_dependent_function:
        types = [type_proto(graph.types[name]).SerializeToString() for name in node.inputs if name]
        body = onnx.FunctionProto.FromString(schema.get_context_dependent_function(proto.SerializeToString(), types))
    else:
        body = schema.function_body
    names = dict(zip([*body.input, *body.output], [*node.inputs, *node.outputs], strict=False))
    graph.remove(node)
    opset = next((entry.version for entry in body.opset_import if not entry.domain), graph.opset)
    for step in body.node:
        for name in step.output:
            names.setdefault(name, graph.unused_name(f"_inlfunc_{node.op}_{name}"))
        _read_node(graph, _bound(step, names, node), opset)


def _bound(step: onnx.NodeProto, names: dict[str, str], node: Node) -> onnx.NodeProto:
    """A node of a function's body with the names and attributes of the call."""
    bound = onnx.NodeProto(
        op_type=step.op_type,
        domain=step.domain,
        input=[names.get(name, name) for name in step.input],
        output=[names[name] for name in step.output],
    )
    for attribute in step.attribute:
        given = node.attributes.get(attribute.ref_attr_name) if attribute.ref_attr_name else attribute
        if given is not None:
            copy = bound.attribute.add()
            copy.CopyFrom(given)
            copy.name = attribute.name
    return bound
