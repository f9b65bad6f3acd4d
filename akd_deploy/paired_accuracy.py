"""Whether one network is right less often than another on the same samples: a paired comparison, with confidence."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np

from akd_deploy.binomial import binomial_cdf
from akd_deploy.errors import UsageError


@dataclass(frozen=True)
class AccuracyLoss:
    """How much less accurate the candidate is: `loss` > 0 is worse; [`low`, `high`] holds it at `confidence`.

    `lost` samples only the baseline got right and `won` ones only the candidate; all others say nothing. `p_value` is
    that of the exact McNemar test: how rarely two networks that are equally accurate differ as unequally.
    """

    loss: float
    low: float
    high: float
    confidence: float
    samples: int
    lost: int
    won: int
    p_value: float


def paired_accuracy_loss(baseline: np.ndarray, candidate: np.ndarray, confidence: float = 0.95) -> AccuracyLoss:
    """Compare (samples,) booleans: was sample i answered rightly?

    The interval holds the differences that Tango's score test does not reject (Tango 1998, Statistics in Medicine 17,
    pages 891 to 908, section 3): its width is right for small losses too, where a normal interval has none.

    Raises:
        UsageError: no samples, or not as many of both.
    """
    a, b = np.asarray(baseline, bool), np.asarray(candidate, bool)
    if a.shape != b.shape or a.ndim != 1 or a.size == 0:
        raise UsageError(
            asked="a paired comparison of accuracy",
            found=f"answers to {a.size} and {b.size} samples",
            next="Answer the same samples with both.",
        )
    if not 0 < confidence < 1:
        raise UsageError(asked="a confidence", found=f"{confidence:g}", next="Choose one between 0 and 1.")
    samples, lost, won = a.size, int((a & ~b).sum()), int((~a & b).sum())
    loss = (lost - won) / samples
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    # The lower end is the upper one of the comparison turned round.
    low, high = -_upper_end(samples, won, lost, z), _upper_end(samples, lost, won, z)
    fewer = min(lost, won)
    p_value = min(1.0, 2 * binomial_cdf(fewer, lost + won, 0.5)) if lost + won else 1.0
    return AccuracyLoss(loss, low, high, confidence, samples, lost, won, p_value)


def _upper_end(samples: int, lost: int, won: int, z: float) -> float:
    """The largest loss that is not rejected, by halving: the statistic falls from 0 at the observed loss."""
    low, high = (lost - won) / samples, 1.0
    if _score(samples, lost, won, high) >= -z:
        return high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _score(samples, lost, won, middle) >= -z else (low, middle)
    return high


def _score(samples: int, lost: int, won: int, loss: float) -> float:
    """Tango's statistic of a supposed loss, at least the observed one."""
    # The share of `won` that is likeliest where the loss is the supposed one: a q² + b q + c = 0.
    a = 2 * samples
    b = -lost - won + (2 * samples - lost + won) * loss
    c = -won * loss * (1 - loss)
    won_share = (sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = samples * (2 * won_share + loss * (1 - loss))
    difference = lost - won - samples * loss
    if variance <= 0:
        return 0.0 if difference > -1e-9 * samples else float("-inf")
    return difference / sqrt(variance)
