"""Search with shared weights: a strategy is asked for candidates, which share one network's weights, by turns with the
training of these weights (ENAS, Pham et al. 2018, arXiv:1802.03268; the search of Kang et al. 2020,
arXiv:1911.13019)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from akd_deploy.architecture import Architecture
from akd_deploy.errors import InfeasibleBudgetError, UsageError
from akd_deploy.search.reward import RewardShape, over_budget_penalty
from akd_deploy.search.strategies import Parameters, Strategy, learns_by_rank, nni_space
from akd_deploy.search_space import SearchSpace

TrainShared = Callable[[Sequence[Architecture]], None]
"""One round of training of the shared weights, on these candidates in turn."""
JudgeShared = Callable[[Architecture], float]
"""A candidate's accuracy with the shared weights as they are, 0 to 1."""


@dataclass(frozen=True)
class Limit:
    """What a candidate may cost: `cost` of it is to be at most `most`, both in the same unit, such as bytes or seconds.

    With a `shape` the reward trades the cost off, by (cost / most)^w as AKD's does latency; without one a candidate
    over the limit is refused unseen.
    """

    name: str
    cost: Callable[[Architecture], float]
    most: float
    shape: RewardShape | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.most) and self.most > 0):
            raise UsageError(asked=f"a limit of {self.name} above 0", found=repr(self.most), next="Give a number.")


@dataclass(frozen=True)
class SharedSearchSettings:
    """`rounds` of training the shared weights on `trained` candidates in turn, after each of which the strategy is told
    about `judged` new ones. Before them there are `warmup` rounds of training on candidates at random: weights that few
    have trained yet tell of nothing but that. Of `derived` last candidates the best is the result. `max_draws` refused
    ones in a row end the search."""

    warmup: int = 0
    rounds: int = 10
    trained: int = 16
    judged: int = 8
    derived: int = 32
    max_draws: int = 1000

    def __post_init__(self) -> None:
        for name in self.__dataclass_fields__:
            least = 0 if name == "warmup" else 1
            if getattr(self, name) < least:
                raise UsageError(f"{name} of at least {least}", repr(getattr(self, name)), "Raise it.")


@dataclass(frozen=True)
class Judged:
    """A candidate with its accuracy on shared weights, its reward, and its costs by limit."""

    architecture: Architecture
    accuracy: float
    reward: float
    costs: dict[str, float]


@dataclass(frozen=True)
class SharedSearchResult:
    """`judged` in order, of which the `last` are what the result is chosen among; `refused` counts the others.

    `stopped` is "rounds" where all were made, "exhausted" where the strategy had nothing more to propose, "draws" where
    nothing more that it proposed was within the limits.
    """

    judged: tuple[Judged, ...]
    last: tuple[Judged, ...]
    refused: int
    stopped: str = "rounds"

    @property
    def best(self) -> Judged:
        """The one of the last with the greatest reward."""
        return max(self.last, key=lambda one: one.reward)


def search_shared_weights(
    space: SearchSpace,
    strategy: Strategy,
    train: TrainShared,
    judge: JudgeShared,
    judge_last: JudgeShared,
    limits: Sequence[Limit],
    settings: SharedSearchSettings,
    rng: np.random.Generator,
) -> SharedSearchResult:
    """Rounds of training shared weights and of teaching the strategy, then the best of its last candidates.

    Many are judged in rounds, where noise averages out over what a strategy is told: `judge` may look at a few images.
    `judge_last` should look at all there are, or the best of the last is the luckiest.

    The candidates that weights are trained on are the strategy's own draws within the limits: what it prefers is
    trained more. They have no reward, so it is told nothing of them. `rng` draws those of the warm-up.

    Of what a hard limit refuses a strategy is told nothing either, unless it `learns_by_rank`: beside accuracies that
    differ by hundredths penalties would say little else than that small is good, and a controller would stay away from
    a limit near which the best candidates lie.

    A strategy that has nothing more within the limits ends the search. The newest of those judged in rounds are then
    judged again, to make up for what is missing of the last.

    Raises:
        InfeasibleBudgetError: nothing within the limits was drawn, or nothing was left to judge.
    """
    asker = _Asker(space, strategy, limits, settings.max_draws)
    judged: list[Judged] = []
    last: list[Judged] = []
    stopped = "rounds"
    for _ in range(settings.warmup):
        train([asker.at_random(rng) for _ in range(settings.trained)])
    try:
        for _ in range(settings.rounds):
            train([asker.untold() for _ in range(settings.trained)])
            for _ in range(settings.judged):
                judged.append(asker.told(judge))
        for _ in range(settings.derived):
            last.append(asker.told(judge_last))
    except _NothingMoreError as end:
        if not judged:
            raise end.error from None
        stopped = end.stopped
        known = {one.architecture for one in last}
        newest = {one.architecture: one for one in reversed(judged) if one.architecture not in known}
        last += [asker.again(one, judge_last) for one in list(newest.values())[: settings.derived - len(last)]]
    return SharedSearchResult((*judged, *last), tuple(last), asker.refused, stopped)


