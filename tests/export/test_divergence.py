from pathlib import Path

import numpy as np
import onnx
import pytest
from export_graphs import convnet, images, network, saved, weight
from onnx import helper, numpy_helper

from akd_deploy.engines import load_engine
from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.export import divergence
from akd_deploy.export.cast import cast_model
from akd_deploy.export.divergence import activation_peaks, exposed, first_divergence, reference_evaluate
from akd_deploy.target import Target


def changed(model: onnx.ModelProto, name: str, factor: float) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    tensor.CopyFrom(weight(name, numpy_helper.to_array(tensor) * factor))
    return copy


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return saved(convnet(), tmp_path / "source.onnx")


@pytest.mark.parametrize(("changed_weight", "node"), [("w0", "conv0"), ("w1", "depthwise"), ("w3", "classifier")])
@pytest.mark.parametrize("tensors_per_run", [1, 2, 64])
def test_the_first_node_that_differs_is_named(source, tmp_path, monkeypatch, changed_weight, node, tensors_per_run):
    monkeypatch.setattr(divergence, "TENSORS_PER_RUN", tensors_per_run)
    other = saved(changed(convnet(), changed_weight, 1.1), tmp_path / "other.onnx")
    found = first_divergence(source, other, images(1)[0], max_rel=1e-3)
    assert found is not None
    assert found.node == node
    assert found.agreeing_tensors == [n.name for n in convnet().graph.node].index(node)


def test_a_difference_that_vanishes_again_further_on_is_still_found(source, tmp_path):
    """The clip hides what happens below zero: halving would look at the clip and go on behind it."""
    model = changed(convnet(), "w1", 0.0)
    negative = changed(convnet(), "w1", 0.0)
    for m, bias in ((model, -1.0), (negative, -2.0)):
        m.graph.initializer.append(weight("b1", np.full(16, bias)))
        next(n for n in m.graph.node if n.name == "depthwise").input.append("b1")
    a, b = saved(model, tmp_path / "a.onnx"), saved(negative, tmp_path / "b.onnx")
    found = first_divergence(a, b, images(1)[0], max_rel=1e-3)
    assert found is not None
    assert found.node == "depthwise"


def test_equal_networks_and_their_float16_casts_show_no_divergence(source, tmp_path):
    assert first_divergence(source, source, images(1)[0], max_rel=0) is None
    cast = saved(cast_model(convnet(), "fp16").model, tmp_path / "fp16.onnx")
    assert first_divergence(source, cast, images(1)[0], max_rel=1e-2) is None
    assert first_divergence(source, cast, images(1)[0], max_rel=1e-7) is not None


def quantised_after(relu: bool, scale: float) -> onnx.ModelProto:
    """A convolution, perhaps a Relu, and what a quantiser puts behind it: zero is the least that its range holds."""
    names = ["c", "r"] if relu else ["r"]
    nodes = [helper.make_node("Conv", ["x", "w"], [names[0]], "conv")]
    nodes += [helper.make_node("Relu", ["c"], ["r"], "relu")] if relu else []
    nodes += [
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantise"),
        helper.make_node("GlobalAveragePool", ["d"], ["logits"], "pool"),
    ]
    rng = np.random.default_rng(3)
    weights = [weight("w", rng.standard_normal((4, 3, 1, 1))), weight("s", np.array(scale))]
    zero = numpy_helper.from_array(np.array(0, np.uint8), "z")
    return network(nodes, [*weights, zero], (1, 3, 8, 8), (1, 4, 1, 1), opset=21)


def test_a_relu_that_the_quantised_range_replaces_is_no_divergence(tmp_path):
    """What conv puts out is the Relu's by name, and is not until it is quantised."""
    source = quantised_after(relu=True, scale=0.05)
    del source.graph.node[2:4]
    source.graph.node[2].input[0] = "r"
    a = saved(source, tmp_path / "a.onnx")
    b = saved(quantised_after(relu=False, scale=0.05), tmp_path / "b.onnx")
    assert first_divergence(a, b, images(1)[0], None, min_cosine=0.99) is None
    coarse = saved(quantised_after(relu=False, scale=8.0), tmp_path / "coarse.onnx")
    found = first_divergence(a, coarse, images(1)[0], None, min_cosine=0.99)
    assert found is not None
    assert (found.node, found.tensor) == ("conv", "r")


