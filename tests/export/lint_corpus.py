"""Networks with seeded defects, each beside everything that lint must find in it; and networks without any.

The defects are those that exporters, quantisers and hands make. Which of them an engine minds was tried with ONNX
Runtime 1.31, OpenVINO 2026.4 and TensorRT-RTX 1.7, before the rules were written; `SECOND` was written after them, from
what vendors' documents and users' questions name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from export_graphs import convnet, network, weight
from onnx import TensorProto, helper, numpy_helper

from akd_deploy.export.cast import cast_model
from akd_deploy.export.int8_settings import int8_settings
from akd_deploy.export.quantize import quantize_onnx
from akd_deploy.models.onnx_from_student import onnx_from_architecture
from akd_deploy.models.onnx_skeleton import filled, read_skeleton
from akd_deploy.models.published import skeleton_path
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

Expected = set[tuple[str, str]]
CHANNELS, SIDE = 16, 8


@dataclass
class Bad:
    """A defective network, the engine and precision it is meant for, and (rule, node) of every finding."""

    make: Callable[[], onnx.ModelProto]
    engine: str
    precision: str
    expected: Expected
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def target(self) -> Target:
        device = "cpu" if self.engine in ("onnxruntime", "openvino") else "rtx"
        return Target("t", device, self.engine, self.precision, engine_options=self.options)


@dataclass
class Int8:
    """An int8 network as it is built, one operator after the other."""

    unsigned: bool = True
    zero: int = 0
    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def constant(self, name: str, values: object, dtype: type) -> str:
        self.weights.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def pair(self, tensor: str, scale: object = 0.05, zero: int | None = None, name: str = "", **attributes) -> str:
        """Q and DQ after a tensor; returns what to read."""
        name = name or tensor
        kind = np.uint8 if self.unsigned else np.int8
        zeros = np.full(np.shape(scale), self.zero if zero is None else zero)
        s, z = self.constant(f"{name}_s", scale, np.float32), self.constant(f"{name}_z", zeros, kind)
        self.nodes.append(helper.make_node("QuantizeLinear", [tensor, s, z], [f"{name}_q"], f"{name}_q", **attributes))
        self.nodes.append(
            helper.make_node("DequantizeLinear", [f"{name}_q", s, z], [f"{name}_dq"], f"{name}_dq", **attributes)
        )
        return f"{name}_dq"

    def conv(
        self,
        tensor: str,
        name: str,
        inside: int = CHANNELS,
        outside: int = CHANNELS,
        axis: int = 0,
        weight_zero: int = 0,
        quantised: bool = True,
        bias: str = "",
        bias_scale: float = 0.05 * 0.01,
    ) -> str:
        rng = np.random.default_rng(self.seed + len(self.nodes))
        values = rng.integers(-127, 128, (outside, inside, 3, 3))
        if quantised:
            count = values.shape[axis]
            inputs = [
                self.constant(f"{name}_w", values, np.int8),
                self.constant(f"{name}_ws", np.full(count, 0.01), np.float32),
                self.constant(f"{name}_wz", np.full(count, weight_zero), np.int8),
            ]
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_wdq"], f"{name}_wdq", axis=axis))
            read = [tensor, f"{name}_wdq"]
        else:
            read = [tensor, self.constant(f"{name}_w", values * 0.01, np.float32)]
        if bias == "float":
            read.append(self.constant(f"{name}_b", rng.standard_normal(outside), np.float32))
        elif bias:
            inputs = [
                self.constant(f"{name}_b", rng.integers(-99, 99, outside), np.int32),
                self.constant(f"{name}_bs", np.full(outside, bias_scale), np.float32),
                self.constant(f"{name}_bz", np.zeros(outside), np.int32),
            ]
            self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}_bdq"], f"{name}_bdq", axis=0))
            read.append(f"{name}_bdq")
        self.nodes.append(helper.make_node("Conv", read, [f"{name}_y"], name, kernel_shape=[3, 3], pads=[1] * 4))
        return f"{name}_y"

    def op(self, op: str, inputs: list[str], name: str, **attributes) -> str:
        self.nodes.append(helper.make_node(op, inputs, [f"{name}_y"], name, **attributes))
        return f"{name}_y"

    def done(self, tensor: str, shape=(1, CHANNELS, SIDE, SIDE), opset: int = 17, size=(1, CHANNELS, SIDE, SIDE)):
        """The network whose output is `tensor`."""
        for node in self.nodes:
            node.output[:] = ["logits" if name == tensor else name for name in node.output]
            node.input[:] = ["logits" if name == tensor else name for name in node.input]
        return network(self.nodes, self.weights, size, shape, opset)


def int8_chain(net: Int8, *, relu: str = "Relu", scale: float = 0.05, last: bool = True, **first) -> onnx.ModelProto:
    """conv → activation → Q/DQ → conv, with `first` of the first convolution."""
    tensor = net.conv(net.pair("x"), "first", **first)
    if relu:
        inputs = [tensor]
        if relu == "Clip":
            inputs += [net.constant("low", 0.0, np.float32), net.constant("high", 6.0, np.float32)]
        tensor = net.op(relu, inputs, "act")
    tensor = net.conv(net.pair(tensor, scale, name="mid"), "second")
    return net.done(net.pair(tensor, name="end") if last else tensor)


def int8_residual(
    net: Int8, *, skip: bool = True, branch: bool = True, op: str = "Add", scales=(0.05, 0.05), relu=True
):
    """A block whose branches meet in `op`, then one convolution more."""
    first = net.conv(net.pair("x"), "first")
    if relu:
        first = net.op("Relu", [first], "act")
    read = net.pair(first, scales[0], name="mid")
    tensor = net.conv(read, "second")
    if branch:
        tensor = net.pair(tensor, scales[1], name="branch")
    attributes = {"axis": 1} if op == "Concat" else {}
    joined = net.op(op, [tensor, read if skip else first], "join", **attributes)
    width = 2 * CHANNELS if op == "Concat" else CHANNELS
    tensor = net.conv(net.pair(joined, name="joined"), "third", width)
    return net.done(net.pair(tensor, name="end"))


def int8_around(op: str, net: Int8, **attributes) -> onnx.ModelProto:
    """conv → Q/DQ → `op` → Q/DQ → conv."""
    tensor = net.pair(net.conv(net.pair("x"), "first"), name="mid")
    tensor = net.pair(net.op(op, [tensor], "odd", **attributes), name="after")
    return net.done(net.pair(net.conv(tensor, "second"), name="end"))


def int8_transposed(net: Int8) -> onnx.ModelProto:
    """A decoder's upsampling, quantised as the convolution before it."""
    tensor = net.pair(net.conv(net.pair("x"), "first"), name="mid")
    values = np.random.default_rng(1).integers(-127, 128, (CHANNELS, CHANNELS, 2, 2))
    inputs = [
        net.constant("up_w", values, np.int8),
        net.constant("up_ws", np.full(CHANNELS, 0.01), np.float32),
        net.constant("up_wz", np.zeros(CHANNELS), np.int8),
    ]
    net.nodes.append(helper.make_node("DequantizeLinear", inputs, ["up_wdq"], "up_wdq", axis=1))
    tensor = net.op("ConvTranspose", [tensor, "up_wdq"], "up", strides=[2, 2])
    return net.done(net.pair(tensor, name="end"), (1, CHANNELS, 2 * SIDE, 2 * SIDE))


