"""Engines on the command line: a bundle's is verified and loaded; one from elsewhere is refused unless asked for."""

import shutil
from pathlib import Path

import pytest
from command_line import TARGET, call
from onnx import TensorProto, helper
from small_run import CPU_INT8, OPENVINO_FP32, small_bundle

from akd_deploy.errors import UsageError
from akd_deploy.export.load import Fit
from akd_deploy.profiling import blocks


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return small_bundle(tmp_path_factory.mktemp("bundle") / "run", CPU_INT8, OPENVINO_FP32)


@pytest.fixture
def network(tmp_path):
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    path = tmp_path / "m.onnx"
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    path.write_bytes(model.SerializeToString())
    return path


def test_load_runs_a_bundles_engine_once_and_says_what_it_is(bundle, tmp_path):
    answer = call(tmp_path, "load", bundle, "--json")
    assert answer.code == 0, answer
    data = answer.data
    assert (data["target"], data["engine"], data["rebuilt"]) == ("cpu_int8", "onnxruntime", False)
    assert data["file"] == "engines/cpu_int8/student.int8.onnx"
    assert (data["authentic"], data["differences"], data["finite"]) == (False, [], True)
    assert data["inputs"] == [{"name": "input", "shape": [1, 1, 12, 12], "dtype": "float32"}]
    assert data["outputs"] == [{"name": "logits", "shape": [1, 10], "dtype": "float32"}]
    again = call(tmp_path, "load", bundle, "--digest", data["digest"], "--target", "openvino_fp32", "--json").data
    assert (again["engine"], again["authentic"]) == ("openvino", True)
    words = call(tmp_path, "load", bundle).stdout
    assert "one inference on zeros: done\n" in words
    assert "measured elsewhere" not in words


def test_load_names_what_differs_from_where_the_bundle_was_measured(bundle, tmp_path, monkeypatch):
    from akd_deploy.device import DeviceFingerprint, cpu_fingerprint

    other = DeviceFingerprint({**cpu_fingerprint().facts, "model": "Another CPU"})
    monkeypatch.setattr("akd_deploy.engines.onnxruntime_engine.cpu_fingerprint", lambda: other)
    line = f"model: {cpu_fingerprint().facts['model']} ≠ Another CPU"
    assert call(tmp_path, "load", bundle, "--json").data["differences"] == [line]
    words = call(tmp_path, "load", bundle).stdout
    assert "its certificate says nothing about this machine" in words
    assert "≠ Another CPU" in words


def test_what_is_built_again_has_no_certificate(bundle, tmp_path, monkeypatch):
    assert call(tmp_path, "load", bundle, "--json").data["certificate"] is not None
    monkeypatch.setattr("akd_deploy.export.load.fit_here", lambda *_: Fit(("another version",), ()))
    refused = call(tmp_path, "load", bundle, "--json")
    assert (refused.code, "--rebuild" in refused.error["next"]) == (2, True)
    data = call(tmp_path, "load", bundle, "--rebuild", "--json").data
    assert (data["rebuilt"], data["certificate"]) == (True, None)
    words = call(tmp_path, "load", bundle, "--rebuild").stdout
    assert "no certificate: the bundle's is of its own engine, not of what was built now" in words
    assert "holds" not in words


def test_load_refuses_a_bundle_that_is_not_whole(bundle, tmp_path, monkeypatch):
    shutil.copytree(bundle, tmp_path / "b")
    path = tmp_path / "b" / "student.onnx"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    monkeypatch.setattr("akd_deploy.engines.onnxruntime_engine.OnnxRuntimeEngine.load", _never)
    answer = call(tmp_path, "load", tmp_path / "b", "--json")
    assert (answer.code, answer.error["kind"]) == (3, "verification")
    assert "student.onnx: its contents changed" in answer.error["found"]


def _never(*arguments, **named):
    raise AssertionError("this reached the runtime")


