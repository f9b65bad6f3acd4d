"""Runs with several teachers: what is trained, kept and told, and which student is shipped."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from torch import nn

from akd_deploy.configuration import RunConfiguration, configuration_from_dict
from akd_deploy.distill import TrainingSettings
from akd_deploy.errors import CorruptFileError, UsageError
from akd_deploy.models.student import student_from_architecture
from akd_deploy.pipeline import choose, oracle_beta, training
from akd_deploy.pipeline.check import check_configuration
from akd_deploy.pipeline.distilling import distill_one
from akd_deploy.pipeline.run import stages
from akd_deploy.pipeline.training import Bed, load_bed
from akd_deploy.search_space import load_space

SPACE = load_space("mobile", {"widths": [8], "strides": [1], "layers": [[1]], "stem_width": 4})
SPACE_OF_DIGITS = load_space("mobile")
DATA = {"settings": {"labelled": 20, "teacher_images": 60, "views": 2}}


def configured(**teacher: Any) -> RunConfiguration:
    fields = {
        "target": "cpu_onnxruntime_fp32", "budget": "1ms", "data": DATA,
        "teacher": {"training": {"steps": 2, "batch_size": 8}, **teacher},
    }  # fmt: skip
    return configuration_from_dict(fields, "here")


def test_members_are_trained_once_teach_together_and_are_told_of(tmp_path: Path) -> None:
    steps: list[int] = []
    ensemble = configured(members=2, skew=0.5)
    bed = load_bed(ensemble, SPACE_OF_DIGITS, tmp_path, lambda step, total, loss: steps.append(step))
    assert len(bed.teachers) == bed.bank.teachers == 2
    assert bed.teachers[0].provenance.sha256 != bed.teachers[1].provenance.sha256
    assert bed.teacher.provenance.source.startswith("an ensemble of 2")
    told = bed.ensemble()
    assert told is not None
    assert told["training_views"]["views"] == 2 * 20
    assert told["test"]["views"] == len(bed.dataset.test)
    assert len(told["test"]["members"]) == 2
    again = load_bed(ensemble, SPACE_OF_DIGITS, tmp_path, lambda step, total, loss: steps.append(step))
    assert steps == [1, 2, 1, 2]
    assert [t.provenance.sha256 for t in again.teachers] == [t.provenance.sha256 for t in bed.teachers]


def test_a_single_teacher_is_no_ensemble(tmp_path: Path) -> None:
    bed = load_bed(configured(), SPACE_OF_DIGITS, tmp_path)
    assert len(bed.teachers) == 1
    assert bed.ensemble() is None


@pytest.mark.parametrize(
    ("teacher", "named"),
    [
        ({"skew": 0.5}, "members = 2 or more"),
        ({"source": "onnx", "onnx": "t.onnx", "members": 2}, "several files of weights"),
        ({"source": "factory", "factory": "a:b", "weights": []}, "no file"),
        ({"members": 0}, "greater than or equal to 1"),
    ],
)
def test_ensembles_that_make_no_sense_are_refused(teacher: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as error:
        configured(**teacher)
    assert named in str(error.value)


def test_a_method_of_one_teacher_is_refused_for_several_before_anything_is_done(tmp_path: Path) -> None:
    files = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for file in files:
        file.touch()
    taught = configured(source="factory", factory="a:b", weights=[str(file) for file in files])
    assert taught.teacher.teachers == 3
    several = taught.model_copy(update={"distill": taught.distill.model_copy(update={"method": "dkd"})})
    with pytest.raises(UsageError, match=r"3 teachers.*oracle"):
        check_configuration(several)


@pytest.mark.parametrize(
    ("method", "arms"), [("oracle", ["kd", "ce", "oracle"]), ("kd", ["kd", "ce"]), ("ce", ["kd", "ce"])]
)
def test_the_winner_is_trained_by_the_runs_method_plain_kd_and_labels_and_the_methods_is_shipped(
    tmp_path: Path, method: str, arms: list[str]
) -> None:
    architecture = SPACE.sample(np.random.default_rng(0))
    trained: list[tuple[str, int]] = []

    def teach(student: Any, seed: int, by: str, settings: object) -> None:
        trained.append((by, seed))

    bed = SimpleNamespace(
        method=method, long=None, teach=teach, test_scores=lambda student: {"accuracy": 0.5, "tuning_accuracy": 0.5}
    )
    run = SimpleNamespace(
        bed=bed, configuration=SimpleNamespace(seed=0, distill=SimpleNamespace(seeds=2)), directory=tmp_path,
        on_progress=lambda *told: None,
    )  # fmt: skip
    chosen = {"arch": architecture.as_dict()}
    found = choose.distill(run, {"confirm": {"winner": chosen, "hand_shrunk": chosen}})  # type: ignore[arg-type]
    assert list(found["scores"]) == [*arms, "hand_shrunk"]
    assert trained == [(by, seed) for seed in (1000, 1001) for by in (*arms, method)]
    assert found["chosen"]["student"].startswith(f"{method}-")


def test_an_ensemble_may_be_of_unlike_networks_each_with_its_factory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[tuple[str, str, dict[str, Any]]] = []

    def build(factory: str, weights: Path, shape: Any, classes: int, arguments: dict[str, Any]) -> str:
        built.append((factory, weights.name, arguments))
        return factory

    monkeypatch.setattr(training, "teacher_from_factory", build)
    dataset: Any = SimpleNamespace(input_shape=(1, 12, 12), classes=10)
    files = ["one.safetensors", "two.safetensors"]
    unlike = configured(
        source="factory", factory=["a:wide", "b:deep"], weights=files, arguments=[{"width": 2}, {}], training={}
    )
    assert training.load_teachers(unlike, dataset, tmp_path, lambda *_: None) == ("a:wide", "b:deep")
    assert built == [("a:wide", files[0], {"width": 2}), ("b:deep", files[1], {})]
    built.clear()
    alike = configured(source="factory", factory="a:wide", weights=files, arguments={"width": 3}, training={})
    training.load_teachers(alike, dataset, tmp_path, lambda *_: None)
    assert built == [("a:wide", file, {"width": 3}) for file in files]
    with pytest.raises(UsageError, match="factory has 3 entries for 2 files"):
        configured(source="factory", factory=["a:b"] * 3, weights=files, training={})


def soft(**distill: Any) -> RunConfiguration:
    return configured(members=2, skew=0.5).model_copy(
        update={"distill": configuration_from_dict(
            {"target": "t", "budget": "1ms", "distill": {"method": "soft-oracle", **distill}}, "here"
        ).distill}
    )  # fmt: skip


def test_a_run_that_is_told_no_beta_chooses_one_on_the_winner_after_it_is_found() -> None:
    names = list(stages(soft()))
    assert names[names.index("confirm") + 1 : names.index("distill") + 1] == ["beta", "distill"]
    assert "beta" in stages(soft(method="relative-oracle"))
    assert "beta" not in stages(soft(training={"oracle_beta": 1.0}))
    assert "beta" not in stages(soft().model_copy(update={"teacher": configured().teacher}))
    assert "beta" not in stages(configured(members=2))


@pytest.mark.parametrize(
    ("distill", "named"),
    [
        ({"method": "oracle", "betas": [0.0, 1.0]}, 'write method = "soft-oracle" or "relative-oracle"'),
        ({"betas": [0.0, 1.0], "training": {"oracle_beta": 1.0}}, "write one of them"),
        ({"betas": [1.0, 1.0]}, "once"),
        ({"betas": [1.0]}, "at least 2"),
        ({"betas": [1.0, -1.0]}, "greater than or equal to 0"),
    ],
)
def test_betas_that_make_no_sense_are_refused(distill: dict[str, Any], named: str) -> None:
    with pytest.raises(UsageError) as error:
        soft(**distill)
    assert named in str(error.value)


def test_beta_is_chosen_on_tuning_images_by_trainings_with_seeds_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real bed; accuracies are what is left to say, and β is found in the settings of the trainings."""
    configuration = soft(betas=[0.0, 3.0, 9.0], training={"steps": 1})
    bed = load_bed(configuration, SPACE_OF_DIGITS, tmp_path)
    taught: list[tuple[int, str, float]] = []
    looked_at: list[object] = []

    def teach(self: object, student: Any, seed: int, method: str, settings: Any) -> None:
        taught.append((seed, method, settings.oracle_beta))

    def evaluated(student: Any, split: object) -> Any:
        looked_at.append(split)
        return SimpleNamespace(accuracy={0.0: 0.4, 3.0: 0.8, 9.0: 0.7}[taught[-1][2]])

    monkeypatch.setattr(Bed, "teach", teach)
    monkeypatch.setattr(oracle_beta, "evaluate", evaluated)
    seeds: list[int] = []
    found = oracle_beta.chosen_beta(
        configuration, bed, "relative-oracle", lambda seed: seeds.append(seed) or nn.Identity(), lambda *_: None
    )
    assert found["beta"] == 3.0
    assert [row["beta"] for row in found["tuning_accuracy"]] == [0.0, 3.0, 9.0]
    assert [row["accuracy"] for row in found["tuning_accuracy"]] == pytest.approx([0.4, 0.8, 0.7])
    assert found["trainings"] == 6
    assert {method for _, method, _ in taught} == {"relative-oracle"}
    assert seeds == [500, 501] * 3
    assert all(split is bed.dataset.tuning_val for split in looked_at)
    assert oracle_beta.with_beta(bed.long, found).oracle_beta == 3.0
    assert oracle_beta.with_beta(bed.long, None) is bed.long


