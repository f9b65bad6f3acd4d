import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from akd_deploy.binomial import binomial_cdf
from akd_deploy.bounds import order_statistic_upper_bound_s, samples_needed
from akd_deploy.certificate import allowed_exceedances, certify
from akd_deploy.errors import UsageError
from benchmarks.simulations import certificate_passes

RUNS = 2_500
"""Of each simulation."""


def upper_95(hits: int, runs: int) -> float:
    """Exact upper bound of a rate at 95 % confidence (Clopper and Pearson)."""
    return float(stats.beta.ppf(0.95, hits + 1, runs - hits))


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
    exceeding = (rng.random((RUNS, 1_000)) > 0.8999).sum(axis=1)
    passed = int((exceeding <= allowed_exceedances(1_000, 90, 0.99)).sum())
    assert stats.binomtest(passed, RUNS, 0.01, alternative="greater").pvalue > 0.01


@pytest.mark.parametrize("percentile", [50, 70, 80, 90, 95, 99])
def test_a_process_with_as_many_over_as_may_be_has_not_failed(percentile):
    allowed = round(100 - percentile)
    blocks = {i: np.concatenate([np.full(100 - allowed, 1e-3), np.full(allowed, 3e-3)]) for i in range(12)}
    assert certify(blocks, 2e-3, percentile).failing_blocks == 0
    blocks[3] = np.concatenate([np.full(99 - allowed, 1e-3), np.full(allowed + 1, 3e-3)])
    assert certify(blocks, 2e-3, percentile).failing_blocks == 1


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
        "pooled_ok": True,
        "clustered_ok": True,
        "clustered_upper_s": 1e-3,  # the medians are equal: the bound is the 998th of all samples
        "failing_blocks": 1,  # the fourth, by itself
        "failing_share_upper": pytest.approx(0.50435, abs=1e-5),
    }
    blocks[4] = blocks[3]
    failed = certify(blocks, budget_s=2e-3, percentile=99, confidence=0.99)
    assert (failed.ok, failed.pooled_ok, failed.clustered_ok) == (False, False, False)


def test_a_certificate_that_ten_alike_processes_pass_is_refused_to_ten_that_differ():
    """Nine processes well within the budget and one at it: how the eleventh will be, nobody knows."""
    rng = np.random.default_rng(8)
    alike = {i: rng.normal(1e-3, 1e-6, 100) for i in range(10)}
    certificate = certify(alike, budget_s=1.05e-3)
    assert (certificate.ok, certificate.pooled_ok, certificate.clustered_ok) == (True, True, True)
    differing = {i: samples * 0.9 ** (i % 3) for i, samples in alike.items()}
    certificate = certify(differing, budget_s=1.05e-3)
    assert (certificate.ok, certificate.pooled_ok, certificate.clustered_ok) == (False, True, False)
    assert certificate.exceeding == 0
    assert certificate.clustered_upper_s > certificate.budget_s


@pytest.mark.parametrize("between", [0.005, 0.03])
def test_processes_that_differ_are_not_falsely_certified_and_those_within_the_budget_pass(between):
    """At the true p90 every pass is false; pooled samples alone would pass a quarter and more of the runs."""
    rng = np.random.default_rng(9)
    false = certificate_passes(between, 0.0, 2_000, rng)
    assert upper_95(round(false.both * 2_000), 2_000) <= 0.01
    assert false.pooled > 0.2
    # Power: budgets with twice the processes' scatter, and 5 %, above the true p90 are hardly ever missed.
    assert certificate_passes(between, 0.05 + 2 * between, 500, rng).both > 0.95


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
