"""A run's process of distillation: searched on the student that was chosen, or taken from a file, and trained by."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from akd_deploy.configuration import ProcessTable, RunConfiguration
from akd_deploy.distill.evaluation import evaluate
from akd_deploy.distill.methods import PROCESS
from akd_deploy.distill.pathways import DISTANCES, enumerate_pathways
from akd_deploy.distill.process import Process, load_process, mean_process
from akd_deploy.distill.process_training import ProcessSearchSettings
from akd_deploy.distill.settings import PROXY_SETTINGS, TrainingSettings
from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.pipeline.kept import kept
from akd_deploy.pipeline.training import SEED_OFFSET, Bed, settings_from
from akd_deploy.recipes.distpro import (
    PathwaySettings,
    carried_over,
    distill_by_process,
    pathways_between,
    searched_process,
)

PROCESS_NAME = "process.json"
"""The file in a run's folder."""
TOTAL_SEEDS = 2
"""Trainings with each sum of weights, with seeds that neither a search nor a finalist has."""


def check_process(configuration: RunConfiguration) -> None:
    """Try what `[distill.process]` says without a network.

    Raises:
        UnknownNameError: a rule, transform, distance, normalisation or gradient that nobody knows.
        UsageError: a teacher without layers that can be tapped, or several.
        MissingFileError, CorruptFileError: the file of a process is not there, or none.
    """
    table, teacher = configuration.distill.process, configuration.teacher
    if teacher.source == "onnx" or teacher.teachers > 1:
        raise UsageError(
            asked=f"method {PROCESS}",
            found="an ONNX file as teacher" if teacher.source == "onnx" else f"{teacher.teachers} teachers",
            next="Give one teacher as a torch network: trained here, or by a factory.",
        )
    enumerate_pathways(["a"], ["b"], table.rule, table.transforms, table.logits)
    if table.distance not in DISTANCES:
        raise UnknownNameError("distance of features", table.distance, DISTANCES)
    _search_settings(table)
    settings_from(table.training, PROXY_SETTINGS)
    if table.file is not None:
        load_process(table.file)


def found_process(
    configuration: RunConfiguration,
    bed: Bed,
    student_of: Callable[[int], nn.Module],
    on_progress: Callable[[str, int, int], None],
    directory: Path | None = None,
) -> tuple[Process, dict[str, Any]]:
    """The process of `[distill.process]`, and where it is from: `file`, or the number of `searches`, their `steps` and
    `seconds`; and with `totals` the `total` that weights add up to, chosen by `total_trainings` whose mean accuracies
    are in `total_tuning_accuracy`, where there is a choice.

    Args:
        student_of: seed → a fresh student of the kind whose process is searched for.
        directory: where the process of each search, and what each training scored, are kept and taken from.

    Raises:
        MismatchError: the file's process is of another number of pathways than there are between these networks, or one
            is to be scaled whose weights are all 0.
    """
    process, facts = _searched_or_read(configuration, bed, student_of, on_progress, directory)
    totals = configuration.distill.process.totals
    if totals is None:
        return process, facts
    if len(totals) == 1:
        return process.scaled_to(totals[0]), {**facts, "total": totals[0]}
    first = SEED_OFFSET // 2 + configuration.seed * 100
    trainings = [(total, first + i) for total in totals for i in range(TOTAL_SEEDS)]

    def scored(total: float, seed: int) -> dict[str, Any]:
        student = student_of(seed)
        teach_by_process(configuration, bed, student, process.scaled_to(total), seed)
        return {"accuracy": evaluate(student, bed.dataset.tuning_val).accuracy}

    accuracies: dict[float, list[float]] = {}
    for done, (total, seed) in enumerate(trainings):
        on_progress("choosing what weights add up to", done, len(trainings))
        path = None if directory is None else directory / f"total-{total!r}-{seed}.json"
        accuracies.setdefault(total, []).append(float(kept(path, partial(scored, total, seed))["accuracy"]))
    means = {total: float(np.mean(found)) for total, found in accuracies.items()}
    best = max(means, key=lambda total: means[total])
    chosen = {
        "total": best,
        # A list, as JSON's keys are texts.
        "total_tuning_accuracy": [{"total": total, "accuracy": mean} for total, mean in means.items()],
        "total_trainings": len(trainings),
    }
    return process.scaled_to(best), {**facts, **chosen}


def _searched_or_read(
    configuration: RunConfiguration,
    bed: Bed,
    student_of: Callable[[int], nn.Module],
    on_progress: Callable[[str, int, int], None],
    directory: Path | None,
) -> tuple[Process, dict[str, Any]]:
    table = configuration.distill.process
    if table.file is not None:
        process, settings = load_process(table.file), _pathways(table, bed.long)
        between = pathways_between(_teacher_of(bed), student_of(0), bed.dataset.input_shape, settings, 0)
        carried_over(process, between.pathways)
        return process, {"file": str(table.file)}
    training, began = settings_from(table.training, PROXY_SETTINGS), time.perf_counter()

    def on_step(search: int, step: int) -> None:
        on_progress("searching for a process", search * training.steps + step, table.searches * training.steps)

    def searched(number: int) -> dict[str, Any]:
        process, _ = searched_process(
            student_of,
            _teacher_of(bed),
            bed.dataset,
            bed.views,
            _pathways(table, training),
            training,
            _search_settings(table),
            [configuration.seed * 100 + number],
            lambda _, step: on_step(number, step),
        )
        return process.as_dict()

    each = []
    for number in range(table.searches):
        fields = kept(None if directory is None else directory / f"{number}.json", partial(searched, number))
        each.append(Process(np.array(fields["weights"]), tuple(fields["pathways"])))
    found = mean_process(each)
    facts = {"searches": table.searches, "steps": training.steps, "seconds": time.perf_counter() - began}
    return found, facts


def teach_by_process(
    configuration: RunConfiguration,
    bed: Bed,
    student: nn.Module,
    process: Process,
    seed: int,
    on_step: Callable[[int, int, float], None] | None = None,
) -> None:
    """Train a student in place for the configuration's full length by a process, its own or another one's.

    Raises:
        MismatchError: the process is of another number of pathways.
    """
    distill_by_process(
        student,
        _teacher_of(bed),
        bed.dataset,
        bed.views,
        process,
        _pathways(configuration.distill.process, bed.long),
        bed.long,
        seed,
        on_step,
    )


def _teacher_of(bed: Bed) -> nn.Module:
    module = bed.teacher.module
    assert module is not None  # `check_process` asks for one
    return module


def _pathways(table: ProcessTable, training: TrainingSettings) -> PathwaySettings:
    return PathwaySettings(table.rule, tuple(table.transforms), table.distance, table.logits, training.temperature)


def _search_settings(table: ProcessTable) -> ProcessSearchSettings:
    return ProcessSearchSettings(normalisation=table.normalisation, gradient=table.gradient, ahead=table.ahead)
