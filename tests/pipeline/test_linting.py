from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from synthetic_device import SyntheticDevice, table_of

from akd_deploy.engines import load_engine
from akd_deploy.errors import AkdError, UsageError
from akd_deploy.export.lint import lint_onnx
from akd_deploy.export.lint_costs import LintCosts
from akd_deploy.latency_table import LatencyTable, write_table
from akd_deploy.pipeline import linting
from akd_deploy.pipeline.linting import lint_for, parse_dimensions, with_sizes
from akd_deploy.search_space import load_space
from akd_deploy.target import Target, load_target


def dynamic_network(path: Path, channels: int = 18) -> Path:
    """Two convolutions on an image of any height."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((channels, 3, 3, 3), dtype=np.float32), "w0"),
        numpy_helper.from_array(rng.standard_normal((8, channels, 3, 3), dtype=np.float32), "w1"),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "first", pads=[1] * 4),
        helper.make_node("Conv", ["a", "w1"], ["y"], "second", pads=[1] * 4),
    ]
    values = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, count, "height", 8])
        for name, count in (("x", 3), ("y", 8))
    ]
    graph = helper.make_graph(nodes, "net", values[:1], values[1:], weights)
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def messages(findings, rule):
    return [f.message for f in findings if f.rule == rule]


def test_predicted_costs_stand_beside_odd_channels_and_dynamic_sizes(tmp_path):
    """A device that takes 1 ms for each channel, or for each row."""
    path = dynamic_network(tmp_path / "m.onnx")
    asked = []

    def padding_s(node, inside, outside):
        asked.append((node, inside, outside))
        return 0.018, 0.024

    costs = LintCosts(padding_s, lambda sizes: sizes["height"] * 1e-3, {"height": (4, 8, 16)})
    found = lint_onnx(path, Target("t", "cpu", "onnxruntime"), costs=costs)
    assert asked == [("first", None, 24), ("second", 24, None)]
    assert all("predicted 18 ms, with 24 24 ms" in m for m in messages(found, "odd-channels"))
    (told,) = messages(found, "dynamic-dimension")
    assert "4 ms at 4, 8 ms at 8, 16 ms at 16" in told.replace(".0", "").replace(".00", "")


def test_what_is_not_known_is_said_and_no_number_invented(tmp_path):
    path, target = dynamic_network(tmp_path / "m.onnx"), Target("t", "cpu", "onnxruntime")
    (plain,) = messages(lint_onnx(path, target), "dynamic-dimension")
    assert "not known" in plain
    blind = LintCosts(None, lambda sizes: None, {"height": (4, 8, 16)})
    (told,) = messages(lint_onnx(path, target, costs=blind), "dynamic-dimension")
    assert "not known" in told
    assert " ms" not in told


def test_without_a_table_the_engines_documented_number_is_taken_and_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AKD_DEPLOY_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(linting, "_found", lambda target: None)
    linted = lint_for(dynamic_network(tmp_path / "m.onnx"), load_target("cpu_onnxruntime_fp32"))
    assert (linted.granularity.multiple, linted.table) == (8, None)
    assert all("blocked layouts" in m for m in messages(linted.findings, "odd-channels"))


def test_a_named_table_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(AkdError):
        lint_for(dynamic_network(tmp_path / "m.onnx"), load_target("cpu_onnxruntime_fp32"), tmp_path / "none")


def test_dimensions_are_read_and_what_is_none_is_refused():
    assert parse_dimensions(["height=128,224,512"]) == {"height": (128, 224, 512)}
    for text in ("height", "height=1,2", "height=3,2,1", "=1,2,3", "height=0,1,2", "height=a,b,c"):
        with pytest.raises(UsageError):
            parse_dimensions([text])


def test_sizes_are_set_wherever_the_dimension_stands(tmp_path):
    written = with_sizes(dynamic_network(tmp_path / "m.onnx"), {"height": 12}, tmp_path)
    model = onnx.load(written)
    onnx.shape_inference.infer_shapes(model, strict_mode=True)
    assert [d.dim_value for v in (*model.graph.input, *model.graph.output) for d in v.type.tensor_type.shape.dim][
        2
    ] == 12


@pytest.fixture(scope="module")
def table(tmp_path_factory) -> Path:
    """The table of a device that computes 16 channels at once, as one of this CPU."""
    pytest.importorskip("onnxruntime")
    target = load_target("cpu_onnxruntime_extended_fp32")
    engine = load_engine(target)
    measured = table_of(SyntheticDevice(), load_space("mobile"), probes=120, networks=10, seed=0)
    header = replace(measured.header, target=target, device=engine.fingerprint(), engine_version=engine.version())
    folder = tmp_path_factory.mktemp("tables") / "of_16"
    write_table(LatencyTable(header, measured.rows), folder)
    return folder


def test_the_tile_is_learnt_from_the_table_which_is_named_beside_predicted_costs(tmp_path, table):
    target = load_target("cpu_onnxruntime_extended_fp32")
    dynamic = dynamic_network(tmp_path / "m.onnx", channels=24)
    linted = lint_for(with_sizes(dynamic, {"height": 8}, tmp_path), target, table)
    assert linted.granularity.multiple == 16
    assert linted.notes == ()
    for message in messages(linted.findings, "odd-channels"):
        assert f"not a multiple of 16 (120 measurements in {table})" in message
        assert "; predicted " in message
        assert ", with 32 " in message
    assert {f.node for f in linted.findings} == {"first", "second"}, "24 is a multiple of 8 alone"


def test_sizes_of_a_dynamic_dimension_are_predicted_by_the_table(tmp_path, table):
    target = load_target("cpu_onnxruntime_extended_fp32")
    linted = lint_for(dynamic_network(tmp_path / "m.onnx"), target, table, {"height": (8, 16, 32)})
    (message,) = messages(linted.findings, "dynamic-dimension")
    told = message.partition("static exports: ")[2].partition(";")[0].split(", ")
    assert [text.rpartition(" at ")[2] for text in told] == ["8", "16", "32"]


def test_a_table_of_another_target_is_refused(tmp_path, table):
    with pytest.raises(AkdError, match="cpu_onnxruntime_fp32"):
        lint_for(dynamic_network(tmp_path / "m.onnx"), load_target("cpu_onnxruntime_fp32"), table)
