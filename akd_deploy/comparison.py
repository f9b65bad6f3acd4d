"""Comparisons of two models' latencies: the ratio with its interval, the gate on it, the blocks it takes."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, comb, isfinite, log, pi
from statistics import NormalDist

import numpy as np

from akd_deploy.errors import UsageError
from akd_deploy.rank_distributions import rank_sum_values_below, signed_rank_values_below


@dataclass(frozen=True)
class RatioInterval:
    """How much slower the candidate is than the baseline: `ratio` > 1 is slower; [`low`, `high`] holds it."""

    ratio: float
    low: float
    high: float
    confidence: float
    paired: bool

    @property
    def differs(self) -> bool:
        """Whether 1 lies outside the interval."""
        return not self.low <= 1 <= self.high


def _walk_in(differences: np.ndarray, k: int, paired: bool, confidence: float) -> tuple[float, float]:
    """The interval between the k-th smallest and k-th largest of the sorted pairwise differences."""
    if k < 1:
        least = fewest_blocks(paired, confidence)
        how = f"{least} paired blocks" if paired else f"{least} and {least} blocks"
        raise UsageError(
            asked=f"a {100 * confidence:g} % interval of a latency ratio",
            found="too few blocks",
            next=f"Measure at least {how}: no fewer give an interval of such confidence.",
        )
    return float(differences[k - 1]), float(differences[-k])


def fewest_blocks(paired: bool, confidence: float) -> int:
    """Blocks (of each model) from which there is an interval of a ratio: 6 paired, or 4 of each, at 95 %."""
    blocks = 1
    while not _interval_exists(blocks, paired, confidence):
        blocks += 1
    return blocks


def ratio_interval(
    baseline_s: np.ndarray, candidate_s: np.ndarray, *, paired: bool, confidence: float = 0.95
) -> RatioInterval:
    """Ratio candidate / baseline of block medians with an exact distribution-free interval.

    Hodges–Lehmann estimates on logarithms: Walsh averages with the signed-rank distribution when block i
    of both was measured side by side, else all differences with the Mann–Whitney distribution
    (Hollander & Wolfe, Nonparametric Statistical Methods, sections 3.3 and 4.3).

    Args:
        baseline_s, candidate_s: (blocks,) medians in seconds, one per fresh process.
        paired: whether the i-th of both belong together; lengths must then agree.
        confidence: at least this coverage, 0 to 1.
    """
    if not 0 < confidence < 1:
        raise UsageError(asked="a confidence", found=f"{confidence:g}", next="Choose one between 0 and 1.")
    a, b = np.log(np.asarray(baseline_s, float)), np.log(np.asarray(candidate_s, float))
    if paired:
        if len(a) != len(b):
            raise UsageError(asked="paired blocks", found=f"{len(a)} and {len(b)}", next="Measure both equally often.")
        d = b - a
        i, j = np.triu_indices(len(d))
        differences = np.sort((d[i] + d[j]) / 2)
        k = signed_rank_values_below(len(d), (1 - confidence) / 2)
    else:
        differences = np.sort((b[:, None] - a[None, :]).ravel())
        k = rank_sum_values_below(len(a), len(b), (1 - confidence) / 2)
    low, high = _walk_in(differences, k, paired, confidence)
    return RatioInterval(
        float(np.exp(np.median(differences))), float(np.exp(low)), float(np.exp(high)), confidence, paired
    )


@dataclass(frozen=True)
class Gate:
    """The judgement of `gate`."""

    regressed: bool
    conclusive: bool
    interval: RatioInterval
    max_regression: float


def gate(interval: RatioInterval, max_regression: float) -> Gate:
    """Judge a ratio interval against the largest allowed slow-down (0.03 allows 3 %).

    `regressed` when the interval's low end is above the limit: the slow-down is proven. `conclusive` is
    False when the interval straddles the limit: measure more blocks.
    """
    limit = 1 + max_regression
    return Gate(
        regressed=interval.low > limit,
        conclusive=interval.low > limit or interval.high <= limit,
        interval=interval,
        max_regression=max_regression,
    )


def ratio_sigma(baseline_s: np.ndarray, candidate_s: np.ndarray, *, paired: bool) -> float:
    """Relative scatter that a ratio's interval has to see through: of the ratios of paired blocks, else of the blocks.

    Args:
        baseline_s, candidate_s: (blocks,) medians in seconds, at least two each.
    """
    a, b = np.log(np.asarray(baseline_s, float)), np.log(np.asarray(candidate_s, float))
    if paired:
        return float(np.std(b - a, ddof=1))
    return float(np.sqrt((np.var(a, ddof=1) + np.var(b, ddof=1)) / 2))


def blocks_needed(
    sigma: float, effect: float, *, paired: bool, confidence: float = 0.95, power: float = 0.95, limit: float = 0.0
) -> int:
    """Blocks (of each model) in which a true slow-down of `effect` is found with probability `power`.

    Found means that `ratio_interval` at `confidence` lies above 1 + `limit`. The sample size of the normal test,
    ((z_confidence + z_power) σ / log((1 + effect) / (1 + limit)))², twice that unpaired, by 3/π for the ranks'
    efficiency (Hodges & Lehmann 1956), with z²/2 (z²/4 unpaired) for the unknown σ and 1.5 for the ranks' steps (by
    eye): benchmarks/simulations.py shows the power it gives.

    Args:
        sigma: of `ratio_sigma`; 0 is allowed.
        effect: the slow-down to find, a fraction above `limit`.

    Raises:
        UsageError: a scatter, an effect or a power that makes no sense.
    """
    if not (isfinite(sigma) and sigma >= 0 and isfinite(effect) and effect > limit >= 0):
        raise UsageError(
            asked=f"blocks to find a slow-down of {effect:.3g} beyond {limit:.3g} at a scatter of {sigma:.3g}",
            found="an effect that is not above the limit, or a scatter that is no number ≥ 0",
            next="Give an effect above the limit, like 3%.",
        )
    if not (0 < confidence < 1 and 0.5 <= power < 1):
        raise UsageError(asked=f"a power of {power:g}", found=f"at {confidence:g} confidence", next="Take 0.5 to 1.")
    normal = NormalDist()
    z = normal.inv_cdf((1 + confidence) / 2)
    needed = ((z + normal.inv_cdf(power)) * sigma / log((1 + effect) / (1 + limit))) ** 2 * pi / 3
    extra = z * z / 2 if paired else z * z / 4
    blocks = ceil(needed * (1 if paired else 2) + extra + 1.5)
    while not _interval_exists(blocks, paired, confidence):
        blocks += 1
    return blocks


def _interval_exists(blocks: int, paired: bool, confidence: float) -> bool:
    """Whether the most extreme arrangement is rare enough for an interval of so many blocks."""
    arrangements = 2**blocks if paired else comb(2 * blocks, blocks)
    return arrangements >= 2 / (1 - confidence)
