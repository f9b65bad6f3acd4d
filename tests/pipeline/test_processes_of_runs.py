"""Runs whose students learn by a process: what is refused, searched for, kept, drawn, and who is taught by it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from akd_deploy.configuration import RunConfiguration, configuration_from_dict
from akd_deploy.distill.process import constant_process, load_process
from akd_deploy.errors import MismatchError, MissingFileError, UnknownNameError, UsageError
from akd_deploy.models.student import student_from_architecture
from akd_deploy.pipeline import by_process, choose
from akd_deploy.pipeline.by_process import PROCESS_NAME, check_process, found_process, teach_by_process
from akd_deploy.pipeline.distilling import distill_one
from akd_deploy.pipeline.run import stages
from akd_deploy.pipeline.training import Bed, load_bed
from akd_deploy.report.process_figure import process_figure
from akd_deploy.search_space import load_space

SPACE = load_space("mobile")
WINNER, OTHER = (SPACE.sample(np.random.default_rng(seed)) for seed in (0, 1))


def configured(teacher: dict[str, Any] | None = None, **process: Any) -> RunConfiguration:
    short = {"steps": 3, "batch_size": 8}
    searched = process if "file" in process else {"training": short, **process}
    fields = {
        "target": "cpu_onnxruntime_fp32", "budget": "1ms",
        "data": {"settings": {"labelled": 20, "teacher_images": 60, "views": 2}},
        "teacher": {"training": short} if teacher is None else teacher,
        "distill": {"method": "process", "seeds": 2, "training": short, "process": searched},
        "search": {"training": short},
    }  # fmt: skip
    return configuration_from_dict(fields, "here")


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Bed:
    return load_bed(configured(), SPACE, tmp_path_factory.mktemp("bed"))


@pytest.mark.parametrize(
    ("changes", "error", "named"),
    [
        ({"rule": "down"}, UnknownNameError, "diagonal"),
        ({"transforms": ["quadratic"]}, UnknownNameError, "linear"),
        ({"distance": "cosine"}, UnknownNameError, "hcl"),
        ({"normalisation": "none"}, UnknownNameError, "biased-softmax"),
        ({"gradient": "guessed"}, UnknownNameError, "finite-difference"),
        ({"file": "missing.json"}, MissingFileError, "missing.json"),
        ({"teacher": {"source": "onnx", "onnx": "teacher.onnx"}}, UsageError, "torch network"),
        ({"teacher": {"members": 3}}, UsageError, "3 teachers"),
    ],
)
def test_what_makes_no_process_is_refused_before_anything_is_done(changes, error, named) -> None:
    with pytest.raises(error, match=named):
        check_process(configured(**changes))


def test_settings_of_a_process_without_the_method_are_refused() -> None:
    with pytest.raises(UsageError, match='method = "process"'):
        configuration_from_dict(
            {"target": "t", "budget": "1ms", "distill": {"method": "kd", "process": {"searches": 3}}}, "here"
        )


@pytest.mark.parametrize("unused", [{"searches": 3}, {"gradient": "current"}, {"training": {"steps": 3}}])
def test_how_to_search_is_not_said_beside_a_file(unused: dict[str, Any]) -> None:
    process = {"file": "p.json", **unused}
    with pytest.raises(UsageError, match=rf"process\.{next(iter(unused))} would not be used"):
        configuration_from_dict(
            {"target": "t", "budget": "1ms", "distill": {"method": "process", "process": process}}, "here"
        )


def test_a_file_of_another_number_of_pathways_is_found_out_before_any_finalist(bed: Bed, tmp_path: Path) -> None:
    constant_process({"a": 1.0, "b": 2.0}).save(tmp_path / "p.json")
    run = configured(file=str(tmp_path / "p.json"))
    with pytest.raises(MismatchError, match="one of 2"):
        found_process(run, bed, lambda seed: student_from_architecture(WINNER, seed), lambda *_: None)


def test_steps_ahead_are_of_a_search_that_looks_further() -> None:
    def told(**process: object) -> None:
        fields = {"target": "t", "budget": "1ms", "distill": {"method": "process", "process": process}}
        configuration_from_dict(fields, "here")

    told(gradient="multi-step", ahead=2)
    with pytest.raises(UsageError, match='gradient = "multi-step"'):
        told(ahead=2)


def test_the_mean_of_the_searches_is_found_and_told_and_another_student_learns_by_it(bed: Bed) -> None:
    told: list[tuple[int, int]] = []
    configuration = configured(searches=2)

    def find(count: int = 2) -> Any:
        return found_process(
            configured(searches=count), bed, lambda seed: student_from_architecture(WINNER, seed),
            lambda what, done, total: told.append((done, total)),
        )  # fmt: skip

    process, facts = find()
    assert told == [(i, 6) for i in range(1, 7)]
    assert {name: facts[name] for name in ("searches", "steps")} == {"searches": 2, "steps": 3}
    assert process.pathways[-1] == "logits"
    assert np.array_equal(find()[0].weights, process.weights)
    assert not np.array_equal(find(1)[0].weights, process.weights)
    before = student_from_architecture(OTHER, 5)
    after = student_from_architecture(OTHER, 5)
    teach_by_process(configuration, bed, after, process, 5)
    moved = zip(before.parameters(), after.parameters(), strict=True)
    assert all(not np.array_equal(a.detach(), b.detach()) for a, b in moved)
    with pytest.raises(MismatchError, match="pathways"):
        teach_by_process(configuration, bed, after, constant_process({"logits": 1.0}), 5)


def total_of(process: Any) -> float:
    return float(process.weights.sum(axis=1).mean())


def test_weights_add_up_to_the_total_that_is_best_on_the_tuning_images(
    bed: Bed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught: list[tuple[float, int]] = []
    looked_at: list[object] = []

    def teach(configuration: Any, bed: Bed, student: Any, process: Any, seed: int, *_: Any) -> None:
        taught.append((round(total_of(process), 6), seed))

    def evaluated(student: Any, split: object) -> Any:
        looked_at.append(split)
        return SimpleNamespace(accuracy={0.5: 0.4, 2.0: 0.8, 4.0: 0.7}[taught[-1][0]])

    monkeypatch.setattr(by_process, "teach_by_process", teach)
    monkeypatch.setattr(by_process, "evaluate", evaluated)

    def find(**process: Any) -> Any:
        students = lambda seed: student_from_architecture(WINNER, seed)  # noqa: E731
        return found_process(configured(**process), bed, students, lambda *_: None, tmp_path)

    process, facts = find(totals=[0.5, 2.0, 4.0])
    assert total_of(process) == pytest.approx(2.0)
    assert facts["total"] == 2.0
    assert facts["total_trainings"] == 6
    assert [row["accuracy"] for row in facts["total_tuning_accuracy"]] == pytest.approx([0.4, 0.8, 0.7])
    assert [total for total, _ in taught] == [0.5, 0.5, 2.0, 2.0, 4.0, 4.0]
    assert all(split is bed.dataset.tuning_val for split in looked_at)
    assert find(totals=[0.5, 2.0, 4.0])[1]["total"] == 2.0
    assert len(taught) == 6, "what was trained is kept"
    given, facts = find(totals=[3.0])
    assert (total_of(given), facts["total"]) == (pytest.approx(3.0), 3.0)
    assert len(taught) == 6
    assert "total" not in find()[1]
    # Only the sum is another one.
    assert np.allclose(given.weights / 3.0, process.weights / 2.0)


def test_an_interrupted_stage_goes_on_behind_the_searches_that_were_done(bed: Bed, tmp_path: Path) -> None:
    told: list[int] = []

    def find(last: int, directory: Path | None) -> Any:
        def on_progress(what: str, done: int, total: int) -> None:
            told.append(done)
            if done == last:
                raise KeyboardInterrupt

        return found_process(
            configured(searches=2), bed, lambda seed: student_from_architecture(WINNER, seed), on_progress, directory
        )

    with pytest.raises(KeyboardInterrupt):
        find(5, tmp_path / "processes")
    process, _ = find(7, tmp_path / "processes")
    assert told == [1, 2, 3, 4, 5, 4, 5, 6]
    assert np.array_equal(process.weights, find(7, None)[0].weights)


def test_candidates_of_a_search_learn_from_the_teachers_outputs(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(Bed, "teach", lambda self, student, seed, method, *more: asked.append(method))
    bed.score(WINNER, 0)
    assert asked == ["kd"]


def test_finalists_learn_by_the_process_that_was_searched_on_the_winner(bed: Bed, tmp_path: Path) -> None:
    configuration = configured(searches=1)
    assert list(stages(configuration))[-6:-3] == ["confirm", "process", "distill"]
    run = SimpleNamespace(
        bed=bed, configuration=configuration, directory=tmp_path, on_progress=lambda *told: None
    )  # fmt: skip
    results = {"confirm": {"winner": {"arch": WINNER.as_dict()}, "hand_shrunk": {"arch": OTHER.as_dict()}}}
    found: Any = choose.process(run, results)  # type: ignore[arg-type]
    assert json.loads(json.dumps(found)) == found
    kept = load_process(tmp_path / PROCESS_NAME)
    assert list(kept.pathways) == found["pathways"]
    assert kept.weights.tolist() == found["weights"]
    distilled = choose.distill(run, results)  # type: ignore[arg-type]
    assert list(distilled["scores"]) == ["kd", "ce", "process", "hand_shrunk"]
    assert distilled["chosen"]["student"].startswith("process-")


def test_one_student_is_distilled_by_a_process_of_its_own_or_by_a_file(tmp_path: Path) -> None:
    told: list[str] = []
    first = distill_one(
        configured(searches=1), WINNER, tmp_path / "a.safetensors", None, lambda what, *more: told.append(what)
    )
    assert first["method"] == "process"
    assert first["process_searches"] == 1
    assert "searching for a process" in told
    told.clear()
    second = distill_one(
        configured(file=first["process"]),
        OTHER,
        tmp_path / "b.safetensors",
        None,
        lambda what, *more: told.append(what),
    )
    assert set(told) == {"distilling"}
    assert second["process_file"] == first["process"]


def test_a_process_is_drawn_as_a_map_of_weights_and_the_heaviest_pathway_is_named() -> None:
    process = {
        "pathways": ["a → b (linear)", "logits"],
        "weights": [[0.0, 0.5], [0.2, 0.9]],
        "searches": 2,
        "steps": 240,
    }
    figure = process_figure({"process": process})
    assert figure is not None
    (drawn,) = figure.spec["data"]
    assert drawn["z"] == [[0.0, 0.2], [0.5, 0.9]]
    assert drawn["x"] == [25.0, 75.0]
    assert "logits has the largest, 0.700, 87.5" in figure.alt
    assert "2 searches of 240 steps" in figure.caption
    assert process_figure({}) is None
    read = process_figure({"process": {**process, "file": "mine.json", "weights": [[0.0, 0.0]]}})
    assert read is not None
    assert "mine.json" in read.caption
    with pytest.raises(ValueError, match="2 pathways"):
        process_figure({"process": {**process, "weights": [[1.0]]}})
