from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from akd_deploy.certificate import (
    RatioInterval,
    _rank_sum_counts,
    _signed_rank_counts,
    allowed_exceedances,
    binomial_cdf,
    certify,
    gate,
    order_statistic_upper_bound_s,
    ratio_interval,
    samples_needed,
)
from akd_deploy.errors import UsageError
from akd_deploy.measurement import Measurement

RUNS = 2_500
"""Of each simulation. At 5 % false alarms their rate is known to ± 0.44 % (one standard deviation)."""


def upper_95(hits: int, runs: int) -> float:
    """Exact upper bound of a rate at 95 % confidence (Clopper and Pearson)."""
    return float(stats.beta.ppf(0.95, hits + 1, runs - hits))


@given(st.integers(1, 3_000), st.floats(1e-4, 1 - 1e-4), st.floats(0, 1))
def test_binomial_probabilities_are_scipys(trials, probability, share):
    successes = int(share * trials)
    expected = stats.binom.cdf(successes, trials, probability)
    # scipy's own falls to 0 from about 1e-250 on
    assert binomial_cdf(successes, trials, probability) == pytest.approx(expected, rel=1e-9, abs=1e-200)


def test_binomial_probabilities_at_the_ends():
    assert binomial_cdf(-1, 10, 0.3) == 0
    assert binomial_cdf(10, 10, 0.3) == 1
    assert binomial_cdf(0, 10, 0.3) == pytest.approx(0.7**10)
    assert binomial_cdf(900_200, 1_000_000, 0.9) == pytest.approx(stats.binom.cdf(900_200, 1_000_000, 0.9), rel=1e-8)


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


@pytest.mark.parametrize(("samples", "allowed"), [(1_000, 2), (3_000, 17), (10_000, 77)])
def test_p99_certificates_at_99_percent_allow_what_the_protocol_says(samples, allowed):
    assert allowed_exceedances(samples, 99, 0.99) == allowed


@given(st.integers(1, 4_000), st.sampled_from([50, 90, 95, 99, 99.9]), st.sampled_from([0.9, 0.95, 0.99]))
def test_allowed_exceedances_are_the_most_that_scipys_test_accepts(samples, percentile, confidence):
    accepted = stats.binom.cdf(np.arange(samples), samples, 1 - percentile / 100) <= 1 - confidence
    assert allowed_exceedances(samples, percentile, confidence) == accepted.sum() - 1


def test_allowed_exceedances_of_a_million_samples():
    allowed = allowed_exceedances(1_000_000, 90, 0.99)
    assert stats.binom.cdf(allowed, 1_000_000, 0.1) <= 0.01 < stats.binom.cdf(allowed + 1, 1_000_000, 0.1)


@pytest.mark.parametrize(("percentile", "confidence"), [(90, 0.99), (99, 0.99), (99, 0.95), (99.9, 0.95)])
def test_a_certificate_becomes_possible_at_the_sample_size_that_is_asked_for(percentile, confidence):
    needed = samples_needed(percentile, confidence)
    assert allowed_exceedances(needed - 1, percentile, confidence) == -1
    assert allowed_exceedances(needed, percentile, confidence) == 0


def test_a_student_that_exceeds_the_budget_three_times_in_a_thousand_passes_1000_samples_42_percent_of_the_time():
    assert binomial_cdf(allowed_exceedances(1_000, 99, 0.99), 1_000, 0.003) == pytest.approx(0.42, abs=0.005)
    assert binomial_cdf(allowed_exceedances(10_000, 99, 0.99), 10_000, 0.003) > 0.999


def test_a_student_that_misses_its_percentile_is_hardly_ever_certified():
    rng = np.random.default_rng(2)
    passed = 0
    for samples in rng.random((RUNS, 10, 100)):
        passed += certify(dict(enumerate(samples)), budget_s=0.8999, percentile=90, confidence=0.99).ok
    assert stats.binomtest(passed, RUNS, 0.01, alternative="greater").pvalue > 0.01


def test_a_certificate_states_its_evidence():
    blocks = {i: np.full(100, 1e-3) for i in range(10)}
    blocks[3] = np.concatenate([np.full(98, 1e-3), [3e-3, 4e-3]])
    certificate = certify(blocks, budget_s=2e-3, percentile=99, confidence=0.99)
    assert certificate.as_dict() == {
        "budget_s": 2e-3,
        "percentile": 99,
        "confidence": 0.99,
        "samples": 1_000,
        "blocks": 10,
        "exceeding": 2,
        "allowed": 2,
        "worst_block_exceeding": 0.02,
        "ok": True,
    }
    blocks[4] = blocks[3]
    assert not certify(blocks, budget_s=2e-3, percentile=99, confidence=0.99).ok