def without(model: onnx.ModelProto, names: set[str]) -> onnx.ModelProto:
    """The network without some nodes, whose readers read what they read."""
    kept = [node for node in model.graph.node if node.name not in names]
    instead = {node.output[0]: node.input[0] for node in model.graph.node if node.name in names}
    for node in kept:
        node.input[:] = [instead.get(name, name) for name in node.input]
    del model.graph.node[:]
    model.graph.node.extend(kept)
    return model


def inserted(op: str, *, domain: str = "", opset: int = 17, after: str = "r0", imported: bool = True, **attributes):
    """The clean network with one more operator of the same shape in it."""
    model = convnet(CHANNELS, opset=opset)
    place = next(i for i, node in enumerate(model.graph.node) if after in node.output) + 1
    for node in model.graph.node:
        node.input[:] = ["odd_y" if name == after else name for name in node.input]
    model.graph.node.insert(place, helper.make_node(op, [after], ["odd_y"], "odd", domain=domain, **attributes))
    if domain and imported:
        model.opset_import.append(helper.make_opsetid(domain, 1))
    return model


def detector(op: str) -> onnx.ModelProto:
    """The clean network with an output whose size depends on values: which logits are not 0, or which boxes stay."""
    model = convnet(CHANNELS)
    if op == "NonZero":
        model.graph.node.append(helper.make_node("NonZero", ["logits"], ["found"], "odd"))
    else:
        box, score = np.random.default_rng(0).random((1, 10, 4)), np.random.default_rng(1).random((1, 1, 10))
        model.graph.initializer.extend([weight("boxes", box), weight("ones", score)])
        model.graph.node.append(helper.make_node("Unsqueeze", ["logits", "axis"], ["scores"], "scores"))
        model.graph.initializer.append(numpy_helper.from_array(np.array([1], np.int64), "axis"))
        model.graph.node.append(helper.make_node("NonMaxSuppression", ["boxes", "scores"], ["found"], "odd"))
    columns = ["n", 3] if op == "NonMaxSuppression" else [2, "n"]
    model.graph.output.append(helper.make_tensor_value_info("found", TensorProto.INT64, columns))
    return model


def dynamically_quantised(op: str = "ConvInteger") -> onnx.ModelProto:
    """What dynamic quantisation writes: integers multiplied, scales applied afterwards."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8), "w"),
        weight("ws", np.array(0.01)),
    ]
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dynamic"),
        helper.make_node(op, ["q", "w", "z"], ["i"], "product", pads=[1] * 4),
        helper.make_node("Cast", ["i"], ["f"], "cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["s", "ws"], ["both"], "scales"),
        helper.make_node("Mul", ["f", "both"], ["logits"], "scaled"),
    ]
    return network(nodes, weights, (1, CHANNELS, SIDE, SIDE), (1, CHANNELS, SIDE, SIDE))


def q_operators() -> onnx.ModelProto:
    """The other way to write int8: operators on integers instead of Q/DQ."""
    rng = np.random.default_rng(0)
    weights = [
        weight("s", np.array(0.05)), numpy_helper.from_array(np.array(0, np.uint8), "z"),
        numpy_helper.from_array(rng.integers(-127, 128, (CHANNELS, CHANNELS, 3, 3)).astype(np.int8), "w"),
        weight("ws", np.array(0.01)), numpy_helper.from_array(np.array(0, np.int8), "wz"),
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise"),
        helper.make_node("QLinearConv", ["q", "s", "z", "w", "ws", "wz", "s", "z"], ["y"], "product", pads=[1] * 4),
        helper.make_node("DequantizeLinear", ["y", "s", "z"], ["logits"], "dequantise"),
    ]
    return network(nodes, weights, (1, CHANNELS, SIDE, SIDE), (1, CHANNELS, SIDE, SIDE))


def in_type(element: int, opset: int = 22, weights_too: bool = True) -> onnx.ModelProto:
    """Two convolutions in another floating type; without `weights_too` the second one's weight stays in float32."""
    rng = np.random.default_rng(0)
    kind = helper.tensor_dtype_to_np_dtype(element)
    tensors = []
    for i in range(2):
        values = rng.standard_normal((CHANNELS, CHANNELS, 3, 3)) * 0.05
        if i == 0 or weights_too:
            tensors.append(numpy_helper.from_array(values.astype(kind), f"w{i}"))
        else:
            tensors.append(weight(f"w{i}", values))
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Relu", ["a"], ["b"], "act"),
        helper.make_node("Conv", ["b", "w1"], ["logits"], "second", pads=[1] * 4),
    ]
    shape = [1, CHANNELS, SIDE, SIDE]
    values = [helper.make_tensor_value_info(name, element, shape) for name in ("x", "logits")]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def eight_bits(element: int, opset: int) -> onnx.ModelProto:
    """conv with Q/DQ in an 8- or 16-bit type around it."""
    zero = helper.make_tensor("z", element, [], bytes(helper.tensor_dtype_to_np_dtype(element).itemsize), raw=True)
    width = zero.raw_data.__len__()
    shape = [CHANNELS, CHANNELS, 1, 1]
    stored = helper.make_tensor("w", element, shape, bytes(width * CHANNELS * CHANNELS), raw=True)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q0"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d0"),
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["wd"], "wd"),
        helper.make_node("Conv", ["d", "wd"], ["logits"], "conv", kernel_shape=[1, 1]),
    ]
    return network(nodes, [weight("s", np.array(0.05)), zero, stored], *[(1, CHANNELS, SIDE, SIDE)] * 2, opset)


