"""AKD's reward: the accuracy a student reaches after distillation, traded off against its latency."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from akd_deploy.errors import UnknownNameError, UsageError


@dataclass(frozen=True)
class RewardShape:
    """The exponents of the latency term: `alpha` up to the budget, `beta` above it.

    Both are ≤ 0, so that a slower student never gains by being slower, and beta ≤ alpha, so that a second saved
    above the budget is worth at least what one saved below it is.

    Raises:
        UsageError: an exponent is positive or not finite, or beta is greater than alpha.
    """

    alpha: float
    beta: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.alpha) and math.isfinite(self.beta) and self.beta <= self.alpha <= 0):
            raise UsageError(
                asked="reward exponents with beta ≤ alpha ≤ 0",
                found=f"alpha {self.alpha}, beta {self.beta}",
                next=f"Presets: {', '.join(REWARD_PRESETS)}.",
            )


REWARD_PRESETS: Mapping[str, RewardShape] = {
    "soft": RewardShape(alpha=-0.07, beta=-0.07),
    "hard": RewardShape(alpha=0.0, beta=-1.0),
    "asymmetric": RewardShape(alpha=-0.02, beta=-0.3),
}
"""`soft` and `hard` are MnasNet's (Tan et al. 2019, arXiv:1807.11626, section 3): -0.07 says that a student twice as
slow must be 5 % more accurate to be worth as much. `asymmetric` lies between the two and was picked by eye: halving
the latency below the budget is worth 1.4 %, doubling it above costs 19 %."""


def reward_shape(name: str) -> RewardShape:
    """The preset of that name.

    Raises:
        UnknownNameError: no such preset.
    """
    if name not in REWARD_PRESETS:
        raise UnknownNameError("reward shape", name, REWARD_PRESETS)
    return REWARD_PRESETS[name]


def reward(accuracy: float, latency_s: float, budget_s: float, shape: RewardShape) -> float:
    """accuracy × (latency / budget)^w, with w = alpha for latency ≤ budget and beta above.

    The form is MnasNet's (arXiv:1807.11626, equations 2 and 3). With the accuracy after distillation it is AKD's
    reward (Liu et al. 2020, arXiv:1911.09074); with the accuracy after training on labels alone it is conventional
    architecture search, which differs in nothing else.

    Args:
        accuracy: a fraction, 0 to 1.
        latency_s: point prediction, seconds, > 0.
        budget_s: seconds, > 0.

    Raises:
        UsageError: an argument is outside its range.
    """
    if not 0 <= accuracy <= 1:
        raise UsageError(asked="an accuracy from 0 to 1", found=repr(accuracy), next="Give a fraction.")
    for name, seconds in (("latency", latency_s), ("budget", budget_s)):
        if not (math.isfinite(seconds) and seconds > 0):
            raise UsageError(asked=f"a {name} above 0 seconds", found=repr(seconds), next="Give seconds.")
    exponent = shape.alpha if latency_s <= budget_s else shape.beta
    return float(accuracy * (latency_s / budget_s) ** exponent)


def over_budget_penalty(upper_s: float, budget_s: float) -> float:
    """What a strategy is told instead of a reward about a candidate that is refused untrained: budget / upper - 1.

    Between -1 and 0, so below the reward of anything trained, and the lower the further the candidate's predicted
    upper bound is over the budget: the strategy still learns which way to go. Ours; no paper's.
    """
    return float(budget_s / upper_s - 1.0)
