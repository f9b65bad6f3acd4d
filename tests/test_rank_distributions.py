"""Distributions of rank statistics: counted by hand, counted in whole numbers, and summed from waves."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product
from math import comb
from statistics import NormalDist

import numpy as np
import pytest

from akd_deploy import rank_distributions
from akd_deploy.rank_distributions import (
    rank_sum_chances,
    rank_sum_values_below,
    signed_rank_counts,
    signed_rank_values_below,
)

LEVELS = (0.1, 0.025, 0.005, 1e-6)


@pytest.mark.parametrize("n", range(1, 10))
def test_signed_rank_counts_are_those_of_all_sign_patterns(n):
    sums = [int(np.dot(signs, range(1, n + 1))) for signs in product([0, 1], repeat=n)]
    assert signed_rank_counts(n).tolist() == np.bincount(sums, minlength=n * (n + 1) // 2 + 1).tolist()


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 4), (2, 3), (4, 4), (3, 6), (6, 3), (5, 5)])
def test_rank_sum_chances_are_those_of_all_arrangements(m, n):
    statistics = [sum(ranks) - m * (m - 1) // 2 for ranks in combinations(range(m + n), m)]
    counts = np.bincount(statistics, minlength=m * n + 1)[: m * n // 2 + 1]
    assert rank_sum_chances(m, n) == pytest.approx(counts / comb(m + n, m))


def whole_rank_sum_counts(m: int, n: int) -> list[int]:
    """Slow and exact, by the last value: it is one of the m, above all n others, or one of the n."""
    rows = [[1] for _ in range(n + 1)]  # of no value of the first kind
    for _ in range(m):
        fresh = [[1]]
        for j in range(1, n + 1):
            longer = max(len(rows[j]) + j, len(fresh[-1]))
            counts = [0] * longer
            for u, count in enumerate(rows[j]):
                counts[u + j] += count
            for u, count in enumerate(fresh[-1]):
                counts[u] += count
            fresh.append(counts)
        rows = fresh
    return rows[n]


def test_the_slow_count_is_right():
    assert whole_rank_sum_counts(2, 3) == [1, 1, 2, 2, 2, 1, 1]


@pytest.mark.parametrize(("m", "n"), [(12, 30), (30, 30), (40, 25)])
def test_the_lower_half_of_rank_sums_is_that_of_whole_numbers(m, n):
    counts = whole_rank_sum_counts(m, n)
    below, total = 0, comb(m + n, m)
    for chance, count in zip(np.cumsum(rank_sum_chances(m, n)), counts, strict=False):
        below += count
        assert chance == pytest.approx(float(Fraction(below, total)), rel=1e-11)


@pytest.mark.parametrize("n", [300, 999, 1_000])
def test_signed_ranks_are_the_same_counted_and_summed_from_waves(monkeypatch, n):
    counted = [signed_rank_values_below(n, level) for level in LEVELS]
    monkeypatch.setattr(rank_distributions, "MOST_COUNTED", 0)
    assert [signed_rank_values_below(n, level) for level in LEVELS] == counted


@pytest.mark.parametrize(("m", "n"), [(60, 60), (100, 100), (150, 100), (100, 400)])
def test_rank_sums_are_the_same_counted_and_summed_from_waves(monkeypatch, m, n):
    counted = [rank_sum_values_below(m, n, level) for level in LEVELS]
    monkeypatch.setattr(rank_distributions, "MOST_COUNTED_UNPAIRED", 0)
    assert [rank_sum_values_below(m, n, level) for level in LEVELS] == counted
    assert [rank_sum_values_below(n, m, level) for level in LEVELS] == counted


def corrected_quantile(level: float, excess: float) -> float:
    """The normal quantile with the kurtosis beyond it (Cornish & Fisher 1938)."""
    z = NormalDist().inv_cdf(level)
    return z + (z**3 - 3 * z) * excess / 24


@pytest.mark.parametrize("n", [1_001, 1_500, 5_000])
@pytest.mark.parametrize("level", LEVELS)
def test_large_signed_ranks_are_normal_but_for_their_kurtosis(n, level):
    squares, fourths = (sum(rank**power for rank in range(1, n + 1)) for power in (2, 4))
    found = (signed_rank_values_below(n, level) - 0.5 - n * (n + 1) / 4) / (squares / 4) ** 0.5
    assert found == pytest.approx(corrected_quantile(level, -2 * fourths / squares**2), abs=2e-4)


@pytest.mark.parametrize(("m", "n"), [(101, 101), (515, 515), (5_000, 5_000), (3_000, 150)])
@pytest.mark.parametrize("level", LEVELS)
def test_large_rank_sums_are_normal_but_for_their_kurtosis(m, n, level):
    sigma = (m * n * (m + n + 1) / 12) ** 0.5
    excess = -6 * (m * m + n * n + m * n + m + n) / (5 * m * n * (m + n + 1))
    found = (rank_sum_values_below(m, n, level) - 0.5 - m * n / 2) / sigma
    assert found == pytest.approx(corrected_quantile(level, excess), abs=3e-4 + 1 / sigma)  # a whole number
