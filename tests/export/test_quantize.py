import hashlib
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from export_graphs import convnet, images, network, saved, weight
from onnx import TensorProto, helper

from akd_deploy.engines import load_engine
from akd_deploy.errors import BuildError, CorruptFileError, MissingFileError, UnknownNameError, UsageError
from akd_deploy.export.calibration import split_calibration
from akd_deploy.export.divergence import reference_evaluate
from akd_deploy.export.int8_settings import Int8Settings, int8_settings
from akd_deploy.export.parity import check_parity, compare_outputs, tolerance_for
from akd_deploy.export.quantize import quantize_onnx
from akd_deploy.target import Target

pytest.importorskip("onnxruntime")
VNNI = ["avx2", "avx512f", "avx512_vnni"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(convnet(), tmp_path / "m.onnx")


def session(path: Path):
    return load_engine(Target("t", "cpu", "onnxruntime")).load(path)


@pytest.mark.parametrize("mode", ["fp16", "int8"])
def test_a_variant_runs_in_onnx_runtime_at_parity_with_its_source(source, tmp_path, mode):
    written = quantize_onnx(source, mode, images(32), tmp_path / "v.onnx", int8_settings("onnxruntime", VNNI))
    with session(source) as reference, session(written.path) as candidate:
        assert [spec.dtype for spec in (*candidate.inputs, *candidate.outputs)] == ["float32", "float32"]
        check_parity(compare_outputs(reference.run, candidate.run, images(20, seed=5)), tolerance_for(mode))


@pytest.mark.parametrize("mode", ["fp16", "bf16", "int8"])
def test_the_same_inputs_give_the_same_bytes(source, tmp_path, mode):
    first = quantize_onnx(source, mode, images(4), tmp_path / "a.onnx")
    second = quantize_onnx(source, mode, images(4), tmp_path / "b.onnx")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sha256 == hashlib.sha256(first.path.read_bytes()).hexdigest()
    assert first.size_bytes == first.path.stat().st_size


def test_int8_weights_are_signed_per_channel_and_activations_as_asked(source, tmp_path):
    for activation, wanted in (("uint8", TensorProto.UINT8), ("int8", TensorProto.INT8)):
        written = quantize_onnx(source, "int8", images(4), tmp_path / "v.onnx", Int8Settings(activation=activation))
        model = onnx.load(written.path)
        weights = {t.name: t for t in model.graph.initializer}
        assert weights["w0_quantized"].data_type == TensorProto.INT8
        assert list(weights["w0_scale"].dims) == [16]
        assert weights["x_zero_point"].data_type == wanted
        assert written.op_counts["QuantizeLinear"] >= 3


def test_tensorrt_gets_symmetric_signed_activations_and_floating_biases(source, tmp_path):
    written = quantize_onnx(source, "int8", images(4), tmp_path / "v.onnx", int8_settings("tensorrt", []))
    model = onnx.load(written.path)
    zero_points = [t for t in model.graph.initializer if t.name.endswith("zero_point")]
    assert zero_points
    assert all(not onnx.numpy_helper.to_array(t).any() for t in zero_points)
    assert not any(t.data_type == TensorProto.INT32 for t in model.graph.initializer)


def test_seven_bit_weights_where_the_cpu_would_saturate(source, tmp_path):
    assert int8_settings("onnxruntime", ["avx2", "fma"]).reduce_range
    assert not int8_settings("onnxruntime", VNNI).reduce_range
    assert not int8_settings("onnxruntime", ["asimd", "asimddp"]).reduce_range
    written = quantize_onnx(source, "int8", images(4), tmp_path / "v.onnx", Int8Settings(reduce_range=True))
    weights = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(written.path).graph.initializer}
    assert np.abs(weights["w0_quantized"].astype(int)).max() <= 64


def test_operators_that_an_engine_computes_in_floating_point_get_no_conversions(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], name="conv"),
            helper.make_node("ConvTranspose", ["c", "v"], ["y"], name="transposed"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, 6, 6])],
        [weight(name, np.random.default_rng(0).standard_normal((4, 4, 1, 1))) for name in "wv"],
    )
    source = saved(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "m.onnx"
    )
    feeds = [{"x": np.random.default_rng(i).standard_normal((1, 4, 6, 6), np.float32)} for i in range(4)]
    is_quantised = {}
    for engine in ("onnxruntime", "openvino"):
        settings = int8_settings(engine, VNNI)
        model = onnx.load(quantize_onnx(source, "int8", feeds, tmp_path / f"{engine}.onnx", settings).path)
        writers = {name: node.op_type for node in model.graph.node for name in node.output}
        for op in ("Conv", "ConvTranspose"):
            (node,) = (node for node in model.graph.node if node.op_type == op)
            is_quantised[engine, op] = writers.get(node.input[1]) == "DequantizeLinear"
    assert is_quantised == {
        ("onnxruntime", "Conv"): True,
        ("onnxruntime", "ConvTranspose"): False,
        ("openvino", "Conv"): True,
        ("openvino", "ConvTranspose"): True,
    }


