"""The calibration that errs least is chosen, and nodes that cost too much are left out, by real quantised networks."""

from __future__ import annotations

import onnx
import pytest
from export_graphs import convnet, images, saved

from akd_deploy.engines import load_engine
from akd_deploy.errors import UsageError
from akd_deploy.export.int8_settings import Int8Settings
from akd_deploy.export.quantize import quantize_onnx
from akd_deploy.export.sensitivity import Score, output_error
from akd_deploy.export.tune_int8 import calibrations_of, quantized_nodes, tune_int8
from akd_deploy.target import Target

pytest.importorskip("onnxruntime")


@pytest.fixture
def source(tmp_path):
    return saved(convnet(), tmp_path / "net.onnx")


def judge_of(source, feeds, limit):
    engine = load_engine(Target("t", "cpu", "onnxruntime"))

    def outputs(path):
        with engine.load(path) as session:
            return [session.run(feed) for feed in feeds]

    expected = outputs(source)

    def judge(path):
        error = output_error(expected, outputs(path))
        return Score(error, error <= limit)

    return judge


def test_the_calibration_that_errs_least_on_other_samples_is_chosen(source, tmp_path):
    """A calibration sample a hundred times too large: minmax then has few steps left for what is usual."""
    calibration = images(32)
    calibration[0] = {"x": calibration[0]["x"] * 100}
    judge = judge_of(source, images(16, seed=5), limit=1.0)
    names = ("minmax", "percentile:99")
    found = tune_int8(source, calibration, tmp_path / "v.onnx", Int8Settings(), judge, names)
    assert found.calibration == "percentile:99"
    assert found.scores["percentile:99"].error < found.scores["minmax"].error
    by_hand = Int8Settings(calibration="percentile:99")
    assert found.model.sha256 == quantize_onnx(source, "int8", calibration, tmp_path / "h.onnx", by_hand).sha256
    assert (found.excluded, found.within, found.trials) == ((), True, 2)


def test_nodes_are_excluded_until_the_judge_is_content_and_the_file_is_without_them(source, tmp_path):
    feeds = images(16, seed=5)
    loose = judge_of(source, feeds, limit=1.0)
    whole = tune_int8(source, images(32), tmp_path / "a.onnx", Int8Settings(), loose, ("minmax",))
    before = whole.scores["minmax"].error
    strict = judge_of(source, feeds, limit=0.7 * before)
    found = tune_int8(source, images(32), tmp_path / "b.onnx", Int8Settings(), strict, ("minmax",))
    assert found.within
    assert found.excluded
    weights = {"conv0": "w0", "depthwise": "w1", "pointwise": "w2", "classifier": "w3"}
    floats = {tensor.name for tensor in onnx.load(found.model.path).graph.initializer}
    for node, name in weights.items():
        assert (name in floats) == (node in {one.node for one in found.excluded}), node
    assert strict(found.model.path).error == pytest.approx(before - sum(one.effect for one in found.excluded), rel=1e-6)


def test_a_limit_that_int8_cannot_reach_is_told(source, tmp_path):
    judge = judge_of(source, images(4, seed=5), limit=0.0)
    found = tune_int8(source, images(8), tmp_path / "v.onnx", Int8Settings(), judge, ("minmax",), max_trials=6)
    assert not found.within
    assert found.trials <= 6
    assert found.model.path.is_file()


def test_what_to_try_is_named():
    assert calibrations_of("auto") == ("minmax", "entropy", "percentile")
    assert calibrations_of("percentile:99") == ("percentile:99",)
    with pytest.raises(UsageError, match="no calibration"):
        tune_int8(None, [], None, Int8Settings(), lambda path: Score(0, within=True), ())


def test_quantised_nodes_are_those_that_read_or_write_int8_in_order(source, tmp_path):
    path = quantize_onnx(source, "int8", images(4), tmp_path / "v.onnx", Int8Settings()).path
    nodes = quantized_nodes(path)
    assert nodes == ("conv0", "depthwise", "pointwise", "residual", "pool", "flatten", "classifier")
    assert quantized_nodes(source) == ()