class _NothingMoreError(Exception):
    """The strategy proposes nothing more within the limits; `error` says so to whom that is no result."""

    def __init__(self, stopped: str, error: InfeasibleBudgetError) -> None:
        super().__init__(stopped)
        self.stopped, self.error = stopped, error


class _Asker:
    """Asks the strategy until a candidate is within the hard limits, and numbers what it asks."""

    def __init__(self, space: SearchSpace, strategy: Strategy, limits: Sequence[Limit], max_draws: int) -> None:
        self._space, self._strategy, self._limits, self._max_draws = space, strategy, limits, max_draws
        self._asked = 0
        self.refused = 0
        strategy.update_search_space(nni_space(space))

    def at_random(self, rng: np.random.Generator) -> Architecture:
        """A candidate within the hard limits that the strategy has no part in."""
        for _ in range(self._max_draws):
            architecture = self._space.sample(rng)
            if all(one.cost(architecture) <= one.most for one in self._limits if one.shape is None):
                return architecture
        raise self._none_within(f"none at random among {self._max_draws}")

    def untold(self) -> Architecture:
        """A candidate within the limits that the strategy gets no reward for."""
        number, _, architecture, _ = self._within()
        self._strategy.trial_end(number, False)
        return architecture

    def told(self, judge: JudgeShared) -> Judged:
        """A candidate within the limits, judged, and the strategy told."""
        number, parameters, architecture, costs = self._within()
        judged = self._judged(architecture, costs, judge)
        self._strategy.receive_trial_result(number, parameters, judged.reward)
        self._strategy.trial_end(number, True)
        return judged

    def again(self, one: Judged, judge: JudgeShared) -> Judged:
        """The same candidate judged anew, of which the strategy hears nothing."""
        return self._judged(one.architecture, one.costs, judge)

    def _judged(self, architecture: Architecture, costs: dict[str, float], judge: JudgeShared) -> Judged:
        accuracy = value = judge(architecture)
        for limit in self._limits:
            if limit.shape is not None:
                exponent = limit.shape.alpha if costs[limit.name] <= limit.most else limit.shape.beta
                value *= (costs[limit.name] / limit.most) ** exponent
        return Judged(architecture, accuracy, value, costs)

    def _within(self) -> tuple[int, Parameters, Architecture, dict[str, float]]:
        from nni import NoMoreTrialError

        least_over = math.inf
        for _ in range(self._max_draws):
            number, self._asked = self._asked, self._asked + 1
            try:
                parameters = self._strategy.generate_parameters(number)
            except NoMoreTrialError:
                raise _NothingMoreError("exhausted", self._none_left(number)) from None
            architecture = self._space.architecture(parameters)
            costs = {limit.name: limit.cost(architecture) for limit in self._limits}
            over = max((costs[one.name] / one.most for one in self._limits if one.shape is None), default=0.0)
            if over <= 1:
                return number, parameters, architecture, costs
            self.refused += 1
            least_over = min(least_over, over)
            is_told = learns_by_rank(self._strategy)
            if is_told:
                self._strategy.receive_trial_result(number, parameters, over_budget_penalty(over, 1.0))
            self._strategy.trial_end(number, is_told)
        found = f"none among {self._max_draws}; the nearest is {least_over:.2f} times over"
        raise _NothingMoreError("draws", self._none_within(found))

    def _none_left(self, proposed: int) -> InfeasibleBudgetError:
        return InfeasibleBudgetError(
            asked=f"a candidate of space {self._space.name} to judge",
            found=f"none left after {proposed}, {self.refused} of them over the limits, the others trained on",
            next="Widen the space, raise the limits, or train on fewer in a round.",
        )

    def _none_within(self, found: str) -> InfeasibleBudgetError:
        told = ", ".join(f"{one.name} {one.most:g}" for one in self._limits if one.shape is None)
        return InfeasibleBudgetError(
            asked=f"a candidate of space {self._space.name} within {told}",
            found=found,
            next="Raise the limit, or let a shape trade it off.",
        )
