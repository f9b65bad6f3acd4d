"""`profile --transfer-from`: tables of other devices completed by ten probes, and everything after it as ever."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import onnx
import pytest
from command_line import TARGET, Answer, call, written
from hidden_devices import Bench, HiddenDevice, table_of_items
from onnx import TensorProto, helper

from akd_deploy.latency_table import read_table, write_table
from akd_deploy.pipeline import transfer
from akd_deploy.pipeline.spaces import named_space
from akd_deploy.pipeline.transfer import list_items
from akd_deploy.predictor.transfer_plan import PLAN_NAME
from akd_deploy.profiling import blocks
from akd_deploy.profiling.subjects import space_subjects
from akd_deploy.target import load_target

SPACE = """
[space.settings]
widths = [8, 16]
strides = [1, 2]
layers = [[1], [1, 2]]
operators = ["conv", "dw_separable"]
kernels = [3]
"""
KNOWN = {
    "server": HiddenDevice(clock=2.0, mac_s=1e-11, depthwise_mac_s=3e-11),
    "board": HiddenDevice(clock=0.5, byte_s=8e-11, kernel_s=2e-6),
}
NEW = HiddenDevice(clock=0.8, depthwise_mac_s=3e-10, kernel_s=5e-7)
CANDIDATES, NETWORKS = 40, 12


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tables of two other devices, and the space that they were profiled on."""
    folder = tmp_path_factory.mktemp("devices")
    written(folder / "space.toml", f'target = "{TARGET}"\nbudget = "1ms"\n{SPACE}')
    target = load_target(TARGET)
    subjects = space_subjects(target, named_space(str(folder / "space.toml")), CANDIDATES, NETWORKS, 0)
    items = list_items(target, subjects, 10, lambda done, total: None)
    for i, (model, device) in enumerate(KNOWN.items()):
        write_table(table_of_items(device, items, replace(target, name=model), model, i), folder / model)
    return folder


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    result = Bench(NEW)
    monkeypatch.setattr(blocks, "_run_block", result.run_block)
    monkeypatch.setattr(transfer, "CANDIDATE_PROBES", CANDIDATES)
    return result


def profile(folder: Path, sources: Path, *more: object) -> Answer:
    size = ("--space", sources / "space.toml", "--networks", NETWORKS)
    return call(folder, "profile", "--target", TARGET, *size, *more, "--json")


def both(sources: Path) -> tuple[str, str]:
    return ("--transfer-from", f"{sources / 'server'},{sources / 'board'}")


