"""What a space can reach on a target before anything is trained: latencies, and how much of it is within a budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from akd_deploy.predictor.compiled import CompiledSpace
from akd_deploy.search_space.operations import operations

SAMPLES = 50_000
CLIMBERS = 64
"""Architectures from which the fastest and slowest are looked for, choice by choice."""


@dataclass(frozen=True)
class Feasibility:
    """Predicted latencies of random architectures, seconds; the extremes are found by coordinate descent.

    `fastest_bound_s` is the least budget that some architecture meets with certainty enough to be trained: the
    upper end of its interval times the tail factor. `fraction_within_budget` is that of the `sampled` ones, which
    may be 0 where a budget is `reachable` all the same; both are None without a budget. Parameters are counts,
    as shipped.
    """

    min_s: float
    median_s: float
    max_s: float
    fastest_bound_s: float
    fraction_within_budget: float | None
    reachable: bool | None
    sampled: int
    size: int
    min_parameters: int
    median_parameters: int
    max_parameters: int
    edges_s: tuple[float, ...]
    counts: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        edges, counts = fields.pop("edges_s"), fields.pop("counts")
        return {**fields, "histogram": {"edges_s": list(edges), "counts": list(counts)}}


def _extreme(compiled: CompiledSpace, tokens: np.ndarray, sign: float) -> tuple[float, np.ndarray]:
    """Least value of sign × latency by coordinate descent from every row of `tokens`, all rows at once."""
    tokens = tokens.copy()
    options = [len(values) for values in compiled.space.choices.values()]
    best = sign * compiled.latencies_s(tokens)[0]
    improved = True
    while improved:
        improved = False
        for column, n in enumerate(options):
            for option in range(n):
                trial = tokens.copy()
                trial[:, column] = option
                value = sign * compiled.latencies_s(trial)[0]
                better = value < best
                if better.any():
                    tokens[better], best[better] = trial[better], value[better]
                    improved = True
    winner = int(best.argmin())
    return float(sign * best[winner]), tokens[winner]


def feasibility(
    compiled: CompiledSpace, rng: np.random.Generator, budget_s: float | None, certificate_factor: float
) -> Feasibility:
    """Sample the space and find its extremes.

    Args:
        budget_s: counts architectures whose bound meets it; None counts nothing.
        certificate_factor: what a certificate asks of a budget over the latency at full speed, on the target.
    """
    space = compiled.space
    tokens = space.sample_tokens(SAMPLES, rng)
    latency_s, upper_s = compiled.latencies_s(tokens)
    fastest_s, fastest = _extreme(compiled, tokens[np.argsort(latency_s)[:CLIMBERS]], 1.0)
    slowest_s, slowest = _extreme(compiled, tokens[np.argsort(-latency_s)[:CLIMBERS]], -1.0)
    bound_s = float(compiled.latencies_s(fastest[None])[1][0]) * certificate_factor
    within = None
    if budget_s is not None:
        within = float((upper_s * certificate_factor <= budget_s).mean())
    middle = tokens[np.argsort(latency_s)[len(latency_s) // 2]]
    parameters = [
        sum(step.parameters for step in operations(space.layers(space.from_tokens(row))))
        for row in (fastest, middle, slowest)
    ]
    counts, edges = np.histogram(latency_s, bins=40)
    return Feasibility(
        min_s=fastest_s,
        median_s=float(np.median(latency_s)),
        max_s=slowest_s,
        fastest_bound_s=bound_s,
        fraction_within_budget=within,
        reachable=None if budget_s is None else bool(within) or bound_s <= budget_s,
        sampled=len(tokens),
        size=space.size,
        min_parameters=parameters[0],
        median_parameters=parameters[1],
        max_parameters=parameters[2],
        edges_s=tuple(float(edge) for edge in edges),
        counts=tuple(int(count) for count in counts),
    )
