"""A run's search with shared weights: its best candidates, which are then trained each by itself like any others."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from akd_deploy.architecture import Architecture, architecture_from_dict
from akd_deploy.configuration import SharedTable
from akd_deploy.distill.methods import PROCESS
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.errors import CorruptFileError
from akd_deploy.pipeline.context import Run
from akd_deploy.pipeline.kept import kept
from akd_deploy.pipeline.training import settings_from
from akd_deploy.recipes.oracle_kd import ROUND_SETTINGS, AddOnBed, memory_bytes, memory_limit, search_add_ons
from akd_deploy.search import reward_shape
from akd_deploy.search.driver import Predict
from akd_deploy.search.shared_weights import Judged, Limit, SharedSearchSettings
from akd_deploy.search_space import space_of


def candidates_by_shared_weights(
    run: Run, strategy: str, budget_s: float, screen: Predict
) -> tuple[list[Architecture], dict[str, Any]]:
    """The last candidates of a search with shared weights, the best first, each network once; and what it cost.

    They are kept in the run's folder: a resumed run takes them from there.

    Args:
        screen: predicts by table lookup; candidates whose bound is over the budget are refused unseen, or with
            `constraint = "none"` the reward alone trades their latency off.

    Raises:
        InfeasibleBudgetError: nothing within the budget, and within `most_bytes`, was drawn.
    """
    path = run.directory / f"shared-{strategy}.json"
    found = kept(path, lambda: _searched(run, strategy, budget_s, screen))
    try:
        return [architecture_from_dict(fields) for fields in found["candidates"]], found["facts"]
    except (LookupError, TypeError) as error:
        raise CorruptFileError(
            asked=f"candidates in {path}", found=f"none ({error!r})", next="Delete it: they are found again."
        ) from error


def _searched(run: Run, strategy: str, budget_s: float, screen: Predict) -> dict[str, Any]:
    """`candidates` and `facts`, as they are kept."""
    table, bed, began = run.configuration.search, run.bed, time.perf_counter()
    settings, training = _settings(table.shared), settings_from(table.shared.training, ROUND_SETTINGS)
    first = table.shared.backbone

    def latency_s(architecture: Architecture) -> float:
        return float(screen([architecture])[0][0])

    def bound_s(architecture: Architecture) -> float:
        return float(screen([architecture])[1][0])

    limits = [Limit("latency", latency_s, budget_s, reward_shape(table.reward))]
    if table.constraint == "upper":
        limits.append(Limit("bound of the latency", bound_s, budget_s))
    if table.shared.most_bytes is not None:
        name = table.shared.memory_reward
        limits.append(memory_limit(run.space, table.shared.most_bytes, None if name is None else reward_shape(name)))
    found, _ = search_add_ons(
        run.space,
        AddOnBed(bed.views, bed.taught(training), bed.dataset.reward_val),
        "kd" if bed.method == PROCESS else bed.method,
        training,
        limits,
        settings,
        run.configuration.seed,
        strategy=strategy,
        strategy_settings=table.settings_of(strategy),
        backbone=None if first is None else settings_from(first, TrainingSettings()),
        on_round=lambda done, total: run.on_progress(f"training shared weights ({strategy})", done, total),
    )
    best: dict[str, Judged] = {}
    for one in sorted(found.last, key=lambda one: -one.reward):
        best.setdefault(run.space.network_digest(one.architecture), one)
    facts = {
        "judged": len(found.judged),
        "refused": found.refused,
        "stopped": found.stopped,
        "mean_accuracy": float(np.mean([one.accuracy for one in found.last])),
        "seconds": time.perf_counter() - began,
    }
    return {"candidates": [one.architecture.as_dict() for one in best.values()], "facts": facts}


def within_memory(run: Run, architecture: Architecture) -> bool:
    """Whether a network, of the run's space or of one beside it, has no more bytes of weights than candidates may."""
    shared = run.configuration.search.shared
    most = shared.most_bytes if shared.memory_reward is None else None
    return most is None or memory_bytes(space_of(architecture), architecture) <= most


def _settings(table: SharedTable) -> SharedSearchSettings:
    return SharedSearchSettings(table.warmup, table.rounds, table.trained, table.judged, table.derived)
