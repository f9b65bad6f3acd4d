"""Small ONNX networks for the tests of shipping, built by hand so that every tensor is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def weight(name: str, values: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def network(nodes, initializers, input_shape=(1, 3, 8, 8), output_shape=(1, 10), opset=17, **kwargs) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(input_shape))],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, list(output_shape))],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), *kwargs.pop("opsets", [])]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9 if opset < 22 else 10, **kwargs)


def convnet(channels: int = 16, classes: int = 10, seed: int = 0, opset: int = 17, size: int = 8) -> onnx.ModelProto:
    """Conv-Relu, a residual depthwise-separable block with a clip, pooling and a classifier."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))

    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["c0"], "conv0", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node(
            "Conv", ["r0", "w1"], ["c1"], "depthwise", kernel_shape=[3, 3], pads=[1, 1, 1, 1], group=channels
        ),
        helper.make_node("Clip", ["c1", "low", "high"], ["k1"], "relu6"),
        helper.make_node("Conv", ["k1", "w2"], ["c2"], "pointwise", kernel_shape=[1, 1]),
        helper.make_node("Add", ["c2", "r0"], ["a2"], "residual"),
        helper.make_node("GlobalAveragePool", ["a2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["f"], "flatten"),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["logits"], "classifier", transB=1),
    ]
    initializers = [
        weight("w0", normal(channels, 3, 3, 3)),
        weight("b0", rng.standard_normal(channels)),
        weight("w1", normal(channels, 1, 3, 3)),
        weight("low", np.array(0.0)),
        weight("high", np.array(6.0)),
        weight("w2", normal(channels, channels, 1, 1)),
        weight("w3", normal(classes, channels)),
        weight("b3", rng.standard_normal(classes)),
    ]
    return network(nodes, initializers, (1, 3, size, size), (1, classes), opset)


def saved(model: onnx.ModelProto, path: Path) -> Path:
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def images(count: int, seed: int = 1, size: int = 8) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    return [{"x": rng.standard_normal((1, 3, size, size)).astype(np.float32)} for _ in range(count)]
