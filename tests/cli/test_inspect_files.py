"""`inspect` and `diff` of files that need no runtime: what TensorRT's inspector wrote."""

import json
from pathlib import Path

import pytest
from command_line import call

GOLDEN = Path(__file__).parents[1] / "golden"
TEN, ELEVEN = GOLDEN / "importers" / "trtexec_10" / "layers.json", GOLDEN / "importers" / "trtexec_11" / "layers.json"


@pytest.mark.parametrize("path", [GOLDEN / "inspector_10.json", GOLDEN / "inspector_11.json", TEN, ELEVEN])
def test_an_inspectors_file_is_listed_without_a_target(tmp_path, path):
    answer = call(tmp_path, "inspect", path, "--json")
    assert answer.code == 0, answer
    assert answer.data["source"] == "inspector"
    assert answer.data["kernels"]
    assert all(None not in row["input_types"] + row["output_types"] for row in answer.data["kernels"])


def test_two_of_them_are_compared(tmp_path):
    same = call(tmp_path, "diff", TEN, TEN, "--json").data
    assert (same["identical"], same["moved"], same["traffic_delta_bytes"]) == (True, [], 0)
    data = call(tmp_path, "diff", TEN, ELEVEN, "--json").data
    assert data["traffic_delta_bytes"] == data["traffic_bytes_b"] - data["traffic_bytes_a"]
    assert data["moved"]
    assert call(tmp_path, "diff", TEN, ELEVEN).code == 0


def test_what_inspect_writes_for_trtexec_it_reads_again(tmp_path):
    answer = call(tmp_path, "inspect", ELEVEN, "--trtexec", tmp_path / "out", "--json")
    (written,) = answer.data["written"]
    again = call(tmp_path, "inspect", written, "--json").data["kernels"]
    for before, after in zip(answer.data["kernels"], again, strict=True):
        assert [before[k] for k in ("name", "op", "inputs", "outputs", "nodes", "traffic_bytes")] == [
            after[k] for k in ("name", "op", "inputs", "outputs", "nodes", "traffic_bytes")
        ]


def test_what_cannot_be_inspected_is_refused_with_the_reason(tmp_path):
    (tmp_path / "other.json").write_text("{}")
    assert call(tmp_path, "inspect", "other.json", "--json").code == 2
    (tmp_path / "e.plan").write_bytes(b"plan")
    alone = call(tmp_path, "inspect", "e.plan", "--json")
    assert (alone.code, alone.error["found"]) == (2, "no target")
    cpu = call(tmp_path, "inspect", "e.plan", "--target", "cpu_onnxruntime_fp32", "--json")
    assert cpu.code == 2
    assert "TensorRT plan" in cpu.error["found"]
    assert call(tmp_path, "inspect", ELEVEN, "--predict", "--json").code == 2
    assert json.loads(ELEVEN.read_text())["Layers"]


def test_a_plan_without_its_gpu_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "e.plan").write_bytes(b"plan")
    answer = call(tmp_path, "inspect", "e.plan", "--target", "rtx_tensorrt-rtx_fp16", "--json")
    assert answer.code == 5
    assert answer.error["found"]
