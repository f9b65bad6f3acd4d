import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from akd_deploy.bounds import (
    _student_quantile,
    clustered_upper_bound_s,
    order_statistic_upper_bound_s,
    samples_needed,
)
from akd_deploy.errors import UsageError
from benchmarks.simulations import bound_coverage, true_percentile_s

RUNS = 2_500
"""Of each simulation."""


@pytest.mark.parametrize(("percentile", "needed"), [(90, 29), (95, 59), (99, 299), (99.9, 2_995)])
def test_a_95_percent_bound_needs_as_many_samples_as_the_protocol_says(percentile, needed):
    assert samples_needed(percentile, 0.95) == needed
    samples = np.arange(needed, dtype=float)
    assert order_statistic_upper_bound_s(samples, percentile, 0.95) == needed - 1
    with pytest.raises(UsageError, match=f"p{percentile:g}.*{needed - 1} samples.*at least {needed}"):
        order_statistic_upper_bound_s(samples[1:], percentile, 0.95)


@pytest.mark.parametrize(("percentile", "confidence"), [(90, 0.95), (50, 0.9), (99, 0.95), (95, 0.99)])
@pytest.mark.parametrize("n", [459, 1_000, 3_001])
def test_bounds_are_the_order_statistics_scipy_points_at(percentile, confidence, n):
    samples = np.random.default_rng(n).permutation(n).astype(float)
    rank = stats.binom.ppf(confidence, n, percentile / 100)
    assert order_statistic_upper_bound_s(samples, percentile, confidence) == rank


def test_the_smallest_sample_is_a_bound_where_it_suffices():
    # P(none of 3 is below p10) = 0.9³ = 0.729: the smallest bounds p10 at 70 %, not at 75 %.
    assert order_statistic_upper_bound_s(np.array([3.0, 1.0, 2.0]), 10, 0.70) == 1
    assert order_statistic_upper_bound_s(np.array([3.0, 1.0, 2.0]), 10, 0.75) == 2


@pytest.mark.parametrize(("percentile", "n"), [(90, 29), (90, 100), (95, 59), (99, 299), (50, 30)])
def test_nominal_95_percent_bounds_cover_the_true_percentile(percentile, n):
    rng = np.random.default_rng(1)
    true_s = stats.lognorm.ppf(percentile / 100, s=0.5)
    draws = rng.lognormal(0, 0.5, (RUNS, n))
    covered = sum(order_statistic_upper_bound_s(samples, percentile, 0.95) >= true_s for samples in draws)
    assert covered / RUNS >= 0.94


# --- samples in blocks ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("confidence", [0.5, 0.9, 0.95, 0.99, 0.999])
@pytest.mark.parametrize("degrees", [2, 9, 29])
@pytest.mark.parametrize("shift", [0.0, 4.05, 16.0])
def test_quantiles_of_students_t_are_scipys(confidence, degrees, shift):
    expected = stats.nct.ppf(confidence, degrees, shift) if shift else stats.t.ppf(confidence, degrees)
    assert _student_quantile(confidence, degrees, shift) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_processes_that_are_alike_have_the_order_statistic_as_their_bound():
    samples = np.random.default_rng(0).lognormal(0, 0.1, 100)
    blocks = {i: np.random.default_rng(i).permutation(samples) for i in range(10)}
    pooled = np.concatenate(list(blocks.values()))
    alike_s = order_statistic_upper_bound_s(pooled, 90, 0.95)
    assert clustered_upper_bound_s(blocks, 90, 0.95) == pytest.approx(alike_s, rel=1e-5)
    # An upper bound does not jump when they begin to differ.
    nearly = {i: s * np.exp(1e-7 * i) for i, s in blocks.items()}
    assert clustered_upper_bound_s(nearly, 90, 0.95) == pytest.approx(
        clustered_upper_bound_s(blocks, 90, 0.95), rel=1e-4
    )


