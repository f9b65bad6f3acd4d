from pathlib import Path

import numpy as np
import onnx
import pytest
from export_graphs import convnet, images, network, saved, weight
from onnx import TensorProto, helper, numpy_helper

from akd_deploy.errors import MissingFileError, UnknownNameError, UsageError
from akd_deploy.export.cast import cast_model
from akd_deploy.export.int8_settings import int8_settings
from akd_deploy.export.lint import lint_onnx
from akd_deploy.export.lint_rules import RULES
from akd_deploy.export.quantize import quantize_onnx
from akd_deploy.target import Target


def target(engine="onnxruntime", precision="fp32"):
    return Target("t", "cpu", engine, precision)


def lint(model, tmp_path, engine="onnxruntime", precision="fp32", **kwargs):
    return lint_onnx(saved(model, tmp_path / "m.onnx"), target(engine, precision), **kwargs)


def rules(findings):
    return [(finding.rule, finding.severity, finding.node) for finding in findings]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_a_clean_network_has_no_finding(tmp_path, engine, precision):
    if (engine, precision) == ("onnxruntime", "bf16"):
        pytest.skip("its CPU provider has no bfloat16 kernels")
    model = convnet() if precision == "fp32" else cast_model(convnet(), precision).model
    assert lint(model, tmp_path, engine, precision) == ()


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "tensorrt"])
def test_a_clean_int8_network_has_no_finding(tmp_path, engine):
    pytest.importorskip("onnxruntime")
    source = saved(convnet(), tmp_path / "m.onnx")
    settings = int8_settings(engine, ["avx512_vnni"])
    written = quantize_onnx(source, "int8", images(4), tmp_path / "int8.onnx", settings)
    assert lint_onnx(written.path, target(engine, "int8")) == ()


def malformed(change) -> onnx.ModelProto:
    model = network(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
            helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"], "quantise"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"], "dequantise"),
        ],
        [weight("w", np.ones((4, 3, 1, 1))), weight("s", np.array(0.1)), weight("z", np.array(0, np.int8))],
        output_shape=(1, 4, 8, 8),
        opset=12,
    )
    change(model.graph)
    return model


@pytest.mark.parametrize(
    "change",
    [
        lambda graph: graph.node[1].input.__delitem__(slice(1, None)),
        lambda graph: graph.node[1].input.__delitem__(slice(0, None)),
        lambda graph: graph.node[0].input.__delitem__(slice(1, None)),
        lambda graph: graph.initializer[0].dims.__delitem__(slice(0, None)),
        lambda graph: graph.initializer[1].dims.append(7),
        lambda graph: graph.initializer[0].ClearField("raw_data"),
        lambda graph: setattr(graph.initializer[0], "data_type", 77),
        lambda graph: setattr(graph.input[0].type.tensor_type, "elem_type", 77),
        lambda graph: graph.node[2].output.__delitem__(slice(0, None)),
    ],
)
@pytest.mark.parametrize(("engine", "precision"), [("onnxruntime", "int8"), ("tensorrt-rtx", "fp16")])
def test_a_malformed_network_is_told_as_corrupt_and_never_ends_lint(tmp_path, change, engine, precision):
    path = tmp_path / "m.onnx"
    path.write_bytes(malformed(change).SerializeToString())
    found = lint_onnx(path, target(engine, precision))
    assert [finding for finding in found if finding.severity == "error"]


def test_networks_changed_at_random_never_end_lint(tmp_path):
    data, rng = convnet(channels=4, classes=3).SerializeToString(), np.random.default_rng(0)
    for _ in range(300):
        changed = bytearray(data)
        for place in rng.integers(len(changed), size=rng.integers(1, 6)):
            changed[place] = rng.integers(256)
        (tmp_path / "m.onnx").write_bytes(changed)
        lint_onnx(tmp_path / "m.onnx", target("tensorrt-rtx", "fp16"))


@pytest.mark.parametrize(
    ("op", "value", "found"), [("Add", -np.inf, False), ("Add", np.inf, True), ("Mul", -np.inf, True)]
)
def test_a_mask_of_minus_infinity_is_one_in_float16_too(tmp_path, op, value, found):
    mask = np.where(np.arange(10) < 5, 0.0, value)
    nodes = [
        helper.make_node("Cast", ["x"], ["low"], "down", to=TensorProto.FLOAT16),
        helper.make_node(op, ["low", "mask"], ["masked"], "mask"),
        helper.make_node("Softmax", ["masked"], ["weights"], "softmax"),
        helper.make_node("Cast", ["weights"], ["logits"], "up", to=TensorProto.FLOAT),
    ]
    held = numpy_helper.from_array(mask.astype(np.float16), "mask")
    model = network(nodes, [held], (1, 10), (1, 10))
    expected = [("float16-overflow", "error", "mask")] if found else []
    assert rules(lint(model, tmp_path, "tensorrt", "fp16")) == expected


