import numpy as np
import pytest
from scipy import stats

from akd_deploy.comparison import (
    RatioInterval,
    blocks_needed,
    fewest_blocks,
    gate,
    ratio_interval,
    ratio_sigma,
)
from akd_deploy.errors import UsageError
from akd_deploy.measurement import Measurement
from benchmarks.simulations import detections, false_alarms

RUNS = 2_500
"""Of each simulation. At 5 % false alarms their rate is known to ± 0.44 % (one standard deviation)."""


def upper_95(hits: int, runs: int) -> float:
    """Exact upper bound of a rate at 95 % confidence (Clopper and Pearson)."""
    return float(stats.beta.ppf(0.95, hits + 1, runs - hits))


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


@pytest.mark.parametrize(
    ("paired", "confidence", "fewest"),
    [(True, 0.95, 6), (True, 0.8, 4), (True, 0.99, 8), (True, 0.999, 11), (False, 0.95, 4), (False, 0.99, 5)],
)
def test_a_refusal_names_the_fewest_blocks_that_give_an_interval_at_that_confidence(paired, confidence, fewest):
    assert fewest_blocks(paired, confidence) == fewest
    ratio_interval(np.ones(fewest), np.ones(fewest), paired=paired, confidence=confidence)
    with pytest.raises(UsageError, match=f"{100 * confidence:g} % interval") as caught:
        ratio_interval(np.ones(fewest - 1), np.ones(fewest - 1), paired=paired, confidence=confidence)
    assert (f"{fewest} paired blocks" if paired else f"{fewest} and {fewest} blocks") in caught.value.next


@pytest.mark.parametrize("confidence", [0.0, 1.0, 1.5, float("nan")])
def test_a_confidence_that_is_none_is_refused(confidence):
    with pytest.raises(UsageError, match="confidence"):
        ratio_interval(np.ones(6), np.ones(6), paired=True, confidence=confidence)


@pytest.mark.parametrize(("paired", "m", "n"), [(True, 5_000, 5_000), (False, 2_000, 1_500)])
def test_thousands_of_blocks_have_an_interval_that_is_as_narrow_as_their_number_makes_it(paired, m, n):
    rng = np.random.default_rng(7)
    a, b = rng.lognormal(0, 0.1, m), 1.02 * rng.lognormal(0, 0.1, n)
    interval = ratio_interval(a, b, paired=paired)
    # The normal interval of a shift, a little wider for the ranks: ± 1.96 σ √(1/m + 1/n) √(π/3).
    half = 1.96 * 0.1 * (1 / m + 1 / n) ** 0.5 * (np.pi / 3) ** 0.5
    assert interval.low < interval.ratio < interval.high
    assert np.log(interval.high / interval.low) / 2 == pytest.approx(half, rel=0.05)
    assert interval.low <= 1.02 <= interval.high


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


@pytest.mark.parametrize(("paired", "blocks"), [(True, 10), (True, 20), (False, 10)])
def test_benches_of_the_same_model_are_called_different_at_most_as_often_as_is_said(paired, blocks):
    alarms = false_alarms(paired, blocks, 3_000, np.random.default_rng(11))
    assert alarms.differs > 0.02
    assert upper_95(round(alarms.differs * 3_000), 3_000) <= 0.06


@pytest.mark.parametrize(("paired", "sigma"), [(True, 0.005), (True, 0.02), (True, 0.04), (False, 0.01), (False, 0.02)])
def test_a_slow_down_of_3_percent_is_found_in_95_percent_of_runs_at_the_stated_number_of_blocks(paired, sigma):
    found = detections(sigma, 0.03, paired, 2_000, np.random.default_rng(12))
    assert found.slower >= 0.95
    # The stated cost is not padded: two thirds of it would not do, unless it is the least there is.
    least = 6 if paired else 4
    assert found.blocks == least or found.slower < 0.995


@pytest.mark.parametrize(
    ("sigma", "effect", "paired", "blocks"),
    [
        # ((1.960 + 1.645) · σ / ln 1.03)² · π/3 + 1.92 + 1.5, rounded up
        (0.02, 0.03, True, 10),  # 6.23 + 3.42
        (0.03, 0.03, True, 18),  # 14.01 + 3.42
        (0.0, 0.03, True, 6),  # no interval from fewer
        (0.02, 0.03, False, 15),  # 2 · 6.23 + 0.96 + 1.5
        (0.0, 0.03, False, 4),
        (1.0, 0.03, True, 15_579),  # 15,575.3 + 3.42: a hopeless machine is told so
    ],
)
def test_blocks_needed_are_those_of_the_formula(sigma, effect, paired, blocks):
    assert blocks_needed(sigma, effect, paired=paired) == blocks


def test_a_gates_limit_is_seen_through_by_more_blocks():
    assert blocks_needed(0.02, 0.06, paired=True, limit=0.03) > blocks_needed(0.02, 0.06, paired=True)
    with pytest.raises(UsageError, match=r"3 that is not above|not above the limit"):
        blocks_needed(0.02, 0.03, paired=True, limit=0.03)
    for nonsense in (float("nan"), -0.1):
        with pytest.raises(UsageError, match="no number"):
            blocks_needed(nonsense, 0.03, paired=True)
    with pytest.raises(UsageError, match="power"):
        blocks_needed(0.02, 0.03, paired=True, power=1.0)


def test_the_scatter_of_a_ratio_is_that_of_paired_quotients_or_of_single_blocks():
    a = np.exp(np.array([0.0, 0.1, 0.2]))
    assert ratio_sigma(a, a * np.exp([0.0, 0.03, -0.03]), paired=True) == pytest.approx(0.03)
    assert ratio_sigma(a, 2 * a, paired=True) == pytest.approx(0.0)
    assert ratio_sigma(a, 2 * a, paired=False) == pytest.approx(0.1)
