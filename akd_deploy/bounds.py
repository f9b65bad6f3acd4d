"""Upper confidence bounds of a percentile of latencies: of samples that are alike, and of samples in blocks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from math import ceil, log, pi, sqrt
from statistics import NormalDist

import numpy as np

from akd_deploy.binomial import binomial_cdf
from akd_deploy.errors import UsageError


def check_levels(percentile: float, confidence: float) -> None:
    if not 0 < percentile < 100:
        raise UsageError(asked="a percentile", found=f"{percentile:g}", next="Choose one between 0 and 100.")
    if not 0 < confidence < 1:
        raise UsageError(asked="a confidence", found=f"{confidence:g}", next="Choose one between 0 and 1.")


def samples_needed(percentile: float, confidence: float) -> int:
    """Smallest sample in which the largest value bounds the percentile: 29, 59, 299 for p90, p95, p99 at 95 %."""
    check_levels(percentile, confidence)
    return ceil(log(1 - confidence) / log(percentile / 100))


@lru_cache(maxsize=256)
def _rank(n: int, percentile: float, confidence: float) -> int:
    """Smallest r with P(Binomial(n, percentile/100) ≤ r − 1) ≥ confidence."""
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        if binomial_cdf(middle - 1, n, percentile / 100) >= confidence:
            high = middle
        else:
            low = middle + 1
    return low


def order_statistic_upper_bound_s(samples_s: np.ndarray, percentile: float, confidence: float) -> float:
    """Upper confidence bound of a percentile from order statistics; no distribution is assumed.

    The smallest r with P(Binomial(n, percentile/100) ≤ r − 1) ≥ confidence gives the r-th smallest sample
    (David & Nagaraja, Order Statistics, section 7.1).

    Raises:
        UsageError: fewer samples than `samples_needed`, or a level out of range.
    """
    n = len(samples_s)
    needed = samples_needed(percentile, confidence)
    if n < needed:
        raise UsageError(
            asked=f"a {confidence:.0%} upper bound of p{percentile:g}",
            found=f"{n} samples",
            next=f"Take at least {needed}.",
        )
    return float(np.sort(samples_s)[_rank(n, percentile, confidence) - 1])


def _normal_tails(x: np.ndarray) -> np.ndarray:
    """P(Z > x), Z standard normal, within 1.5e-7 (Abramowitz & Stegun, Handbook of Mathematical Functions, 7.1.26)."""
    z = np.abs(x) / sqrt(2)
    t = 1 / (1 + 0.3275911 * z)
    series = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))))
    tail = series * np.exp(-z * z) / 2
    return np.where(x >= 0, tail, 1 - tail)


@lru_cache(maxsize=256)
def _student_quantile(confidence: float, degrees: int, shift: float) -> float:
    """Quantile of Student's t with `degrees` of freedom, noncentral by `shift`.

    P(T ≤ t) is the mean of Φ(t w − shift) over w = √(χ²/degrees), taken over a grid of w.
    """
    w = np.linspace(1e-6, 1 + 10 / sqrt(degrees), 4_001)
    log_density = (degrees - 1) * np.log(w) - degrees * w * w / 2
    density = np.exp(log_density - log_density.max())
    density /= density.sum()
    low, high = -1.0, 1.0
    below = lambda t: float(density @ _normal_tails(shift - t * w))  # noqa: E731
    while below(low) > confidence:
        low *= 2
    while below(high) < confidence:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if below(middle) < confidence else (low, middle)
    return high


MIN_BLOCKS_FOR_BOUND = 3
"""From fewer processes nothing is known about how processes differ."""


_LEAST_Z = 0.05
"""(k − t) / z is 0 / 0 at the median and smooth around it: there, and just above it, it is taken at this z."""


def clustered_upper_bound_s(blocks_s: Mapping[int, np.ndarray], percentile: float, confidence: float) -> float:
    """Upper confidence bound of a percentile over processes to come, from samples in blocks of one process each.

    Samples of one process are alike, so 1,000 samples in 10 blocks are not 1,000 draws: where processes differ more
    than their samples do, they are 10. No bound of p90 can then do without an assumption (29 draws is the least).
    The one made here: on logarithms, a sample is its process's location, normal among processes, plus a deviation of
    any distribution that all processes share. With l and s the mean and standard deviation of the a blocks' log
    medians, t and k the factors of a bound of a normal mean and of a normal percentile from a draws (Student's, and
    Owen's one-sided tolerance factor by the noncentral t: Hahn & Meeker, Statistical Intervals, section 4.6), it is

        the percentile of (deviation + N(l + t s, ((k − t) / z)² s²)), z the normal percentile,

    taken at the rank of the order-statistic bound of the n deviations. It is that order statistic where processes are
    alike (s → 0), and Owen's exact bound l + k s where samples of a process are (deviation → 0); between the two
    benchmarks/simulations.py shows its coverage. Never below `order_statistic_upper_bound_s` of the pooled samples.

    Args:
        blocks_s: block id → samples in seconds of one process.
        percentile: at least 50; a tail is bounded.

    Raises:
        UsageError: fewer than `MIN_BLOCKS_FOR_BOUND` blocks, too few samples, or a level out of range.
    """
    pooled = np.concatenate([np.empty(0), *blocks_s.values()])
    alike_s = order_statistic_upper_bound_s(pooled, percentile, confidence)
    if percentile < 50:
        raise UsageError(
            asked=f"an upper bound of p{percentile:g} over processes", found="a percentile below 50", next="Raise it."
        )
    blocks = len(blocks_s)
    if blocks < MIN_BLOCKS_FOR_BOUND:
        raise UsageError(
            asked=f"an upper bound of p{percentile:g} over processes",
            found=f"samples of {blocks}",
            next=f"Measure in at least {MIN_BLOCKS_FOR_BOUND} processes.",
        )
    if not (np.isfinite(pooled) & (pooled > 0)).all():
        return float("inf")  # what is no number is never within a bound
    logs = [np.log(samples) for samples in blocks_s.values()]
    medians = np.array([np.median(block) for block in logs])
    spread = float(medians.std(ddof=1))
    if spread == 0:
        return alike_s
    z = max(_LEAST_Z, NormalDist().inv_cdf(percentile / 100))
    mean_factor = _student_quantile(confidence, blocks - 1, 0.0) / sqrt(blocks)
    tail_factor = _student_quantile(confidence, blocks - 1, round(z * sqrt(blocks), 12)) / sqrt(blocks)
    scale = (tail_factor - mean_factor) / z * spread
    centred = np.concatenate([block - median for block, median in zip(logs, medians, strict=True)])
    # The r-th of n order statistics leaves n − r above it and half of itself.
    exceeding = len(pooled) - _rank(len(pooled), percentile, confidence) + 0.5
    deviation = _smoothed_order_statistic(centred, scale, exceeding)
    return max(alike_s, float(np.exp(medians.mean() + mean_factor * spread + deviation)))


def _smoothed_order_statistic(values: np.ndarray, scale: float, exceeding: float) -> float:
    """The x that `exceeding` of the values, each with normal noise of `scale`, are expected to be above.

    Newton steps on a decreasing function, halved intervals where a step leaves its bracket; rounded upwards.
    """
    low, high = float(values.min()), float(values.max()) + 8 * scale
    x = float(np.quantile(values, 1 - exceeding / len(values)))
    while high - low > _LOG_STEP:
        z = (x - values) / scale
        surplus = float(_normal_tails(z).sum()) - exceeding
        low, high = (x, high) if surplus > 0 else (low, x)
        slope = float(np.exp(-z * z / 2).sum()) / (sqrt(2 * pi) * scale)
        step = surplus / slope if slope > 0 else float("inf")
        # Past the root by half the precision, so that the bracket closes from both sides.
        x += step + (_LOG_STEP / 2 if surplus > 0 else -_LOG_STEP / 2)
        if not low < x < high:
            x = (low + high) / 2
    return high


_LOG_STEP = 1e-6
"""A bound is a millionth too high at most."""


def median_interval(values: np.ndarray, confidence: float) -> tuple[float, float] | None:
    """Distribution-free interval of the median: the k-th smallest and k-th largest; None from too few values.

    k is the largest with P(Binomial(n, ½) < k) ≤ (1 − confidence)/2: at 95 % six values are needed.
    """
    check_levels(50, confidence)
    n, k = len(values), 0
    while k < n and binomial_cdf(k, n, 0.5) <= (1 - confidence) / 2:
        k += 1
    if k == 0:
        return None
    ordered = np.sort(values)
    return float(ordered[k - 1]), float(ordered[n - k])