def test_nan_that_where_selects_is_meant_so(tmp_path):
    nodes = [
        helper.make_node("Greater", ["x", "zero"], ["yes"], "compare"),
        helper.make_node("Where", ["yes", "x", "none"], ["filled"], "fill"),
        helper.make_node("IsNaN", ["filled"], ["missing"], "ask"),
        helper.make_node("Where", ["missing", "zero", "filled"], ["logits"], "replace"),
    ]
    numbers = [weight("zero", np.array([0.0])), weight("none", np.array([np.nan]))]
    assert lint(network(nodes, numbers, (1, 10), (1, 10)), tmp_path) == ()


def test_an_operator_that_the_engine_lacks_is_found_for_that_engine_alone(tmp_path):
    model = network([helper.make_node("Det", ["x"], ["logits"], "det")], [], output_shape=(1, 3))
    assert lint(model, tmp_path) == ()
    for engine in ("tensorrt", "tensorrt-rtx", "openvino"):
        assert rules(lint(model, tmp_path, engine)) == [("unsupported-operator", "error", "det")]


def test_an_operator_that_does_not_exist_and_one_of_a_strange_domain_are_found(tmp_path):
    unknown = network([helper.make_node("Convolve", ["x"], ["logits"], "n")], [], output_shape=(1, 3, 8, 8))
    assert rules(lint(unknown, tmp_path)) == [("unsupported-operator", "error", "n")]
    strange = helper.make_node("Warp", ["x"], ["logits"], "n", domain="com.acme")
    foreign = network([strange], [], output_shape=(1, 3, 8, 8), opsets=[helper.make_opsetid("com.acme", 1)])
    (finding,) = lint(foreign, tmp_path)
    assert "com.acme::Warp" in finding.message


def test_contrib_operators_are_fine_where_the_engine_brings_them(tmp_path):
    fused = helper.make_node("FusedConv", ["x", "w"], ["logits"], "n", domain="com.microsoft")
    model = network(
        [fused],
        [weight("w", np.ones((3, 3, 1, 1)))],
        output_shape=(1, 3, 8, 8),
        opsets=[helper.make_opsetid("com.microsoft", 1)],
    )
    assert lint(model, tmp_path) == ()
    assert rules(lint(model, tmp_path, "tensorrt")) == [("unsupported-operator", "error", "n")]


