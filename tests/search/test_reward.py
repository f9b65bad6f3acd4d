import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.search.reward import REWARD_PRESETS, RewardShape, over_budget_penalty, reward, reward_shape

SOFT, HARD, ASYMMETRIC = (REWARD_PRESETS[name] for name in ("soft", "hard", "asymmetric"))
SECONDS = st.floats(1e-6, 1.0)


@pytest.mark.parametrize("shape", [SOFT, HARD, ASYMMETRIC])
def test_at_the_budget_the_reward_is_the_accuracy(shape):
    assert reward(0.8, 2e-3, 2e-3, shape) == 0.8


def test_below_the_budget_alpha_counts():
    # Half the latency: 0.5 ** -0.07 = 1.04972, 0.5 ** 0 = 1, 0.5 ** -0.02 = 1.01396.
    assert reward(0.8, 1e-3, 2e-3, SOFT) == pytest.approx(0.8 * 1.04972, rel=1e-5)
    assert reward(0.8, 1e-3, 2e-3, HARD) == 0.8
    assert reward(0.8, 1e-3, 2e-3, ASYMMETRIC) == pytest.approx(0.8 * 1.01396, rel=1e-5)


def test_above_the_budget_beta_counts():
    # Twice the latency: 2 ** -0.07 = 0.95264, 2 ** -1 = 0.5, 2 ** -0.3 = 0.81225.
    assert reward(0.8, 4e-3, 2e-3, SOFT) == pytest.approx(0.8 * 0.95264, rel=1e-5)
    assert reward(0.8, 4e-3, 2e-3, HARD) == pytest.approx(0.4)
    assert reward(0.8, 4e-3, 2e-3, ASYMMETRIC) == pytest.approx(0.8 * 0.81225, rel=1e-5)


def test_soft_makes_five_percent_more_accuracy_worth_twice_the_latency():
    assert 1.05 * 2**SOFT.alpha == pytest.approx(1.0, abs=5e-4)
    assert math.log(1 / 1.05) / math.log(2) == pytest.approx(-0.0704, abs=5e-5)
    assert reward(0.70 * 1.05, 2e-3, 1e-3, SOFT) == pytest.approx(reward(0.70, 1e-3, 1e-3, SOFT), rel=5e-4)


@pytest.mark.parametrize("shape", [SOFT, HARD, ASYMMETRIC])
@given(accuracy=st.floats(0, 1), faster_s=SECONDS, slower_s=SECONDS, budget_s=SECONDS)
def test_a_slower_student_is_never_worth_more(shape, accuracy, faster_s, slower_s, budget_s):
    faster_s, slower_s = sorted((faster_s, slower_s))
    slack = 1e-12
    assert reward(accuracy, slower_s, budget_s, shape) <= reward(accuracy, faster_s, budget_s, shape) + slack


@given(upper_s=SECONDS, budget_s=SECONDS, more=st.floats(1.01, 10))
def test_a_refused_candidate_is_told_less_than_any_trained_one_and_less_the_further_over(upper_s, budget_s, more):
    upper_s = max(upper_s, budget_s * 1.001)
    penalty = over_budget_penalty(upper_s, budget_s)
    assert -1 < penalty < 0
    assert over_budget_penalty(upper_s * more, budget_s) < penalty


@pytest.mark.parametrize(
    ("accuracy", "latency_s", "budget_s"),
    [(1.2, 1e-3, 1e-3), (-0.1, 1e-3, 1e-3), (math.nan, 1e-3, 1e-3), (0.5, 0.0, 1e-3), (0.5, 1e-3, math.inf)],
)
def test_values_outside_their_range_are_refused(accuracy, latency_s, budget_s):
    with pytest.raises(UsageError):
        reward(accuracy, latency_s, budget_s, SOFT)


@pytest.mark.parametrize(("alpha", "beta"), [(0.1, -1.0), (-0.3, -0.02), (math.nan, -1.0), (0.0, -math.inf)])
def test_exponents_that_would_reward_slowness_are_refused(alpha, beta):
    with pytest.raises(UsageError):
        RewardShape(alpha, beta)


def test_an_unknown_preset_is_named_with_the_known_ones():
    assert reward_shape("hard") is HARD
    with pytest.raises(UnknownNameError, match="asymmetric, hard, soft"):
        reward_shape("medium")