def changed(name: str, change: Callable[[np.ndarray], np.ndarray], model: onnx.ModelProto | None = None):
    """The clean network with other values in one weight."""
    model = model or convnet(CHANNELS)
    tensor = next(t for t in model.graph.initializer if t.name == name)
    values = np.array(numpy_helper.to_array(tensor))
    tensor.CopyFrom(numpy_helper.from_array(change(values).astype(values.dtype), name))
    return model


def with_casts(*types: int) -> onnx.ModelProto:
    """The clean network with casts in a row after its first activation."""
    model = convnet(CHANNELS)
    for node in model.graph.node:
        node.input[:] = [f"cast{len(types) - 1}" if name == "r0" else name for name in node.input]
    names = ["r0", *(f"cast{i}" for i in range(len(types)))]
    for i, to in enumerate(types):
        model.graph.node.insert(2 + i, helper.make_node("Cast", [names[i]], [names[i + 1]], f"cast{i}", to=to))
    return model


def with_versions(opset: int | None = None, ir: int | None = None, op: str = "Relu") -> onnx.ModelProto:
    """An activation of another opset or file format."""
    shape = (1, CHANNELS, SIDE, SIDE)
    model = network([helper.make_node(op, ["x"], ["logits"], "act")], [], shape, shape, opset or 17)
    if ir is not None:
        model.ir_version = ir
    return model


def without_imports() -> onnx.ModelProto:
    model = convnet(CHANNELS)
    del model.opset_import[:]
    return model


def with_extra_weight() -> onnx.ModelProto:
    model = convnet(CHANNELS)
    model.graph.initializer.append(weight("teacher_head", np.zeros((10, 512))))
    return model


def sized(shape: tuple[int | str, ...]) -> onnx.ModelProto:
    """The clean network for other sizes of its input."""
    model = convnet(CHANNELS)
    model.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, list(shape)))
    if isinstance(shape[0], str):
        model.graph.output[0].CopyFrom(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [shape[0], 10]))
    return model


def wrong_output() -> onnx.ModelProto:
    model = convnet(CHANNELS)
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 11
    return model


FLOAT, HALF, BRAIN, DOUBLE = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE
E4M3, E5M2, INT16 = TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2, TensorProto.INT16
ORT, OV, TRT, RTX = "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"


def unfused(*nodes: str) -> Expected:
    return {("unfused-qdq", node) for node in nodes}


def refused(*nodes: str) -> Expected:
    return {("refused-qdq", node) for node in nodes}


def unsupported(*nodes: str) -> Expected:
    return {("unsupported-operator", node) for node in nodes}


LIE: Expected = {("precision-lie", "")}


def signed(**kwargs) -> Int8:
    """As TensorRT wants them: int8, zero point 0."""
    return Int8(unsigned=False, **kwargs)