@pytest.mark.parametrize("option", ["--engine", "--onnx", "--compare-with"])
def test_bench_refuses_an_engine_from_elsewhere_before_anything_is_loaded(network, tmp_path, monkeypatch, option):
    """Native code is refused whichever option names it; what `--engine` names is refused whatever it is."""
    monkeypatch.setattr(blocks, "_run_block", _never)
    path = network if option == "--engine" else network.rename(tmp_path / "m.plan")
    models = ("--onnx", tmp_path / "other.onnx") if option == "--compare-with" else ()
    answer = call(tmp_path, "bench", "--target", TARGET, *models, option, path, "--blocks", 1, "--json")
    assert (answer.code, answer.error["kind"]) == (3, "verification")
    assert str(path) in answer.error["asked"]
    assert "no record that it was built here" in answer.error["found"]
    assert "--trust-engine" in answer.error["next"]


def test_bench_takes_what_was_built_here_what_a_bundle_holds_and_what_it_is_told_to_trust(network, bundle, tmp_path):
    size = ("--blocks", 1, "--seconds", "0.001", "--json")
    built = call(tmp_path, "build", "--onnx", network, "--target", TARGET, "-o", tmp_path / "out", "--json").data
    assert call(tmp_path, "bench", "--target", TARGET, "--engine", built["engine"], *size).code == 0
    (elsewhere := tmp_path / "elsewhere").mkdir()
    inside = bundle / "engines" / "cpu_int8" / "student.int8.onnx"
    assert call(elsewhere, "bench", "--target", "cpu_onnxruntime_int8", "--engine", inside, *size).code == 0
    refused = call(elsewhere, "bench", "--target", TARGET, "--engine", built["engine"], *size)
    assert refused.code == 3
    assert call(elsewhere, "bench", "--target", TARGET, "--engine", built["engine"], "--trust-engine", *size).code == 0


def test_bench_measures_the_engine_that_was_checked_whatever_becomes_of_the_file(network, tmp_path, monkeypatch):
    """Every process opens the file anew: somebody else's must not be there by then."""
    built = call(tmp_path, "build", "--onnx", network, "--target", TARGET, "-o", tmp_path / "out", "--json").data
    engine, opened = Path(built["engine"]), []
    original = engine.read_bytes()

    def run_block(target, models, *others):
        engine.write_bytes(b"evil")
        opened.append(models["model"].read_bytes())
        raise UsageError(asked="a test", found="enough seen", next="Stop.")

    monkeypatch.setattr(blocks, "_run_block", run_block)
    answer = call(tmp_path, "bench", "--target", TARGET, "--engine", engine, "--blocks", 1, "--json")
    assert answer.error["found"] == "enough seen"
    assert opened == [original]


def test_an_engine_that_cannot_be_recorded_is_built_all_the_same_and_says_so(network, tmp_path):
    (tmp_path / "home").write_text("a file in the way", encoding="utf-8")
    answer = call(tmp_path, "build", "--onnx", network, "--target", TARGET, "-o", tmp_path / "out", "--json")
    assert answer.code == 0
    assert "--trust-engine" in answer.data["notes"][-1]


def test_inspect_lets_no_plan_reach_a_runtime(tmp_path, monkeypatch):
    """Without a card nobody reads it; with one, it must have been built here."""
    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr("akd_deploy.engines.tensorrt_session.deserialised", _never)
    (tmp_path / "m.plan").write_bytes(b"plan")
    answer = call(tmp_path, "inspect", tmp_path / "m.plan", "--target", "rtx_tensorrt-rtx_fp16", "--json")
    assert (answer.code, answer.error["kind"]) == (5, "missing_runtime")
    monkeypatch.setattr("akd_deploy.engines.tensorrt_engine.TensorRtEngine.why_not", lambda self: None)
    answer = call(tmp_path, "inspect", tmp_path / "m.plan", "--target", "rtx_tensorrt-rtx_fp16", "--json")
    assert (answer.code, answer.error["kind"]) == (3, "verification")
    assert "--trust-engine" in answer.error["next"]


def test_a_bench_is_given_with_an_engine_alone_and_an_engine_must_have_been_built_here(bundle, network, tmp_path):
    answer = call(tmp_path, "package", bundle, "--bench", "b.json", "-o", tmp_path / "b.zip", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "usage")
    assert "--bench" in answer.error["asked"]
    answer = call(tmp_path, "package", network, "-o", tmp_path / "b.zip", "--json")
    assert (answer.code, answer.error["kind"]) == (3, "verification")
    assert "no record that it was built here" in answer.error["found"]
    assert not (tmp_path / "b.zip").exists()