def test_an_interrupted_choice_of_beta_goes_on_behind_the_trainings_that_were_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = soft(betas=[0.0, 3.0], training={"steps": 1})
    bed = load_bed(configuration, SPACE_OF_DIGITS, tmp_path)
    architecture = SPACE_OF_DIGITS.sample(np.random.default_rng(0))
    trained: list[tuple[int, float]] = []
    teach, interruptions = Bed.teach, [KeyboardInterrupt()]

    def watched(self: Bed, student: Any, seed: int, method: str, settings: Any) -> Any:
        if len(trained) == 3 and interruptions:
            raise interruptions.pop()
        trained.append((seed, settings.oracle_beta))
        return teach(self, student, seed, method, settings)

    def chosen(directory: Path | None) -> dict[str, Any]:
        students = lambda seed: student_from_architecture(architecture, seed)  # noqa: E731
        found = oracle_beta.chosen_beta(configuration, bed, "soft-oracle", students, lambda *_: None, directory)
        return {name: value for name, value in found.items() if name != "seconds"}

    monkeypatch.setattr(Bed, "teach", watched)
    with pytest.raises(KeyboardInterrupt):
        chosen(tmp_path / "betas")
    assert len(trained) == 3
    found = chosen(tmp_path / "betas")
    assert len(trained) == len(set(trained)) == 4
    assert found == chosen(None)
    (next((tmp_path / "betas").iterdir())).write_text("[")
    with pytest.raises(CorruptFileError, match="Delete it"):
        chosen(tmp_path / "betas")


