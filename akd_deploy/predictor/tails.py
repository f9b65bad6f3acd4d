"""What a budget's percentile, and its certificate, ask beyond the latency at full speed that is predicted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from akd_deploy.bounds import MIN_BLOCKS_FOR_BOUND, clustered_upper_bound_s, samples_needed
from akd_deploy.latency_table import TableRow

TAIL_PERCENTILES = (50, 75, 90, 95, 99)
"""Percentiles that tail factors are kept for."""
TAIL_CONFIDENCE = 0.95
"""A row speaks about a percentile's tail when its largest sample bounds the percentile with this confidence."""
CERTIFIED = 0.8
"""In this share of runs a student whose bound is its budget is to be certified."""
DRAWS = 200
"""Certificates that are played through to find out what one asks."""


def tail_factors(rows: Sequence[TableRow]) -> dict[float, float]:
    """Percentile → what it is of all samples of the rows with enough for it, each sample over its row's `label_s` and
    each row of equal weight; percentiles with no such row are left out.

    Together, because a row's few processes often miss the slow spells that many see: where the machine is slow a tenth
    of the time, most rows have no slow sample, and the p90 of processes to come is slow.
    """
    factors: dict[float, float] = {}
    for percentile in TAIL_PERCENTILES:
        needed = samples_needed(percentile, TAIL_CONFIDENCE)
        found = [row.measurement for row in rows if len(row.measurement.samples_s) >= needed]
        if found:
            relative = np.concatenate([np.array(one.samples_s) / one.label_s for one in found])
            weights = np.concatenate([np.full(len(one.samples_s), 1 / len(one.samples_s)) for one in found])
            factor = float(np.quantile(relative, percentile / 100, weights=weights, method="inverted_cdf"))
            # Fewer rows speak of higher percentiles, and calmer ones may: a tail never shrinks for that.
            factors[percentile] = max([factor, *factors.values()])
    return factors


def certificate_factor(
    rows: Sequence[TableRow],
    percentile: float,
    confidence: float,
    blocks: int,
    samples_per_block: int,
    rng: np.random.Generator,
) -> float | None:
    """What a certificate asks of a budget, over the latency at full speed: the bound over processes to come (see
    `clustered_upper_bound_s`) that `CERTIFIED` of certificates stay below, played through on blocks of these rows.

    Each of `DRAWS` takes `blocks` of the rows' blocks at random, each sample over its row's `label_s`, and
    `samples_per_block` of each, with replacement where it has fewer. Where processes are alike it is little above the
    percentile itself; where some are slow throughout, twenty of them leave open how many more will be.

    Returns:
        None where all rows together have fewer than `MIN_BLOCKS_FOR_BOUND` blocks of several samples.
    """
    relative = [
        np.array(samples) / row.measurement.label_s
        for row in rows
        for samples in row.measurement.blocks.values()
        if len(samples) > 1
    ]
    if len(relative) < MIN_BLOCKS_FOR_BOUND:
        return None
    bounds = []
    for _ in range(DRAWS):
        drawn = rng.integers(len(relative), size=blocks)
        played = {
            i: rng.choice(relative[k], samples_per_block, replace=len(relative[k]) < samples_per_block)
            for i, k in enumerate(drawn)
        }
        bounds.append(clustered_upper_bound_s(played, percentile, confidence))
    return float(np.quantile(bounds, CERTIFIED))
