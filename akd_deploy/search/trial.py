"""One trial: a candidate that a strategy proposed, with what became of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from akd_deploy.architecture import Architecture
from akd_deploy.errors import TrainingError

STATES = ("running", "interrupted", "done", "failed", "infeasible", "duplicate")
"""`running`: in training now. `interrupted`: was, when its process ended; to be trained again. `done`, `failed`:
trained. `infeasible`: predicted over the budget, never trained. `duplicate`: the same network as an earlier trial."""

FINISHED = ("done", "failed", "infeasible", "duplicate")


@dataclass(frozen=True)
class Trial:
    """One row of the journal.

    `id` counts every candidate from 0 and is ours, not NNI's. `network` is the space's digest of the network:
    encodings of the same network share it. `latency_s` is the point prediction, `upper_s` the bound that the budget
    constrains. `reward` and `accuracy` are None for what was not trained (a duplicate has those of its original);
    `seconds` is the training's, 0 for what was not trained. `attempts` counts how often training began.
    """

    id: int
    strategy: str
    architecture: Architecture
    network: str
    state: str
    latency_s: float
    upper_s: float
    seed: int
    reward: float | None = None
    accuracy: float | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    attempts: int = 0
    started: str | None = None
    finished: str | None = None
    error: str | None = None

    def __post_init__(self) -> None:
        if self.state not in STATES:
            raise ValueError(f"trial {self.id}: state {self.state!r} is none of {STATES}")
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))


@dataclass(frozen=True)
class Score:
    """What training one student came to.

    `accuracy` is the fraction of the held-out images, 0 to 1; `seconds` what training and scoring took;
    `metrics` anything worth keeping besides, JSON types only.

    Raises:
        TrainingError: the accuracy is not a fraction, the seconds are no duration, or a metric is not finite.
    """

    accuracy: float
    metrics: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.accuracy <= 1:
            raise TrainingError("an accuracy from 0 to 1", repr(self.accuracy), "Score the student again.")
        if not (math.isfinite(self.seconds) and self.seconds >= 0):
            raise TrainingError("the seconds of a training", repr(self.seconds), "Measure them again.")
        try:
            json.dumps(dict(self.metrics), allow_nan=False)
        except (TypeError, ValueError) as error:
            raise TrainingError("metrics of JSON types", str(error), "Return finite numbers and texts.") from error
        object.__setattr__(self, "metrics", MappingProxyType(dict(self.metrics)))
