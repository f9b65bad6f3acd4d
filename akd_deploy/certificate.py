"""The certificate that a latency budget is met: an exact test of pooled samples, and one that minds their processes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import isfinite

import numpy as np

from akd_deploy.binomial import binomial_cdf, most_hits, share_upper_bound
from akd_deploy.bounds import (
    check_levels,
    clustered_upper_bound_s,
    order_statistic_upper_bound_s,
    samples_needed,
)
from akd_deploy.comparison import Gate, RatioInterval, gate, ratio_interval
from akd_deploy.errors import UsageError

__all__ = [
    "Certificate",
    "Gate",
    "RatioInterval",
    "allowed_exceedances",
    "binomial_cdf",
    "certify",
    "gate",
    "order_statistic_upper_bound_s",
    "ratio_interval",
    "samples_needed",
]

MIN_BLOCKS = 10
"""A certificate pools samples of at least so many fresh processes: what varies between processes (memory layout,
neighbours on the machine) must have had its chances to vary."""


@dataclass(frozen=True)
class Certificate:
    """Whether `percentile` of latencies is within `budget_s`, at `confidence`; `ok` says yes.

    It says so when both tests do. `pooled_ok` is the exact binomial test of all samples as if they were independent:
    of `samples`, `exceeding` lie above the budget and `allowed` may. `clustered_ok` minds that samples of one process
    are alike and processes are not: `clustered_upper_s`, an upper bound of the percentile over processes to come (see
    `clustered_upper_bound_s`), is within the budget. Where processes differ by as much as their samples do, the first
    alone passes a model that misses its budget more often than not; where they do not, both say the same.
    `worst_block_exceeding` is the share of the worst process above the budget.

    Both tests rest on processes that scatter around one latency. Of machines with two speeds a few processes may meet
    the fast one alone: `failing_blocks` missed the budget by themselves, and of processes to come at most
    `failing_share_upper` do, at `confidence` and whatever their distribution (Clopper & Pearson 1934). No ten processes
    can say less than 37 % at 99 %.
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
    pooled_ok: bool
    clustered_ok: bool
    clustered_upper_s: float | None
    failing_blocks: int
    failing_share_upper: float

    def as_dict(self) -> dict[str, float | int | bool | None]:
        return asdict(self)


def allowed_exceedances(samples: int, percentile: float, confidence: float) -> int:
    """The most samples over budget with which the certificate still holds; −1 where none is enough.

    Exact binomial test: under "the budget is met less than `percentile` of the time", seeing so few
    exceedances has probability ≤ 1 − confidence. 1,000 samples of p99 at 99 %: 2; 3,000: 17; 10,000: 77.
    """
    check_levels(percentile, confidence)
    return most_hits(samples, 1 - percentile / 100, 1 - confidence)


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
    over = [int((~(samples <= budget_s)).sum()) for samples in blocks_s.values()]
    shares = [count / len(samples) for count, samples in zip(over, blocks_s.values(), strict=True)]
    # As many as may be over are not too many, whatever 1 − percentile / 100 is rounded to.
    failing = sum(share > 1 - percentile / 100 + 1e-9 for share in shares)
    upper_s = clustered_upper_bound_s(blocks_s, percentile, confidence)
    pooled_ok, clustered_ok = exceeding <= allowed, upper_s <= budget_s
    return Certificate(
        budget_s=budget_s,
        percentile=percentile,
        confidence=confidence,
        samples=len(pooled),
        blocks=len(blocks_s),
        exceeding=exceeding,
        allowed=allowed,
        worst_block_exceeding=max(shares),
        ok=pooled_ok and clustered_ok,
        pooled_ok=pooled_ok,
        clustered_ok=clustered_ok,
        clustered_upper_s=upper_s if isfinite(upper_s) else None,
        failing_blocks=failing,
        failing_share_upper=share_upper_bound(failing, len(blocks_s), confidence),
    )
