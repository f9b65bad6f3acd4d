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
