"""DistPro (Deng et al. 2022, arXiv:2204.05547): search how to distil, in a short training, and use it in a longer one.

Several searches are averaged; the process that comes out weighs pathways from any layer of the teacher to any of the
student over time, and serves other trainings of the same pair, or of another whose pathways are as many.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from akd_deploy.data import Dataset, ViewBank
from akd_deploy.data.dataset import stratified_parts
from akd_deploy.distill import TrainingSettings
from akd_deploy.distill.pathways import LOGITS, Pathway, Pathways, enumerate_pathways
from akd_deploy.distill.process import Process, constant_process, mean_process
from akd_deploy.distill.process_training import ProcessSearchSettings, search_process, train_by_process
from akd_deploy.distill.review import Review
from akd_deploy.distill.trainer import TrainingResult
from akd_deploy.distill.what_and_where import Matched, WhatAndWhere, WhatAndWhereSettings, train_what_and_where
from akd_deploy.errors import MismatchError
from akd_deploy.models.taps import feature_points

HELD_OUT = 0.2
"""Of the student's images, what weights are learnt on (DistPro's)."""
MOMENTS = 20
"""A searched process is the mean over so many stretches of its search."""


@dataclass(frozen=True)
class PathwaySettings:
    """Which pathways there are: `rule` of connection, `transforms`, `distance`, and whether the logits' is one."""

    rule: str = "up"
    transforms: tuple[str, ...] = ("linear",)
    distance: str = "hcl"
    logits: bool = True
    temperature: float = 4.0


def pathways_between(
    teacher: nn.Module, student: nn.Module, input_shape: Sequence[int], settings: PathwaySettings, seed: int
) -> Pathways:
    """Fresh pathways between two networks, tapped after the last layer of each resolution."""
    enumerated = enumerate_pathways(
        feature_points(teacher, input_shape),
        feature_points(student, input_shape),
        settings.rule,
        settings.transforms,
        settings.logits,
    )
    return Pathways(
        enumerated,
        teacher,
        student,
        torch.zeros(2, *input_shape),
        torch.Generator().manual_seed(seed),
        distance=settings.distance,
        temperature=settings.temperature,
    )


def held_out_views(dataset: Dataset, views: ViewBank, seed: int) -> tuple[ViewBank, ViewBank]:
    """The student's images in two banks that share none: to learn from, and to learn weights on."""
    split = dataset.train
    count = max(1, round(HELD_OUT * len(split)))
    parts = stratified_parts(split.labels, {"held out": count}, np.random.default_rng([seed, 37]), "the training split")
    return (
        ViewBank(split.take(parts["rest"]), views.settings, views.seed),
        ViewBank(split.take(parts["held out"]), views.settings, views.seed),
    )


def searched_process(
    student_of: Callable[[int], nn.Module],
    teacher: nn.Module,
    dataset: Dataset,
    views: ViewBank,
    pathways: PathwaySettings,
    training: TrainingSettings,
    search: ProcessSearchSettings,
    seeds: Sequence[int],
    on_step: Callable[[int, int], None] = lambda search, step: None,
) -> tuple[Process, list[Process]]:
    """The mean of one search a seed, and each of them, all smoothed to `MOMENTS`.

    Args:
        student_of: seed → a fresh student.
        seeds: of the searches; weights, batches and held-out images follow each.
        on_step: called as (searches done, steps of the next one done).
    """
    found: list[Process] = []
    for seed in seeds:
        student = student_of(seed)
        learnt, held_out = held_out_views(dataset, views, seed)
        between = pathways_between(teacher, student, dataset.input_shape, pathways, seed)
        generator = torch.Generator().manual_seed(seed)

        def after_step(step: int, _steps: int, _loss: float, done: int = len(found)) -> None:
            on_step(done, step)

        result = search_process(
            student,
            teacher,
            between,
            learnt,
            held_out,
            training,
            search,
            generator,
            on_step=after_step,
        )
        found.append(result.process.smoothed(MOMENTS))
    return mean_process(found), found


