"""`akd-deploy import-table`: other tools' files in, a table out that `fit` and `predict` take."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from additions import added
from command_line import Answer, call, written

from akd_deploy.engines import load_engine
from akd_deploy.latency_table import read_table
from akd_deploy.models.onnx_from_student import onnx_from_architecture
from akd_deploy.profiling.importers.into_table import NOT_STATED
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

GOLDEN = Path(__file__).parents[1] / "golden" / "importers"
TEN = [GOLDEN / "trtexec_10" / f"{name}.json" for name in ("layers", "profile", "times")]
DEVICE = ("--device-name", "RTX 4090")
TENSORRT, PHONE = "rtx4090_tensorrt_fp16", "pixel1_onnxruntime_fp32"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A working directory with two targets of named devices."""
    written(tmp_path / f"targets/{TENSORRT}.toml", 'device = "rtx4090"\nengine = "tensorrt"\nprecision = "fp16"\n')
    written(tmp_path / f"targets/{PHONE}.toml", 'device = "pixel1"\nengine = "onnxruntime"\nprecision = "fp32"\n')
    return tmp_path


def trtexec(place: Path, *more: object, files: list[Path] = TEN) -> Answer:
    return call(place, "import-table", "trtexec", *files, "--target", TENSORRT, *more)


def test_trtexec_files_become_the_target_s_table(place: Path) -> None:
    answer = trtexec(place, *DEVICE, "--engine-version", "10.12.0", "--network", "net", "--json")
    assert answer.code == 0, answer
    data = answer.data
    assert data["table"] == str(place / "latency_tables" / TENSORRT)
    assert (data["probes"], data["networks"], data["aggregated"], data["rows"]) == (15, 1, 15, 16)
    assert data["without_latency"] == ["Reformatting CopyNode for Output Tensor 0 to fc"]
    assert data["not_kernels"] == ["flatten"]
    assert data["layers_over_network"] == pytest.approx(1.0907, abs=1e-3)
    header = read_table(Path(data["table"])).header
    assert dict(header.device.facts) == data["device"] == {"kind": "stated", "model": "RTX 4090"}
    assert header.engine_version == data["engine_version"] == "10.12.0"
    fitted = call(place, "fit", "--target", TENSORRT, "--json")
    assert (fitted.code, fitted.data["calibrated_on"]) == (0, "held-out probes")


def test_what_is_left_out_is_told_to_people_too(place: Path) -> None:
    answer = trtexec(place, *DEVICE)
    assert answer.code == 0
    assert "wrote 15 probes and 1 networks" in answer.stdout
    assert "1 without a latency, left out: Reformatting CopyNode for Output Tensor 0 to fc" in answer.stdout
    assert "1 running no kernel, left out: flatten" in answer.stdout
    assert "add up to 1.09 × the network" in answer.stdout


def test_a_dry_run_reads_everything_and_writes_nothing(place: Path) -> None:
    answer = trtexec(place, *DEVICE, "--dry-run", "--json")
    assert (answer.code, answer.data["rows"], answer.data["engine_version"]) == (0, 16, NOT_STATED)
    assert not (place / "latency_tables").exists()
    assert trtexec(place, *DEVICE, "--dry-run", files=TEN[1:]).code == 2


def test_a_second_network_is_appended_and_the_first_never_overwritten(place: Path) -> None:
    assert trtexec(place, *DEVICE, "--network", "one", "-o", place / "t").code == 0
    refused = trtexec(place, *DEVICE, "--network", "two", "-o", place / "t", "--json")
    assert (refused.code, "--append" in refused.error["next"]) == (2, True)
    both = trtexec(place, *DEVICE, "--network", "two", "-o", place / "t", "--append", "--json")
    assert (both.code, both.data["rows"], both.data["table_rows"]) == (0, 16, 32)
    again = trtexec(place, *DEVICE, "--network", "two", "-o", place / "t", "--append", "--json")
    assert (again.code, "already" in again.error["found"]) == (2, True)


