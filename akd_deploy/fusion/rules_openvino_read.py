"""Translate ONNX's nodes into OpenVINO's layers, as its reader of ONNX files does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Constant, Node, TensorType
from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph, unknown
from akd_deploy.kernel import Shape

INT32, INT64 = onnx.TensorProto.INT32, onnx.TensorProto.INT64

SAME_NAME: Mapping[str, str] = {
    "Relu": "Relu", "Sigmoid": "Sigmoid", "Tanh": "Tanh", "Elu": "Elu", "Erf": "Erf", "Sqrt": "Sqrt", "Exp": "Exp",
    "Log": "Log", "Abs": "Abs", "Softplus": "SoftPlus", "HardSwish": "HSwish", "Mish": "Mish", "Neg": "Negative",
    "Add": "Add", "Mul": "Multiply", "Div": "Divide", "Max": "Maximum", "Min": "Minimum",
    "Softmax": "Softmax", "Concat": "Concatenation", "MaxPool": "MaxPool", "AveragePool": "AvgPool",
    "DepthToSpace": "DepthToSpace", "Pow": "Power", "Reciprocal": "Reciprocal", "Identity": "Identity",
    "Dropout": "Identity",
}  # fmt: skip
"""ONNX's operators that are one layer each, with the same inputs."""

Translation = Callable[[LayerGraph, Node], None]


def layers_from_graph(graph: Graph, unstored: set[str], more: Mapping[str, Translation]) -> LayerGraph:
    """A graph of OpenVINO's layers; `more` translates operators that this module does not.

    Raises:
        UsageError: an operator, or a setting of one, that the rules do not know.
    """
    made = LayerGraph(graph, unstored)
    translations = {**_TRANSLATE, **more}
    for name, type_ in graph.inputs.items():
        if type_.element == INT64 and graph.readers(name):
            _narrow(made, name)
    for node in graph.nodes:
        if all(name in graph.constants for name in node.outputs if name):
            continue
        for name in node.outputs:
            if name and made.types[name].element == INT64:
                made.types[name] = TensorType(INT32, made.shape(name))
        translate = translations.get(node.op)
        if node.domain or (translate is None and node.op not in SAME_NAME):
            raise unknown(node, "an operator that no rule is made for")
        if translate is None:
            add(made, node, SAME_NAME[node.op], node.inputs[:1] if node.op == "Dropout" else node.inputs)
        else:
            translate(made, node)
    return made


def _narrow(graph: LayerGraph, name: str) -> None:
    """Inputs of 64 bits are converted to the 32 that the plug-in computes whole numbers in."""
    narrow = f"{name}:i32"
    graph.types[narrow] = TensorType(INT32, graph.shape(name))
    graph.add(Layer("Convert", [name], [narrow], f"Convert/{name}"))
    graph.narrowed[name] = narrow


def add(graph: LayerGraph, node: Node, op: str, inputs: Sequence[str], name: str = "", output: str = "") -> Layer:
    """The layer, or one of the layers, of an ONNX node; `name` is its own where it is not the node's."""
    outputs = [output] if output else [written for written in node.outputs if written]
    layer = Layer(
        op,
        [graph.narrowed.get(i, i) for i in inputs if i],
        outputs,
        name or node.name,
        [name or node.name],
        node.attributes,
    )
    graph.add(layer)
    return layer


def integers(graph: LayerGraph, values: Sequence[int], stem: str, element: int = INT64) -> str:
    """A constant list of whole numbers."""
    name = graph.unused_name(stem)
    array = np.asarray(values, np.int32 if element == INT32 else np.int64)
    type_ = TensorType(element, tuple(array.shape))
    graph.constants[name] = Constant(type_, lambda: array)
    graph.types[name] = type_
    return name


