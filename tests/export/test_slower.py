"""Why int8 is slower: read off kernels made by hand, and off those that ONNX Runtime really runs."""

from __future__ import annotations

import numpy as np
import pytest
from export_graphs import network, saved, weight
from onnx import helper, numpy_helper

from akd_deploy.engines import load_engine
from akd_deploy.export.slower import explain_slower
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.target import Target

SHAPE = (1, 8, 4, 4)


def kernel(op, name, dtype="float32", nodes=None, **attributes):
    return ExecutedKernel(Kernel(op, (SHAPE,), (SHAPE,), dtype, tuple(attributes.items())), name, nodes or (name,))


def test_added_conversions_float_products_and_lost_activations_are_named_with_their_nodes():
    before = [kernel("Conv", "conv", nodes=("conv", "relu"), activation="Relu"), kernel("ReorderOutput", "r")]
    after = [
        kernel("QuantizeLinear", "q1"),
        kernel("Conv", "conv"),
        kernel("Relu", "relu"),
        kernel("QuantizeLinear", "q2"),
        kernel("ReorderOutput", "r"),
        kernel("DequantizeLinear", "d"),
    ]
    told = explain_slower(before, after)
    assert "3 more kernels that only convert: 1 DequantizeLinear, 2 QuantizeLinear (at q1, q2, d)" in told
    assert "1 of 1 products still in float: conv" in told
    assert "1 activations no longer fused: relu" in told
    assert "2 KiB moved become 6 KiB" in told  # 2 × 128 floats a kernel
    assert "Reorder" not in told


def test_where_the_integer_kernels_themselves_are_slower_it_says_so():
    before = [kernel("Conv", "conv")]
    assert "integer kernels themselves" in explain_slower(before, [kernel("QLinearConv", "conv", "uint8")])


def test_less_traffic_is_told_as_what_it_is():
    told = explain_slower([kernel("Conv", "a"), kernel("Add", "b")], [kernel("QuantizeLinear", "q", "uint8")])
    assert told.endswith("though 2 KiB moved become 256 B")


def test_many_names_are_counted():
    after = [kernel("Conv", f"c{i}") for i in range(7)]
    assert "7 of 7 products still in float: c0, c1, c2, c3 and 3 more" in explain_slower(after, after)


def pair_around(nodes, places):
    """Q/DQ behind each of these tensors, before whatever reads it; the last one's makes the output."""
    result = []
    renamed = {}
    for node in nodes:
        for i, name in enumerate(node.input):
            node.input[i] = renamed.get(name, name)
        result.append(node)
        for name in node.output:
            if name in places:
                renamed[name] = f"{name}_d"
                result += _pair(name, renamed[name])
    return result


def _pair(source, target):
    quantised, arguments = f"{source}_q", ["scale", "zero"]
    return [
        helper.make_node("QuantizeLinear", [source, *arguments], [quantised], f"{source}_QuantizeLinear"),
        helper.make_node("DequantizeLinear", [quantised, *arguments], [target], f"{source}_DequantizeLinear"),
    ]


def test_pairs_that_onnx_runtime_cannot_fuse_explain_why_its_int8_is_slower(tmp_path):
    """A pair between a convolution and its activation, and none at its weight: a common way to lose both."""
    pytest.importorskip("onnxruntime")
    rng = np.random.default_rng(0)

    def nodes():
        return [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
            helper.make_node("LeakyRelu", ["c"], ["r"], "act"),
            helper.make_node("Conv", ["r", "v"], ["logits"], "last", kernel_shape=[1, 1]),
        ]

    weights = [weight("w", rng.standard_normal((16, 3, 3, 3))), weight("v", rng.standard_normal((8, 16, 1, 1)))]
    scales = [weight("scale", np.array(0.05)), numpy_helper.from_array(np.array(128, np.uint8), "zero")]
    shape = (1, 8, 8, 8)
    plain = saved(network(nodes(), weights, output_shape=shape), tmp_path / "a.onnx")
    pairs = network(pair_around(nodes(), {"c"}), [*weights, *scales], output_shape=shape)
    engine = load_engine(Target("t", "cpu", "onnxruntime"))
    told = explain_slower(engine.executed_kernels(plain), engine.executed_kernels(saved(pairs, tmp_path / "b.onnx")))
    assert "1 QuantizeLinear" in told
    assert "(at " in told
    assert "c_QuantizeLinear" in told
    assert "2 of 2 products still in float: conv, last" in told
    assert "1 activations no longer fused: act" in told
    assert "become" in told