def test_a_transfer_is_profiled_fitted_asked_and_resumed_like_any_other(
    bench: Bench, sources: Path, tmp_path: Path
) -> None:
    bench.interrupt_after = 14
    assert profile(tmp_path, sources, *both(sources)).code == 130
    assert profile(tmp_path, sources, *both(sources)).error["kind"] == "usage"
    bench.interrupt_after = None
    answer = profile(tmp_path, sources, *both(sources), "--resume")
    assert answer.code == 0, answer
    data = answer.data
    table = read_table(Path(data["table"]))
    assert (data["probes"], data["rows"], data["blocks"]) == (10, 10, 3)
    assert data["measured"] == [row.name for row in table.rows]
    assert data["measured_blocks"] == data["planned_blocks"] == 30
    assert len(bench.taken) == sum(len(row.measurement.blocks) for row in table.rows)
    assert data["candidates"] > 30
    assert data["kernels"] > 20
    assert data["seconds"] > 0
    assert 0 < data["sigma"] < 0.05
    assert data["intervals_rehearsed"] is True
    assert data["notes"] == []
    assert [(one["target"], one["digest"]) for one in data["transferred_from"]] == [
        (name, read_table(sources / name).digest()) for name in KNOWN
    ]
    assert (Path(data["table"]) / PLAN_NAME).is_file()

    fitted = call(tmp_path, "fit", "--target", TARGET, "--json").data
    assert fitted["calibrated_on"] == "transfers between its sources"
    assert [one["target"] for one in fitted["transferred_from"]] == list(KNOWN)
    assert fitted["items"] + fitted["left_out"] == 10
    assert fitted["tail_factors"]["p90"] >= 1
    space = ("--space", sources / "space.toml")
    feasible = call(tmp_path, "feasible", "--target", TARGET, *space, "--json")
    assert feasible.code == 0, feasible
    assert 0 < feasible.data["min_s"] < feasible.data["median_s"] < feasible.data["max_s"]

    strange = helper.make_graph(
        [helper.make_node("Sinh", ["x"], ["y"])],
        "g",
        *([helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8, 12, 12])] for name in ("x", "y")),
    )
    onnx.save_model(
        helper.make_model(strange, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "sinh.onnx"
    )
    refused = call(tmp_path, "predict", "--target", TARGET, "--onnx", tmp_path / "sinh.onnx", "--json")
    assert (refused.code, refused.data["uncovered"]) == (2, ["Sinh"])
    assert f"on its sources ({', '.join(KNOWN)}) and transfer again" in refused.error["next"]

    longer = profile(tmp_path, sources, *both(sources), "--resume", "--probes", 12)
    assert longer.data["rows"] == 12


def test_a_source_of_another_precision_is_pointed_out_and_used(bench: Bench, sources: Path, tmp_path: Path) -> None:
    table = read_table(sources / "server")
    header = replace(table.header, target=replace(table.header.target, precision="fp16"))
    write_table(replace(table, header=header), tmp_path / "half")
    answer = profile(tmp_path, sources, "--transfer-from", tmp_path / "half", "--probes", 5)
    assert answer.code == 0, answer
    assert answer.data["notes"] == [f"source server is of precision fp16, target {TARGET} of fp32"]
    assert answer.data["transferred_from"][0]["precision"] == "fp16"
    assert answer.data["intervals_rehearsed"] is False
    text = call(
        tmp_path, "profile", "--target", TARGET, "--transfer-from", tmp_path / "half", "--resume",
        "--space", sources / "space.toml", "--networks", NETWORKS, "--probes", 5,
    )  # fmt: skip
    assert text.code == 0, text
    assert "note: source server is of precision fp16" in " ".join(text.stderr.split() + text.stdout.split())


def test_networks_of_ones_own_are_candidates_with_their_windows(
    bench: Bench, sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import numpy as np
    import onnx

    from akd_deploy.models.onnx_from_student import onnx_from_architecture

    space = named_space(str(sources / "space.toml"))
    rng = np.random.default_rng(3)
    names = []
    for i in range(2):
        names += ["--onnx", tmp_path / f"net{i}.onnx"]
        onnx.save_model(onnx_from_architecture(space.sample(rng), rng, 1), names[-1])
    answer = call(tmp_path, "profile", "--target", TARGET, *both(sources), *names, "--probes", 6, "--json")
    assert answer.code == 0, answer
    assert answer.data["candidates"] > 10


def test_a_dry_run_says_what_it_would_do_and_writes_nothing(bench: Bench, sources: Path, tmp_path: Path) -> None:
    answer = profile(tmp_path, sources, *both(sources), "--dry-run")
    assert answer.code == 0, answer
    assert answer.data["probes"] == 10
    assert "rows" not in answer.data
    assert not (tmp_path / "latency_tables").exists()
    assert bench.taken == []


def test_what_makes_no_sense_is_refused_before_anything_is_measured(
    bench: Bench, sources: Path, tmp_path: Path
) -> None:
    for code, kind, words, more in (
        (2, "missing_file", "no target of that name", ("--transfer-from", "nowhere")),
        (2, "missing_file", "akd-deploy profile --target cpu_openvino_fp32", ("--transfer-from", "cpu_openvino_fp32")),
        (2, "usage", "--minutes", (*both(sources), "--minutes", 2)),
        (2, "usage", "candidates", (*both(sources), "--probes", 60)),
        (2, "usage", "--transfer-from", ("--probes", 10)),
    ):
        answer = profile(tmp_path, sources, *more)
        assert (answer.code, answer.error["kind"]) == (code, kind), more
        assert words in json.dumps(answer.error), answer.error
    assert bench.taken == []


def test_an_operator_that_a_source_does_not_know_is_listed(bench: Bench, sources: Path, tmp_path: Path) -> None:
    table = read_table(sources / "board")
    counts = Counter(op for row in table.rows for op in {kernel.op for kernel, _ in row.kernels})
    rare = min(counts, key=lambda op: counts[op])
    rows = tuple(row for row in table.rows if not any(kernel.op == rare for kernel, _ in row.kernels))
    write_table(replace(table, rows=rows), tmp_path / "bare")
    answer = profile(tmp_path, sources, "--transfer-from", f"{sources / 'server'},{tmp_path / 'bare'}")
    assert (answer.code, answer.error["kind"]) == (2, "uncovered_operator")
    assert rare in answer.error["uncovered"]
    assert "board" in answer.error["asked"]
