"""Training for a run: its data, its teachers, short trainings that score candidates, long ones for finalists."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from akd_deploy.architecture import Architecture
from akd_deploy.configuration import RunConfiguration, TrainingTable
from akd_deploy.data import Dataset, ViewBank, load_dataset
from akd_deploy.distill.bank import TeacherBank, teacher_bank
from akd_deploy.distill.ensemble import ensemble_statistics, train_member
from akd_deploy.distill.evaluation import agreement, evaluate, evaluate_logits, logits_of
from akd_deploy.distill.methods import PROCESS
from akd_deploy.distill.settings import PROXY_SETTINGS, TrainingSettings
from akd_deploy.distill.teachers import TEACHER_SETTINGS
from akd_deploy.distill.trainer import train
from akd_deploy.errors import MismatchError
from akd_deploy.models.convnet import load_convnet, save_convnet
from akd_deploy.models.student import Student, student_from_architecture
from akd_deploy.models.teacher import Teacher, ensemble_of, teacher_from_module
from akd_deploy.models.teacher_from_factory import teacher_from_factory
from akd_deploy.pipeline.teacher_from_onnx import teacher_from_onnx
from akd_deploy.search import Score
from akd_deploy.search_space import SearchSpace

SEED_OFFSET = 1_000
"""Finalists are trained with seeds that no search has used: selection and scoring share no luck."""


def settings_from(table: TrainingTable, default: TrainingSettings) -> TrainingSettings:
    """The stage's defaults with what the run's configuration says instead."""
    return replace(default, **table.given())


@dataclass(frozen=True, eq=False)
class Bed:
    """What a run trains on: the data, the teachers, and their logits for every view."""

    dataset: Dataset
    teachers: tuple[Teacher, ...]
    views: ViewBank
    bank: TeacherBank
    method: str
    short: TrainingSettings
    long: TrainingSettings

    @cached_property
    def teacher(self) -> Teacher:
        """The one that teaches, or the ensemble as one network."""
        return ensemble_of(self.teachers)

    def score(self, architecture: Architecture, seed: int) -> Score:
        """Train one candidate briefly with the teacher; accuracy on the search's own validation split."""
        began = time.perf_counter()
        # A process is of one pair of networks: while those are searched for, its plainest pathway stands for it.
        method = "kd" if self.method == PROCESS else self.method
        student = self.train(architecture, seed, method, self.short)
        return Score(evaluate(student, self.dataset.reward_val).accuracy, seconds=time.perf_counter() - began)

    def train(
        self,
        architecture: Architecture,
        seed: int,
        method: str,
        settings: TrainingSettings,
        on_step: Callable[[int, int, float], None] | None = None,
    ) -> Student:
        """Train one student; `seed` decides its weights, batches and views."""
        student = student_from_architecture(architecture, seed)
        self.teach(student, seed, method, settings, on_step)
        return student

    def teach(
        self,
        student: nn.Module,
        seed: int,
        method: str,
        settings: TrainingSettings,
        on_step: Callable[[int, int, float], None] | None = None,
    ) -> None:
        """Train any network in place; `seed` decides batches and views."""
        generator = torch.Generator().manual_seed(seed)
        train(student, self.views, settings, generator, method=method, teacher=self.taught(settings), on_step=on_step)

    def taught(self, settings: TrainingSettings) -> TeacherBank | tuple[Teacher, ...]:
        """What a training with these settings asks: the bank, or the teachers themselves about views outside it."""
        return self.teachers if settings.fresh_views else self.bank

    def test_scores(self, student: nn.Module) -> dict[str, float]:
        """Accuracy on the test and tuning splits, and agreement with the teacher on the test split."""
        logits = logits_of(student, self.dataset.test.images)
        taught = self.teacher.logits(torch.tensor(self.dataset.test.images))
        alike = agreement(logits, taught)
        return {
            "accuracy": evaluate_logits(logits, self.dataset.test.labels).accuracy,
            "tuning_accuracy": evaluate(student, self.dataset.tuning_val).accuracy,
            "agreement": alike.top1,
            "kl_to_teacher_nats": alike.mean_kl,
        }

    def teacher_accuracy(self) -> float:
        """On the test split."""
        logits = self.teacher.logits(torch.tensor(self.dataset.test.images))
        return evaluate_logits(logits, self.dataset.test.labels).accuracy

    def ensemble(self) -> dict[str, dict[str, Any]] | None:
        """How often how many teachers are right, on the views that students learn from and on the test split; None of
        a single one."""
        if len(self.teachers) == 1:
            return None
        labels = np.tile(self.dataset.train.labels, self.views.views)
        views = torch.tensor(self.bank.logits).flatten(1, 2).float()
        images = torch.tensor(self.dataset.test.images)
        test = torch.stack([teacher.logits(images) for teacher in self.teachers])
        return {
            "training_views": ensemble_statistics(views, torch.tensor(labels)).as_dict(),
            "test": ensemble_statistics(test, torch.tensor(self.dataset.test.labels)).as_dict(),
        }

    def calibration_images(self, count: int) -> np.ndarray:
        """(count, C, H, W) views of training images: what quantisation may look at."""
        rng = np.random.default_rng(self.views.seed)
        images = rng.integers(len(self.views), size=count)
        return self.views.batch(rng.integers(self.views.views, size=count), images)


