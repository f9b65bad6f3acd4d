"""The choice of T and λ for a bed of a study."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from benchmarks.seed_systems.bed_tuning import TUNING, tuned_distillation
from benchmarks.seed_systems.ledger import Ledger


def jobs(settings: Mapping[str, float]) -> list[dict[str, Any]]:
    return [{"training": {"steps": 3, **settings}, "seed": TUNING + seed} for seed in range(2)]


@pytest.mark.parametrize(
    ("best", "chosen"),
    [
        ((2.0, 0.9), {"temperature": 2.0}),
        ((4.0, 0.5), {"kd_weight": 0.5}),
        ((4.0, 0.9), {}),
    ],
)
def test_the_best_on_the_tuning_split_is_chosen_and_only_what_is_no_default_is_told(
    best: tuple[float, float],
    chosen: dict[str, float],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[Mapping[str, Any]] = []

    def results(self: Ledger, work: Any, jobs: Any, what: str) -> list[Mapping[str, Any]]:
        asked.extend(jobs)
        found = []
        for job in jobs:
            training = job["training"]
            is_best = (training.get("temperature", 4.0), training.get("kd_weight", 0.9)) == best
            # One lucky seed of another is not enough, nor are images that are reported.
            lucky = 0.6 if job["seed"] == TUNING and training.get("temperature") == 8.0 else 0.1
            found.append({"tuning": 0.5 if is_best else lucky, "test": 0.0 if is_best else 1.0})
        return found

    monkeypatch.setattr(Ledger, "results", results)
    assert tuned_distillation(Ledger(tmp_path / "none.jsonl"), print, jobs, "this bed") == chosen
    assert len(asked) == 16
    assert f"chosen for this bed: T {best[0]:g} λ {best[1]:g} (" in capsys.readouterr().out