def test_windows_of_tensorrt_11_come_from_the_onnx_file(place: Path) -> None:
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w0"], ["a0"], name="stem", strides=[2, 2], pads=[1] * 4),
        onnx.helper.make_node("Relu", ["a0"], ["a"], name="stem_relu"),
        onnx.helper.make_node("Conv", ["a", "w1"], ["b0"], name="b1_dw", group=16, pads=[1] * 4),
        onnx.helper.make_node("Relu", ["b0"], ["b"], name="b1_relu"),
        onnx.helper.make_node("Conv", ["b", "w2"], ["c"], name="b1_pw"),
        onnx.helper.make_node("Conv", ["c", "w3"], ["d0"], name="b2_expand"),
        onnx.helper.make_node("Relu", ["d0"], ["d"], name="b2_relu"),
        onnx.helper.make_node("Conv", ["d", "w4"], ["e0"], name="b2_dw", group=64, strides=[2, 2], pads=[2] * 4),
        onnx.helper.make_node("Relu", ["e0"], ["e"], name="b2_relu2"),
        onnx.helper.make_node("Conv", ["e", "w5"], ["f"], name="b2_project"),
    ]  # fmt: skip
    shapes = [(16, 3, 3, 3), (16, 1, 3, 3), (32, 16, 1, 1), (64, 32, 1, 1), (64, 1, 5, 5), (32, 64, 1, 1)]
    weights = [onnx.numpy_helper.from_array(np.zeros(shape, np.float16), f"w{i}") for i, shape in enumerate(shapes)]
    half = onnx.TensorProto.FLOAT16
    tensor = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        nodes, "net", [tensor("x", half, [1, 3, 32, 32])], [tensor("f", half, [1, 32, 8, 8])], weights
    )
    onnx.save_model(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)]), place / "m.onnx")
    files = [GOLDEN / "trtexec_11" / f"{name}.json" for name in ("layers", "profile", "times")]
    assert "--onnx" in trtexec(place, *DEVICE, "--json", files=files).error["next"]
    answer = trtexec(place, *DEVICE, "--onnx", "m.onnx", "--json", files=files)
    assert answer.code == 0, answer
    kernels = {k for row in read_table(Path(answer.data["table"])).rows for k, _ in row.kernels}
    depthwise = next(k for k in kernels if k.attribute("groups") == 64)
    assert (depthwise.attribute("strides"), depthwise.attribute("activation")) == ((2, 2), "relu")


def test_a_profile_of_this_machine_s_onnx_runtime_is_fitted_and_predicts(tmp_path: Path) -> None:
    import onnxruntime

    target = Target("cpu_onnxruntime_fp32", "cpu", "onnxruntime")
    rng = np.random.default_rng(5)
    onnx.save_model(onnx_from_architecture(load_space("mobile").sample(rng), rng), tmp_path / "m.onnx")
    options = load_engine(target)._session_options()  # type: ignore[attr-defined]
    options.enable_profiling = True
    options.profile_file_prefix = str(tmp_path / "profile")
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), options, providers=["CPUExecutionProvider"])
    for _ in range(12):
        session.run(None, {i.name: np.zeros(i.shape, np.float32) for i in session.get_inputs()})
    files = ("onnxruntime", session.end_profiling(), "--optimized-model", "optimised.onnx", "--network", "m")
    version = ("--engine-version", onnxruntime.__version__)
    common = ("import-table", *files, "--target", target.name, *version, "--json")
    refused = call(tmp_path, *common, "--device-name", "my desk")
    assert (refused.code, "--this-device" in refused.error["next"]) == (2, True)
    answer = call(tmp_path, *common, "--this-device")
    assert answer.code == 0, answer
    (network,) = read_table(Path(answer.data["table"])).of_kind("network")
    assert len(network.measurement.samples_s) == 11  # the first run warms up
    predicted = call(
        tmp_path, "predict", "--target", target.name, "--table", answer.data["table"], "--onnx", "m.onnx", "--json"
    )
    assert predicted.code == 0, predicted
    assert predicted.data["uncovered"] == []
    assert 0 <= predicted.data["interval_s"][0] <= predicted.data["latency_s"] <= predicted.data["interval_s"][1]
    added(tmp_path / "other.onnx", 1, 16, 6, 6)
    given = ("--target", target.name, "--table", answer.data["table"], "--onnx", "other.onnx", "--json")
    uncovered = call(tmp_path, "predict", *given)
    assert (uncovered.code, uncovered.error["uncovered"]) == (2, ["Add"])
    assert "imported" in uncovered.error["next"]
    assert f"akd-deploy import-table onnxruntime FILES --target {target.name} --append" in uncovered.error["next"]