def load_teachers(
    configuration: RunConfiguration, dataset: Dataset, folder: Path, on_step: Callable[[int, int, float], None]
) -> tuple[Teacher, ...]:
    """The run's teachers: the user's own, or ones trained here and kept in `folder`."""
    table = configuration.teacher
    if table.source == "factory":
        return tuple(
            teacher_from_factory(factory, weights, dataset.input_shape, dataset.classes, arguments)
            for factory, arguments, weights in table.built
        )
    if table.source == "onnx":
        assert table.onnx is not None
        return (teacher_from_onnx(table.onnx, dataset.input_shape, dataset.classes),)
    return tuple(_trained_teacher(configuration, dataset, folder, i, on_step) for i in range(table.members))


def _trained_teacher(
    configuration: RunConfiguration,
    dataset: Dataset,
    folder: Path,
    member: int,
    on_step: Callable[[int, int, float], None],
) -> Teacher:
    table = configuration.teacher
    settings = settings_from(table.training, TEACHER_SETTINGS)
    # `distill` keeps its teacher beside its students, where the next one may be asked for with other settings.
    recipe = {"data": dataset.provenance, "settings": asdict(settings), "seed": configuration.seed}
    if table.members > 1:
        # Without skew a member is the same however many there are.
        recipe |= {"member": member} | ({"members": table.members, "skew": table.skew} if table.skew else {})
    digest = hashlib.sha256(json.dumps(recipe, sort_keys=True, default=dict).encode()).hexdigest()[:12]
    path = folder / f"teacher-{digest}.safetensors"
    if not path.is_file():
        trained = train_member(
            dataset, member, table.members, configuration.seed, table.skew, settings, on_step=on_step
        )
        save_convnet(trained, path)
    return teacher_from_module(load_convnet(path), dataset.input_shape, dataset.classes, "trained on the run's data")


def require_fit(space: SearchSpace, dataset: str, shape: tuple[int, int, int], classes: int | None) -> None:
    """Whether students of a space take a dataset's images and tell its classes apart; None is not known yet.

    Raises:
        MismatchError: they do not.
    """
    for what, data, wanted in (("images", shape, space.input_shape), ("classes", classes, space.classes)):
        if data is not None and data != wanted:
            raise MismatchError(
                asked=f"a search space for {what} {data} of dataset {dataset}",
                found=f"space {space.name} with {what} {wanted}",
                next="Set resolution, in_channels and classes in [space.settings] to the data's.",
            )


def load_bed(
    configuration: RunConfiguration,
    space: SearchSpace | None,
    folder: Path,
    on_step: Callable[[int, int, float], None] = lambda step, steps, loss: None,
) -> Bed:
    """Load the data, load or train the teacher, and cache its logits in `folder`.

    Args:
        space: whose students are to be trained; None where they are parts of the teacher.

    Raises:
        MismatchError: the data's images or classes are not the search space's or the teacher's.
    """
    dataset = load_dataset(configuration.data.name, configuration.data.settings)
    if space is not None:
        require_fit(space, dataset.name, dataset.input_shape, dataset.classes)
    teachers = load_teachers(configuration, dataset, folder, on_step)
    views = ViewBank(dataset.train, dataset.views, configuration.seed)
    return Bed(
        dataset=dataset,
        teachers=teachers,
        views=views,
        bank=teacher_bank(teachers, views, cache_dir=folder / "teacher_logits"),
        method=configuration.distill.method,
        short=settings_from(configuration.search.training, PROXY_SETTINGS),
        long=settings_from(configuration.distill.training, TrainingSettings()),
    )
