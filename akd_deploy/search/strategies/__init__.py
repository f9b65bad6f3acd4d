"""Search strategies: one visible dict, name → factory; each makes an `nni.tuner.Tuner`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from akd_deploy.errors import UnknownNameError
from akd_deploy.search.strategies.base import (
    LatencyBudget,
    Parameters,
    Strategy,
    StrategyFactory,
    learns_by_rank,
    nni_space,
    nothing_within_budget,
    require_nni,
)

__all__ = [
    "STRATEGIES",
    "LatencyBudget",
    "Parameters",
    "Strategy",
    "StrategyFactory",
    "learns_by_rank",
    "load_strategy",
    "nni_space",
    "nothing_within_budget",
    "require_nni",
    "settings_for",
]


def _evolution(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
    from akd_deploy.search.strategies.nni_tuners import evolution

    del budget  # learnt from penalties
    return evolution(seed, settings)


def _tpe(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
    from akd_deploy.search.strategies.nni_tuners import tpe

    del budget  # learnt from penalties
    return tpe(seed, settings)


def _random(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
    from akd_deploy.search.strategies.nni_tuners import random_search

    del budget  # nothing is learnt
    return random_search(seed, settings)


def _constrained_evolution(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
    from akd_deploy.search.strategies.constrained_evolution import constrained_evolution

    return constrained_evolution(seed, settings, budget)


def _akd_ppo(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
    from akd_deploy.search.strategies.policy_gradient import ppo

    return ppo(seed, settings, budget)


def _akd_reinforce(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
    from akd_deploy.search.strategies.policy_gradient import reinforce

    return reinforce(seed, settings, budget)


STRATEGIES: Mapping[str, StrategyFactory] = {
    "akd-ppo": _akd_ppo,
    "akd-reinforce": _akd_reinforce,
    "constrained_evolution": _constrained_evolution,
    "evolution": _evolution,
    "random": _random,
    "tpe": _tpe,
}
"""Strategy name → factory. A factory imports what its strategy needs when it is called."""


BEGINS_TO_LEARN: Mapping[str, tuple[str, int]] = {
    "akd-reinforce": ("batch", 8),
    "constrained_evolution": ("population", 16),
    "tpe": ("n_startup_jobs", 10),
}
"""Strategy → the setting that says after how many trials it draws no longer at random, and its default. PPO and NNI's
evolution are not among them: begun on four trials they soon propose nothing but what they know."""
LEARNING, FEWEST = 4, 4
"""Of a search's trials one in so many may be over before that; so many may in any case, as of two little is learnt."""


def settings_for(name: str, trials: int, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a strategy for a search of so many trials: a small one would end before the strategy has learnt
    anything, were it to begin as late as in a large one. What is in `settings` stays."""
    if name not in BEGINS_TO_LEARN:
        return dict(settings)
    setting, default = BEGINS_TO_LEARN[name]
    return {setting: max(FEWEST, min(default, trials // LEARNING)), **settings}


def load_strategy(
    name: str, seed: int, settings: Mapping[str, Any] | None = None, budget: LatencyBudget | None = None
) -> Strategy:
    """The strategy of that name, fresh.

    Raises:
        UnknownNameError: no such strategy or setting.
        MissingRuntimeError: NNI cannot be imported here.
    """
    if name not in STRATEGIES:
        raise UnknownNameError("search strategy", name, STRATEGIES)
    require_nni()
    return STRATEGIES[name](seed, settings or {}, budget)
