"""Bounds, budget certificates and regression gates: exact, distribution-free statistics of latencies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import ceil, comb, log

import numpy as np

from akd_deploy.errors import UsageError


def _check_levels(percentile: float, confidence: float) -> None:
    if not 0 < percentile < 100:
        raise UsageError(asked="a percentile", found=f"{percentile:g}", next="Choose one between 0 and 100.")
    if not 0 < confidence < 1:
        raise UsageError(asked="a confidence", found=f"{confidence:g}", next="Choose one between 0 and 1.")


def binomial_cdf(successes: int, trials: int, probability: float) -> float:
    """P(X ≤ successes) for X ~ Binomial(trials, probability), 0 < probability < 1; exact up to rounding."""
    if successes < 0:
        return 0.0
    if successes >= trials:
        return 1.0
    k = np.arange(successes + 1)
    log_choose = np.concatenate([[0.0], np.cumsum(np.log((trials - k[1:] + 1) / k[1:]))])
    log_terms = log_choose + k * log(probability) + (trials - k) * np.log1p(-probability)
    peak = log_terms.max()
    return float(min(1.0, np.exp(peak) * np.exp(log_terms - peak).sum()))


def samples_needed(percentile: float, confidence: float) -> int:
    """Smallest sample in which the largest value bounds the percentile: 29, 59, 299 for p90, p95, p99 at 95 %."""
    _check_levels(percentile, confidence)
    return ceil(log(1 - confidence) / log(percentile / 100))


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
    low, high = 1, n
    while low < high:
        middle = (low + high) // 2
        if binomial_cdf(middle - 1, n, percentile / 100) >= confidence:
            high = middle
        else:
            low = middle + 1
    return float(np.sort(samples_s)[low - 1])


MIN_BLOCKS = 10
"""A certificate pools samples of at least so many fresh processes: what varies between processes (memory layout,
neighbours on the machine) must have had its chances to vary."""


@dataclass(frozen=True)
class Certificate:
    """Whether `percentile` of latencies is within `budget_s`, at `confidence`; `ok` says yes.

    `allowed` is the number of samples that may exceed the budget; `worst_block_exceeding` is the share of
    the worst process, because samples of one process are dependent and processes are not.
    """

    budget_s: float
    percentile: float
    confidence: float
    samples: int
    blocks: int
    exceeding: int
    allowed: int
    worst_block_exceeding: float
    ok: bool

    def as_dict(self) -> dict[str, float | int | bool]:
        return asdict(self)


def allowed_exceedances(samples: int, percentile: float, confidence: float) -> int:
    """The most samples over budget with which the certificate still holds; −1 where none is enough.

    Exact binomial test: under "the budget is met less than `percentile` of the time", seeing so few
    exceedances has probability ≤ 1 − confidence. 1,000 samples of p99 at 99 %: 2; 3,000: 17; 10,000: 77.
    """
    _check_levels(percentile, confidence)
    exceed_probability = 1 - percentile / 100
    allowed, too_many = -1, samples
    while too_many - allowed > 1:
        middle = (allowed + too_many) // 2
        if binomial_cdf(middle, samples, exceed_probability) <= 1 - confidence:
            allowed = middle
        else:
            too_many = middle
    return allowed


def certify(
    blocks_s: Mapping[int, np.ndarray], budget_s: float, percentile: float = 90, confidence: float = 0.99
) -> Certificate:
    """Test a budget on samples pooled from several fresh processes.

    Args:
        blocks_s: block id → samples in seconds of one fresh process.
        budget_s: the budget in seconds.
        percentile: the share of latencies that must meet it, 0 to 100.
        confidence: of the test, 0 to 1.

    Raises:
        UsageError: too few samples for the certificate ever to hold, fewer than `MIN_BLOCKS` processes, or a level
            out of range.
    """
    pooled = np.concatenate([np.empty(0), *blocks_s.values()])
    allowed = allowed_exceedances(len(pooled), percentile, confidence)
    if allowed < 0:
        raise UsageError(
            asked=f"a certificate of p{percentile:g} at {confidence:.0%} confidence",
            found=f"{len(pooled)} samples",
            next=f"Take at least {samples_needed(percentile, confidence)}.",
        )
    if len(blocks_s) < MIN_BLOCKS:
        raise UsageError(
            asked=f"a certificate of p{percentile:g}",
            found=f"samples of {len(blocks_s)} processes",
            next=f"Measure in at least {MIN_BLOCKS}: samples of one process are alike, processes are not.",
        )
    # Not "> budget_s": what is no number must never count as within the budget.
    exceeding = int((~(pooled <= budget_s)).sum())
    worst = max(float((~(samples <= budget_s)).mean()) for samples in blocks_s.values())
    return Certificate(
        budget_s=budget_s,
        percentile=percentile,
        confidence=confidence,
        samples=len(pooled),
        blocks=len(blocks_s),
        exceeding=exceeding,
        allowed=allowed,
        worst_block_exceeding=worst,
        ok=exceeding <= allowed,
    )


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


def _signed_rank_counts(n: int) -> np.ndarray:
    """(n(n+1)/2 + 1,) number of sign patterns for each value of Wilcoxon's signed-rank statistic."""
    counts = np.zeros(n * (n + 1) // 2 + 1)
    counts[0] = 1
    for rank in range(1, n + 1):
        counts[rank:] = counts[rank:] + counts[: counts.size - rank]
    return counts


def _rank_sum_counts(m: int, n: int) -> np.ndarray:
    """(mn + 1,) number of arrangements for each value of the Mann–Whitney statistic of m and n values."""
    # Gaussian binomial coefficient, built factor by factor: Π (1 − q^(n+i)) / (1 − q^i).
    counts = np.zeros(m * n + 1)
    counts[0] = 1
    for i in range(1, m + 1):
        for j in range(counts.size - 1, n + i - 1, -1):
            counts[j] -= counts[j - n - i]
        for j in range(i, counts.size):
            counts[j] += counts[j - i]
    return counts


def _walk_in(differences: np.ndarray, counts: np.ndarray, total: float, confidence: float) -> tuple[float, float]:
    """The interval between the k-th smallest and k-th largest of the sorted pairwise differences."""
    tail = np.cumsum(counts) / total
    k = int((tail <= (1 - confidence) / 2).sum())
    if k < 1:
        raise UsageError(
            asked=f"a {confidence:.0%} interval of a latency ratio",
            found="too few blocks",
            next="Measure at least 6 paired blocks, or 4 and 4 unpaired ones, for 95 %.",
        )
    return float(differences[k - 1]), float(differences[-k])


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
    a, b = np.log(np.asarray(baseline_s, float)), np.log(np.asarray(candidate_s, float))
    if paired:
        if len(a) != len(b):
            raise UsageError(asked="paired blocks", found=f"{len(a)} and {len(b)}", next="Measure both equally often.")
        d = b - a
        i, j = np.triu_indices(len(d))
        differences = np.sort((d[i] + d[j]) / 2)
        counts, total = _signed_rank_counts(len(d)), 2.0 ** len(d)
    else:
        differences = np.sort((b[:, None] - a[None, :]).ravel())
        counts, total = _rank_sum_counts(len(a), len(b)), float(comb(len(a) + len(b), len(a)))
    low, high = _walk_in(differences, counts, total, confidence)
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
