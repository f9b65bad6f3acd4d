"""What the statistics of benches deliver, simulated: coverage of bounds, certificates, false alarms, slow-downs found.

    python benchmarks/simulations.py
    python benchmarks/simulations.py --runs 10000 --json

Latencies have a process's own factor and a sample's: log-normal, relative standard deviations "between" and "within";
samples of one process share its factor. Nothing is timed, so that a busy machine gives the same figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, hypot
from statistics import NormalDist
from typing import Any

import numpy as np

from akd_deploy.binomial import share_upper_bound
from akd_deploy.bounds import clustered_upper_bound_s, order_statistic_upper_bound_s
from akd_deploy.certificate import certify
from akd_deploy.comparison import blocks_needed, ratio_interval

BLOCKS, SAMPLES, WITHIN = 10, 100, 0.01
"""As `bench` measures: ten processes of a hundred samples, which scatter by 1 % within one."""


def blocks_of(between: float, rng: np.random.Generator, blocks: int = BLOCKS, within: float = WITHIN) -> np.ndarray:
    """(blocks, SAMPLES) latencies of a model whose median is 1 s."""
    return np.exp(rng.normal(0, between, (blocks, 1)) + rng.normal(0, within, (blocks, SAMPLES)))


def true_percentile_s(percentile: float, between: float, within: float = WITHIN) -> float:
    """Of a sample of a process to come."""
    return exp(NormalDist().inv_cdf(percentile / 100) * hypot(between, within))


@dataclass(frozen=True)
class Coverage:
    """Shares of runs whose upper bound held the true percentile; `excess`: how far above it the median bound is."""

    between: float
    percentile: float
    alike: float
    clustered: float
    excess: float


def bound_coverage(between: float, percentile: float, runs: int, rng: np.random.Generator) -> Coverage:
    """Of nominal 95 % bounds: as if all samples were alike, and as `bench` prints them."""
    true_s = true_percentile_s(percentile, between)
    alike, clustered = np.empty(runs), np.empty(runs)
    for run in range(runs):
        blocks = blocks_of(between, rng)
        alike[run] = order_statistic_upper_bound_s(blocks.ravel(), percentile, 0.95)
        clustered[run] = clustered_upper_bound_s(dict(enumerate(blocks)), percentile, 0.95)
    return Coverage(
        between,
        percentile,
        float((alike >= true_s).mean()),
        float((clustered >= true_s).mean()),
        float(np.median(clustered) / true_s - 1),
    )


@dataclass(frozen=True)
class Passes:
    """Shares of the runs whose p90 certificate at 99 % held where the budget is `margin` above the true p90."""

    between: float
    margin: float
    pooled: float
    both: float


def certificate_passes(between: float, margin: float, runs: int, rng: np.random.Generator) -> Passes:
    """By the binomial test of pooled samples alone, and by both tests. At margin ≤ 0 every pass is a false one."""
    budget_s = true_percentile_s(90, between) * (1 + margin)
    found = [certify(dict(enumerate(blocks_of(between, rng))), budget_s) for _ in range(runs)]
    return Passes(between, margin, sum(c.pooled_ok for c in found) / runs, sum(c.ok for c in found) / runs)


@dataclass(frozen=True)
class TwoSpeeds:
    """Shares of the runs whose p90 certificate at 99 % held on a machine of two speeds, where it should not.

    The budget is 2 % below the true p90. `bounded`: the share of runs whose bound on failing processes held.
    """

    slow_share: float
    blocks: int
    false: float
    bounded: float


SLOWER, BETWEEN = 1.9, 0.01
"""The slow speed's latency in the fast one's, and the scatter of processes of one speed."""


def two_speeds(slow_share: float, blocks: int, runs: int, rng: np.random.Generator) -> TwoSpeeds:
    """Each process runs at one of two speeds: what no test of few processes can know of, and what its bound says."""
    drawn = np.exp(rng.normal(0, hypot(BETWEEN, WITHIN), 200_000))
    true_s = np.percentile(np.where(rng.random(len(drawn)) < slow_share, SLOWER, 1.0) * drawn, 90)
    found = []
    for _ in range(runs):
        speeds = np.where(rng.random((blocks, 1)) < slow_share, SLOWER, 1.0)
        found.append(certify(dict(enumerate(speeds * blocks_of(BETWEEN, rng, blocks))), 0.98 * float(true_s)))
    held = [c.failing_share_upper >= slow_share for c in found]
    return TwoSpeeds(slow_share, blocks, sum(c.ok for c in found) / runs, sum(held) / runs)


@dataclass(frozen=True)
class Comparisons:
    """Shares of the runs in which two models were called different, and the second one slower."""

    sigma: float
    effect: float
    paired: bool
    blocks: int
    differs: float
    slower: float


def comparisons(
    sigma: float, effect: float, paired: bool, blocks: int, runs: int, rng: np.random.Generator
) -> Comparisons:
    """Two models, the second truly slower by `effect`, compared by their block medians.

    Args:
        sigma: scatter of a paired block's ratio, or of a block's median where blocks are not paired. Paired blocks
            share a disturbance of 5 % besides.
    """
    differs = slower = 0
    for _ in range(runs):
        together = rng.lognormal(0, 0.05 if paired else 0.0, blocks)
        own = sigma / 2**0.5 if paired else sigma
        a, b = together * rng.lognormal(0, own, (2, blocks))
        interval = ratio_interval(a, (1 + effect) * b, paired=paired)
        differs += interval.differs
        slower += interval.low > 1
    return Comparisons(sigma, effect, paired, blocks, differs / runs, slower / runs)


def false_alarms(paired: bool, blocks: int, runs: int, rng: np.random.Generator) -> Comparisons:
    """The same model twice (A/A), processes that differ by 2 %."""
    return comparisons(0.02, 0.0, paired, blocks, runs, rng)


def detections(sigma: float, effect: float, paired: bool, runs: int, rng: np.random.Generator) -> Comparisons:
    """A true slow-down, in as many blocks as `blocks_needed` states."""
    return comparisons(sigma, effect, paired, blocks_needed(sigma, effect, paired=paired), runs, rng)


def simulate(runs: int, seed: int) -> dict[str, list[dict[str, Any]]]:
    """Every figure, by table."""
    rng = np.random.default_rng(seed)
    between = (0.0, 0.005, 0.01, 0.02, 0.03)
    tables: dict[str, Sequence[Coverage | Passes | TwoSpeeds | Comparisons]] = {
        "coverage of 95 % bounds": [bound_coverage(s, p, runs, rng) for p in (90, 99) for s in between],
        "certificates": [
            certificate_passes(s, margin, runs, rng) for s in between for margin in (0.0, 0.02, 0.05, 0.10)
        ],
        "two speeds": [two_speeds(share, n, runs, rng) for n in (10, 20, 44) for share in (0.11, 0.15, 0.2, 0.3)],
        "false alarms": [false_alarms(paired, n, runs, rng) for paired in (True, False) for n in (6, 10, 20)],
        "slow-downs of 3 % found": [
            detections(s, 0.03, paired, runs, rng) for paired in (True, False) for s in (0.005, 0.01, 0.02, 0.03, 0.05)
        ],
    }
    return {title: [asdict(row) for row in rows] for title, rows in tables.items()}


LEAST_RUNS = 2_000
"""Of each figure: from fewer a rate of 5 % is not known to ± 1 %."""
MORE_RUNS = 10
"""Times as many of false alarms: exact tests alarm in up to 5 % of runs, which 2,000 of them bound by 6 % or not."""
SCATTERS = (0.005, 0.01, 0.02, 0.03, 0.05)
"""Of paired blocks' ratios, from a quiet machine to a loaded one."""


