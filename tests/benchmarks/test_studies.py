"""The studies from end to end, as small as they can be: every table is printed, nothing is trained twice, and what is
chosen is not scored on what chose it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from akd_deploy.errors import TrainingError
from akd_deploy.target import load_target
from benchmarks.seed_systems import akd, better_students, distpro, oracle_kd, verification
from benchmarks.seed_systems.bed_tuning import TUNING
from benchmarks.seed_systems.ledger import Ledger, key_of
from benchmarks.seed_systems.scales import AKD, BETTER_STUDENTS, DISTPRO, ORACLE_KD
from benchmarks.seed_systems.students import OWN_KIND

DATA = {
    "labelled": 48, "teacher_images": 48, "reward_images": 24, "tuning_images": 24, "test_images": 48, "views": 2,
}  # fmt: skip
STEPS = {"steps": 2, "batch_size": 8}
ROUND = {"warmup": 1, "rounds": 1, "trained": 2, "judged": 2, "derived": 2}
SCALES: dict[str, Any] = {
    "akd": (akd, replace(
        AKD["quick"], space={"operators": ["conv"], "kernels": [3]}, data=DATA, teacher=STEPS, short=STEPS, long=STEPS,
        search_seeds=2, trials=2, draws=4,
    )),
    "better-students": (better_students, replace(
        BETTER_STUDENTS["quick"], data=DATA, teacher=STEPS, search=STEPS, student=STEPS, searches=2,
        parameter_budgets=(0.3,), random_parts=2,
    )),
    "distpro": (distpro, replace(
        DISTPRO["quick"], data=DATA, teacher=STEPS, search=STEPS, student={"batch_size": 8}, steps=4, trials=2,
        searches=1,
    )),
    "oracle-kd": (oracle_kd, replace(
        ORACLE_KD["quick"], data=DATA, teacher=STEPS, round=STEPS, first=STEPS, student=STEPS, search=ROUND,
        members=2, sweep=(1, 2), random_add_ons=2, regimes=("skewed",),
    )),
}  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is measured, and unseen classes have few images."""
    monkeypatch.setattr(verification, "UNSEEN", {**verification.UNSEEN, "test_images": 96})

    def latencies(job: Any) -> dict[str, Any]:
        space = akd.space_for(SCALES["akd"][1])
        return {"seconds": [1e-5 * (1 + i) for i in range(len(akd.networks_of(space)))]}

    def scored(job: Any) -> dict[str, Any]:
        """Networks that two steps trained would all be at chance."""
        return {name: int(key_of({**job, "score": name}), 16) % 997 / 997 for name in ("reward", "tuning", "test")}

    class Latency:
        """Seconds are the file's bytes; a certificate asks for one and a half times a prediction."""

        target = load_target("cpu_onnxruntime_fp32")

        def predict_model(self, path: Path, remember: bool) -> SimpleNamespace:
            return SimpleNamespace(latency_s=1e-9 * path.stat().st_size)

        def certificate_factor(self, table: Any) -> float:
            return 1.5

    def measured(paths: Any, *_: Any) -> dict[str, Any]:
        return {
            name: SimpleNamespace(measurement=SimpleNamespace(statistics_s=lambda: {"median": 1e-3})) for name in paths
        }

    monkeypatch.setattr(better_students, "_latency", lambda job, gated: Latency())
    monkeypatch.setattr(better_students, "measure_together", measured)
    monkeypatch.setattr(better_students, "certificate_of", lambda one, budget_s, table: SimpleNamespace(ok=True))
    monkeypatch.setattr(akd, "latencies", latencies)
    monkeypatch.setattr(akd, "train_student", scored)