def test_a_student_distilled_by_itself_gets_the_beta_that_is_chosen_for_it(tmp_path: Path) -> None:
    architecture = SPACE_OF_DIGITS.sample(np.random.default_rng(0))
    found = distill_one(
        soft(betas=[0.0, 16.0], training={"steps": 2}), architecture, tmp_path / "s.safetensors", None, lambda *_: None
    )
    assert found["oracle_beta"] in (0.0, 16.0)
    assert [row["beta"] for row in found["oracle_beta_tuning_accuracy"]] == [0.0, 16.0]
    told = soft(training={"steps": 2, "oracle_beta": found["oracle_beta"]})
    given = distill_one(told, architecture, tmp_path / "g.safetensors", None, lambda *_: None)
    assert "oracle_beta" not in given
    assert (tmp_path / "g.safetensors").read_bytes() == (tmp_path / "s.safetensors").read_bytes()


def test_fresh_views_are_shown_to_the_teachers_themselves(tmp_path: Path) -> None:
    bed = load_bed(configured(members=2), SPACE_OF_DIGITS, tmp_path)
    fresh = TrainingSettings(steps=2, batch_size=8, fresh_views=True)
    assert bed.taught(fresh) is bed.teachers
    assert bed.taught(TrainingSettings(steps=2)) is bed.bank
    architecture = SPACE_OF_DIGITS.sample(np.random.default_rng(0))
    for method in ("kd", "oracle"):
        assert not bed.train(architecture, 0, method, fresh).training
