"""Accuracy lost, on the same samples: an interval that holds the truth, and an exact test."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from akd_deploy.errors import UsageError
from akd_deploy.paired_accuracy import paired_accuracy_loss


def answers(both: int, lost: int, won: int, neither: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Which samples the baseline, and the candidate, got right."""
    baseline = np.repeat([True, True, False, False], [both, lost, won, neither])
    candidate = np.repeat([True, False, True, False], [both, lost, won, neither])
    return baseline, candidate


def test_the_interval_is_the_published_one_of_a_published_table():
    """Airway hyper-responsiveness before and after transplantation: 1 and 7 discordant of 21; Tango's interval is
    (−0.517, −0.026) in Fagerland, Lydersen & Laake (Statistics in Medicine 33, 2014, section 5)."""
    loss = paired_accuracy_loss(*answers(1, 1, 7, 12))
    assert (loss.lost, loss.won, loss.samples) == (1, 7, 21)
    assert loss.loss == pytest.approx(-6 / 21)
    assert (loss.low, loss.high) == pytest.approx((-0.517, -0.026), abs=5e-4)


def test_equal_answers_still_leave_room_for_a_loss():
    # By hand: n λ / √(n λ (1 − λ)) = z gives λ = z² / (n + z²).
    loss = paired_accuracy_loss(*answers(100, 0, 0))
    assert loss.high == pytest.approx(1.959964**2 / (100 + 1.959964**2), rel=1e-6)
    assert (loss.loss, loss.low, loss.p_value) == (0.0, -loss.high, 1.0)


@pytest.mark.parametrize(("samples", "lost", "won"), [(200, 0.03, 0.01), (1_000, 0.02, 0.005), (500, 0.1, 0.1)])
def test_intervals_of_a_loss_cover_the_true_one(samples, lost, won):
    rng = np.random.default_rng(0)
    covered, runs = 0, 2_000
    for draw in rng.random((runs, samples)):
        loss = paired_accuracy_loss(draw >= won, (draw < won) | (draw >= won + lost))
        covered += loss.low <= lost - won <= loss.high
    assert 0.935 <= covered / runs <= 0.975


@given(st.integers(0, 60), st.integers(0, 60), st.integers(1, 200))
def test_the_p_value_is_scipys_and_the_comparison_turned_round_is_the_mirror_image(lost, won, rest):
    baseline, candidate = answers(rest, lost, won)
    loss, back = paired_accuracy_loss(baseline, candidate), paired_accuracy_loss(candidate, baseline)
    expected = stats.binomtest(lost, lost + won, 0.5).pvalue if lost + won else 1.0
    assert loss.p_value == pytest.approx(expected)
    assert (back.loss, back.low, back.high) == pytest.approx((-loss.loss, -loss.high, -loss.low), abs=1e-9)
    assert -1 <= loss.low <= loss.loss <= loss.high <= 1


def test_what_cannot_be_paired_is_refused():
    for a, b in ((np.ones(3), np.ones(4)), (np.ones(0), np.ones(0)), (np.ones((2, 2)), np.ones((2, 2)))):
        with pytest.raises(UsageError, match="same samples"):
            paired_accuracy_loss(a, b)
    with pytest.raises(UsageError, match="confidence"):
        paired_accuracy_loss(np.ones(3), np.ones(3), 95)
