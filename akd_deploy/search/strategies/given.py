"""Candidates that were chosen elsewhere, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nni import NoMoreTrialError
from nni.tuner import Tuner

from akd_deploy.search.strategies.base import LatencyBudget, Parameters, Strategy, StrategyFactory


class GivenCandidates(Tuner):
    """Proposes what it was given, in that order, and learns nothing."""

    def __init__(self, candidates: Sequence[Parameters]) -> None:
        super().__init__()
        self._candidates = list(candidates)

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Candidates are of the space they are given for."""

    def generate_parameters(self, parameter_id: int, **_: Any) -> Parameters:
        """The candidate of that number. Raises `nni.NoMoreTrialError` after the last."""
        if parameter_id >= len(self._candidates):
            raise NoMoreTrialError("no candidate left")
        return self._candidates[parameter_id]

    def receive_trial_result(self, parameter_id: int, parameters: Parameters, value: float, **_: Any) -> None:
        """Nothing depends on it."""

    def trial_end(self, parameter_id: int, success: bool, **_: Any) -> None:
        """Nothing depends on it."""

    def import_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Nothing depends on it."""


def given_candidates(candidates: Sequence[Parameters], name: str) -> StrategyFactory:
    """A factory of a strategy called `name` that proposes these candidates in order."""

    def made(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
        del seed, settings, budget
        return GivenCandidates(candidates)

    made.__qualname__ = name
    return made