def in_ten_processes(samples):
    return dict(enumerate(np.array_split(samples, 10)))


def test_a_certificate_needs_ten_processes():
    samples = np.full(1_000, 1e-3)
    assert certify(in_ten_processes(samples), budget_s=2e-3).ok
    nine = dict(enumerate(np.array_split(samples, 9)))
    with pytest.raises(UsageError, match=r"9 processes.*at least 10"):
        certify(nine, budget_s=2e-3)


def test_a_sample_equal_to_the_budget_meets_it():
    assert certify(in_ten_processes(np.full(1_000, 2e-3)), budget_s=2e-3).exceeding == 0


@pytest.mark.parametrize(("sample", "budget_s"), [(np.nan, 2e-3), (np.inf, 2e-3), (1e-3, np.nan)])
def test_what_is_no_number_never_counts_as_within_the_budget(sample, budget_s):
    certificate = certify(in_ten_processes(np.full(1_000, sample)), budget_s=budget_s)
    assert (certificate.exceeding, certificate.worst_block_exceeding, certificate.ok) == (1_000, 1.0, False)


@pytest.mark.parametrize("blocks", [{}, {0: np.ones(458)}])
def test_a_certificate_that_could_never_hold_says_how_many_samples_it_needs(blocks):
    with pytest.raises(UsageError, match=r"p99 at 99% confidence.*at least 459"):
        certify(blocks, budget_s=2.0, percentile=99)


@pytest.mark.parametrize(
    ("percentile", "confidence"), [(0, 0.9), (100, 0.9), (-1, 0.9), (np.nan, 0.9), (90, 0), (90, 1), (90, 95)]
)
def test_levels_out_of_range_are_refused(percentile, confidence):
    for attempt in (
        lambda: samples_needed(percentile, confidence),
        lambda: allowed_exceedances(1_000, percentile, confidence),
        lambda: order_statistic_upper_bound_s(np.ones(1_000), percentile, confidence),
        lambda: certify({0: np.ones(1_000)}, 2.0, percentile, confidence),
    ):
        with pytest.raises(UsageError, match="between"):
            attempt()


