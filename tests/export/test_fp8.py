"""FP8 variants: scales by hand, accuracy by two runtimes, and plans of cards that have fp8 and that have not."""

from __future__ import annotations

import importlib.util

import numpy as np
import onnx
import onnxruntime
import pytest
from export_graphs import convnet, images, network, saved, weight
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from akd_deploy.engines.tensorrt_engine import TensorRtRtxEngine
from akd_deploy.errors import BuildError, UsageError
from akd_deploy.export.advise import runnable_modes
from akd_deploy.export.divergence import reference_evaluate
from akd_deploy.export.fp8 import FP8_OPSET, fp8_model
from akd_deploy.export.quantize import quantize_onnx
from akd_deploy.target import Target

needs_rtx = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the Python package tensorrt_rtx is not installed"
)


def product(*rows, inputs=(1, 2)):
    values = np.array(rows, np.float32)
    return network(
        [helper.make_node("MatMul", ["x", "w"], ["logits"], "product")], [weight("w", values)],
        inputs, (inputs[0], values.shape[1]), opset=17,
    )  # fmt: skip


def constant(model, name):
    return numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == name))


def feeds(*rows):
    return [{"x": np.array([row], np.float32)} for row in rows]


def test_a_scale_maps_the_largest_value_seen_to_the_largest_of_e4m3():
    made = fp8_model(product([1.0, -8.0], [0.5, 2.0]), feeds([3.5, -14.0], [7.0, 1.0]), reference_evaluate).model
    assert constant(made, "x__fp8_scale") == np.float32(14 / 448)
    assert constant(made, "w__fp8_scale") == np.float32(8 / 448)
    stored = next(tensor for tensor in made.graph.initializer if tensor.name == "w__fp8")
    assert stored.data_type == TensorProto.FLOAT8E4M3FN
    assert constant(made, "w__fp8").astype(np.float32).tolist() == [[56, -448], [28, 112]]
    assert [opset.version for opset in made.opset_import] == [FP8_OPSET]
    assert [node.op_type for node in made.graph.node] == [
        "QuantizeLinear", "DequantizeLinear", "DequantizeLinear", "MatMul",
    ]  # fmt: skip


def test_values_are_rounded_to_three_bits_after_the_first():
    """17 lies between 16 and 18 and goes to the even one; what is larger than calibration saw is clipped."""
    made = fp8_model(product([1.0], [0.0]), feeds([448.0, 0.0]), reference_evaluate).model
    run = ReferenceEvaluator(made)
    answers = [float(run.run(None, feed)[0][0, 0]) for feed in feeds([17, 0], [19, 0], [448, 0], [1000, 0], [-3, 0])]
    assert answers == [16, 20, 448, 448, -3]


def test_a_tensor_of_zeros_has_a_scale_and_stays_zero():
    made = fp8_model(product([0.0], [0.0]), feeds([0.0, 0.0]), reference_evaluate).model
    assert constant(made, "w__fp8_scale") > 0
    assert ReferenceEvaluator(made).run(None, feeds([3.0, 4.0])[0])[0].tolist() == [[0.0]]


def test_a_tensor_that_several_products_read_is_quantised_once():
    nodes = [helper.make_node("MatMul", ["x", "w"], [name], name) for name in ("a", "b")]
    model = network(
        [*nodes, helper.make_node("Add", ["a", "b"], ["logits"], "add")], [weight("w", np.eye(2))], (1, 2), (1, 2)
    )
    made = fp8_model(model, feeds([1.0, 2.0]), reference_evaluate).model
    counts = [node.op_type for node in made.graph.node]
    assert (counts.count("QuantizeLinear"), counts.count("DequantizeLinear")) == (1, 2)


def test_an_fp8_network_is_accurate_and_two_runtimes_agree_on_it(tmp_path):
    source = saved(convnet(), tmp_path / "m.onnx")
    made = quantize_onnx(source, "fp8", images(8), tmp_path / "fp8.onnx")
    assert made.kept_float32 == {"depthwise": "a grouped convolution, which engines have no fp8 kernels for"}
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(str(made.path), options, providers=["CPUExecutionProvider"])
    for feed in images(4, seed=9):
        exact = reference_evaluate(source, feed)["logits"]
        found = reference_evaluate(made.path, feed)["logits"]
        assert 0 < np.abs(found - exact).max() < 0.1 * np.abs(exact).max()
        np.testing.assert_allclose(session.run(None, feed)[0], found, rtol=1e-4, atol=1e-4)


def test_the_same_calibration_gives_the_same_bytes(tmp_path):
    source = saved(convnet(), tmp_path / "m.onnx")
    first, again = (quantize_onnx(source, "fp8", images(4), tmp_path / f"{name}.onnx") for name in "ab")
    assert first.sha256 == again.sha256
    other = quantize_onnx(source, "fp8", images(4, seed=5), tmp_path / "c.onnx")
    assert other.sha256 != first.sha256


def test_what_cannot_be_quantised_is_refused_or_told():
    with pytest.raises(UsageError, match="no calibration samples"):
        fp8_model(product([1.0], [1.0]), [], reference_evaluate)
    made = fp8_model(product([1.0], [1.0]), feeds([1.0, 1.0]), reference_evaluate).model
    with pytest.raises(UsageError, match="Q/DQ nodes already"):
        fp8_model(made, feeds([1.0, 1.0]), reference_evaluate)
    relu = network([helper.make_node("Relu", ["x"], ["logits"], "relu")], [], (1, 2), (1, 2))
    with pytest.raises(BuildError, match="no matrix product"):
        fp8_model(relu, feeds([1.0, 1.0]), reference_evaluate)
    with pytest.raises(BuildError, match="'x' is not finite"):
        fp8_model(product([1.0], [1.0]), feeds([np.inf, 1.0]), reference_evaluate)


@needs_rtx
def test_a_card_with_fp8_computes_its_products_in_it_and_one_without_is_refused(tmp_path):
    path = quantize_onnx(saved(convnet(), tmp_path / "m.onnx"), "fp8", images(4), tmp_path / "fp8.onnx").path

    def build(capability):
        options = {"compute_capabilities": (capability,)}
        target = Target("t", "rtx", "tensorrt-rtx", "fp8", engine_options=options)
        return TensorRtRtxEngine(target).build(path, tmp_path / capability)

    built = build("sm89")
    assert built.precision["float8e4m3"] == 3
    assert built.notes == ("1 of 4 layers are not in fp8: 1 computing in float32 (depthwise)",)
    with pytest.raises(BuildError, match=r"sm80.*fp8_e4m3"):
        build("sm80")


def test_engines_without_fp8_kernels_are_not_offered_it():
    assert "no fp8 kernels" in runnable_modes(Target("t", "cpu", "onnxruntime"))["fp8"]
    assert runnable_modes(Target("t", "rtx", "tensorrt-rtx"))["fp8"] is None


def test_an_older_network_is_brought_to_the_opset_that_has_fp8():
    made = fp8_model(product([1.0], [1.0]), feeds([1.0, 1.0]), reference_evaluate).model
    assert made.ir_version >= 9
    onnx.checker.check_model(made, full_check=True)