def figures(runs: int = LEAST_RUNS, seed: int = 0) -> dict[str, Any]:
    """False alarms with their bound, slow-downs found at the stated blocks, coverage of the bounds that are printed."""
    rng = np.random.default_rng(seed)
    many = MORE_RUNS * runs
    alarms = [false_alarms(paired, n, many, rng) for paired in (True, False) for n in (6, 10, 20)]
    found = [detections(s, 0.03, paired, runs, rng) for paired in (True, False) for s in SCATTERS]
    covered = [bound_coverage(s, p, runs, rng) for p in (90, 99) for s in (0.0, *SCATTERS)]
    return {
        "runs": runs,
        "seed": seed,
        "false_alarms": [
            {
                "paired": a.paired,
                "blocks": a.blocks,
                "runs": many,
                "rate": a.differs,
                "upper_95": share_upper_bound(round(a.differs * many), many, 0.95),
            }
            for a in alarms
        ],
        "slow_downs_of_3_percent": [
            {"paired": d.paired, "sigma": d.sigma, "blocks": d.blocks, "power": d.slower} for d in found
        ],
        "coverage_of_95_percent_bounds": [
            {"percentile": c.percentile, "between": c.between, "coverage": c.clustered, "excess": c.excess}
            for c in covered
        ],
    }


def main(arguments: list[str] | None = None) -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2_000, help="of each figure")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    tables = simulate(options.runs, options.seed)
    if options.json:
        sys.stdout.write(json.dumps({"runs": options.runs, "seed": options.seed, **tables}) + "\n")
        return
    for title, rows in tables.items():
        print(f"{title} ({options.runs:,} runs each)")
        print("  " + "  ".join(f"{name:>10}" for name in rows[0]))
        for row in rows:
            print("  " + "  ".join(f"{_cell(name, value):>10}" for name, value in row.items()))


def _cell(name: str, value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float) and name != "percentile" else str(value)


if __name__ == "__main__":
    main()
