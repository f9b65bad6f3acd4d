"""Scores against hand-computed ones."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from akd_deploy.predictor.scores import scores_of


def test_scores_are_those_computed_by_hand() -> None:
    measured = np.array([1.0, 2.0, 4.0, 8.0])
    predicted = measured * np.array([1.04, 0.92, 1.0, 1.2])
    scores = scores_of(predicted, measured, np.array([True, True, True, False]), sigma=0.02)
    assert scores.items == 4
    assert scores.mape == pytest.approx((0.04 + 0.08 + 0.0 + 0.2) / 4)
    assert (scores.within_5, scores.within_10) == (0.5, 0.75)
    assert scores.worst == pytest.approx(0.2)
    assert scores.coverage == 0.75
    assert scores.floor_mape == pytest.approx(0.016)
    assert (scores.kendall_tau, scores.spearman) == (pytest.approx(1.0), pytest.approx(1.0))


def test_one_swap_of_four_costs_a_third_of_kendalls_tau() -> None:
    # five of six pairs agree: (5 − 1) / 6
    scores = scores_of(np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert scores.kendall_tau == pytest.approx(4 / 6)
    # 1 − 6 Σd² / n(n² − 1) = 1 − 6 · 2 / 60
    assert scores.spearman == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("predicted", "measured"), [([1.0], [1.1]), ([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0, 1.0])]
)
def test_what_cannot_be_ranked_has_no_rank_correlation(predicted: list[float], measured: list[float]) -> None:
    scores = scores_of(np.array(predicted), np.array(measured))
    assert scores.kendall_tau is None
    assert scores.spearman is None
    assert scores.coverage is None
    assert scores.floor_mape is None


def test_a_predictor_that_is_no_good_warns_of_itself():
    good = scores_of(np.array([1.0, 2.1]), np.array([1.0, 2.0]))
    assert good.warnings() == []
    assert replace(good, mape=0.71).warnings() == [
        "the predictor's own mean error is 71%: too few measurements, or ones unlike each other; decide nothing by it"
    ]