@pytest.mark.parametrize("system", SCALES)
def test_a_study_prints_its_tables_says_that_it_shows_nothing_and_goes_on_where_it_was(
    system: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study, scale = SCALES[system]
    threads = torch.get_num_threads()
    try:
        found = study.run(scale, tmp_path, 1)
        first = capsys.readouterr().out
        trained = (tmp_path / "trainings.jsonl").read_text(encoding="utf-8")

        def again(*_: object) -> None:
            raise AssertionError("trained again")

        monkeypatch.setattr(Ledger, "_done", again)
        assert json.loads(json.dumps(study.run(scale, tmp_path, 1), default=str)) == json.loads(
            json.dumps(found, default=str)
        )
    finally:
        torch.set_num_threads(threads)
    assert "underpowered" in first
    assert "core-hours" in first
    tables = [line for line in first.splitlines() if "core-hours" not in line]
    assert tables == [line for line in capsys.readouterr().out.splitlines() if "core-hours" not in line]
    assert (tmp_path / "trainings.jsonl").read_text(encoding="utf-8") == trained
    jobs = [json.loads(line)["job"] for line in trained.splitlines()]
    assert len({json.dumps(job, sort_keys=True) for job in jobs}) == len(jobs)


def test_what_is_chosen_is_not_scored_on_seeds_that_chose_it() -> None:
    for scale in AKD.values():
        apart(
            range(TUNING, TUNING + scale.tuning_seeds),
            range(akd.SELECTION, akd.SELECTION + scale.selection_seeds),
            range(akd.SCORING, akd.SCORING + max(scale.scoring_seeds, scale.label_seeds)),
            range(akd.FINAL, akd.FINAL + scale.final_seeds),
        )
    for scale in ORACLE_KD.values():
        apart(
            range(TUNING, TUNING + scale.choosing_seeds),
            range(oracle_kd.FINAL, oracle_kd.FINAL + scale.final_seeds),
            range(oracle_kd.SEARCH, oracle_kd.SEARCH + scale.searches),
            range(OWN_KIND, OWN_KIND + scale.members),
        )
    for scale in BETTER_STUDENTS.values():
        apart(
            range(TUNING, TUNING + scale.tuning_seeds),
            range(better_students.FINAL, better_students.FINAL + scale.final_seeds),
            range(better_students.SEARCH, better_students.SEARCH + scale.searches),
        )
    for scale in DISTPRO.values():
        apart(
            range(TUNING, TUNING + max(scale.tuning_seeds, scale.sum_seeds)),
            range(distpro.FINAL, distpro.FINAL + max(scale.short_seeds, scale.final_seeds)),
            range(distpro.SEARCH, distpro.SEARCH + scale.searches),
            range(distpro.CHOOSING, distpro.CHOOSING + 1_000),
        )


def apart(*seeds: range) -> None:
    assert len({seed for each in seeds for seed in each}) == sum(map(len, seeds))


def test_regret_is_to_a_best_that_other_seeds_have_found() -> None:
    rng = np.random.default_rng(0)
    within = np.array([True] * 40 + [False])
    # Networks that are all alike: whatever is chosen is as good as the best.
    alike = [akd.regret(rng.normal(size=(41, 3)), 0, within) for _ in range(400)]
    assert abs(np.mean(alike)) < 4 * np.std(alike) / 20
    scores = np.tile(np.arange(41.0)[:, None], 3)
    assert akd.regret(scores, 30, within) == 9, "the best of all is not within"
    with pytest.raises(ValueError, match="what found it"):
        akd.regret(scores[:, :1], 0, within)


def test_parts_within_a_latency_are_cut_and_searched_for_the_same_budget(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study, scale = SCALES["better-students"]
    found = study.run(replace(scale, budgets=(0.5,), parameter_budgets=()), tmp_path, 1)["cpu_onnxruntime_fp32"]
    jobs = [json.loads(line)["job"] for line in (tmp_path / "trainings.jsonl").read_text("utf-8").splitlines()]
    (units,) = [json.loads(line)["result"] for line in (tmp_path / "trainings.jsonl").read_text("utf-8").splitlines()
                if "whole_s" in line]  # fmt: skip
    within_s = found["budget_s"] / 1.5
    searched = [job for job in jobs if job.get("cost") == "latency"]
    assert len(searched) == scale.searches
    assert [job["budget"] for job in searched] == pytest.approx([within_s] * scale.searches)
    assert max(found["predicted_s"]) <= within_s
    assert min(found["predicted_s"]) >= 0.8 * within_s
    assert units["least_s"] < 0.5 * units["whole_s"]
    assert "gates less random parts, from scratch" in capsys.readouterr().out


def test_a_search_whose_weights_are_not_there_is_done_again(tmp_path: Path) -> None:
    study, scale = SCALES["better-students"]
    study.run(replace(scale, targets=(), budgets=(0.5,), parameter_budgets=()), tmp_path, 1)
    jobs = [json.loads(line)["job"] for line in (tmp_path / "trainings.jsonl").read_text("utf-8").splitlines()]
    job = next(job for job in jobs if job.get("begins") == better_students.SEARCHED and "slim" not in job["search"])
    for part in (job["teacher"], job["search"]["teacher"]):
        part["folder"] = str(tmp_path)
    first = better_students.train_part(job)
    path = next((tmp_path / "searches").glob(f"{key_of(job['search'])}*"))
    path.unlink()
    again = better_students.train_part(job)
    assert path.is_file()
    assert {**again, "training_s": 0} == {**first, "training_s": 0}


def test_a_training_that_comes_apart_scores_what_guessing_does_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def apart(job: Any) -> dict[str, Any]:
        raise TrainingError(asked="a training", found="a loss of nan", next="Lower it.")

    monkeypatch.setattr(distpro, "_trained_along", apart)
    found = distpro.train_along({"teacher": {"data": DATA}})
    assert found == {"reward": 1 / 24, "tuning": 1 / 24, "test": 1 / 24, "failed": "a loss of nan"}
