"""A run's β of a soft or relative oracle, chosen on the student that was found where the run file does not say one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from akd_deploy.configuration import METHODS_OF_BETA, RunConfiguration
from akd_deploy.distill.evaluation import evaluate
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.pipeline.kept import kept
from akd_deploy.pipeline.training import SEED_OFFSET, Bed
from akd_deploy.recipes.oracle_kd import BETAS, choose_beta

SEEDS = 2
"""Trainings of each β, with seeds that neither a search nor a finalist has."""


def chooses_beta(configuration: RunConfiguration, method: str) -> bool:
    """Whether a training by a method needs a β that nobody gave; one teacher alone has the same weight for any."""
    given = configuration.distill.training.oracle_beta is not None
    return method in METHODS_OF_BETA and not given and configuration.teacher.teachers > 1


def chosen_beta(
    configuration: RunConfiguration,
    bed: Bed,
    method: str,
    student_of: Callable[[int], nn.Module],
    on_progress: Callable[[str, int, int], None],
    directory: Path | None = None,
) -> dict[str, Any]:
    """`beta`, the best of `[distill] betas` on the tuning images, where every one's mean accuracy is in
    `tuning_accuracy`; `trainings` and `seconds` that it took.

    Args:
        method: whose β it is.
        student_of: seed → a fresh student.
        directory: where each training's accuracy is kept, and taken from if it is there.
    """
    betas = configuration.distill.betas or BETAS
    first = SEED_OFFSET // 2 + configuration.seed * 100
    began, done = time.perf_counter(), 0

    def trained(settings: TrainingSettings, seed: int) -> dict[str, Any]:
        student = student_of(seed)
        bed.teach(student, seed, method, settings)
        return {"accuracy": evaluate(student, bed.dataset.tuning_val).accuracy}

    def score(settings: TrainingSettings, seed: int) -> float:
        nonlocal done
        on_progress("choosing β", done, len(betas) * SEEDS)
        path = None if directory is None else directory / f"{settings.oracle_beta!r}-{seed}.json"
        accuracy = kept(path, lambda: trained(settings, seed))["accuracy"]
        done += 1
        return float(accuracy)

    beta, means = choose_beta(score, bed.long, range(first, first + SEEDS), betas)
    return {
        "beta": beta,
        # A list, as JSON's keys are texts.
        "tuning_accuracy": [{"beta": one, "accuracy": mean} for one, mean in means.items()],
        "trainings": done,
        "seconds": time.perf_counter() - began,
    }


def with_beta(settings: TrainingSettings, chosen: dict[str, Any] | None) -> TrainingSettings:
    """A training's settings with what was chosen, if something was."""
    return settings if chosen is None else replace(settings, oracle_beta=chosen["beta"])
