"""Quantiles against hand-computed ones, and families that cannot hide in a crowd."""

from __future__ import annotations

import numpy as np
import pytest

from akd_deploy.predictor.conformal import (
    SPREAD_FLOOR,
    CalibrationPoint,
    by_family_quantile,
    ends_s,
    in_place_factor,
    quantile,
    scale_s,
    score,
    unseen_family_quantile,
)


def point(measured: float, family: str = "a", predicted: float = 1.0, spread: float = 0.1) -> CalibrationPoint:
    return CalibrationPoint(family, predicted, spread, measured)


@pytest.mark.parametrize(
    ("n", "coverage", "expected"),
    [
        (9, 0.9, 9),  # ⌈10 · 0.9⌉ = 9
        (10, 0.9, 10),  # ⌈9.9⌉
        (19, 0.9, 18),
        (99, 0.9, 90),
        (99, 0.55, 55),  # 100 · 0.55 is 55.00000000000001 in floating point
        (3, 0.5, 2),
    ],
)
def test_quantile_is_the_rank_given_by_the_formula(n: int, coverage: float, expected: int) -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1.0, n + 1)).tolist()
    assert quantile(shuffled, coverage) == expected


def test_too_few_scores_widen_the_largest_by_the_missing_share() -> None:
    # ⌈6 · 0.9⌉ = 6 of 5
    assert quantile([1.0, 2.0, 3.0, 4.0, 5.0], 0.9) == pytest.approx(5.0 * 6 / 5)


def test_quantile_covers_a_new_exchangeable_score_as_often_as_promised() -> None:
    rng = np.random.default_rng(1)
    covered = [(lambda s: s[-1] <= quantile(s[:-1].tolist(), 0.9))(rng.exponential(size=40)) for _ in range(2_000)]
    # ⌈40 · 0.9⌉ = 36 of 40 places are covered: 0.9, standard error 0.0067
    assert 0.88 < np.mean(covered) < 0.92


def test_score_is_the_residual_over_spread_and_floor() -> None:
    assert score(point(1.3)) == pytest.approx(0.3 / (0.1 + SPREAD_FLOOR))
    assert score(point(2.0), factor=2.0) == 0
    # Half as long as predicted is as far off as twice as long.
    assert score(point(0.5)) == pytest.approx(score(point(2.0)))
    assert scale_s(np.array(2.0), np.array(0.0)) == pytest.approx(2 * SPREAD_FLOOR)


@pytest.mark.parametrize("measured", [0.01, 0.2, 0.7, 0.999, 1.0, 1.2, 3.0, 40.0])
def test_an_interval_holds_what_scores_no_more_than_its_width(measured: float) -> None:
    own = score(point(measured))
    for width, held in ((1.0001 * own + 1e-9, True), (0.9999 * own - 1e-9, False)):
        low, high = ends_s(np.array(1.0), np.array(max(width, 0.0) * scale_s(np.array(1.0), np.array(0.1))))
        assert (low <= measured <= high) == (held or measured == 1.0)
        assert 0 < low <= 1 <= high
        assert 1 / low == pytest.approx(high)


def test_nothing_at_all_has_no_interval_below_it() -> None:
    low, high = ends_s(np.zeros(2), np.array([0.0, 1.0]))
    assert low.tolist() == [0.0, 0.0]
    assert high.tolist() == [0.0, 1.0]


def test_a_family_unlike_the_rest_sets_the_width() -> None:
    calm = [point(1 + 0.001 * i) for i in range(40)]
    wild = [point(1 + 0.1 * i, family="b") for i in range(10)]
    together = by_family_quantile([*calm, *wild], 0.9, 1.0)
    assert together == pytest.approx(quantile([score(p) for p in wild], 0.9))
    assert together > quantile([score(p) for p in [*calm, *wild]], 0.9)


def test_a_family_too_small_to_speak_alone_counts_in_the_pool_only() -> None:
    calm = [point(1 + 0.001 * i) for i in range(100)]
    wild = [point(9.0, family="b") for _ in range(9)]
    pooled = quantile([score(p) for p in [*calm, *wild]], 0.9)
    assert by_family_quantile([*calm, *wild], 0.9, 1.0) == pytest.approx(pooled)


def test_the_width_never_falls_below_the_pooled_one() -> None:
    calm = [point(1 + 0.001 * i) for i in range(20)]
    strays = [point(3.0, family=f"f{i}") for i in range(9)]
    assert by_family_quantile([*calm, *strays], 0.9, 1.0) >= score(point(3.0))


def test_an_unseen_familys_width_counts_families_and_not_networks() -> None:
    # Ten families: 0.9 · 11 = 9.9 of them, hence all ten.
    one_each = [point(1 + 0.01 * i, family=f"f{i}") for i in range(10)]
    assert unseen_family_quantile(one_each, 0.9, 1.0) == pytest.approx(score(one_each[-1]))
    # A hundred more networks of the calmest family change nothing.
    crowd = [*one_each, *[point(1.0, family="f0") for _ in range(100)]]
    assert unseen_family_quantile(crowd, 0.9, 1.0) == pytest.approx(score(one_each[-1]))
    # 0.5 · 11 = 5.5 families.
    assert unseen_family_quantile(one_each, 0.5, 1.0) == pytest.approx(score(one_each[5]))
    # Four families: 4.5 of them are not there, and the largest is widened by that share.
    assert unseen_family_quantile(one_each[:4], 0.9, 1.0) == pytest.approx(score(one_each[3]) * 4.5 / 4)


def test_in_place_factor_is_the_median_ratio() -> None:
    assert in_place_factor([point(1.0), point(1.1), point(9.0)]) == pytest.approx(1.1)
    assert in_place_factor([]) == 1.0
