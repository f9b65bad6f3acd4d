"""AKD's search by reinforcement learning, as NNI tuners: a controller learns from batches of rewarded candidates.

As published nothing is constrained, and the reward alone says that a candidate is slow. Inside a hard budget the
controller is asked until a candidate fits: penalties for those that do not would outweigh what tells good ones apart,
and it would learn to be small. How likely its draws are to fit is left out of the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nni import NoMoreTrialError
from nni.tuner import Tuner

from akd_deploy.errors import UsageError
from akd_deploy.search.reward import over_budget_penalty
from akd_deploy.search.strategies.base import (
    LatencyBudget,
    Parameters,
    Strategy,
    nothing_within_budget,
    strategy_settings,
)
from akd_deploy.search.strategies.controller import Baseline, Controller, ppo_loss, reinforce_loss, skip_loss

DRAWN_AT_ONCE = 32
"""Candidates looked at together inside a budget."""
MOST_DRAWS = 100
"""So often in a row it may draw none that fits, and learn from that, before it gives up."""


@dataclass(frozen=True)
class ReinforceSettings:
    """Of `akd-reinforce`. After every `batch` rewarded candidates one step of Adam is made.

    `hidden` is the LSTM's width; `entropy` weighs the bonus per token; `baseline_decay` as in `Baseline`. With a
    `skip_target` above 0, choices between 0 and 1 are drawn towards being 1 so often, and `skip_weight` weighs that
    (ENAS: 0.4 and 0.8).
    """

    batch: int = 8
    hidden: int = 64
    learning_rate: float = 0.02
    entropy: float = 0.1
    baseline_decay: float = 0.9
    skip_target: float = 0.0
    skip_weight: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.skip_target < 1:
            raise UsageError(
                asked="setting skip_target of strategy akd-reinforce as a share below 1",
                found=repr(self.skip_target),
                next="0 leaves skips alone.",
            )


@dataclass(frozen=True)
class PpoSettings:
    """Of `akd-ppo`. After every `batch` rewarded candidates `epochs` steps of Adam are made on them; the others are
    `ReinforceSettings`'. Sizes for searches of a hundred trainings: published searches had ten thousand, and smaller
    steps."""

    batch: int = 8
    epochs: int = 4
    clip: float = 0.2
    hidden: int = 64
    learning_rate: float = 0.01
    entropy: float = 0.1
    baseline_decay: float = 0.9


@dataclass(frozen=True, eq=False)
class _Draw:
    """(choices,) tokens, and the logarithms of their probabilities by the controller that drew them."""

    tokens: np.ndarray
    log_probabilities: torch.Tensor


class PolicyGradient(Tuner):
    """A controller asked for candidates and taught their rewards, `settings.batch` at a time.

    A network met again has its first reward, and teaches without a training. Where several are in training at a time
    some were drawn before the controller's last steps: PPO weighs them by how likely they were then.
    """

    def __init__(self, seed: int, settings: ReinforceSettings | PpoSettings, budget: LatencyBudget | None) -> None:
        super().__init__()
        self._seed, self._settings, self._budget = seed, settings, budget

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Start over on this space."""
        self._names = list(search_space)
        self._options = [list(search_space[name]["_value"]) for name in self._names]
        self._rng = np.random.default_rng(self._seed)
        generator = torch.Generator().manual_seed(int(self._rng.integers(2**62)))
        self._controller = Controller([len(options) for options in self._options], self._settings.hidden, generator)
        self._optimiser = torch.optim.Adam(self._controller.parameters(), self._settings.learning_rate)
        self._baseline = Baseline(self._settings.baseline_decay)
        self._drawn: list[_Draw] = []
        self._asked: dict[int, _Draw] = {}
        self._rewarded: list[tuple[_Draw, float]] = []
        self._has_proposed = False

    def generate_parameters(self, parameter_id: int, **_: Any) -> Parameters:
        """A candidate drawn from the controller, inside the budget where there is one; maybe one drawn before.

        Raises:
            InfeasibleBudgetError: none of many drawn was inside the budget.
            nni.NoMoreTrialError: the same, though some were before.
        """
        if not self._drawn:
            self._drawn = self._draws(self._inside() if self._budget else self._controller.sample(1, self._rng))
        self._asked[parameter_id] = draw = self._drawn.pop(0)
        self._has_proposed = True
        return self._parameters(draw.tokens)

    def _draws(self, tokens: np.ndarray) -> list[_Draw]:
        """(n, choices) tokens as drawn by the controller as it is."""
        with torch.no_grad():
            log_probabilities = self._controller(torch.from_numpy(tokens))[0]
        return [_Draw(row, chances) for row, chances in zip(tokens, log_probabilities, strict=True)]

    def _parameters(self, tokens: np.ndarray) -> dict[str, Any]:
        return {n: options[t] for n, options, t in zip(self._names, self._options, tokens, strict=True)}

    def _inside(self) -> np.ndarray:
        """(n, choices) tokens of candidates inside the budget. While none that are drawn are, the controller learns
        which way they lie."""
        assert self._budget is not None
        fastest_s = np.inf
        for _ in range(MOST_DRAWS):
            tokens = self._controller.sample(DRAWN_AT_ONCE, self._rng)
            upper_s = self._budget.upper_s([self._parameters(row) for row in tokens])
            inside = tokens[upper_s <= self._budget.budget_s]
            if len(inside):
                return inside
            fastest_s = min(fastest_s, float(upper_s.min()))
            penalties = np.array([over_budget_penalty(upper, self._budget.budget_s) for upper in upper_s])
            self._step(tokens, Baseline(0.0).advantages(penalties), None)
        if not self._has_proposed:
            raise nothing_within_budget(self._budget.budget_s, fastest_s, MOST_DRAWS * DRAWN_AT_ONCE)
        raise NoMoreTrialError(f"nothing inside the budget among {MOST_DRAWS * DRAWN_AT_ONCE} candidates")

    def receive_trial_result(self, parameter_id: int, parameters: Parameters, value: float, **_: Any) -> None:
        """One more of the batch; a full one is learnt from."""
        del parameters
        self._take(self._asked.pop(parameter_id), value)

    def trial_end(self, parameter_id: int, success: bool, **_: Any) -> None:
        """A candidate that failed has no reward and teaches nothing."""
        del success
        self._asked.pop(parameter_id, None)

    def import_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Candidates of elsewhere are learnt from as if the controller had drawn them when they came: how likely they
        were to whoever did is not known."""
        for trial in data:
            values = trial["parameter"]
            indices = [o.index(values[n]) for n, o in zip(self._names, self._options, strict=True)]
            (draw,) = self._draws(np.array([indices], np.int64))
            self._take(draw, trial["value"])

    def _take(self, draw: _Draw, value: float) -> None:
        self._rewarded.append((draw, float(value)))
        if len(self._rewarded) == self._settings.batch:
            self._learn()
            self._rewarded.clear()

    def _learn(self) -> None:
        settings = self._settings
        tokens = np.stack([draw.tokens for draw, _ in self._rewarded])
        advantages = self._baseline.advantages(np.array([value for _, value in self._rewarded]))
        if isinstance(settings, PpoSettings):
            old = torch.stack([draw.log_probabilities for draw, _ in self._rewarded])
            for _ in range(settings.epochs):
                self._step(tokens, advantages, old)
        else:
            self._step(tokens, advantages, None)
        self._drawn.clear()  # by the controller as it was

    def _step(self, tokens: np.ndarray, advantages: np.ndarray, old: torch.Tensor | None) -> None:
        """One step of Adam: PPO's where the probabilities that tokens were drawn by are given, else REINFORCE's."""
        log_probabilities, entropies = self._controller(torch.from_numpy(tokens))
        gains = torch.from_numpy(advantages).float()
        if old is not None and isinstance(self._settings, PpoSettings):
            loss = ppo_loss(log_probabilities, old, gains, self._settings.clip)
        else:
            loss = reinforce_loss(log_probabilities, gains)
        loss = loss - self._settings.entropy * entropies.sum(1).mean()
        if isinstance(self._settings, ReinforceSettings) and self._settings.skip_target:
            found = self._controller.log_distributions(torch.from_numpy(tokens))
            skips = [log_p for log_p, options in zip(found, self._options, strict=True) if options == [0, 1]]
            loss = loss + self._settings.skip_weight * skip_loss(skips, self._settings.skip_target)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()


def ppo(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
    """AKD's controller taught by PPO; `PpoSettings`."""
    own = strategy_settings(PpoSettings, settings, "akd-ppo", shares=("baseline_decay",), weights=("entropy",))
    return PolicyGradient(seed, own, budget)


def reinforce(seed: int, settings: Mapping[str, Any], budget: LatencyBudget | None) -> Strategy:
    """The same controller taught by REINFORCE; `ReinforceSettings`."""
    shares, weights = ("baseline_decay", "skip_target"), ("entropy", "skip_weight")
    return PolicyGradient(
        seed, strategy_settings(ReinforceSettings, settings, "akd-reinforce", shares, weights), budget
    )
