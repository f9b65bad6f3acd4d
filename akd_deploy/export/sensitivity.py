"""Which nodes must stay in floating point: found by measuring what quantising them does, in a bounded number of trials.

The idea of ranking layers by the effect of quantising them alone, and leaving out the worst, is common to vendors'
toolkits; the search by halves that bounds its cost is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite

import numpy as np

from akd_deploy.errors import UsageError
from akd_deploy.export.parity import Arrays

MAX_TRIALS = 40
"""Quantised networks that are built and scored, at most. A node among 64 takes 16, each further one about 8."""

FIRST_GROUPS = 8
"""Neighbouring nodes are first tried together, in so many groups; picked by eye."""

KEPT_BY_HALF = 0.5
"""A group is searched further where one half of it has at least this share of its effect; else its nodes matter
together only (what one reads as int8 another has rounded already) and are left out together."""


@dataclass(frozen=True)
class Score:
    """How good a quantised network is: the relative error of its outputs, and whether its loss is within the limit."""

    error: float
    within: bool


@dataclass(frozen=True)
class ExcludedNode:
    """A node left in floating point; `effect` is by how much that lowered the error, `together` of how many nodes."""

    node: str
    effect: float
    together: int = 1

    def as_dict(self) -> dict[str, object]:
        effect = self.effect if isfinite(self.effect) else None  # there was nothing finite before
        return {"node": self.node, "effect": effect, "together": self.together}


@dataclass(frozen=True)
class Exclusion:
    """What `exclude_sensitive` found: the nodes in the order left out, the score without them, and its cost."""

    excluded: tuple[ExcludedNode, ...]
    score: Score
    trials: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(one.node for one in self.excluded)


Trial = Callable[[tuple[str, ...]], Score]
"""Quantises all but these nodes and scores the result on samples that calibrated nothing."""


def output_error(reference: Sequence[Arrays], candidate: Sequence[Arrays]) -> float:
    """Norm of the difference over norm of the reference, all outputs of all batches taken together.

    0 where they agree; infinite where a value is not finite on one side only.
    """
    difference = size = 0.0
    for wanted, got in zip(reference, candidate, strict=True):
        for name, array in wanted.items():
            a, b = array.astype(np.float64), got[name].astype(np.float64)
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            if (~same & ~(np.isfinite(a) & np.isfinite(b))).any():
                return inf
            difference += float(np.square(np.where(same, 0.0, np.where(same, 0.0, a) - np.where(same, 0.0, b))).sum())
            size += float(np.square(np.where(np.isfinite(a), a, 0.0)).sum())
    if size == 0:
        return 0.0 if difference == 0 else inf
    return float(np.sqrt(difference / size))


def exclude_sensitive(nodes: Sequence[str], trial: Trial, max_trials: int = MAX_TRIALS) -> Exclusion:
    """Leave out the nodes whose quantisation costs most, one after the other, until the score is within the limit.

    Groups of neighbours are tried, each left out alone; the one with the largest effect is halved until a single
    node is left, or nodes that matter only together. That is left out for good, and the next one is looked for.
    Where the trials run out, the group last looked at is left out as a whole.

    Args:
        nodes: quantised nodes in the network's order.
        trial: called `max_trials` times at most.

    Returns:
        The excluded nodes; `score.within` is False where even so the loss is above the limit.
    """
    if max_trials < 1:
        raise UsageError(asked="a search for sensitive nodes", found=f"{max_trials} trials", next="Allow at least 1.")
    search = _Search(trial, max_trials)
    base = search.score(())
    if base.within or not nodes:
        return Exclusion((), base, search.trials)
    score, excluded = base, list[ExcludedNode]()
    size = -(-len(nodes) // FIRST_GROUPS)
    waiting = [tuple(nodes[i : i + size]) for i in range(0, len(nodes), size)]
    effects = {group: search.effect(group, base) for group in waiting if search.left > 1}
    while effects and not score.within and search.left:
        group = max(effects, key=lambda g: effects[g])
        effect = effects.pop(group)
        if effect <= 0:
            break
        if len(group) > 1 and search.left >= 3:  # both halves, and the trial that leaves one out
            middle = len(group) // 2
            halves = {half: search.effect(half, base) for half in (group[:middle], group[middle:])}
            if max(halves.values()) >= KEPT_BY_HALF * effect:
                effects |= halves
                continue
        names = tuple(one.node for one in excluded) + group
        found = search.score(names)
        if found.within or found.error < score.error:
            removed = score.error - found.error if isfinite(found.error) else 0.0
            excluded += [ExcludedNode(node, removed, len(group)) for node in group]
            score = found
    return Exclusion(tuple(excluded), score, search.trials)


class _Search:
    """Trials that are counted, and never repeated."""

    def __init__(self, trial: Trial, max_trials: int) -> None:
        self._trial, self._max = trial, max_trials
        self._known: dict[frozenset[str], Score] = {}

    @property
    def trials(self) -> int:
        return len(self._known)

    @property
    def left(self) -> int:
        return self._max - self.trials

    def score(self, names: tuple[str, ...]) -> Score:
        key = frozenset(names)
        if key not in self._known:
            self._known[key] = self._trial(names)
        return self._known[key]

    def effect(self, group: tuple[str, ...], base: Score) -> float:
        """By how much leaving this group out alone lowers the error; all of it where nothing finite was left."""
        error = self.score(group).error
        if np.isinf(base.error):
            return 0.0 if np.isinf(error) else inf
        return base.error - error