def attention(*, quantised: bool, scale: float = 160.0, zero: int = 127, mask: float = -1e4) -> onnx.ModelProto:
    """Scores, a mask, a softmax; the masked scores in 8 bits, as static quantisers of adds do it."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], "score"),
        helper.make_node("Add", ["scores", "mask"], ["masked"], "add"),
        helper.make_node("QuantizeLinear", ["masked", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantise"),
        helper.make_node("Softmax", ["d" if quantised else "masked"], ["logits"], "softmax", axis=-1),
    ]
    if not quantised:
        del nodes[2:4]
    hidden = np.where(np.arange(8) < 5, 0.0, mask)
    weights = [weight("w", 3 * np.random.default_rng(0).standard_normal((8, 8))), weight("mask", hidden)]
    weights += [weight("s", np.array(scale)), numpy_helper.from_array(np.array(zero, np.int8), "z")]
    return network(nodes, weights, (1, 3, 8, 8), (1, 3, 8, 8), opset=21)


@pytest.mark.parametrize("mask", [-1e4, -np.inf])
def test_beside_a_mask_it_is_the_sum_that_is_told_not_the_softmax_behind_it(tmp_path, mask):
    a = saved(attention(quantised=False, mask=mask), tmp_path / "a.onnx")
    b = saved(attention(quantised=True, mask=mask), tmp_path / "b.onnx")
    found = first_divergence(a, b, images(1)[0], None, min_cosine=0.99)
    assert found is not None
    assert (found.node, found.tensor, found.by_quantising) == ("add", "masked", True)
    assert "whose 'masked' once quantised differs by" in str(found)
    fine = saved(attention(quantised=True, scale=0.3, zero=0, mask=mask), tmp_path / "fine.onnx")
    assert first_divergence(a, fine, images(1)[0], None, min_cosine=0.99) is None


@pytest.mark.parametrize("mask", [-100.0, -1e4])
def test_the_sum_is_told_though_a_reshape_lies_before_the_softmax(tmp_path, mask):
    """As windowed attention does it: rows stay rows."""

    def shaped(quantised: bool) -> onnx.ModelProto:
        model = attention(quantised=quantised, mask=mask, scale=0.4 if mask > -1e3 else 80.0)
        softmax = model.graph.node[-1]
        reshape = helper.make_node("Reshape", [softmax.input[0], "rows"], ["shaped"], "reshape")
        softmax.input[0] = "shaped"
        model.graph.node.insert(len(model.graph.node) - 1, reshape)
        model.graph.initializer.append(numpy_helper.from_array(np.array([1, 24, 8]), "rows"))
        model.graph.output[0].type.tensor_type.shape.CopyFrom(
            helper.make_tensor_value_info("o", 1, [1, 24, 8]).type.tensor_type.shape
        )
        return model

    a, b = (saved(shaped(quantised), tmp_path / f"{quantised}.onnx") for quantised in (False, True))
    found = first_divergence(a, b, images(1)[0], None, min_cosine=0.99)
    assert found is not None
    assert (found.node, found.by_quantising) == ("add", True)


def test_what_others_read_too_is_compared_whole(tmp_path):
    """Scores of a Softmax whose mask matters to somebody else."""
    nodes = [
        helper.make_node("Add", ["x", "mask"], ["scores"], "add"),
        helper.make_node("Softmax", ["scores"], ["weights"], "softmax", axis=-1),
        helper.make_node("Neg", ["scores"], ["negative"], "neg"),
        helper.make_node("Add", ["weights", "negative"], ["logits"], "sum"),
    ]

    def network_of(mask: float) -> onnx.ModelProto:
        return network(nodes, [weight("mask", np.where(np.arange(8) < 5, 0.0, mask))], (1, 3, 8, 8), (1, 3, 8, 8))

    a, b = (saved(network_of(mask), tmp_path / f"{mask}.onnx") for mask in (-100.0, -200.0))
    found = first_divergence(a, b, images(1)[0], 1e-3)
    assert found is not None
    assert found.node == "add"


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(("axis", "opset"), [(None, 11), (2, 12), (-1, 11), (None, 13), (1, 17)])
def test_plain_numpy_normalises_over_what_the_opset_says(tmp_path, op, axis, opset):
    attributes = {} if axis is None else {"axis": axis}
    path = saved(
        network([helper.make_node(op, ["x"], ["logits"], "s", **attributes)], [], (1, 3, 8, 8), (1, 3, 8, 8), opset),
        tmp_path / "s.onnx",
    )
    x = images(1)[0]["x"]
    over = (axis or 1) % 4 if opset < 13 else axis
    axes = tuple(range(over, 4)) if opset < 13 else (-1 if axis is None else axis)
    shifted = x - np.log(np.exp(x).sum(axes, keepdims=True))
    expected = shifted if op == "LogSoftmax" else np.exp(shifted)
    np.testing.assert_allclose(reference_evaluate(path, {"x": x})["logits"], expected, rtol=1e-5, atol=1e-7)


def test_equal_softmaxes_of_an_old_opset_are_equal(tmp_path):
    """What counts is what is normalised together: all dimensions from the second on."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["scores"], "score"),
        helper.make_node("Softmax", ["scores"], ["logits"], "softmax"),
    ]

    def network_of(low: float) -> onnx.ModelProto:
        hidden = np.diag([1.0] * 7 + [low])
        return network(nodes, [weight("w", 100 * hidden)], (1, 3, 8, 8), (1, 3, 8, 8), opset=11)

    a, b = (saved(network_of(low), tmp_path / f"{low}.onnx") for low in (1e-3, 2e-3))
    assert first_divergence(a, b, images(1)[0], 1e-2) is None