def distill_by_process(
    student: nn.Module,
    teacher: nn.Module,
    dataset: Dataset,
    views: ViewBank,
    process: Process,
    pathways: PathwaySettings,
    training: TrainingSettings,
    seed: int,
    on_step: Callable[[int, int, float], None] | None = None,
) -> TrainingResult:
    """Train a student on all of its images by a process of these pathways, with fresh connectors.

    The process may be of another pair of networks with as many pathways: they are taken in order.
    """
    between = pathways_between(teacher, student, dataset.input_shape, pathways, seed)
    generator = torch.Generator().manual_seed(seed)
    by = carried_over(process, between.pathways)
    return train_by_process(student, teacher, between, by, views, training, generator, on_step=on_step)


def carried_over(process: Process, pathways: Sequence[Pathway]) -> Process:
    """A process for pathways of another pair of networks, one after the other.

    Raises:
        MismatchError: they are not as many.
    """
    names = tuple(pathway.name for pathway in pathways)
    if len(names) != len(process.pathways):
        raise MismatchError(
            asked=f"a process of {len(names)} pathways",
            found=f"one of {len(process.pathways)}",
            next="Tap as many layers as it was searched with, by the same rule and transforms.",
        )
    return replace(process, pathways=names)


def distill_by_review(
    student: nn.Module,
    teacher: nn.Module,
    dataset: Dataset,
    views: ViewBank,
    weight: float,
    training: TrainingSettings,
    seed: int,
) -> TrainingResult:
    """Train a student by ReviewKD with a fixed weight.

    Raises:
        UsageError: teacher and student have maps of another number of resolutions.
    """
    points = [feature_points(network, dataset.input_shape) for network in (teacher, student)]
    least = min(map(len, points))
    generator = torch.Generator().manual_seed(seed)
    review = Review(
        teacher, student, points[0][-least:], points[1][-least:], torch.zeros(2, *dataset.input_shape), generator
    )
    return train_by_process(
        student,
        teacher,
        review,
        constant_process({review.pathways[0].name: weight}),
        views,
        training,
        generator,
    )


def distill_by_what_and_where(
    student: nn.Module,
    teacher: nn.Module,
    dataset: Dataset,
    views: ViewBank,
    settings: WhatAndWhereSettings,
    training: TrainingSettings,
    seed: int,
) -> tuple[TrainingResult, WhatAndWhere]:
    """Train a student by L2T-ww, whose weights of pairs and channels are learned in the same training: no process is
    needed, nor left."""
    points = [feature_points(network, dataset.input_shape) for network in (teacher, student)]
    generator = torch.Generator().manual_seed(seed)
    example = torch.zeros(2, *dataset.input_shape)
    network = Matched(student, teacher, points[0], points[1], example, generator)
    return train_what_and_where(network, teacher, views, training, settings, generator)


def fixed_processes(pathways: Sequence[Pathway], total: float) -> dict[str, Process]:
    """Processes that nobody searched, each with weights that add up to `total`: even over all pathways, over those
    between equal depths and the logits, and the logits' alone (which is plain KD beside a whole cross-entropy)."""
    names = [pathway.name for pathway in pathways]
    depths = {
        side: list(dict.fromkeys(getattr(p, side) for p in pathways if p.teacher != LOGITS))
        for side in ("teacher", "student")
    }

    def is_diagonal(pathway: Pathway) -> bool:
        return pathway.teacher == LOGITS or (
            depths["teacher"].index(pathway.teacher) == depths["student"].index(pathway.student)
        )

    chosen: Mapping[str, Sequence[bool]] = {
        "uniform": [True] * len(names),
        "diagonal": [is_diagonal(pathway) for pathway in pathways],
        "logits": [pathway.teacher == LOGITS for pathway in pathways],
    }
    return {
        label: constant_process(
            {name: total / sum(taken) if take else 0.0 for name, take in zip(names, taken, strict=True)}
        )
        for label, taken in chosen.items()
        if any(taken)
    }


def controls_of(process: Process, rng: np.random.Generator) -> dict[str, Process]:
    """What tells a process's course in time, and its choice of pathways, from their sum, which all of them keep.

    Raises:
        MismatchError: the process ends with weights that are all 0.
    """
    return {
        "time mean": process.time_mean(),
        "final": process.final().scaled_to(float(process.weights.sum(axis=1).mean())),
        "reversed": process.reversed(),
        "shuffled": process.shuffled(rng),
    }