def masked(value: float, windows: int = 0) -> onnx.ModelProto:
    """Attention of half the tokens with the other half masked; by windows: a bias, reshaped, a mask, reshaped back."""
    net, tokens, width = Int8(), 16, 16
    net.constant("mask", np.where(np.arange(tokens) < tokens // 2, 0, value), np.float32)
    net.constant("bias", np.linspace(-1, 1, tokens), np.float32)
    net.constant("w", np.eye(width), np.float32)
    score = net.op(
        "MatMul",
        [net.op("MatMul", ["x", "w"], "queries"), net.op("Transpose", ["x"], "keys", perm=[0, 2, 1])],
        "scores",
    )
    score = net.op("Add", [score, "bias"], "biased")
    if windows:
        split = net.constant("split", [-1, windows, tokens, tokens], np.int64)
        score = net.op("Reshape", [score, split], "by_window")
    score = net.op("Add", ["mask", score], "masked")
    if windows:
        score = net.op("Reshape", [score, net.constant("joined", [-1, tokens, tokens], np.int64)], "whole")
    mixed = net.op("MatMul", [net.op("Softmax", [score], "weights", axis=-1), "x"], "mixed")
    return net.done(mixed, (2, tokens, width), size=(2, tokens, width))


def with_texts() -> onnx.ModelProto:
    model = convnet(CHANNELS)
    model.graph.input.append(helper.make_tensor_value_info("label", TensorProto.STRING, [1]))
    return model


def multiplied_in_float16() -> onnx.ModelProto:
    """A weighted node in float16, and behind it a product in float32."""
    net, side = Int8(), 256
    net.constant("w", np.eye(side) / side, np.float16)
    low = net.op("MatMul", [net.op("Cast", ["x"], "down", to=TensorProto.FLOAT16), "w"], "weighted")
    high = net.op("Cast", [low], "up", to=TensorProto.FLOAT)
    found = net.op("MatMul", [high, net.op("Transpose", [high], "turned", perm=[0, 2, 1])], "odd")
    return net.done(found, (1, side, side), size=(1, side, side))


def in_float16(*operators: str, axes: tuple[int, ...] = (), batch: int | str = 1, cast: bool = True):
    """A weighted node in float16 (a later cast's), and a chain of operators behind it, the last of them "odd".

    `ReduceMax-Sub` takes from a tensor its largest value, `other-Sub` another tensor's; `axes` are those of a sum.
    """
    net, side = Int8(), 256
    kind = np.float16 if cast else np.float32
    net.constant("w", np.eye(side) / side, kind)
    given = net.op("Cast", ["x"], "down", to=TensorProto.FLOAT16) if cast else "x"
    tensor = net.op("MatMul", [given, "w"], "weighted")
    for i, operator in enumerate(operators):
        name = "odd" if i == len(operators) - 1 else f"{operator}{i}"
        inputs, op = [tensor], operator
        if operator in ("ReduceMax-Sub", "Identity-Sub", "Neg-Add", "other-Sub"):
            shift = net.op("ReduceMax", [given if operator == "other-Sub" else tensor], "top", axes=[-1], keepdims=1)
            if operator in ("Identity-Sub", "Neg-Add"):
                shift = net.op(operator.split("-")[0], [shift], "same")
            inputs, op = [tensor, shift], operator.split("-")[1]
        elif operator in ("Min", "Max", "Pow", "Add"):
            inputs.append(net.constant(f"{operator}_bound", 8.0, kind))
        elif operator == "Square":
            inputs, op = [tensor, tensor], "Mul"
        elif operator == "Raise":
            inputs, op = [net.constant("base", 10.0, kind), tensor], "Pow"
        elif operator == "CumSum":
            inputs.append(net.constant("along", 1, np.int64))
        elif operator == "ReduceSum":
            inputs.append(net.constant("axes", list(axes), np.int64))
        attributes = {"axes": list(axes)} if operator == "ReduceSumSquare" else {}
        tensor = net.op(op, inputs, name, **attributes)
    rows = [batch, side, side]
    if operators[-1].startswith("ReduceSum"):
        rows = [1 if i in axes else dim for i, dim in enumerate(rows)]
    found = net.op("Cast", [tensor], "up", to=TensorProto.FLOAT) if cast else tensor
    return net.done(found, tuple(rows), size=(batch, side, side))


def recurrent() -> onnx.ModelProto:
    net, steps, width = Int8(), 6, 16
    net.constant("w", np.ones((1, 4 * width, width)) / width, np.float32)
    net.constant("r", np.ones((1, 4 * width, width)) / width, np.float32)
    return net.done(
        net.op("LSTM", ["x", "w", "r"], "lstm", hidden_size=width), (steps, 1, 1, width), size=(steps, 1, width)
    )


OVERFLOW: Expected = {("float16-overflow", "odd")}

BAD: Mapping[str, Bad] = {
    # Operators
    "an operator nobody has": Bad(lambda: inserted("SiLU"), ORT, "fp32", unsupported("odd")),
    "a framework's own domain": Bad(lambda: inserted("Warp", domain="mmdeploy"), ORT, "fp32", unsupported("odd")),
    "a fused contrib operator": Bad(
        lambda: inserted("QuickGelu", domain="com.microsoft"), TRT, "fp32", unsupported("odd")
    ),
    "non-zero on RTX": Bad(lambda: detector("NonZero"), RTX, "fp32", unsupported("odd")),
    "suppression on RTX": Bad(lambda: detector("NonMaxSuppression"), RTX, "fp32", unsupported("odd")),
    "dynamic quantisation": Bad(dynamically_quantised, TRT, "int8", unsupported("dynamic", "product")),
    "integer operators": Bad(q_operators, TRT, "int8", unsupported("product") | unfused("quantise")),
    "bfloat16 on the CPU provider": Bad(lambda: in_type(BRAIN), ORT, "bf16", unsupported("first", "second")),
    "float64 on the CPU provider": Bad(lambda: in_type(DOUBLE), ORT, "fp32", unsupported("first", "second") | LIE),
    "int16 for TensorRT": Bad(lambda: eight_bits(INT16, 21), TRT, "int8", unsupported("q0", "d0", "wd") | LIE),
    "float8 of the other kind": Bad(lambda: eight_bits(E5M2, 19), RTX, "fp8", unsupported("q0", "d0", "wd"),
        {"compute_capabilities": ("sm89",)}),
    # Q/DQ that an engine refuses
    "a zero point for TensorRT": Bad(
        lambda: int8_chain(Int8(zero=128)), TRT, "int8", refused("x_q", "mid_q", "end_q")
    ),
    "a quantised bias for TensorRT": Bad(
        lambda: int8_chain(signed(), bias="int32"), RTX, "int8", refused("first_bdq")
    ),
    "a weight with a zero point for TensorRT": Bad(
        lambda: int8_chain(signed(), weight_zero=3), RTX, "int8", refused("first_wdq")
    ),
    "signed activations with a zero point for OpenVINO": Bad(
        lambda: int8_chain(signed(zero=-128)), OV, "int8", refused("x_dq", "mid_dq")
    ),
    "a dead channel's scale": Bad(lambda: int8_chain(Int8(), scale=0.0), ORT, "int8", refused("mid_q")),
    # Q/DQ that does not become int8 kernels
    "scales along the summed axis": Bad(lambda: int8_chain(signed(), axis=1), RTX, "int8", unfused("first")),
    "scales along the summed axis, OpenVINO": Bad(lambda: int8_chain(Int8(), axis=1), OV, "int8", unfused("first")),
    "a weight with a zero point for OpenVINO": Bad(
        lambda: int8_chain(Int8(), weight_zero=3), OV, "int8", unfused("first")
    ),
    "ReLU before a signed Q": Bad(lambda: int8_chain(signed()), ORT, "int8", unfused("first")),
    "ReLU before a Q with zero point 128": Bad(lambda: int8_chain(Int8(zero=128)), ORT, "int8", unfused("first")),
    "ReLU6 before a wider Q": Bad(
        lambda: int8_chain(Int8(), relu="Clip", scale=8 / 255), ORT, "int8", unfused("first")
    ),
    "another activation before Q": Bad(
        lambda: int8_chain(Int8(), relu="LeakyRelu"), ORT, "int8", unfused("first")
    ),
    "a last convolution without Q": Bad(lambda: int8_chain(Int8(), last=False), ORT, "int8", unfused("second")),
    "a bias of another scale": Bad(
        lambda: int8_chain(Int8(), bias="int32", bias_scale=0.01), ORT, "int8", unfused("first")
    ),
    "a weight forgotten": Bad(
        lambda: int8_chain(Int8(), quantised=False), OV, "int8", unfused("first") | {("precision-lie", "first")}
    ),
    "a float skip, ONNX Runtime": Bad(lambda: int8_residual(Int8(), skip=False), ORT, "int8", unfused("first", "join")),
    "a float skip, OpenVINO": Bad(lambda: int8_residual(Int8(), skip=False), OV, "int8", unfused("join")),
    "a float skip, TensorRT": Bad(lambda: int8_residual(signed(), skip=False), TRT, "int8", unfused("join")),
    "a float branch": Bad(lambda: int8_residual(Int8(), branch=False), ORT, "int8", unfused("second", "join")),
    "signed branches on ONNX Runtime": Bad(
        lambda: int8_residual(signed(), relu=False), ORT, "int8", unfused("join")
    ),
    "a concatenation of two scales": Bad(
        lambda: int8_residual(signed(), op="Concat", scales=(0.05, 0.2)), TRT, "int8", unfused("join")
    ),
    "Q/DQ around what has no int8 kernel": Bad(lambda: int8_around("Erf", Int8()), OV, "int8", unfused("odd")),
    "Q/DQ around HardSwish on ONNX Runtime": Bad(
        lambda: int8_around("HardSwish", Int8()), ORT, "int8", unfused("odd")
    ),
    "a quantised transposed convolution": Bad(lambda: int8_transposed(signed()), RTX, "int8", unfused("up")),
    "two pairs in a row": Bad(
        lambda: without(int8_around("Relu", Int8()), {"odd"}), ORT, "int8", unfused("mid_dq")
    ),
    # Channels and sizes
    "channels off the CPU's blocks": Bad(
        lambda: convnet(18),
        ORT, "fp32", {("odd-channels", n) for n in ("conv0", "depthwise", "pointwise", "classifier")},
    ),
    "channels off half-precision tensor cores": Bad(
        lambda: cast_model(convnet(20), "fp16").model,
        TRT, "fp16", {("odd-channels", n) for n in ("conv0", "depthwise", "pointwise", "classifier")},
    ),
    "a dynamic image": Bad(lambda: sized((1, 3, "height", "width")), RTX, "fp32", {("dynamic-dimension", "")}),
    "a dynamic batch": Bad(lambda: sized(("batch", 3, SIDE, SIDE)), OV, "fp32", {("dynamic-dimension", "")}),
    "a weight for other channels": Bad(
        lambda: changed("w2", lambda w: np.repeat(w, 2, axis=1)), ORT, "fp32", {("channel-mismatch", "pointwise")}
    ),
    # Precision
    "float32 for float16": Bad(lambda: convnet(CHANNELS), RTX, "fp16", LIE),
    "float32 for int8": Bad(lambda: convnet(CHANNELS), OV, "int8", LIE),
    "an island in float32": Bad(
        lambda: cast_model(convnet(CHANNELS), "fp16", {"pointwise": "of the test"}).model,
        RTX, "fp16", {("precision-lie", "pointwise")},
    ),
    "float16 with a float32 weight": Bad(
        lambda: in_type(HALF, weights_too=False), RTX, "fp16", {("mixed-types", "second")}
    ),
    "a weight beyond float16": Bad(
        lambda: changed("b0", lambda b: np.where(np.arange(len(b)) == 3, 7e4, b)),
        TRT, "fp16", {("float16-overflow", "conv0")} | LIE,
    ),
    "sums beyond float16": Bad(
        lambda: cast_model(changed("w2", lambda w: np.full_like(w, 500.0)), "fp16").model,
        RTX, "fp16", {("float16-overflow", "pointwise")},
    ),
    "weights below float16": Bad(
        lambda: cast_model(changed("w2", lambda w: w * 1e-5), "fp16").model,
        RTX, "fp16", {("float16-underflow", "pointwise")},
    ),
    "a mask of −100": Bad(lambda: masked(-100.0), ORT, "fp32", {("denormal-mask", "weights")}),
    "a mask of −100 per window": Bad(lambda: masked(-100.0, windows=2), ORT, "fp32", {("denormal-mask", "weights")}),
    "a cast there and back": Bad(lambda: with_casts(HALF, FLOAT), OV, "fp32", {("double-cast", "cast1")}),
    "a cast to the same": Bad(lambda: with_casts(FLOAT), RTX, "fp32", {("double-cast", "cast0")}),
    # Operator sets and files
    "scales per channel in opset 12": Bad(
        lambda: without(int8_one_weight(12), set()), OV, "int8", {("old-opset", "w_dq")}
    ),
    "float8 in opset 18": Bad(
        lambda: eight_bits(E4M3, 18), RTX, "fp8", {("old-opset", n) for n in ("q0", "d0", "wd")}
    ),
    "bfloat16 in opset 17": Bad(
        lambda: in_type(BRAIN, 17), RTX, "bf16", {("old-opset", "first"), ("old-opset", "second")}
    ),
    "no opset": Bad(without_imports, OV, "fp32", {("missing-opset", "")}),
    "a domain without a version": Bad(
        lambda: inserted("QuickGelu", domain="com.microsoft", imported=False), ORT, "fp32", {("missing-opset", "")}
    ),
    "a newer opset": Bad(lambda: with_versions(opset=27), ORT, "fp32", {("new-opset", "")}),
    "a newer file format": Bad(lambda: with_versions(ir=14), ORT, "fp32", {("new-ir-version", "")}),
    "an operator of a later opset": Bad(
        lambda: inserted("Gelu", opset=17), OV, "fp32", unsupported("odd")
    ),
    "a shape that is not so": Bad(wrong_output, OV, "fp32", {("corrupt-graph", "")}),
    "NaN among weights": Bad(
        lambda: changed("b0", lambda values: np.where(np.arange(len(values)) == 3, np.nan, values)), ORT, "fp32",
        {("nan-weight", "conv0")},
    ),
    "NaN among weights of float16": Bad(
        lambda: cast_model(changed("b0", lambda values: values * np.nan), "fp16").model, TRT, "fp16",
        {("nan-weight", "conv0")},
    ),
    "bfloat16 before Ampere": Bad(
        lambda: cast_model(convnet(CHANNELS), "bf16").model, RTX, "bf16", {("unsupported-precision", "")},
        {"compute_capabilities": ("sm75", "sm86")},
    ),
    "float8 on the cards that a plan is for by default": Bad(
        lambda: eight_bits(E4M3, 19), RTX, "fp8", {("unsupported-precision", "")}
    ),
    "texts for TensorRT": Bad(with_texts, RTX, "fp32", {("unsupported-type", "")}),
    "a gain beyond float16": Bad(lambda: normalised(1.0, 1e4), TRT, "fp16", {("float16-overflow", "odd"), *LIE}),
    "an exponential in float16": Bad(lambda: in_float16("Exp"), TRT, "fp16", OVERFLOW),
    "an exponential of what another's largest was taken from": Bad(
        lambda: in_float16("other-Sub", "Exp"), TRT, "fp16", OVERFLOW
    ),
    "an exponential above a bound": Bad(lambda: in_float16("Max", "Exp"), TRT, "fp16", OVERFLOW),
    "an exponential that a cast will bring to float16": Bad(
        lambda: in_float16("Exp", cast=False), TRT, "fp16", OVERFLOW | LIE
    ),
    "a long sum in float16": Bad(lambda: in_float16("ReduceSum", axes=(1, 2)), TRT, "fp16", OVERFLOW),
    "a long sum of an open batch": Bad(
        lambda: in_float16("ReduceSum", axes=(1, 2), batch="N"), TRT, "fp16",
        OVERFLOW | {("dynamic-dimension", "")}, {"shapes": ("x:1x256x256:2x256x256:4x256x256",)},
    ),
    "a sum of squares in float16": Bad(
        lambda: in_float16("Tanh", "Exp", "Exp", "ReduceSumSquare", axes=(1, 2)), TRT, "fp16", OVERFLOW
    ),
    "a sum of squares by hand": Bad(lambda: in_float16("Square", "ReduceSum", axes=(1, 2)), TRT, "fp16", OVERFLOW),
    "an eighth power in float16": Bad(lambda: in_float16("Pow"), TRT, "fp16", OVERFLOW),
    "a power of ten in float16": Bad(lambda: in_float16("Raise"), TRT, "fp16", OVERFLOW),
    "a running sum in float16": Bad(lambda: in_float16("Exp", "CumSum"), TRT, "fp16", {("float16-overflow", "Exp0")}),
    "a product of activations left in float32": Bad(
        multiplied_in_float16, TRT, "fp16", {("precision-lie", "odd")}
    ),
    "a recurrent network in float32": Bad(recurrent, RTX, "fp16", LIE),
    "a weight nobody reads": Bad(with_extra_weight, OV, "fp32", {("unused-weight", "")}),
}  # fmt: skip
"""Name → a network with seeded defects."""


def int8_one_weight(opset: int) -> onnx.ModelProto:
    """A convolution with scales per channel as quantisers of an older opset write them."""
    weights = [
        weight("s", np.array(0.05)), numpy_helper.from_array(np.array(0, np.uint8), "z"),
        numpy_helper.from_array(np.ones((CHANNELS, CHANNELS, 1, 1), np.int8), "w"),
        weight("ws", np.full(CHANNELS, 0.01)), numpy_helper.from_array(np.zeros(CHANNELS, np.int8), "wz"),
    ]  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "x_q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "x_dq"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "w_dq"),
        helper.make_node("Conv", ["d", "wd"], ["c"], "conv", kernel_shape=[1, 1]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["cq"], "y_q"),
        helper.make_node("DequantizeLinear", ["cq", "s", "z"], ["logits"], "y_dq"),
    ]
    nodes[2].attribute.append(helper.make_attribute("axis", 0))
    return network(nodes, weights, *[(1, CHANNELS, SIDE, SIDE)] * 2, opset)


# --- written after the rules ---


def with_constant(values: float, op: str = "Add") -> onnx.ModelProto:
    """The clean network with a number in a Constant node, as tracing exporters write masks and epsilons."""
    model = convnet(CHANNELS)
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [values])
    model.graph.node.insert(2, helper.make_node("Constant", [], ["number"], "number", value=value))
    model.graph.node.insert(3, helper.make_node(op, ["r0", "number"], ["masked"], "odd"))
    for node in list(model.graph.node)[4:]:
        node.input[:] = ["masked" if name == "r0" else name for name in node.input]
    return model


