"""Conformal intervals: a multiple of the model's own spread that covers measured networks as often as promised."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np

from akd_deploy.predictor.cold_weights import COLD_NOISE

SPREAD_FLOOR = 0.005
"""Every scale has at least this share of the latency: a spread of 0 must not make an infinite score."""


@dataclass(frozen=True)
class CalibrationPoint:
    """One network (or held-out probe): predicted latency and spread, and what was measured; seconds."""

    family: str
    predicted_s: float
    spread_s: float
    measured_s: float


def network_spread_s(kernels_s: np.ndarray, call_s: np.ndarray | float, cold_s: np.ndarray) -> np.ndarray:
    """Spread of networks in seconds, any shape: of the sums of their kernels, of what a call costs beside them
    (`Hyperparameters.jitter_s`: all there is in the smallest networks) and of `cold_s`, what cold weights cost."""
    spread: np.ndarray = kernels_s + call_s + COLD_NOISE * cold_s
    return spread


def scale_s(predicted_s: np.ndarray, spread_s: np.ndarray) -> np.ndarray:
    """What residuals are divided by, in seconds."""
    return spread_s + SPREAD_FLOOR * predicted_s


def ends_s(predicted_s: np.ndarray, half_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper end of an interval in seconds: `half_s` above the prediction, and below it by the same factor.

    Where little is known a latency may be several times the predicted one or one of several parts of it, never 0.
    """
    upper = predicted_s + half_s
    lower = predicted_s * np.divide(predicted_s, upper, out=np.zeros_like(upper), where=upper > 0)
    return lower, upper


def score(point: CalibrationPoint, factor: float = 1.0) -> float:
    """Over the scale, how far above factor × predicted an interval must reach for its `ends_s` to hold `measured_s`."""
    predicted = factor * point.predicted_s
    above = max(point.measured_s - predicted, predicted * (predicted / point.measured_s - 1))
    return above / float(scale_s(np.array(predicted), np.array(factor * point.spread_s)))


def quantile(scores: Sequence[float], coverage: float) -> float:
    """The ⌈(n + 1) coverage⌉-th smallest score (Vovk et al. 2005; Lei et al. 2018, arXiv:1604.04173).

    With fewer than coverage / (1 − coverage) scores no finite value is guaranteed; the largest is then widened by
    the missing share, which is a convention and not a guarantee.
    """
    ordered = sorted(scores)
    n = len(ordered)
    rank = ceil((n + 1) * coverage - 1e-9)  # 100 × 0.55 is a little more than 55
    if rank <= n:
        return ordered[rank - 1]
    return ordered[-1] * (rank / n)


def by_family_quantile(points: Sequence[CalibrationPoint], coverage: float, factor: float) -> float:
    """The largest of the families' own quantiles and the pooled one.

    Families of fewer than ten points say too little alone and count in the pool only. Pooling alone covers
    too seldom on a family unlike the rest.
    """
    pooled = quantile([score(p, factor) for p in points], coverage)
    families: dict[str, list[float]] = {}
    for point in points:
        families.setdefault(point.family, []).append(score(point, factor))
    own = [quantile(scores, coverage) for scores in families.values() if len(scores) >= 10]
    return max([pooled, *own])


def unseen_family_quantile(points: Sequence[CalibrationPoint], coverage: float, factor: float) -> float:
    """The width for a network of another family: every family counts alike, and one more as if beyond all of them.

    Networks of a family err together, so that families are what is exchangeable (Dunn, Wasserman & Ramdas 2023,
    arXiv:1809.07441, pooled distributions). With fewer than coverage / (1 − coverage) families the largest is widened
    as `quantile` does.
    """
    sizes = Counter(point.family for point in points)
    ordered = sorted((score(point, factor), 1 / sizes[point.family]) for point in points)
    needed, held = coverage * (len(sizes) + 1), 0.0
    for value, weight in ordered:
        held += weight
        if held >= needed - 1e-9:
            return value
    return ordered[-1][0] * (needed / len(sizes))


def in_place_factor(points: Sequence[CalibrationPoint]) -> float:
    """Median of measured over predicted: kernels meet other caches inside a network than in a probe."""
    return float(np.median([p.measured_s / p.predicted_s for p in points])) if points else 1.0
