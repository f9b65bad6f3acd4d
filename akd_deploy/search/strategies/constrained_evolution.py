"""Regularised evolution that proposes only candidates inside the latency budget."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from nni import NoMoreTrialError
from nni.tuner import Tuner

from akd_deploy.search.strategies.base import (
    LatencyBudget,
    Parameters,
    Strategy,
    nothing_within_budget,
    strategy_settings,
)


@dataclass(frozen=True)
class ConstrainedEvolutionSettings:
    """Sizes for searches of some tens of trainings; the strong selection did best in 60 trials without noise.

    `tournament` members of the newest `population` compete to be a parent. A child has two parents with probability
    `crossover`. `batch` candidates are predicted at once; `max_tries` batches of children, then `max_tries` walks
    from random starts into the budget, are made before giving up.
    """

    population: int = 16
    tournament: int = 10
    crossover: float = 0.5
    batch: int = 8
    max_tries: int = 20


class ConstrainedEvolution(Tuner):
    """Aging evolution (Real et al. 2019, arXiv:1802.01548, algorithm 1) with crossover, inside a latency budget.

    An individual is a row of option indices ("tokens"). No encoding is proposed twice. Random individuals that are
    over the budget walk into it: one choice at a time, the change with the least predicted bound.
    """

    def __init__(self, seed: int, settings: ConstrainedEvolutionSettings, budget: LatencyBudget | None) -> None:
        super().__init__()
        self._settings = settings
        self._budget = budget
        self._rng = np.random.default_rng(seed)
        self._population: deque[tuple[np.ndarray, float]] = deque(maxlen=settings.population)
        self._asked: dict[int, np.ndarray] = {}
        self._proposed: set[bytes] = set()

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Start over on this space."""
        self._names = list(search_space)
        self._options = [list(search_space[name]["_value"]) for name in self._names]
        self._sizes = np.array([len(options) for options in self._options])
        self._population.clear()
        self._asked.clear()
        self._proposed.clear()

    def generate_parameters(self, parameter_id: int, **_: Any) -> Parameters:
        """A candidate inside the budget that was not proposed before.

        Raises:
            InfeasibleBudgetError: no candidate inside the budget was found, now or before.
            nni.NoMoreTrialError: none that was not proposed before was found.
        """
        tokens = self._child() if len(self._population) == self._population.maxlen else None
        if tokens is None:
            tokens = self._random_within_budget()
        self._proposed.add(tokens.tobytes())
        self._asked[parameter_id] = tokens
        return self._parameters(tokens)

    def receive_trial_result(self, parameter_id: int, parameters: Parameters, value: float, **_: Any) -> None:
        """The candidate joins the population; the oldest leaves it."""
        del parameters
        self._population.append((self._asked.pop(parameter_id), float(value)))

    def trial_end(self, parameter_id: int, success: bool, **_: Any) -> None:
        """A candidate that failed is forgotten, but not proposed again."""
        del success
        self._asked.pop(parameter_id, None)

    def import_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Evaluated candidates join the population in the order given."""
        for trial in data:
            values = trial["parameter"]
            indices = [o.index(values[n]) for n, o in zip(self._names, self._options, strict=True)]
            tokens = np.array(indices, dtype=np.int64)
            self._proposed.add(tokens.tobytes())
            self._population.append((tokens, float(trial["value"])))

    def _parameters(self, tokens: np.ndarray) -> dict[str, Any]:
        return {n: options[t] for n, options, t in zip(self._names, self._options, tokens, strict=True)}

    def _upper_s(self, tokens: np.ndarray) -> np.ndarray:
        """(n, choices) → (n,) predicted upper bounds; zeros when nothing is constrained."""
        if self._budget is None:
            return np.zeros(len(tokens))
        return self._budget.upper_s([self._parameters(row) for row in tokens])

    def _first_new(self, tokens: np.ndarray, upper_s: np.ndarray) -> np.ndarray | None:
        """The first row inside the budget that was not proposed before."""
        limit = np.inf if self._budget is None else self._budget.budget_s
        for row, upper in zip(tokens, upper_s, strict=True):
            if upper <= limit and row.tobytes() not in self._proposed:
                return row
        return None

    def _parent(self) -> np.ndarray:
        size = min(self._settings.tournament, len(self._population))
        drawn = self._rng.choice(len(self._population), size=size, replace=False)
        return max((self._population[i] for i in drawn), key=lambda member: member[1])[0]

    def _mutated(self, tokens: np.ndarray) -> np.ndarray:
        """One choice set to another of its options, and each of the others with probability 1 / (number of choices)."""
        free = np.flatnonzero(self._sizes > 1)
        mutated = tokens.copy()
        if free.size:
            chosen = free[self._rng.random(free.size) < 1 / free.size]
            for i in sorted({int(self._rng.choice(free)), *map(int, chosen)}):
                mutated[i] = (tokens[i] + self._rng.integers(1, self._sizes[i])) % self._sizes[i]
        return mutated

    def _child(self) -> np.ndarray | None:
        """A new child of the population inside the budget; None when `max_tries` batches have none."""
        for _ in range(self._settings.max_tries):
            batch = []
            for _ in range(self._settings.batch):
                child = self._parent()
                if self._rng.random() < self._settings.crossover:
                    child = np.where(self._rng.random(child.size) < 0.5, child, self._parent())
                batch.append(self._mutated(child))
            tokens = np.stack(batch)
            found = self._first_new(tokens, self._upper_s(tokens))
            if found is not None:
                return found
        return None

    def _random_within_budget(self) -> np.ndarray:
        """A new random candidate inside the budget: drawn there, or walked there from the fastest one drawn."""
        fastest_s, candidates = np.inf, 0
        for _ in range(self._settings.max_tries):
            tokens = self._rng.integers(self._sizes, size=(self._settings.batch, self._sizes.size))
            current_s = np.inf
            while True:
                upper_s = self._upper_s(tokens)
                candidates += len(tokens)
                found = self._first_new(tokens, upper_s)
                if found is not None:
                    return found
                least = int(np.argmin(upper_s))
                if upper_s[least] >= current_s:
                    break
                current_s = float(upper_s[least])
                fastest_s = min(fastest_s, current_s)
                # In random order, so that walks that end inside the budget end in different places.
                tokens = self._rng.permutation(self._neighbours(tokens[least]))
        if self._budget is not None and fastest_s > self._budget.budget_s and not self._proposed:
            raise nothing_within_budget(self._budget.budget_s, fastest_s, candidates)
        raise NoMoreTrialError(f"nothing new inside the budget among {candidates} candidates")

    def _neighbours(self, tokens: np.ndarray) -> np.ndarray:
        """Every row that differs from this one in exactly one choice; the row itself when there is none."""
        rows = []
        for i, size in enumerate(self._sizes):
            for step in range(1, size):
                row = tokens.copy()
                row[i] = (row[i] + step) % size
                rows.append(row)
        return np.stack(rows or [tokens])


def constrained_evolution(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
    """Ours: `ConstrainedEvolution` with `ConstrainedEvolutionSettings`."""
    own = strategy_settings(ConstrainedEvolutionSettings, settings, "constrained_evolution", shares=("crossover",))
    return ConstrainedEvolution(seed, own, budget)