def normalised(variance: float, gamma: float = 1.0, epsilon: float = 1e-5) -> onnx.ModelProto:
    """The clean network with a BatchNormalization that nobody folded."""
    model = inserted("BatchNormalization")
    values = {"gamma": gamma, "beta": 0.0, "mean": 0.0, "variance": variance}
    node = next(n for n in model.graph.node if n.name == "odd")
    node.input.extend(values)
    node.attribute.append(helper.make_attribute("epsilon", epsilon))
    model.graph.initializer.extend(weight(name, np.full(CHANNELS, value)) for name, value in values.items())
    return model


def gated(op: str) -> onnx.ModelProto:
    """An operator inside a branch."""
    shape = [1, CHANNELS, SIDE, SIDE]
    output = [helper.make_tensor_value_info("inner", TensorProto.FLOAT, shape)]
    then = helper.make_graph([helper.make_node(op, ["x"], ["inner"], "odd")], "then", [], output)
    otherwise = helper.make_graph([helper.make_node("Relu", ["x"], ["inner"], "act")], "otherwise", [], output)
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["top"], "top", keepdims=0),
        helper.make_node("Greater", ["top", "zero"], ["is_lit"], "is_lit"),
        helper.make_node("If", ["is_lit"], ["logits"], "gate", then_branch=then, else_branch=otherwise),
    ]
    return network(nodes, [weight("zero", np.array(0.0))], tuple(shape), tuple(shape))


