"""Small ONNX networks for the engines' tests, and what a slow reference says they compute."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
from contracts.engine_contract import ModelCase
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from akd_deploy.engines.onnx_file import node_names


class Graph:
    """A graph under construction: calling it adds a node `<Operator>_<number>` and returns its output's name."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def weight(self, *shape: int, positive: bool = False) -> str:
        values = self.rng.standard_normal(shape).astype(np.float32) * 0.2
        return self.constant(np.abs(values) + np.float32(0.5) if positive else values)

    def constant(self, values: object) -> str:
        self.initializers.append(numpy_helper.from_array(np.asarray(values), f"w{len(self.initializers)}"))
        return self.initializers[-1].name

    def __call__(self, operator: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        name = f"{operator}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name=name, domain=domain, **attributes))
        return f"{name}_out"

    def conv(self, x: str, in_channels: int, out_channels: int, k: int, stride: int = 1, group: int = 1) -> str:
        weight, bias = self.weight(out_channels, in_channels // group, k, k), self.weight(out_channels)
        return self("Conv", x, weight, bias, kernel_shape=[k, k], strides=[stride] * 2, pads=[k // 2] * 4, group=group)

    def batch_norm(self, x: str, channels: int) -> str:
        return self(
            "BatchNormalization",
            x,
            self.weight(channels, positive=True),
            self.weight(channels),
            self.weight(channels),
            self.weight(channels, positive=True),
        )

    def quantized(self, x: str, scale: float = 0.05, zero_point: int = 128) -> str:
        arguments = (self.constant(np.float32(scale)), self.constant(np.uint8(zero_point)))
        return self("DequantizeLinear", self("QuantizeLinear", x, *arguments), *arguments)

    def quantized_weight(self, *shape: int) -> str:
        values = self.constant(self.rng.integers(-127, 128, shape).astype(np.int8))
        return self("DequantizeLinear", values, self.constant(np.float32(0.003)), self.constant(np.int8(0)))

    def model(self, inputs: Mapping[str, list[int | str]], outputs: list[str], opset: int = 17) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes,
            "network",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            self.initializers,
        )
        opsets = [helper.make_opsetid("", opset)]
        opsets += [helper.make_opsetid(d, 1) for d in sorted({node.domain for node in self.nodes} - {""})]
        return onnx.shape_inference.infer_shapes(helper.make_model(graph, opset_imports=opsets, ir_version=9))


IMAGE: dict[str, list[int | str]] = {"x": ["N", 3, 16, 16]}


def conv_bn_relu() -> onnx.ModelProto:
    g = Graph()
    x = g("Relu", g.batch_norm(g.conv("x", 3, 16, 3, stride=2), 16))
    return g.model(IMAGE, [x])


def residual() -> onnx.ModelProto:
    g = Graph()
    a = g("Relu", g.conv("x", 3, 16, 3))
    y = g.conv(g("Relu", g.conv(a, 16, 16, 3)), 16, 16, 3)
    x = g("Flatten", g("GlobalAveragePool", g("Relu", g("Add", y, a))))
    return g.model(IMAGE, [g("Gemm", x, g.weight(10, 16), g.weight(10), transB=1)])


def squeeze_excite() -> onnx.ModelProto:
    g = Graph()
    a = g("Relu", g.conv("x", 3, 16, 3))
    gate = g("Relu", g.conv(g("GlobalAveragePool", a), 16, 4, 1))
    gate = g("Sigmoid", g.conv(gate, 4, 16, 1))
    return g.model(IMAGE, [g.conv(g("Mul", a, gate), 16, 24, 1)])


def depthwise() -> onnx.ModelProto:
    g = Graph()
    x = g("Clip", g.conv("x", 3, 16, 3), g.constant(np.float32(0)), g.constant(np.float32(6)))
    x = g("Relu", g.batch_norm(g.conv(x, 16, 16, 5, stride=2, group=16), 16))
    return g.model(IMAGE, [g.conv(x, 16, 32, 1)])


def inverted_bottleneck() -> onnx.ModelProto:
    g = Graph()

    def swish(x: str) -> str:
        return g("Mul", x, g("Sigmoid", x))

    a = g.batch_norm(g.conv("x", 3, 16, 3, stride=2), 16)
    b = swish(g.batch_norm(g.conv(a, 16, 32, 1), 32))
    b = swish(g.batch_norm(g.conv(b, 32, 32, 5, group=32), 32))
    gate = swish(g.conv(g("ReduceMean", b, axes=[2, 3], keepdims=1), 32, 4, 1))
    b = g("Mul", b, g("Sigmoid", g.conv(gate, 4, 32, 1)))
    x = g("Add", g.batch_norm(g.conv(b, 32, 16, 1), 16), a)
    x = g("MaxPool", g("HardSwish", x), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    x = g("MatMul", g("Reshape", x, g.constant(np.array([0, -1]))), g.weight(256, 10))
    return g.model(IMAGE, [g("Softmax", g("Add", x, g.weight(10)), axis=-1)])


def quantized() -> onnx.ModelProto:
    g = Graph()
    a = g("Conv", g.quantized("x"), g.quantized_weight(16, 3, 3, 3), pads=[1, 1, 1, 1])
    a = g.quantized(g("Relu", a), zero_point=0)
    b = g.quantized(g("Conv", a, g.quantized_weight(16, 16, 3, 3), pads=[1, 1, 1, 1]))
    x = g.quantized(g("Add", a, b))
    x = g.quantized(g("GlobalAveragePool", x), scale=0.01)
    x = g.quantized(g("Flatten", x), scale=0.01)
    return g.model(IMAGE, [g.quantized(g("MatMul", x, g.quantized_weight(16, 10)), scale=0.01)], opset=19)


def masked_attention(
    mask: np.ndarray, windows: int = 4, tokens: int = 16, width: int = 8, *, images: int = 0
) -> onnx.ModelProto:
    """Attention within windows, as Swin's: a bias and a mask (windows, tokens, tokens) added to the scores; the nodes
    that work on masked weights are "softmax" and "sum". With `images` both are added up and repeated for each first, as
    torch's own exporter has it."""
    g = Graph()
    keys = g("Transpose", "x", perm=[0, 2, 1])
    scores, bias = g("MatMul", "x", keys), g.weight(tokens, tokens)
    if images:
        both = g("Tile", g("Add", bias, g.constant(mask.astype(np.float32))), g.constant(np.array([images, 1, 1])))
        weights = g("Softmax", g("Add", scores, both), axis=-1)
        g.nodes[-1].name = "softmax"
        mixed = g("MatMul", weights, "x")
        g.nodes[-1].name = "sum"
        return g.model({"x": [images * windows, tokens, width]}, [g("MatMul", mixed, g.weight(width, width))])
    scores = g("Add", scores, bias)
    scores = g("Reshape", scores, g.constant(np.array([1, windows, tokens, tokens])))
    scores = g("Add", g.constant(mask.astype(np.float32)), scores)
    scores = g("Reshape", scores, g.constant(np.array([windows, tokens, tokens])))
    weights = g("Softmax", scores, axis=-1)
    g.nodes[-1].name = "softmax"
    mixed = g("MatMul", g("Identity", weights), "x")
    g.nodes[-1].name = "sum"
    return g.model({"x": [windows, tokens, width]}, [g("MatMul", mixed, g.weight(width, width))])


def attention() -> onnx.ModelProto:
    g, width, heads = Graph(), 16, 2

    def layer_norm(x: str) -> str:
        d = g("Sub", x, g("ReduceMean", x, axes=[-1]))
        variance = g("ReduceMean", g("Pow", d, g.constant(np.float32(2))), axes=[-1])
        x = g("Div", d, g("Sqrt", g("Add", variance, g.constant(np.float32(1e-5)))))
        return g("Add", g("Mul", x, g.weight(width)), g.weight(width))

    def linear(x: str, n: int, m: int) -> str:
        return g("Add", g("MatMul", x, g.weight(n, m)), g.weight(m))

    def split(x: str, perm: list[int]) -> str:
        x = g("Reshape", linear(x, width, width), g.constant(np.array([0, -1, heads, width // heads])))
        return g("Transpose", x, perm=perm)

    x = g("Reshape", g.conv("x", 3, width, 3, stride=4), g.constant(np.array([0, width, -1])))
    x = g("Transpose", x, perm=[0, 2, 1])
    n = layer_norm(x)
    q, k, v = split(n, [0, 2, 1, 3]), split(n, [0, 2, 3, 1]), split(n, [0, 2, 1, 3])
    weights = g("Softmax", g("Mul", g("MatMul", q, k), g.constant(np.float32(0.35))), axis=-1)
    o = g("Transpose", g("MatMul", weights, v), perm=[0, 2, 1, 3])
    x = g("Add", x, linear(g("Reshape", o, g.constant(np.array([0, -1, width]))), width, width))
    y = linear(layer_norm(x), width, 32)
    erf = g("Erf", g("Div", y, g.constant(np.float32(np.sqrt(2)))))
    y = g("Mul", g("Mul", y, g("Add", erf, g.constant(np.float32(1)))), g.constant(np.float32(0.5)))
    x = layer_norm(g("Add", x, linear(y, 32, width)))
    x = g("ReduceMean", x, axes=[1], keepdims=0)
    return g.model(IMAGE, [g("Gemm", x, g.weight(10, width), g.weight(10), transB=1)])


def several_parts() -> onnx.ModelProto:
    """Two components without a common input, four outputs, one of them a copy, and repeated nodes."""
    g = Graph()
    a = g("Relu", g.conv("x", 3, 8, 3))
    b = g("Sigmoid", g("MatMul", "y", g.weight(5, 7)))
    copy, repeated = g("Identity", a), g("Add", g("Tanh", a), g("Tanh", a))
    return g.model({**IMAGE, "y": ["N", 5]}, [a, b, copy, repeated])


GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    f.__name__: f
    for f in (
        conv_bn_relu,
        residual,
        squeeze_excite,
        depthwise,
        inverted_bottleneck,
        quantized,
        attention,
        several_parts,
    )
}


def feeds_of(model: onnx.ModelProto, batch: int = 1, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = {v.name: [d.dim_value or batch for d in v.type.tensor_type.shape.dim] for v in model.graph.input}
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def case(model: onnx.ModelProto, path: Path, batch: int = 1, tolerance: float = 1e-4) -> ModelCase:
    """Save `model` at `path` with one batch and ONNX's own reference implementation of it."""
    onnx.save(model, str(path))
    feeds = feeds_of(model, batch)
    names = [output.name for output in model.graph.output]
    expected = dict(zip(names, ReferenceEvaluator(model).run(names, feeds), strict=True))
    return ModelCase(path, feeds, expected, frozenset(node_names(model.graph)), tolerance)


def tensor_shapes(model: onnx.ModelProto, batch: int = 1) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor that a node writes, by running the reference implementation."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    names = [name for node in whole.graph.node for name in node.output]
    del whole.graph.output[:]
    whole.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    arrays = ReferenceEvaluator(whole).run(names, feeds_of(model, batch))
    return {name: np.shape(array) for name, array in zip(names, arrays, strict=True)}