def test_excluded_nodes_stay_in_floating_point(source, tmp_path):
    written = quantize_onnx(source, "int8", images(4), tmp_path / "v.onnx", Int8Settings(exclude=("pointwise",)))
    assert "w2" in {t.name for t in onnx.load(written.path).graph.initializer}
    with pytest.raises(UnknownNameError, match="pointwise"):
        quantize_onnx(source, "int8", images(4), tmp_path / "v.onnx", Int8Settings(exclude=("pointwice",)))


def ranges_of(path: Path) -> dict[str, float]:
    """Tensor → the width of its int8 range: 255 steps of its scale."""
    scales = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(path).graph.initializer}
    return {name.removesuffix("_scale"): 255 * float(scales[name]) for name in ("x_scale", "r0_scale", "k1_scale")}


def outliers(count: int, size: float) -> list[dict[str, np.ndarray]]:
    """Noise, of which one value in 768 is far away from all others."""
    batches = images(count)
    for batch in batches[::4]:
        batch["x"][0, 0, 0, 0] = size
    return batches


def test_percentile_and_entropy_cut_an_outlier_off_where_minmax_keeps_it(source, tmp_path, capsys):
    """One value in 768 is 40, all others are normal: a range of 8 or so is what all but 0.13 % need."""
    widths = {}
    for name in ("minmax", "percentile:99", "percentile:100", "entropy"):
        path = quantize_onnx(
            source, "int8", outliers(32, 40.0), tmp_path / "v.onnx", Int8Settings(calibration=name)
        ).path
        widths[name] = ranges_of(path)["x"]
        assert list({t.name: t for t in onnx.load(path).graph.initializer}["w0_scale"].dims) == [
            16
        ]  # per channel still
    assert widths["minmax"] == pytest.approx(43.5, abs=1)  # from the smallest of 6,136 normal values, about −3.5
    assert widths["percentile:100"] == pytest.approx(widths["minmax"], rel=0.01)
    assert widths["percentile:99"] == pytest.approx(2 * 2.576, rel=0.05)  # ± of the 99.5th percentile of a normal
    assert widths["entropy"] < widths["minmax"] / 2
    assert capsys.readouterr().out == ""  # the calibrators print


def test_kept_ranges_give_the_same_file_without_calibrating_again(source, tmp_path):
    """Nodes excluded later do not change them."""
    for name in ("minmax", "percentile"):
        ranges = tmp_path / f"{name}.json"
        settings = Int8Settings(calibration=name)
        excluding = Int8Settings(calibration=name, exclude=("pointwise",))
        first = quantize_onnx(source, "int8", images(8), tmp_path / "a.onnx", settings, ranges)
        again = quantize_onnx(source, "int8", images(1, seed=9), tmp_path / "b.onnx", settings, ranges)
        assert first.sha256 == again.sha256
        kept = quantize_onnx(source, "int8", images(1, seed=9), tmp_path / "b.onnx", excluding, ranges)
        assert kept.sha256 == quantize_onnx(source, "int8", images(8), tmp_path / "c.onnx", excluding).sha256


def test_calibrations_are_named_and_refused():
    assert split_calibration("percentile") == ("percentile", 99.99)
    assert split_calibration("percentile:99.5") == ("percentile", 99.5)
    assert split_calibration("entropy") == ("entropy", None)
    for wrong in ("percentile:", "percentile:x", "percentile:0", "percentile:101", "percentile:nan", "minmax:3"):
        with pytest.raises(UsageError):
            Int8Settings(calibration=wrong)
    with pytest.raises(UnknownNameError, match="entropy"):
        Int8Settings(calibration="entropi")


def test_few_calibration_samples_are_noted(source, tmp_path):
    assert quantize_onnx(source, "int8", images(4), tmp_path / "v.onnx").notes
    assert not quantize_onnx(source, "int8", images(32), tmp_path / "v.onnx").notes
    (note,) = quantize_onnx(source, "fp16", [], tmp_path / "v.onnx").notes
    assert note.startswith("NOT looked for: activations that overflow float16")
    assert not quantize_onnx(source, "fp16", images(1), tmp_path / "v.onnx").notes