@pytest.mark.parametrize("n", range(1, 10))
def test_signed_rank_counts_are_those_of_all_sign_patterns(n):
    sums = [int(np.dot(signs, range(1, n + 1))) for signs in product([0, 1], repeat=n)]
    assert _signed_rank_counts(n).tolist() == np.bincount(sums, minlength=n * (n + 1) // 2 + 1).tolist()


@pytest.mark.parametrize(("m", "n"), [(1, 1), (1, 4), (2, 3), (4, 4), (3, 6), (6, 3), (5, 5)])
def test_rank_sum_counts_are_those_of_all_arrangements(m, n):
    statistics = [sum(ranks) - m * (m - 1) // 2 for ranks in combinations(range(m + n), m)]
    assert _rank_sum_counts(m, n).tolist() == np.bincount(statistics, minlength=m * n + 1).tolist()


@pytest.mark.parametrize("n", [6, 8, 10, 15])
@pytest.mark.parametrize("confidence", [0.9, 0.95])
def test_paired_blocks_differ_exactly_when_scipys_exact_signed_rank_test_says_so(n, confidence):
    rng = np.random.default_rng(n)
    verdicts = []
    for _ in range(150):
        baseline, candidate = rng.lognormal(0, 0.1, n), rng.lognormal(rng.uniform(0, 0.1), 0.1, n)
        p = stats.wilcoxon(np.log(candidate) - np.log(baseline), method="exact").pvalue
        differs = ratio_interval(baseline, candidate, paired=True, confidence=confidence).differs
        assert differs == (p <= 1 - confidence)
        verdicts.append(differs)
    assert 0 < sum(verdicts) < 150


@pytest.mark.parametrize(("m", "n"), [(4, 4), (5, 7), (10, 10), (12, 6)])
def test_unpaired_blocks_differ_exactly_when_scipys_exact_rank_sum_test_says_so(m, n):
    rng = np.random.default_rng(m * n)
    verdicts = []
    for _ in range(150):
        baseline, candidate = rng.lognormal(0, 0.1, m), rng.lognormal(rng.uniform(0, 0.2), 0.1, n)
        p = stats.mannwhitneyu(baseline, candidate, method="exact").pvalue
        differs = ratio_interval(baseline, candidate, paired=False).differs
        assert differs == (p <= 0.05)
        verdicts.append(differs)
    assert 0 < sum(verdicts) < 150


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("n", [6, 10])
def test_the_same_model_twice_is_hardly_ever_called_different(paired, n):
    """Raw samples of one process depend on each other, and paired processes share a disturbance."""
    rng = np.random.default_rng(3)
    alarms = 0
    ids = tuple(np.repeat(np.arange(n), 9))
    for _ in range(RUNS):
        together, a, b = rng.lognormal(0, [[0.3 * paired], [0.1], [0.1]], (3, n))
        medians = [
            Measurement("m", tuple(np.repeat(together * own, 9) * rng.lognormal(0, 0.05, 9 * n)), ids).block_medians_s
            for own in (a, b)
        ]
        alarms += ratio_interval(*medians, paired=paired).differs
    assert alarms > 0.02 * RUNS  # the test has teeth: an interval that is always wide would never alarm
    assert upper_95(alarms, RUNS) <= 0.06


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_of_a_latency_ratio_cover_the_true_one(paired, confidence):
    rng = np.random.default_rng(4)
    covered = 0
    for _ in range(RUNS):
        together = rng.lognormal(0, 0.3 * paired, 10)
        interval = ratio_interval(
            together * rng.lognormal(0, 0.05, 10),
            1.25 * together * rng.lognormal(0, 0.05, 10),
            paired=paired,
            confidence=confidence,
        )
        covered += interval.low <= 1.25 <= interval.high
    assert covered / RUNS >= confidence - 0.01


def test_pairing_sees_a_small_difference_below_a_large_shared_disturbance():
    rng = np.random.default_rng(5)
    together = rng.lognormal(0, 0.5, 10)
    baseline, candidate = together * rng.lognormal(0, 0.01, 10), 1.05 * together * rng.lognormal(0, 0.01, 10)
    assert ratio_interval(baseline, candidate, paired=True).low > 1
    assert not ratio_interval(baseline, candidate, paired=False).differs


@pytest.mark.parametrize("paired", [True, False])
def test_turning_the_comparison_round_inverts_the_interval(paired):
    rng = np.random.default_rng(6)
    a, b = rng.lognormal(0, 0.1, 9), rng.lognormal(0.05, 0.1, 9)
    there, back = ratio_interval(a, b, paired=paired), ratio_interval(b, a, paired=paired)
    assert (there.ratio, there.low, there.high) == pytest.approx((1 / back.ratio, 1 / back.high, 1 / back.low))
    scaled = ratio_interval(a, 3 * b, paired=paired)
    assert (scaled.ratio, scaled.low, scaled.high) == pytest.approx((3 * there.ratio, 3 * there.low, 3 * there.high))
    assert there.low <= there.ratio <= there.high


def test_a_constant_ratio_is_found_exactly():
    interval = ratio_interval(np.arange(1.0, 7), 1.5 * np.arange(1.0, 7), paired=True)
    assert (interval.ratio, interval.low, interval.high) == pytest.approx((1.5, 1.5, 1.5))


@pytest.mark.parametrize(("m", "n", "paired"), [(5, 5, True), (3, 4, False), (0, 0, True), (1, 100, False)])
def test_too_few_blocks_for_an_interval_are_refused(m, n, paired):
    with pytest.raises(UsageError, match="too few blocks"):
        ratio_interval(np.ones(m), np.ones(n), paired=paired, confidence=0.99 if n == 100 else 0.95)


def test_paired_blocks_of_unequal_number_are_refused():
    with pytest.raises(UsageError, match="7 and 6"):
        ratio_interval(np.ones(7), np.ones(6), paired=True)


@pytest.mark.parametrize(
    ("low", "high", "regressed", "conclusive"),
    [
        (0.95, 0.99, False, True),
        (0.99, 1.03, False, True),
        (1.01, 1.02, False, True),  # slower, but within what is allowed
        (1.00, 1.10, False, False),
        (1.03, 1.10, False, False),
        (1.031, 1.10, True, True),
        (2.00, 3.00, True, True),
    ],
)
def test_a_gate_fails_on_a_proven_slow_down_alone(low, high, regressed, conclusive):
    interval = RatioInterval((low + high) / 2, low, high, 0.95, True)
    verdict = gate(interval, max_regression=0.03)
    assert (verdict.regressed, verdict.conclusive) == (regressed, conclusive)
    assert verdict.interval is interval
