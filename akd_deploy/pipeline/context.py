"""A run in progress: what its stages share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from akd_deploy.architecture import architecture_from_dict
from akd_deploy.configuration import RunConfiguration
from akd_deploy.models.student import load_student
from akd_deploy.pipeline.latency import TargetLatency, target_latency
from akd_deploy.pipeline.training import Bed, load_bed
from akd_deploy.predictor.compiled import CompiledSpace
from akd_deploy.predictor.predictor import Prediction
from akd_deploy.search import Journal
from akd_deploy.search_space import SearchSpace, load_space
from akd_deploy.target import Target, load_target

Progress = Callable[[str, int, int], None]
"""(what is being done, done, total)."""


@dataclass
class Run:
    """A run in progress: its configuration, its directory, and what its stages left there."""

    of_space: ClassVar[bool] = True
    """Whether its students are of the `[space]`."""

    configuration: RunConfiguration
    directory: Path
    tables: Path
    journal: Journal
    on_progress: Progress = lambda what, done, total: None
    stages: dict[str, float] = field(default_factory=dict)
    jobs: int = 1
    """Trainings at a time in a search."""

    @cached_property
    def target(self) -> Target:
        return load_target(self.configuration.target)

    @cached_property
    def targets(self) -> dict[str, Target]:
        """Name → target: the run's own first, then those the student is built for besides."""
        others = (load_target(name) for name in self.configuration.export.targets)
        return {target.name: target for target in (self.target, *others)}

    @cached_property
    def space(self) -> SearchSpace:
        return load_space(self.configuration.space.name, self.configuration.space.settings)

    @cached_property
    def bed(self) -> Bed:
        return load_bed(
            self.configuration,
            self.space,
            self.directory,
            lambda step, steps, loss: self.on_progress("training the teacher", step, steps),
        )

    @cached_property
    def latency(self) -> TargetLatency:
        return target_latency(self.target)

    @cached_property
    def compiled(self) -> CompiledSpace:
        self.on_progress("compiling the space's latencies", 0, 0)
        return self.latency.compile(self.space)

    def student(self, path: Path) -> Any:
        """A trained student of this run, from its file: a network with an `input_shape`."""
        return load_student(path)

    def prediction(self, results: Mapping[str, Any]) -> Prediction:
        """Of the winner, on the run's target."""
        return self.latency.predict_architecture(architecture_from_dict(results["confirm"]["winner"]["arch"]))

    def forget_latency(self) -> None:
        """Look the table up again when it is asked for next: it has changed."""
        for name in ("latency", "compiled"):
            self.__dict__.pop(name, None)

    def rng(self, stage: str) -> np.random.Generator:
        """A generator of its own for each stage: resuming changes no later stage's draws."""
        return np.random.default_rng([self.configuration.seed, *stage.encode()])

    @property
    def certificate_factor(self) -> float:
        """What the run's certificate asks over the latency at full speed, on this target."""
        return self.latency.certificate_factor(self.configuration.certificate)

    def bound_s(self, upper_s: np.ndarray) -> np.ndarray:
        """Upper bounds of predictions → the least budgets that their certificates are expected to hold for."""
        return upper_s * self.certificate_factor
