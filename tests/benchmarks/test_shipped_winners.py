"""The runs of the published recipes are such as a user could write, and their table says what a summary says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from akd_deploy.configuration import read_configuration
from akd_deploy.errors import GateError
from akd_deploy.pipeline.check import check_configuration
from benchmarks import shipped_winners

SUMMARY: dict[str, Any] = {
    "seconds": 61.4,
    "target": {"name": "cpu_onnxruntime_fp32"},
    "export": {"parity": {"max_abs": 1.2e-6, "top1_agreement": 1.0}},
    "winner": {
        "budget_s": 2e-4,
        "predicted_s": 1.5e-4,
        "interval_s": [1.4e-4, 1.6e-4],
        "measured_s": {"median": 1.52e-4, "p90": 1.55e-4},
        "certificate": {"ok": True, "exceeding": 3, "samples": 1_000, "allowed": 78, "percentile": 90},
        "bundle": "somewhere/bundle",
    },
    "accuracy": {
        "teacher": {"mean": 0.97, "spread": None, "seeds": 1},
        "process": {"mean": 0.612, "spread": 0.011, "seeds": 2},
        "hand_shrunk": {"mean": 0.55, "spread": None, "seeds": 1, "latency_s": 1.9e-4, "within_budget": True},
        "per_seed": {"process": [0.601, 0.623], "hand_shrunk": [0.55]},
        "paired": [{"a": "process", "b": "hand_shrunk", "mean": 0.062, "low": 0.01, "high": 0.114, "n": 2}],
    },
}


def summary(**winner: Any) -> dict[str, Any]:
    return {**SUMMARY, "winner": {**SUMMARY["winner"], **winner}}


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Stands in for akd-deploy: a run writes the summary above."""
    told: list[tuple[str, ...]] = []

    def akd_deploy(*arguments: str) -> int:
        told.append(arguments)
        if arguments[0] == "verify":
            return 0
        place = Path(arguments[arguments.index("--output") + 1])
        place.mkdir(parents=True)
        ok = place.name != "oracle_kd"
        certificate = {**SUMMARY["winner"]["certificate"], "ok": ok}
        (place / "summary.json").write_text(json.dumps(summary(certificate=certificate)), encoding="utf-8")
        return 0 if ok else GateError.exit_code

    monkeypatch.setattr(shipped_winners, "_akd_deploy", akd_deploy)
    return told


@pytest.mark.parametrize("name", shipped_winners.names())
def test_every_run_is_one_that_a_dry_run_accepts(name, tmp_path, monkeypatch) -> None:
    configuration = read_configuration(shipped_winners.CONFIGURATIONS / f"{name}.toml")
    weights = [tmp_path / path.name for path in configuration.teacher.weight_files]
    for path in weights:
        path.touch()
    if weights:
        teacher = configuration.teacher.model_copy(update={"weights": weights[0]})
        configuration = configuration.model_copy(update={"teacher": teacher})
    check_configuration(configuration, of_space=not shipped_winners.is_part(configuration))
    assert shipped_winners.is_part(configuration) == name.startswith("better_students")


def test_there_is_a_run_of_each_published_system_and_parts_are_made_for_two_targets() -> None:
    read = {n: read_configuration(shipped_winners.CONFIGURATIONS / f"{n}.toml") for n in shipped_winners.names()}
    assert {name.split("_")[0] for name in read} == {"akd", "oracle", "better", "distpro"}
    assert len({one.target for name, one in read.items() if name.startswith("better")}) == 2
    assert (read["akd"].search.strategies, read["oracle_kd"].distill.method) == (["akd-ppo"], "oracle")
    assert read["distpro"].distill.method == "process"


def test_a_line_and_the_arms_are_what_the_summary_says() -> None:
    assert shipped_winners.line("akd", {**SUMMARY, "verified": True}) == [
        "akd", "cpu_onnxruntime_fp32", "200 µs at p90", "150 µs [140 µs, 160 µs]", "152 µs, 155 µs",
        "holds: 3 of 1000 over, 78 allowed", "1e-06, top-1 100%", "verified",
    ]  # fmt: skip
    lost = {**SUMMARY["winner"]["certificate"], "ok": False}
    cells = shipped_winners.line("akd", {**summary(certificate=lost), "verified": False})
    assert cells[5].startswith("does NOT hold")
    assert cells[7] == "NOT verified"
    assert shipped_winners.arms(SUMMARY) == (
        "teacher 97.00%, process 61.20% ± 1.10% (2), hand_shrunk 55.00% (1); process less hand_shrunk +6.20 "
        "[+1.00, +11.40] points; hand_shrunk takes 190 µs, within the budget"
    )


def test_runs_are_done_verified_and_told_in_a_file(tmp_path, commands, capsys) -> None:
    assert shipped_winners.main(["akd", "distpro", "--folder", str(tmp_path)]) == 0
    config = str(shipped_winners.CONFIGURATIONS / "akd.toml")
    assert commands[:2] == [
        ("run", "--config", config, "--output", str(tmp_path / "akd"), "--resume"),
        ("verify", "somewhere/bundle"),
    ]
    text = (tmp_path / "winners.md").read_text(encoding="utf-8")
    assert text in capsys.readouterr().out
    assert [row.split(" |")[0] for row in text.splitlines()[2:4]] == ["| akd", "| distpro"]


def test_a_certificate_that_does_not_hold_is_told_and_ends_with_3(tmp_path, commands, capsys) -> None:
    assert shipped_winners.main(["oracle_kd", "--folder", str(tmp_path)]) == GateError.exit_code
    assert "does NOT hold" in capsys.readouterr().out


def test_a_run_that_fails_is_not_told_as_one_that_ran(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(shipped_winners, "_akd_deploy", lambda *arguments: 2)
    with pytest.raises(SystemExit, match="akd: akd-deploy run ended with 2"):
        shipped_winners.main(["akd", "--folder", str(tmp_path)])


def test_an_unknown_run_is_refused_with_those_that_there_are(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        shipped_winners.main(["adk", "--folder", str(tmp_path)])
    assert "adk: none of akd, better_students_onnxruntime" in capsys.readouterr().err


def test_parts_are_cut_out_of_a_teacher_that_is_trained_once(tmp_path, monkeypatch) -> None:
    small = {"labelled": 48, "teacher_images": 64, "reward_images": 48, "tuning_images": 48, "test_images": 48}
    read = read_configuration(shipped_winners.CONFIGURATIONS / "better_students_onnxruntime.toml")
    path = tmp_path / "deep" / "resnet.safetensors"
    configuration = read.model_copy(
        update={
            "data": read.data.model_copy(update={"settings": {**small, "views": 1}}),
            "teacher": read.teacher.model_copy(update={"weights": path}),
        }
    )
    monkeypatch.setattr(shipped_winners, "TEACHER", {"steps": 2, "batch_size": 16})
    shipped_winners.prepare_teacher(configuration)
    weights = path.read_bytes()
    path.write_bytes(weights[:-1])
    shipped_winners.prepare_teacher(configuration)
    assert path.read_bytes() == weights[:-1]