def sequence() -> onnx.ModelProto:
    """What tracing writes for `unbind`."""
    nodes = [
        helper.make_node("SplitToSequence", ["x"], ["parts"], "split", axis=1, keepdims=1),
        helper.make_node("SequenceAt", ["parts", "first"], ["logits"], "pick"),
    ]
    first = numpy_helper.from_array(np.array(0, np.int64), "first")
    return network(nodes, [first], (1, CHANNELS, SIDE, SIDE), (1, 1, SIDE, SIDE))


def own_function(op: str) -> onnx.ModelProto:
    """An operator in a function that the file brings along."""
    body = [helper.make_node(op, ["a"], ["b"])]
    function = helper.make_function("local", "Block", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = inserted("Block", domain="local")
    model.functions.append(function)
    return model


def product(net: Int8, op: str, *, axis: int | None = None, quantised: bool = True, transposed: int = 0):
    """A quantised classifier."""
    values = np.random.default_rng(0).integers(-127, 128, (10, CHANNELS) if transposed else (CHANNELS, 10))
    read = net.pair("x")
    if quantised:
        count = () if axis is None else values.shape[axis]
        inputs = [
            net.constant("w", values, np.int8),
            net.constant("ws", np.full(count, 0.01), np.float32),
            net.constant("wz", np.zeros(count), np.int8),
        ]
        attributes = {} if axis is None else {"axis": axis}
        net.nodes.append(helper.make_node("DequantizeLinear", inputs, ["wdq"], "wdq", **attributes))
    else:
        net.constant("wdq", values * 0.01, np.float32)
    attributes = {"transB": transposed} if transposed else {}
    tensor = net.op(op, [read, "wdq"], "product", **attributes)
    return net.done(net.pair(tensor, name="end"), (4, 10), 17, (4, CHANNELS))


def four_bits() -> onnx.ModelProto:
    """Weights of 4 bits with a scale for each block of 16, activations in floating point: as language models ship."""
    values = helper.make_tensor("w", TensorProto.INT4, [32, 16], bytes(256), raw=True)
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"], "wd", axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "wd"], ["logits"], "product"),
    ]
    return network(nodes, [values, weight("ws", np.full((2, 16), 0.01))], (4, 32), (4, 16), 21)


