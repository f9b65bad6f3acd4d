"""AKD, "Search to Distill" (Liu et al. 2020, arXiv:1911.09074): a search rewarded by accuracy after distillation.

Conventional architecture search is the same code with the accuracy after training on labels alone. Each arm's winner
is then trained both ways, with seeds no search has used: the paper's 2×2 comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from akd_deploy.architecture import Architecture
from akd_deploy.search import Predict, Score, SearchResult, SearchSettings, search
from akd_deploy.search_space import SearchSpace

ARMS: Mapping[str, str] = {"akd": "kd", "nas": "ce"}
"""Arm → the method its candidates are trained by: the one value in which the two differ."""

Train = Callable[[Architecture, int, str], float]
"""(architecture, seed, method) → accuracy on images no search has seen, after a full training."""


@dataclass(frozen=True)
class AkdComparison:
    """`searches` by arm; `accuracies[arm][method]` has one value per seed, paired across arms and methods."""

    searches: Mapping[str, SearchResult]
    winners: Mapping[str, Architecture]
    accuracies: Mapping[str, Mapping[str, Sequence[float]]]

    def as_dict(self) -> dict[str, Any]:
        return {
            "winners": {arm: winner.as_dict() for arm, winner in self.winners.items()},
            "accuracies": {arm: {m: list(v) for m, v in rows.items()} for arm, rows in self.accuracies.items()},
            "search_seconds": {arm: sum(result.seconds.values()) for arm, result in self.searches.items()},
        }


def compare_akd_with_nas(
    space: SearchSpace,
    strategy: str,
    predict: Predict,
    score: Callable[[Architecture, int, str], Score],
    train: Train,
    settings: SearchSettings,
    seeds: Sequence[int],
) -> AkdComparison:
    """Search with both rewards at equal budgets, then train both winners with and without the teacher.

    Args:
        score: (architecture, seed, method) → score of a short training on the search's own validation split.
        seeds: of the full trainings; they must differ from any the searches draw, which hash theirs.
        settings: shared by both arms, seed included.
    """
    searches = {
        arm: search(
            space,
            strategy,
            predict,
            lambda architecture, seed, method=method: score(architecture, seed, method),  # type: ignore[misc]
            replace(settings),
        )
        for arm, method in ARMS.items()
    }
    winners = {arm: result.best.architecture for arm, result in searches.items()}
    accuracies = {
        arm: {method: [train(winner, seed, method) for seed in seeds] for method in ARMS.values()}
        for arm, winner in winners.items()
    }
    return AkdComparison(searches, winners, accuracies)