def _convolution(graph: LayerGraph, node: Node) -> None:
    data, weight, *bias = node.inputs
    if weight not in graph.constants:
        raise unknown(node, "a convolution with computed weights")
    if node.text("auto_pad", "NOTSET") == "VALID" and node.integers("pads"):
        raise unknown(node, "contradictory padding")
    groups, shape = node.integer("group", 1), graph.shape(weight)
    if groups > 1:
        weight = graph.reshaped(weight, (groups, shape[0] // groups, *shape[1:]))
    _with_bias(graph, node, "Convolution", [data, weight], bias, shape[0])


def _deconvolution(graph: LayerGraph, node: Node) -> None:
    data, weight, *bias = node.inputs
    if node.integer("group", 1) > 1 or weight not in graph.constants:
        raise unknown(node, "a transposed convolution in groups or with computed weights")
    _with_bias(graph, node, "Deconvolution", [data, weight], bias, graph.shape(weight)[1])


def _with_bias(
    graph: LayerGraph, node: Node, op: str, inputs: Sequence[str], bias: Sequence[str], channels: int
) -> None:
    """A layer and the addition of its bias, which a bias of zeros does not need."""
    if not bias or not bias[0]:
        add(graph, node, op, inputs)
        return
    inner = graph.new_tensor(node.output)
    add(graph, node, op, inputs, f"{node.name}/WithoutBiases", inner)
    shape = (1, channels, *(1 for _ in graph.shape(node.output)[2:]))
    add(graph, node, "Add", [inner, _shared_reshape(graph, bias[0], shape)])


def _shared_reshape(graph: LayerGraph, name: str, shape: Shape) -> str:
    """A constant in another shape, one for all that ask for it: whoever shares a bias shares its reshaped form."""
    made = f"{name}:{shape}"
    if made not in graph.constants:
        first = graph.reshaped(name, shape)
        graph.constants[made], graph.types[made] = graph.constants[first], graph.types[first]
        if first in graph.unstored:
            graph.unstored.add(made)
    return made


def _norm(graph: LayerGraph, node: Node) -> None:
    """A batch norm is a factor and a shift per channel."""
    data, scale, shift = node.inputs[:3]
    rank = len(graph.shape(data))
    shape = (1, graph.shape(scale)[0], *(1 for _ in range(rank - 2)))
    inner = graph.new_tensor(node.output)
    factor = graph.constant_like(f"{node.name}.scale", shape, scale)
    offset = graph.constant_like(f"{node.name}.shift", shape, shift)
    graph.add(Layer("Multiply", [data, factor], [inner], f"{node.name}/factor"))
    add(graph, node, "Add", [inner, offset])


def _global_pool(graph: LayerGraph, node: Node) -> None:
    axes = range(2, len(graph.shape(node.inputs[0])))
    layer = add(graph, node, "Reduce", [node.inputs[0], integers(graph, list(axes), "axes")])
    layer.set("keepdims", 1)


def _reduce(graph: LayerGraph, node: Node) -> None:
    rank = len(graph.shape(node.inputs[0]))
    given = node.integers("axes")
    if given is None and len(node.inputs) > 1:
        value = graph.value(node.inputs[1])
        if value is None:
            raise unknown(node, "a reduction along computed axes")
        given = tuple(int(axis) for axis in value.ravel())
    axes = tuple(axis for axis in (given if given is not None else range(rank)))
    layer = add(graph, node, "Reduce", [node.inputs[0], integers(graph, axes, "axes")])
    layer.set("keepdims", node.integer("keepdims", 1))


def _gemm(graph: LayerGraph, node: Node) -> None:
    """A product and a sum, as OpenVINO sees it."""
    if node.number("alpha", 1.0) != 1.0 or node.number("beta", 1.0) != 1.0 or node.integer("transA"):
        raise unknown(node, "a scaled or transposed product")
    data, weight, *bias = node.inputs
    if not bias or not bias[0]:
        add(graph, node, "MatMul", [data, weight])
        return
    inner = graph.new_tensor(node.output)
    add(graph, node, "MatMul", [data, weight], f"{node.name}/WithoutBiases", inner)
    add(graph, node, "Add", [inner, bias[0]]).attributes.clear()


def _matmul(graph: LayerGraph, node: Node) -> None:
    add(graph, node, "MatMul", node.inputs)


def _clip(graph: LayerGraph, node: Node) -> None:
    """Bounds known before the network runs make it a clamp."""
    if any(name and graph.value(name) is None for name in node.inputs[1:]):
        raise unknown(node, "bounds that are computed")
    add(graph, node, "Clamp", node.inputs[:1])


def _hard_sigmoid(graph: LayerGraph, node: Node) -> None:
    scalars = [_scalar(graph, node, key, default) for key, default in (("alpha", 0.2), ("beta", 0.5))]
    add(graph, node, "HardSigmoid", [node.inputs[0], *scalars])


def _leaky_relu(graph: LayerGraph, node: Node) -> None:
    add(graph, node, "PRelu", [node.inputs[0], _scalar(graph, node, "alpha", 0.01)])


def _scalar(graph: LayerGraph, node: Node, key: str, default: float) -> str:
    value = np.asarray([node.number(key, default)], np.float32)
    return graph.constant_like(f"{node.name}.{key}", (1,), node.inputs[0], of=lambda: value)


def _subtract(graph: LayerGraph, node: Node) -> None:
    """Subtracting is adding the negative."""
    data, other = node.inputs
    if other in graph.constants:
        constant = graph.constants[other]
        negative = graph.constant_like("negative", graph.shape(other), other, of=lambda: -constant.value)
    else:
        minus_one = graph.constant_like("minus_one", (), other, of=lambda: np.asarray(-1, np.float32))
        negative = graph.new_tensor(other)
        graph.add(Layer("Multiply", [other, minus_one], [negative], f"{node.name}/negative"))
    add(graph, node, "Add", [data, negative])


_TRANSLATE: Mapping[str, Translation] = {
    "Conv": _convolution, "ConvTranspose": _deconvolution, "BatchNormalization": _norm,
    "GlobalAveragePool": _global_pool, "GlobalMaxPool": _global_pool, "ReduceMean": _reduce, "ReduceSum": _reduce,
    "ReduceMax": _reduce, "Gemm": _gemm, "MatMul": _matmul, "Clip": _clip, "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu, "Sub": _subtract,
}  # fmt: skip