def pooled_before_q() -> onnx.ModelProto:
    net = Int8()
    tensor = net.op("MaxPool", [net.conv(net.pair("x"), "first")], "pool", kernel_shape=[1, 1])
    return net.done(net.pair(net.conv(net.pair(tensor, name="mid"), "second"), name="end"))


def unfolded_norm() -> onnx.ModelProto:
    net = Int8()
    numbers = zip("gbmv", (1, 0, 0, 1), strict=True)
    values = [net.constant(name, np.full(CHANNELS, value), np.float32) for name, value in numbers]
    tensor = net.op("BatchNormalization", [net.conv(net.pair("x"), "first"), *values], "norm")
    return net.done(net.pair(net.conv(net.pair(tensor, name="mid"), "second"), name="end"))


def two_scales() -> onnx.ModelProto:
    """A pair whose halves disagree."""
    model = int8_chain(Int8())
    model.graph.initializer.append(weight("other", np.array(0.2)))
    next(n for n in model.graph.node if n.name == "mid_dq").input[1] = "other"
    return model


def constant_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with zero points in Constant nodes."""
    moved = [t for t in model.graph.initializer if t.name.endswith("_z")]
    kept = [t for t in model.graph.initializer if not t.name.endswith("_z")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    for tensor in moved:
        model.graph.node.insert(0, helper.make_node("Constant", [], [tensor.name], f"{tensor.name}_node", value=tensor))
    return model


def unnamed(model: onnx.ModelProto) -> onnx.ModelProto:
    for node in model.graph.node:
        node.name = ""
    return model


SECOND: Mapping[str, Bad] = {
    "a mask beyond float16 in a Constant": Bad(
        lambda: with_constant(-1e9), RTX, "fp16", {("float16-overflow", "odd")} | LIE
    ),
    "an epsilon that float16 makes 0": Bad(
        lambda: with_constant(1e-12), RTX, "fp16", {("float16-underflow", "odd")} | LIE
    ),
    "a variance beyond float16": Bad(lambda: normalised(1e5), TRT, "fp16", {("float16-overflow", "odd")} | LIE),
    "an infinite weight in float16": Bad(
        lambda: cast_model(changed("b0", lambda b: np.where(np.arange(len(b)) == 3, np.inf, b)), "fp16").model,
        RTX, "fp16", {("float16-overflow", "conv0")},
    ),
    "an operator inside a branch": Bad(lambda: gated("Bernoulli"), TRT, "fp32", unsupported("gate")),
    "sequences": Bad(sequence, RTX, "fp32", unsupported("split", "pick")),
    "sequences for OpenVINO": Bad(sequence, OV, "fp32", unsupported("split")),
    "an operator inside a function": Bad(lambda: own_function("Bernoulli"), TRT, "fp32", unsupported("odd")),
    "Gemm with scales along the summed axis": Bad(
        lambda: product(Int8(), "Gemm", axis=1, transposed=1), ORT, "int8", unfused("product")
    ),
    "MatMul with scales along the summed axis": Bad(
        lambda: product(Int8(), "MatMul", axis=0), OV, "int8", unfused("product")
    ),
    "MatMul with a float weight": Bad(
        lambda: product(Int8(), "MatMul", quantised=False), ORT, "int8", unfused("product") | LIE
    ),
    "pooling between convolution and Q": Bad(pooled_before_q, ORT, "int8", unfused("first")),
    "a norm between convolution and Q": Bad(unfolded_norm, ORT, "int8", unfused("first")),
    "a pair of two scales": Bad(two_scales, TRT, "int8", refused("mid_dq")),
    "a zero point in a Constant": Bad(
        lambda: constant_scales(int8_chain(Int8(zero=7))), RTX, "int8", refused("x_q", "mid_q", "end_q")
    ),
    "nodes without names": Bad(
        lambda: unnamed(int8_chain(signed())), ORT, "int8", unfused("Conv_3")
    ),
    "a negative scale": Bad(lambda: int8_chain(signed(), scale=-0.05), RTX, "int8", refused("mid_q")),
    "channels off int8 tensor cores": Bad(
        lambda: int8_odd(), TRT, "int8", {("odd-channels", "first"), ("odd-channels", "second")}
    ),
    "three casts": Bad(
        lambda: with_casts(HALF, BRAIN, FLOAT), OV, "fp32", {("double-cast", "cast1"), ("double-cast", "cast2")}
    ),
    "a graph that shares a weight in float32": Bad(
        lambda: in_type(BRAIN, weights_too=False), OV, "fp32", {("mixed-types", "second")}
    ),
    "four bits alone": Bad(four_bits, ORT, "fp32", set()),
}  # fmt: skip
"""Name → a network with seeded defects (the last one with none) that no rule was written for."""


def int8_odd() -> onnx.ModelProto:
    net = signed()
    tensor = net.pair(net.conv(net.pair("x"), "first", outside=24), name="mid")
    return net.done(net.pair(net.conv(tensor, "second", inside=24), name="end"))


# --- without defects ---


@dataclass
class Clean:
    """A network in which nothing is to be found for an engine and precision; int8 ones are quantised by ourselves."""

    make: Callable[[], onnx.ModelProto]
    engine: str
    precision: str

    @property
    def target(self) -> Target:
        return Bad(self.make, self.engine, self.precision, set()).target

    def write(self, folder: Path) -> Path:
        """The network in the precision, as a file."""
        model, path = self.make(), folder / "float32.onnx"
        if self.precision in ("fp16", "bf16") and self.engine != OV:
            model = cast_model(model, self.precision).model
        path.write_bytes(model.SerializeToString())
        if self.precision != "int8" or any(node.op_type == "QuantizeLinear" for node in model.graph.node):
            return path
        rng = np.random.default_rng(1)
        shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
        feeds = [{model.graph.input[0].name: rng.standard_normal(shape, dtype=np.float32)} for _ in range(2)]
        settings = int8_settings(self.engine, ["avx512_vnni"])
        return quantize_onnx(path, "int8", feeds, folder / "int8.onnx", settings).path


def published(name: str) -> Callable[[], onnx.ModelProto]:
    return lambda: filled(read_skeleton(skeleton_path(name)), np.random.default_rng(0))


def student(seed: int, **settings: object) -> Callable[[], onnx.ModelProto]:
    """A network of a space whose widths are multiples of 16."""
    rng = np.random.default_rng(seed)
    space = load_space("mobile", {**_WIDE, **settings})
    return lambda: onnx_from_architecture(space.sample(rng), rng)


_WIDE = {
    "stem_width": 16, "widths": [16, 32, 48], "strides": [2, 1, 2], "operators": ["conv", "dw_separable"],
    "resolution": 16, "in_channels": 3, "se_ratios": [0.0], "width_multipliers": [1.0],
}  # fmt: skip

CLEAN: Mapping[str, Clean] = {
    "mobilenet_v2": Clean(published("mobilenet_v2"), ORT, "fp32"),
    "mobilenet_v3_small": Clean(published("mobilenet_v3_small"), RTX, "fp16"),
    "mnasnet_b1": Clean(published("mnasnet_b1"), OV, "fp32"),
    "densenet121": Clean(published("densenet121"), ORT, "fp32"),
    "squeezenet1_1": Clean(published("squeezenet1_1"), OV, "int8"),
    "unet_small": Clean(published("unet_small"), OV, "bf16"),
    "convnext_atto": Clean(published("convnext_atto"), RTX, "bf16"),
    "vit_tiny_16": Clean(published("vit_tiny_16"), TRT, "fp16"),
    "bert_tiny": Clean(published("bert_tiny"), ORT, "fp32"),
    "espcn_x3": Clean(published("espcn_x3"), RTX, "int8"),
    "nasbench201_0": Clean(published("nasbench201_0"), TRT, "tf32"),
    "shufflenet_v2_x0_5": Clean(published("shufflenet_v2_x0_5"), OV, "fp32"),
    "a student": Clean(student(0), ORT, "fp32"),
    "a student with hard swish": Clean(student(1, activation="hardswish"), RTX, "fp16"),
    "a student in int8": Clean(student(2), ORT, "int8"),
    "another student in int8": Clean(student(3, resolution=32), RTX, "int8"),
    "a mask of −10000": Clean(lambda: masked(-1e4), ORT, "fp32"),
    "a mask of −80": Clean(lambda: masked(-80.0), ORT, "fp32"),
    "a mask of −100 where it does no harm": Clean(lambda: masked(-100.0), OV, "fp32"),
    "a network by hand in int8": Clean(lambda: convnet(32, size=16), OV, "int8"),
    "a residual block in int8": Clean(lambda: int8_residual(Int8()), ORT, "int8"),
    "an exponential of a Tanh": Clean(lambda: in_float16("Tanh", "Exp", cast=False), TRT, "fp16"),
    "an exponential of a LogSoftmax": Clean(lambda: in_float16("LogSoftmax", "Exp", cast=False), TRT, "fp16"),
    "an exponential below a bound": Clean(lambda: in_float16("Min", "Exp", cast=False), TRT, "fp16"),
    "an exponential of −Softplus": Clean(lambda: in_float16("Softplus", "Neg", "Exp", cast=False), TRT, "fp16"),
    "a softmax by hand": Clean(lambda: in_float16("ReduceMax-Sub", "Exp", cast=False), TRT, "fp16"),
    "a softmax by hand under another name": Clean(lambda: in_float16("Identity-Sub", "Exp", cast=False), TRT, "fp16"),
    "a softmax by hand that adds": Clean(lambda: in_float16("Neg-Add", "Exp", cast=False), TRT, "fp16"),
    "a sigmoid by hand": Clean(lambda: in_float16("Neg", "Exp", "Add", "Reciprocal", cast=False), TRT, "fp16"),
    "a Gaussian": Clean(lambda: in_float16("Square", "Neg", "Exp", cast=False), TRT, "fp16"),
    "an eighth power of a Tanh": Clean(lambda: in_float16("Tanh", "Pow", cast=False), TRT, "fp16"),
    "a power of ten of a Tanh": Clean(lambda: in_float16("Tanh", "Raise", cast=False), TRT, "fp16"),
    "a sum of a Softmax": Clean(lambda: in_float16("Softmax", "ReduceSum", axes=(1, 2), cast=False), TRT, "fp16"),
    "a channel that died": Clean(lambda: normalised(5e-4, 1e3, epsilon=1e-3), TRT, "fp16"),
}
"""Name → a network without defects."""


def of_random_pairs(rng: np.random.Generator) -> onnx.ModelProto:
    """Convolutions, activations and (unsigned) joins, with Q/DQ of some zero point between some of them."""
    net = Int8(bool(rng.random() < 0.6), seed=int(rng.integers(1000)))
    net.zero = int(rng.choice([0, 0, 128] if net.unsigned else [0, -128]))
    tensor = net.pair("x")
    seen: list[str] = []
    for i in range(int(rng.integers(2, 6))):
        bias = str(rng.choice(["", "float", "int32"]))
        tensor = net.conv(tensor, f"conv{i}", bias=bias, bias_scale=float(rng.choice([0.05 * 0.01, 0.01])))
        kind = str(rng.choice(["", "Relu", "Relu", "Clip", "LeakyRelu", "Sigmoid"]))
        if kind:
            bounds = [net.constant(f"low{i}", 0.0, np.float32), net.constant(f"high{i}", 6.0, np.float32)]
            tensor = net.op(kind, [tensor, *(bounds if kind == "Clip" else [])], f"act{i}")
        if rng.random() < 0.8 or not i:
            tensor = net.pair(
                tensor, float(rng.choice([0.05, 6 / 255, 0.02])) if kind == "Clip" else 0.05, name=f"t{i}"
            )
        if net.unsigned and seen and rng.random() < 0.4:
            tensor = net.op("Add", [tensor, str(rng.choice(seen))], f"join{i}")
        tensor = net.pair(tensor, name=f"j{i}") if not tensor.endswith("_dq") else tensor
        seen.append(tensor)
    return net.done(tensor)