def test_activations_that_overflow_float16_keep_their_nodes_in_float32(tmp_path):
    """A thousandfold layer that a later one takes back: cast blindly it gives infinity."""
    nodes = [
        helper.make_node("Mul", ["x", "up"], ["big"], "up"),
        helper.make_node("Mul", ["big", "down"], ["small"], "down"),
        helper.make_node("GlobalAveragePool", ["small"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "flatten"),
    ]
    model = network(nodes, [weight("up", np.array(6e4)), weight("down", np.array(1e-4))], output_shape=(1, 3))
    source = saved(model, tmp_path / "m.onnx")
    blind = quantize_onnx(source, "fp16", [], tmp_path / "blind.onnx")
    calibrated = quantize_onnx(source, "fp16", images(4), tmp_path / "calibrated.onnx")
    assert blind.kept_float32 == {}
    assert set(calibrated.kept_float32) == {"up", "down"}
    # In plain numpy: ONNX Runtime computes float16 in float32 on CPUs without it, and so hides the overflow.
    reference, bad, good = (partial(reference_evaluate, path) for path in (source, blind.path, calibrated.path))
    assert compare_outputs(reference, bad, images(4, seed=2)).per_output[0].non_finite
    check_parity(compare_outputs(reference, good, images(4, seed=2)), tolerance_for("fp16"))


def test_what_makes_no_sense_is_refused_and_writes_nothing(source, tmp_path):
    out = tmp_path / "v.onnx"
    with pytest.raises(UnknownNameError):
        quantize_onnx(source, "fp12", [], out)
    with pytest.raises(UsageError, match="no calibration samples"):
        quantize_onnx(source, "int8", [], out)
    with pytest.raises(UsageError, match="batch 0 for inputs"):
        quantize_onnx(source, "int8", [{"y": np.zeros(1, np.float32)}], out)
    with pytest.raises(UsageError, match="batch 1 of input 'x'"):
        quantize_onnx(source, "int8", [*images(1), {"x": np.zeros((1, 8, 8, 3), np.float32)}], out)
    with pytest.raises(UsageError, match="float64"):
        quantize_onnx(source, "fp16", [{"x": np.zeros((1, 3, 8, 8))}], out)
    with pytest.raises(UsageError, match="opset 12"):
        quantize_onnx(saved(convnet(opset=12), tmp_path / "old.onnx"), "int8", images(1), out)
    with pytest.raises(UnknownNameError):
        Int8Settings(activation="int4")
    with pytest.raises(MissingFileError):
        quantize_onnx(tmp_path / "nothing.onnx", "fp16", [], out)
    (tmp_path / "bad.onnx").write_bytes(b"\x08\x09garbage")
    with pytest.raises(CorruptFileError):
        quantize_onnx(tmp_path / "bad.onnx", "fp16", [], out)
    assert not out.exists()


def test_normalisation_stays_in_floating_point_and_batch_norm_goes_into_the_convolution(tmp_path):
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv", kernel_shape=[1, 1]),
        helper.make_node("BatchNormalization", ["c", "one", "zero", "zero", "one"], ["b"], "norm"),
        helper.make_node("LayerNormalization", ["b", "g", "g"], ["n"], "layer_norm", axis=1),
        helper.make_node("Relu", ["n"], ["r"], "relu"),
        helper.make_node("GlobalAveragePool", ["r"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["logits"], "flatten"),
    ]
    rng = np.random.default_rng(0)
    model = network(
        nodes,
        [
            weight("w", rng.standard_normal((4, 3, 1, 1))),
            weight("one", np.ones(4)),
            weight("zero", np.zeros(4)),
            weight("g", np.ones((4, 8, 8))),
        ],
        output_shape=(1, 4),
    )
    source = saved(model, tmp_path / "m.onnx")
    written = quantize_onnx(source, "int8", images(4), tmp_path / "v.onnx")
    assert "BatchNormalization" not in written.op_counts
    result = onnx.load(written.path)
    makers = {name: n.op_type for n in result.graph.node for name in n.output}
    norm = next(n for n in result.graph.node if n.op_type == "LayerNormalization")
    assert [makers.get(name) for name in norm.input[1:]] == [None, None]
    assert not result.metadata_props
    assert [opset.domain for opset in result.opset_import] == [""]
    with pytest.raises(BuildError, match="norm: fused"):
        quantize_onnx(source, "int8", images(4), tmp_path / "v2.onnx", Int8Settings(exclude=("norm",)))


def test_a_network_quantised_already_is_refused(source, tmp_path):
    first = quantize_onnx(source, "int8", images(4), tmp_path / "int8.onnx")
    for mode in ("int8", "fp16"):
        with pytest.raises(UsageError, match=r"Q/DQ|quantised"):
            quantize_onnx(first.path, mode, images(4), tmp_path / "again.onnx")


def test_nothing_to_quantise_is_a_build_error(tmp_path):
    model = network([helper.make_node("Exp", ["x"], ["logits"], "exp")], [], output_shape=(1, 3, 8, 8))
    with pytest.raises(BuildError, match="no operator"):
        quantize_onnx(saved(model, tmp_path / "m.onnx"), "int8", images(2), tmp_path / "v.onnx")