@pytest.mark.parametrize(("kernels", "operator"), [("engine", "nchwc.Conv"), ("onnx", "Conv")])
@pytest.mark.parametrize("source", ["nn-meter", "once-for-all"])
def test_blocks_are_what_the_target_s_engine_executes_or_plain_onnx(
    source: str, kernels: str, operator: str, place: Path
) -> None:
    files = {
        "nn-meter": [*(GOLDEN / "nn_meter").glob("*conv-bn-relu*.json"), GOLDEN / "nn_meter" / "dwconv-bn-relu.csv"],
        "once-for-all": [GOLDEN / "once_for_all" / "proxyless.yaml"],
    }[source]
    arguments = ("import-table", source, *files, "--target", PHONE, "--device-name", "Pixel 1", "--kernels", kernels)
    answer = call(place, *arguments, "--json")
    assert answer.code == 0, answer
    table = read_table(Path(answer.data["table"]))
    assert operator in {kernel.op for row in table.rows for kernel, _ in row.kernels}
    assert len(table.rows) == {"nn-meter": 12, "once-for-all": 13}[source]
    assert dict(table.header.protocol)["kernels"].startswith({"engine": "onnxruntime 1", "onnx": "onnx"}[kernels])  # type: ignore[union-attr]
    # Rows of another version's kernels are refused where this version could tell otherwise.
    assert call(place, "fit", "--target", PHONE, "--json").error["kind"] == "mismatch"
    assert "--engine-version" in answer.data["notes"][-1]
    here = ("--engine-version", load_engine(Target("t", "pixel1", "onnxruntime")).version())
    assert call(place, *arguments, *here, "-o", place / "t").code == 0
    assert call(place, "fit", "--target", PHONE, "--table", place / "t", "--json").code == 0


REFUSED = {
    "no word of the device": ((), "--device-name"),
    "both devices": ((*DEVICE, "--this-device"), "--this-device"),
    "another format's option": ((*DEVICE, "--kernels", "onnx"), "Leave it out"),
    "another format's model": ((*DEVICE, "--optimized-model", "m.onnx"), "Leave it out"),
    "an unknown metric": ((*DEVICE, "--metric", "gpu"), "compute, latency"),
    "an ONNX file that is not there": ((*DEVICE, "--onnx", "m.onnx"), "Check the path"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_make_no_sense_are_refused(case: str, place: Path) -> None:
    options, told = REFUSED[case]
    answer = trtexec(place, *options, "--json")
    assert answer.code == 2
    assert told in answer.error["next"]
    assert not (place / "latency_tables").exists()


def test_formats_and_files_that_are_not_known_are_refused(place: Path) -> None:
    common = ("--target", PHONE, "--device-name", "Pixel 1", "--json")
    unknown = call(place, "import-table", "tflite", TEN[0], *common)
    assert (unknown.code, unknown.error["kind"]) == (2, "unknown_name")
    assert unknown.data["known"] == ["nn-meter", "once-for-all", "onnxruntime", "trtexec"]
    no_model = call(place, "import-table", "onnxruntime", GOLDEN / "onnxruntime" / "profile.json", *common)
    assert "optimized_model_filepath" in no_model.error["next"]
    two = call(place, "import-table", "once-for-all", *(GOLDEN / "once_for_all").glob("*"), *common)
    assert "--append" in two.error["next"]
    missing = call(place, "import-table", "nn-meter", "nowhere.json", *common)
    assert (missing.code, missing.error["kind"]) == (2, "missing_file")
    way = call(place, "import-table", "nn-meter", GOLDEN / "nn_meter" / "addrelu.csv", "--kernels", "tflite", *common)
    assert (way.code, way.data["known"]) == (2, ["engine", "onnx"])


def test_an_engine_that_is_not_here_is_told_with_the_way_without_it(place: Path) -> None:
    table = GOLDEN / "once_for_all" / "proxyless.yaml"
    common = ("import-table", "once-for-all", table, "--target", TENSORRT, *DEVICE, "--json")
    refused = call(place, *common)
    assert refused.code == 5
    assert "--kernels onnx" in refused.error["next"]
    answer = call(place, *common, "--kernels", "onnx")
    assert answer.code == 0
    kernels = {k for row in read_table(Path(answer.data["table"])).rows for k, _ in row.kernels}
    assert {kernel.dtype for kernel in kernels} == {"float16"}
    assert json.dumps(answer.data["protocol"]) == '{"kernels": "onnx", "source": "once-for-all", "statistic": "mean"}'
