import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from akd_deploy.binomial import binomial_cdf, share_upper_bound


@given(st.integers(1, 3_000), st.floats(1e-4, 1 - 1e-4), st.floats(0, 1))
def test_binomial_probabilities_are_scipys(trials, probability, share):
    successes = int(share * trials)
    expected = stats.binom.cdf(successes, trials, probability)
    assert binomial_cdf(successes, trials, probability) == pytest.approx(expected, rel=1e-9, abs=1e-200)


def test_binomial_probabilities_at_the_ends():
    assert binomial_cdf(-1, 10, 0.3) == 0
    assert binomial_cdf(10, 10, 0.3) == 1
    assert binomial_cdf(0, 10, 0.3) == pytest.approx(0.7**10)
    assert binomial_cdf(900_200, 1_000_000, 0.9) == pytest.approx(stats.binom.cdf(900_200, 1_000_000, 0.9), rel=1e-8)


@pytest.mark.parametrize("trials", [100, 10_000_000])
def test_binomial_probabilities_far_from_the_mean_are_told_at_once(trials):
    assert binomial_cdf(trials // 2, trials, 1e-3) == 1
    assert binomial_cdf(0, trials, 0.5) == pytest.approx(0.5**100 if trials == 100 else 0.0)
    assert binomial_cdf(trials // 2, trials, 0.5) == pytest.approx(stats.binom.cdf(trials // 2, trials, 0.5), rel=1e-6)


def test_a_share_is_bounded_exactly():
    # None of n: (1 − share)^n = 1 − confidence.
    assert share_upper_bound(0, 10, 0.99) == pytest.approx(1 - 0.01**0.1)
    assert share_upper_bound(0, 44, 0.99) == pytest.approx(1 - 0.01 ** (1 / 44))
    assert share_upper_bound(10, 10, 0.99) == 1
    for hits in range(10):
        bound = share_upper_bound(hits, 10, 0.95)
        assert binomial_cdf(hits, 10, bound) == pytest.approx(0.05)