def test_functions_that_the_file_brings_along_are_fine(tmp_path):
    body = [helper.make_node("Relu", ["a"], ["b"])]
    function = helper.make_function("local", "F", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    model = network(
        [helper.make_node("F", ["x"], ["logits"], "f", domain="local")],
        [],
        output_shape=(1, 3, 8, 8),
        opsets=[helper.make_opsetid("local", 1)],
        functions=[function],
    )
    assert lint(model, tmp_path) == ()


def test_an_opset_newer_than_the_engine_is_found(tmp_path):
    model = network([helper.make_node("Relu", ["x"], ["logits"], "n")], [], output_shape=(1, 3, 8, 8), opset=27)
    assert rules(lint(model, tmp_path)) == [("new-opset", "error", "")]
    assert lint(model, tmp_path, "openvino") == ()


def test_dynamic_dimensions_are_found_and_a_dynamic_batch_is_only_mentioned(tmp_path):
    model = network([helper.make_node("Relu", ["x"], ["logits"], "n")], [], ("n", 3, "h", 8), ("n", 3, "h", 8))
    findings = lint(model, tmp_path)
    assert rules(findings) == [("dynamic-dimension", "warning", ""), ("dynamic-dimension", "info", "")]
    assert "'h'" in findings[0].message


def test_odd_channels_are_found_but_not_image_channels_and_classes(tmp_path):
    findings = lint(convnet(channels=18, classes=7), tmp_path)
    assert rules(findings) == [
        ("odd-channels", "warning", name) for name in ("conv0", "depthwise", "pointwise", "classifier")
    ]
    assert "18 output" in findings[0].message
    assert "18 input channels" in findings[3].message
    assert lint(convnet(channels=18), tmp_path, multiple=1) == ()
    assert lint(convnet(channels=18), tmp_path, multiple=6) == ()
    assert lint(convnet(channels=18), tmp_path, "tensorrt") == ()
    assert len(lint(cast_model(convnet(channels=12), "fp16").model, tmp_path, "tensorrt", "fp16")) == 4


def quantised(between, scale="s", weight_quantised=True):
    """x → Q → DQ → `between` → Q → DQ."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", scale, "z"], ["q0"], "q0"),
        helper.make_node("DequantizeLinear", ["q0", scale, "z"], ["d0"], "d0"),
        *between,
        helper.make_node("QuantizeLinear", ["y", scale, "z"], ["q1"], "q1"),
        helper.make_node("DequantizeLinear", ["q1", scale, "z"], ["logits"], "d1"),
    ]
    zero = numpy_helper.from_array(np.array(0, np.int8), "z")
    return network(nodes, [weight("s", np.array(0.1)), zero], output_shape=(1, 3, 8, 8))


def test_qdq_around_an_operator_without_int8_kernel_is_found(tmp_path):
    model = quantised([helper.make_node("Erf", ["d0"], ["y"], "erf")])
    assert rules(lint(model, tmp_path)) == [("unfused-qdq", "warning", "erf")]
    assert lint(quantised([helper.make_node("Relu", ["d0"], ["y"], "relu")]), tmp_path) == ()


def test_qdq_pairs_with_nothing_between_are_found(tmp_path):
    model = quantised([])
    for node in model.graph.node:
        node.input[:] = ["d0" if name == "y" else name for name in node.input]
    assert rules(lint(model, tmp_path)) == [("unfused-qdq", "warning", "d0")]


def test_a_quantise_without_its_dequantise_is_found(tmp_path):
    model = quantised([helper.make_node("Relu", ["d0"], ["y"], "relu")])
    model.graph.node.append(helper.make_node("QuantizeLinear", ["y", "s", "z"], ["dangling"], "alone"))
    assert rules(lint(model, tmp_path)) == [("unfused-qdq", "warning", "alone")]


def test_a_convolution_with_only_its_input_quantised_is_found(tmp_path):
    model = quantised([helper.make_node("Conv", ["d0", "w"], ["y"], "conv", kernel_shape=[1, 1])])
    model.graph.initializer.append(weight("w", np.ones((3, 3, 1, 1))))
    (at_runtime,) = [f for f in lint(model, tmp_path, precision="int8") if f.rule == "unfused-qdq"]
    assert (at_runtime.severity, at_runtime.node) == ("info", "conv"), "ONNX Runtime quantises it itself"
    findings = lint(model, tmp_path, "openvino", "int8")
    assert ("unfused-qdq", "warning", "conv") in rules(findings)
    assert "weight is not quantised" in next(f.message for f in findings if f.rule == "unfused-qdq")
    assert ("precision-lie", "error", "") in rules(findings)


@pytest.mark.parametrize("value", [1e5, np.inf])
def test_weights_that_float16_cannot_hold_are_found(tmp_path, value):
    model = convnet()
    tensor = next(t for t in model.graph.initializer if t.name == "b0")
    values = numpy_helper.to_array(tensor).copy()
    values[3] = value
    tensor.CopyFrom(weight("b0", values))
    findings = lint(model, tmp_path, "tensorrt", "fp16")
    assert ("float16-overflow", "error", "conv0") in rules(findings)
    assert lint(model, tmp_path, "tensorrt") == ()


def test_sums_that_may_leave_float16_are_found(tmp_path):
    model = convnet()
    tensor = next(t for t in model.graph.initializer if t.name == "w2")
    tensor.CopyFrom(weight("w2", np.full((16, 16, 1, 1), 500.0)))
    findings = lint(cast_model(model, "fp16").model, tmp_path, "onnxruntime", "fp16")
    assert rules(findings) == [("float16-overflow", "warning", "pointwise")]
    assert "8e+04" in findings[0].message


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_a_float32_network_for_another_precision_is_a_lie(tmp_path, precision):
    assert rules(lint(convnet(channels=32), tmp_path, "tensorrt", precision)) == [("precision-lie", "error", "")]


def test_a_float16_network_for_float32_is_a_lie_and_tf32_is_not(tmp_path):
    assert rules(lint(cast_model(convnet(), "fp16").model, tmp_path)) == [("precision-lie", "error", "")]
    assert lint(convnet(), tmp_path, "tensorrt", "tf32") == ()


def test_openvino_casts_itself(tmp_path):
    assert lint(convnet(), tmp_path, "openvino", "bf16") == ()


def test_one_node_left_in_float32_is_a_warning_that_names_it(tmp_path):
    model = cast_model(convnet(), "fp16", {"pointwise": "for the test"}).model
    assert rules(lint(model, tmp_path, precision="fp16")) == [("precision-lie", "warning", "pointwise")]


def broken_order():
    model = convnet()
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))
    return model


def wrong_rank():
    model = convnet()
    model.graph.output[0].type.tensor_type.shape.dim.add().dim_value = 3
    return model


@pytest.mark.parametrize("make", [broken_order, wrong_rank])
def test_a_graph_that_breaks_the_specification_is_found(tmp_path, make):
    assert rules(lint(make(), tmp_path)) == [("corrupt-graph", "error", "")]


def test_a_weight_for_other_channels_than_its_input_has_is_found(tmp_path):
    model = convnet()
    next(t for t in model.graph.initializer if t.name == "w2").CopyFrom(weight("w2", np.ones((16, 24, 1, 1))))
    assert rules(lint(model, tmp_path)) == [("channel-mismatch", "error", "pointwise")]


@pytest.mark.parametrize("data", [b"", b"not onnx at all", b"\x00" * 100, bytes(range(256)) * 4])
def test_bytes_that_are_no_network_are_found(tmp_path, data):
    path = tmp_path / "m.onnx"
    path.write_bytes(data)
    assert rules(lint_onnx(path, target())) == [("corrupt-graph", "error", "")]


def test_text_named_like_a_network_in_text_is_found(tmp_path):
    path = tmp_path / "m.json"
    path.write_text("{}", encoding="utf-8")
    assert rules(lint_onnx(path, target())) == [("corrupt-graph", "error", "")]


def test_truncated_networks_are_found_or_have_an_honest_error(tmp_path):
    data = convnet().SerializeToString()
    path = tmp_path / "m.onnx"
    for length in range(0, len(data), 97):
        path.write_bytes(data[:length])
        assert "error" in {finding.severity for finding in lint_onnx(path, target())}


def test_every_rule_is_exercised_and_errors_come_first(tmp_path):
    files = [Path(__file__), Path(__file__).with_name("lint_corpus.py")]
    source = "".join(path.read_text(encoding="utf-8") for path in files)
    assert all(f'"{rule}"' in source for rule in RULES)
    findings = lint(convnet(channels=18), tmp_path, precision="int8")
    assert findings[0].severity == "error"
    assert findings[-1].severity == "warning"
    assert set(findings[0].as_dict()) == {"rule", "severity", "node", "message", "fix"}


def test_what_cannot_be_linted_is_refused(tmp_path):
    path = saved(convnet(), tmp_path / "m.onnx")
    with pytest.raises(MissingFileError):
        lint_onnx(tmp_path / "nothing.onnx", target())
    with pytest.raises(UsageError, match="torch"):
        lint_onnx(path, target("torch"))
    with pytest.raises(UnknownNameError):
        lint_onnx(path, target("ncnn"))
    with pytest.raises(UsageError, match="per block"):
        lint_onnx(path, target(), multiple=0)


def test_the_channel_sides_of_every_weighted_operator():
    from akd_deploy.export.lint_graph import channels

    def sides(op, shape, **attributes):
        node = helper.make_node(op, ["x", "w"], ["y"], **attributes)
        return channels(node, helper.make_tensor("w", TensorProto.FLOAT, shape, np.zeros(int(np.prod(shape)))))

    assert sides("Conv", [32, 8, 3, 3], group=2) == (16, 32)
    assert sides("ConvTranspose", [16, 4, 3, 3], group=2) == (16, 8)
    assert sides("Gemm", [5, 7]) == (5, 7)
    assert sides("Gemm", [5, 7], transB=1) == (7, 5)
    assert sides("MatMul", [2, 5, 7]) == (5, 7)


def test_linting_loads_no_runtime(tmp_path):
    import subprocess
    import sys

    path = saved(convnet(), tmp_path / "m.onnx")
    code = (
        "import sys; from pathlib import Path; from akd_deploy.export.lint import lint_onnx;"
        "from akd_deploy.target import Target;"
        f"lint_onnx(Path({str(path)!r}), Target('t', 'cpu', 'tensorrt'));"
        "print(*[m for m in ('torch', 'onnxruntime', 'openvino', 'tensorrt', 'tensorrt_rtx') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""
    assert onnx.load(path).graph.node