def test_a_mask_that_got_lost_is_told(tmp_path):
    a = saved(attention(quantised=False), tmp_path / "a.onnx")
    b = saved(attention(quantised=False, mask=0.0), tmp_path / "b.onnx")
    found = first_divergence(a, b, images(1)[0], 1e-2)
    assert found is not None
    assert found.node == "add"


def test_what_a_quantiser_named_after_the_tensor_is_not_the_culprit(tmp_path):
    """It renames what the node makes, and calls what it dequantised as the output was called."""
    a = saved(network([helper.make_node("MatMul", ["x", "w"], ["logits"], "product")], [weight("w", np.eye(8))],
                      (1, 3, 8, 8), (1, 3, 8, 8)), tmp_path / "a.onnx")  # fmt: skip
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["logits_input"], "product"),
        helper.make_node("QuantizeLinear", ["logits_input", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"], "dequantise"),
    ]
    weights = [weight("w", np.eye(8)), weight("s", np.array(9.0)), numpy_helper.from_array(np.array(0, np.int8), "z")]
    b = saved(network(nodes, weights, (1, 3, 8, 8), (1, 3, 8, 8)), tmp_path / "b.onnx")
    found = first_divergence(a, b, images(1)[0], None, min_cosine=0.99)
    assert found is not None
    assert (found.node, found.op, found.tensor, found.by_quantising) == ("product", "MatMul", "logits", False)


@pytest.mark.parametrize("opset", [13, 17, 21])
@pytest.mark.parametrize(("scale", "zero"), [(0.05, 3), (np.array([0.05, 0.1, 0.2]), [0, 5, -7])])
def test_plain_numpy_dequantises_in_every_opset(tmp_path, opset, scale, zero):
    scale, zero = np.float32(scale), np.array(zero, np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["logits"], "dequantise"),
    ]
    weights = [weight("s", scale), numpy_helper.from_array(zero, "z")]
    path = saved(network(nodes, weights, (1, 3, 8, 8), (1, 3, 8, 8), opset=opset), tmp_path / "q.onnx")
    (feeds,) = images(1)
    along = (scale.reshape(-1, 1, 1), zero.reshape(-1, 1, 1)) if scale.ndim else (scale, zero)
    q = np.clip(np.rint(feeds["x"] / along[0]) + along[1], -128, 127)
    expected = (q - along[1].astype(float)) * along[0]
    np.testing.assert_allclose(reference_evaluate(path, feeds)["logits"], expected, rtol=1e-6)


def test_networks_without_a_tensor_in_common_are_refused(source, tmp_path):
    other = convnet()
    for node in other.graph.node:
        node.input[:] = [f"other_{name}" if name != "x" else name for name in node.input]
        node.output[:] = [f"other_{name}" for name in node.output]
    for tensor in other.graph.initializer:
        tensor.name = f"other_{tensor.name}"
    other.graph.output[0].name = "other_logits"
    with pytest.raises(MismatchError, match="no tensor"):
        first_divergence(source, saved(other, tmp_path / "o.onnx"), images(1)[0], max_rel=1)


def test_an_engine_serves_as_evaluator_and_finds_the_same(source, tmp_path):
    pytest.importorskip("onnxruntime")
    engine = load_engine(Target("t", "cpu", "onnxruntime"))

    def evaluate(path, feeds):
        with engine.load(path) as session:
            return session.run(feeds)

    other = saved(changed(convnet(), "w2", 1.1), tmp_path / "other.onnx")
    found = first_divergence(source, other, images(1)[0], 1e-3, evaluate)
    reference = first_divergence(source, other, images(1)[0], 1e-3)
    assert found is not None
    assert reference is not None
    assert (found.tensor, found.node, found.agreeing_tensors) == ("c2", "pointwise", reference.agreeing_tensors)
    assert found.max_rel == pytest.approx(reference.max_rel, rel=1e-4)


def test_exposing_keeps_only_what_is_needed():
    model = exposed(convnet(), ["r0"])
    assert [n.name for n in model.graph.node] == ["conv0", "relu0"]
    onnx.checker.check_model(model)
    with pytest.raises(UsageError, match="nobody"):
        exposed(convnet(), ["nobody"])


def test_peaks_are_the_largest_values_over_all_samples():
    samples = images(3)
    peaks = activation_peaks(convnet(), samples, reference_evaluate)
    assert set(peaks) == {"c0", "r0", "c1", "k1", "c2", "a2", "p", "f", "logits"}
    assert peaks["k1"] <= 6
    assert peaks["r0"] <= peaks["c0"]
    single = [activation_peaks(convnet(), [feeds], reference_evaluate)["logits"] for feeds in samples]
    assert peaks["logits"] == max(single)