@pytest.mark.parametrize(
    ("percentile", "confidence", "factor"), [(90, 0.95, 2.355), (95, 0.95, 2.911), (99, 0.99, 5.074)]
)
def test_processes_without_scatter_of_their_own_have_the_tabulated_tolerance_bound(percentile, confidence, factor):
    """One-sided tolerance factors of 10 normal draws, as Hahn & Meeker (table A.12d) and others print them.

    The deviations are all 0, so that the rank they are taken at is all that is above: with 1,000 samples a share of
    less than 1 − p may exceed. The bound is therefore at least the tabulated one, and tends to it.
    """
    medians = np.random.default_rng(1).normal(0, 0.05, 10)
    exact_s = float(np.exp(medians.mean() + factor * medians.std(ddof=1)))
    bounds_s = [
        clustered_upper_bound_s({i: np.full(n, np.exp(m)) for i, m in enumerate(medians)}, percentile, confidence)
        for n in (100, 10_000)
    ]
    assert bounds_s[0] > bounds_s[1] > exact_s * 0.9999
    assert np.log(bounds_s[1]) - medians.mean() == pytest.approx(np.log(exact_s) - medians.mean(), rel=0.02)


@given(st.integers(3, 12), st.floats(0, 0.5), st.sampled_from([50, 90, 99]), st.integers(0, 2**31))
def test_a_bound_over_processes_is_never_below_that_of_pooled_samples(blocks, between, percentile, seed):
    rng = np.random.default_rng(seed)
    drawn = np.exp(rng.normal(0, between, (blocks, 1)) + 0.05 * rng.standard_t(2, (blocks, 120)))
    bound_s = clustered_upper_bound_s(dict(enumerate(drawn)), percentile, 0.95)
    assert bound_s >= order_statistic_upper_bound_s(drawn.ravel(), percentile, 0.95)
    scaled = clustered_upper_bound_s(dict(enumerate(3 * drawn)), percentile, 0.95)
    assert scaled == pytest.approx(3 * bound_s, rel=1e-5)


@pytest.mark.parametrize("between", [0.0, 0.01, 0.03])
def test_nominal_95_percent_bounds_cover_where_processes_differ(between):
    coverage = bound_coverage(between, 90, 2_000, np.random.default_rng(5))
    assert coverage.clustered >= 0.94
    if between:  # what was printed before covers hardly more than half of the time
        assert coverage.alike < 0.7
    # A bound that is never wrong because it is far away would be worth nothing.
    assert coverage.excess < 0.002 + 1.3 * between


def test_bounds_cover_where_single_calls_are_interrupted():
    """Deviations need not be normal: 5 % of the calls take half as long again."""
    rng = np.random.default_rng(6)
    between, covered, runs = 0.02, 0, 2_000

    def drawn(shape):
        return np.exp(rng.normal(0, between, (*shape[:-1], 1)) + rng.normal(0, 0.005, shape)) * (
            1 + 0.5 * (rng.random(shape) < 0.05)
        )

    true_s = np.percentile(drawn((400_000, 1)), 90)
    for blocks in drawn((runs, 10, 100)):
        covered += clustered_upper_bound_s(dict(enumerate(blocks)), 90, 0.95) >= true_s
    assert covered / runs >= 0.94


def test_the_simulated_truth_is_the_percentile_of_many_processes():
    rng = np.random.default_rng(7)
    one_each = np.exp(rng.normal(0, 0.03, 400_000) + rng.normal(0, 0.01, 400_000))
    assert np.percentile(one_each, 90) == pytest.approx(true_percentile_s(90, 0.03), rel=1e-3)


def test_two_processes_or_a_lower_percentile_have_no_bound():
    samples = np.ones(100)
    with pytest.raises(UsageError, match=r"samples of 2.*at least 3"):
        clustered_upper_bound_s({0: samples, 1: samples}, 90, 0.95)
    with pytest.raises(UsageError, match=r"p10.*below 50"):
        clustered_upper_bound_s(dict.fromkeys(range(10), samples), 10, 0.95)
    assert clustered_upper_bound_s({**dict.fromkeys(range(9), samples), 9: samples * np.nan}, 90, 0.95) == np.inf
