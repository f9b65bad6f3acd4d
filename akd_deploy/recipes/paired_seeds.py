"""Statistics of comparisons over training seeds: paired differences, many of them at once, and rank agreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.special import stdtr, stdtrit


@dataclass(frozen=True)
class Difference:
    """Mean difference over `n` seeds, or networks, with a 95 % interval (Student's t) and a two-sided p-value.

    `low`, `high` and `p` are NaN where one value, or differences all alike, say nothing of how much they scatter.
    """

    mean: float
    low: float
    high: float
    p: float
    n: int

    @property
    def is_shown(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low > 0 or self.high < 0

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def paired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Difference:
    """a − b, seed by seed.

    Raises:
        ValueError: they have not as many values, or none.
    """
    one, other = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"paired values of shapes {one.shape} and {other.shape}")
    d = one - other
    n, mean = len(d), float(d.mean())
    error = float(d.std(ddof=1) / np.sqrt(n)) if n > 1 else float("nan")
    if not error > 0:
        return Difference(mean, float("nan"), float("nan"), float("nan"), n)
    half = float(stdtrit(n - 1, (1 + confidence) / 2)) * error
    p = 2 * float(stdtr(n - 1, -abs(mean) / error))
    return Difference(mean, mean - half, mean + half, p, n)


def unpaired(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray, confidence: float = 0.95) -> Difference:
    """Mean of a − mean of b, of values that have nothing in common and may scatter unequally (Welch 1947): such as
    networks of two kinds, each with the mean of its trainings. `n` is the smaller number.

    Raises:
        ValueError: one of them has no value.
    """
    sides = [np.asarray(side, dtype=float) for side in (a, b)]
    if any(side.ndim != 1 or not len(side) for side in sides):
        raise ValueError(f"values of shapes {sides[0].shape} and {sides[1].shape}")
    mean, n = float(sides[0].mean() - sides[1].mean()), min(len(side) for side in sides)
    if n < 2:
        return Difference(mean, float("nan"), float("nan"), float("nan"), n)
    squares = [float(side.var(ddof=1)) / len(side) for side in sides]
    total = sum(squares)
    if not total > 0:
        return Difference(mean, float("nan"), float("nan"), float("nan"), n)
    freedom = total**2 / sum(square**2 / (len(side) - 1) for square, side in zip(squares, sides, strict=True))
    half = float(stdtrit(freedom, (1 + confidence) / 2)) * total**0.5
    p = 2 * float(stdtr(freedom, -abs(mean) / total**0.5))
    return Difference(mean, mean - half, mean + half, p, n)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """p-values of a family of comparisons, adjusted for there being so many (Holm 1979); NaN stays NaN."""
    known = sorted((p, name) for name, p in p_values.items() if not np.isnan(p))
    adjusted = {name: float("nan") for name in p_values}
    least = 0.0
    for i, (p, name) in enumerate(known):
        least = max(least, min(1.0, (len(known) - i) * p))
        adjusted[name] = least
    return adjusted


def kendall(a: np.ndarray, b: np.ndarray) -> float:
    """Kendall's τ-b of two rows of scores; NaN where one of them is all alike."""
    from scipy.stats import kendalltau

    return float(kendalltau(a, b).statistic)


@dataclass(frozen=True)
class Ceiling:
    """Rank agreement of two scores beside what noise alone leaves of it.

    `tau` is between replicas of the one and of the other; `ceiling` is what it would be if both ranked alike, by how
    well different replicas of each agree (the attenuation of correlations by noise, Spearman 1904, of the correlations
    sin(π τ / 2) that belong to τ where scores are normal): also where one of the two is the noisier. `gap` is
    ceiling − tau with its bootstrap interval over architectures; above 0 the two rank
    differently.
    """

    tau: float
    ceiling: float
    gap: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def rank_agreement(
    a: np.ndarray, b: np.ndarray, rng: np.random.Generator, draws: int = 1000, confidence: float = 0.95
) -> Ceiling:
    """Do two rewards rank architectures differently, or only noisily?

    Args:
        a: (architectures, replicas) scores by one reward, two replicas at least.
        b: (architectures, replicas) by the other. Replicas of the same number may share their seeds, and so their
            luck: they are never compared, as no replica is with itself.

    Raises:
        ValueError: other shapes.
    """
    if a.ndim != 2 or b.ndim != 2 or len(a) != len(b) or min(a.shape[1], b.shape[1]) < 2:
        raise ValueError(f"scores of shapes {a.shape} and {b.shape}")

    def taus(rows: np.ndarray) -> tuple[float, float]:
        across = [kendall(a[rows, i], b[rows, j]) for i in range(a.shape[1]) for j in range(b.shape[1]) if i != j]
        within = [[kendall(x[rows, i], x[rows, j]) for i in range(x.shape[1]) for j in range(i)] for x in (a, b)]
        reliable = [max(0.0, np.sin(np.pi / 2 * np.mean(w))) for w in within]
        return float(np.mean(across)), float(2 / np.pi * np.arcsin(np.sqrt(np.prod(reliable))))

    tau, ceiling = taus(np.arange(len(a)))
    gaps = []
    for _ in range(draws):
        across, within = taus(rng.integers(len(a), size=len(a)))
        gaps.append(within - across)
    low, high = np.quantile(gaps, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Ceiling(tau, ceiling, ceiling - tau, float(low), float(high))


def jensen_shannon(a: np.ndarray, b: np.ndarray) -> float:
    """Jensen–Shannon distance (root of the divergence in bits, 0 to 1) of two rows of chances."""
    mean = (a + b) / 2

    def divergence(p: np.ndarray) -> float:
        known = p > 0
        return float((p[known] * np.log2(p[known] / mean[known])).sum())

    return float(np.sqrt(max(0.0, (divergence(a) + divergence(b)) / 2)))


def marginals(tokens: np.ndarray, sizes: Sequence[int], weights: np.ndarray | None = None) -> list[np.ndarray]:
    """(n, choices) tokens → for each choice the (options,) shares of its options; by (n,) weights where rows do not
    count alike."""
    counts = (np.bincount(tokens[:, i], weights, minlength=size) for i, size in enumerate(sizes))
    return [count / count.sum() for count in counts]


@dataclass(frozen=True)
class Shift:
    """How differently two sets of architectures choose: a mean of the Jensen–Shannon distances of their choices'
    marginals, what it is by chance, and how often it is as large then. `by_choice` has each choice's distance."""

    distance: float
    null: float
    p: float
    by_choice: tuple[float, ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def preference_shift(
    a: np.ndarray,
    b: np.ndarray,
    tokens: np.ndarray,
    sizes: Sequence[int],
    top: int,
    rng: np.random.Generator,
    draws: int = 2000,
) -> Shift:
    """Do two rewards put other kinds of architectures first, of the same ones?

    The sets that are compared are each reward's `top` best by its mean score. Those overlap: by chance they are what
    they are where pairs of replicas change sides, for each architecture by itself, and sets are chosen anew. Scores
    count in standard deviations of their replica. That takes the two for equally noisy. Of single trainings ask
    `shared_shift`.

    Args:
        a, b: (architectures, replicas) scores by the two rewards; replicas of one number may share their seed and luck.
        tokens: (architectures, choices).

    Raises:
        ValueError: other shapes.
    """
    if a.ndim != 2 or a.shape != b.shape:
        raise ValueError(f"scores of shapes {a.shape} and {b.shape}")
    scores = [(x - x.mean(axis=0)) / x.std(axis=0, ddof=1) for x in (a, b)]

    def distances(swapped: np.ndarray) -> np.ndarray:
        sides = (np.where(swapped, scores[1], scores[0]), np.where(swapped, scores[0], scores[1]))
        best = (np.argsort(-side.mean(axis=1), kind="stable")[:top] for side in sides)
        pairs = zip(*(marginals(tokens[chosen], sizes) for chosen in best), strict=True)
        return np.array([jensen_shannon(p, q) for p, q in pairs])

    found = distances(np.zeros(a.shape, bool))
    null = np.array([distances(rng.random(a.shape) < 0.5).mean() for _ in range(draws)])
    p = float((1 + (null >= found.mean() - 1e-12).sum()) / (1 + draws))
    return Shift(float(found.mean()), float(null.mean()), p, tuple(map(float, found)))


def shared_shift(
    a: np.ndarray, b: np.ndarray, tokens: np.ndarray, sizes: Sequence[int], rng: np.random.Generator, draws: int = 2000
) -> Shift:
    """Do two runs put other kinds of architectures first, of those that both trained once?

    The better one is, the more it counts: by the square of its place from the worst, so that the better half has seven
    eighths of it. (Of a preference of two standard deviations among 40, sets of the ten best miss half or more.) The
    distance is the root mean square of the choices'. By chance it is what it is where each architecture by itself
    either keeps its places or exchanges that in one run for that in the other. Rewards may be in other units. Of
    simulated pairs that prefer alike at most 6 % have p ≤ 0.05; of those that differ so much in one of 4 to 18 choices
    three quarters and more, or with 18 in common a quarter to a half.

    Runs that prefer alike are taken to be equally noisy: one whose scores are noisier prefers less firmly, which counts
    as a shift. What one run alone trained tells nothing here: a search's candidates descend from each other, so that
    what two searches end with differs whatever they prefer.

    Args:
        a, b: (architectures,) scores by either run.
        tokens: (architectures, choices).
    """
    counting = np.stack([_places(a) ** 2, _places(b) ** 2])

    def distances(counting: np.ndarray) -> np.ndarray:
        preferred = (marginals(tokens, sizes, weights) for weights in counting)
        return np.array([jensen_shannon(p, q) for p, q in zip(*preferred, strict=True)])

    def root_mean_square(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean(values**2)))

    found = distances(counting)
    value = root_mean_square(found)
    exchanged = (np.where(rng.random(len(a)) < 0.5, counting[::-1], counting) for _ in range(draws))
    null = np.array([root_mean_square(distances(one)) for one in exchanged])
    p = float((1 + (null >= value - 1e-12).sum()) / (1 + draws))
    return Shift(value, float(null.mean()), p, tuple(map(float, found)))


def _places(scores: np.ndarray) -> np.ndarray:
    """(n,) from 1, the least; equal scores share theirs."""
    _, which, counts = np.unique(scores, return_inverse=True, return_counts=True)
    places: np.ndarray = (np.cumsum(counts) - (counts - 1) / 2)[which]
    return places
