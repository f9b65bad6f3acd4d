"""The exact optimum of a small space: every network is looked at, so that a search's regret is known."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from akd_deploy.architecture import Architecture
from akd_deploy.errors import UsageError
from akd_deploy.search.driver import Predict, SearchSettings
from akd_deploy.search.reward import reward
from akd_deploy.search.strategies import nothing_within_budget
from akd_deploy.search_space import SearchSpace

MAX_ENCODINGS = 200_000
"""About a minute of digests and predictions."""
_BATCH = 4096


@dataclass(frozen=True)
class ExactOptimum:
    """The network with the greatest reward, the first of equals; how many different ones there are, and fit."""

    architecture: Architecture
    reward: float
    accuracy: float
    latency_s: float
    networks: int
    within_budget: int


def exact_optimum(
    space: SearchSpace, predict: Predict, accuracy: Callable[[Architecture], float], settings: SearchSettings
) -> ExactOptimum:
    """Look at every network of the space; `accuracy` is asked once for each that the constraint admits.

    Raises:
        UsageError: the space has more than `MAX_ENCODINGS` encodings.
        InfeasibleBudgetError: no network is within the budget.
    """
    if space.size > MAX_ENCODINGS:
        raise UsageError(
            asked=f"a space of at most {MAX_ENCODINGS} encodings",
            found=f"{space.size} in space {space.name}",
            next="Fix some of its choices.",
        )
    best: ExactOptimum | None = None
    seen: set[str] = set()
    within, fastest_s = 0, np.inf
    for architectures in _batches(space):
        for architecture, latency_s, upper_s in zip(architectures, *predict(architectures), strict=True):
            network = space.network_digest(architecture)
            if network in seen:
                continue
            seen.add(network)
            fastest_s = min(fastest_s, float(upper_s))
            if settings.constraint == "upper" and upper_s > settings.budget_s:
                continue
            within += 1
            reached = accuracy(architecture)
            worth = reward(reached, float(latency_s), settings.budget_s, settings.shape)
            if best is None or worth > best.reward:
                best = ExactOptimum(architecture, worth, reached, float(latency_s), 0, 0)
    if best is None:
        raise nothing_within_budget(settings.budget_s, fastest_s, len(seen))
    return ExactOptimum(best.architecture, best.reward, best.accuracy, best.latency_s, len(seen), within)


def _batches(space: SearchSpace) -> Iterator[list[Architecture]]:
    tokens = itertools.product(*(range(len(options)) for options in space.choices.values()))
    while batch := [space.from_tokens(row) for row in itertools.islice(tokens, _BATCH)]:
        yield batch
