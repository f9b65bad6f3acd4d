"""Statistics over seeds: by hand, against scipy, and by simulation."""

import numpy as np
import pytest
import scipy.stats

from akd_deploy.recipes.paired_seeds import (
    holm,
    jensen_shannon,
    marginals,
    paired,
    preference_shift,
    rank_agreement,
    shared_shift,
    unpaired,
)


def test_a_paired_difference_is_scipys():
    rng = np.random.default_rng(0)
    a, b = rng.normal(1, 1, 8), rng.normal(0, 1, 8)
    found, theirs = paired(a, b), scipy.stats.ttest_rel(a, b)
    interval = theirs.confidence_interval(0.95)
    assert (found.mean, found.p) == pytest.approx((float((a - b).mean()), float(theirs.pvalue)))
    assert (found.low, found.high) == pytest.approx((float(interval.low), float(interval.high)))
    assert found.is_shown == (interval.low > 0 or interval.high < 0)


@pytest.mark.parametrize(("a", "b"), [([0.5], [0.25]), ([0.5, 0.75], [0.25, 0.5])])
def test_a_difference_that_scatters_nowhere_has_no_interval(a, b):
    found = paired(a, b)
    assert found.mean == 0.25
    assert np.isnan([found.low, found.high, found.p]).all()
    assert not found.is_shown


def test_values_that_are_not_paired_are_refused():
    with pytest.raises(ValueError, match="shapes"):
        paired([1.0, 2.0], [1.0])


def test_holm_by_hand():
    assert holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": float("nan")}) == pytest.approx(
        {"a": 0.03, "c": 0.06, "b": 0.06, "d": float("nan")}, nan_ok=True
    )
    assert holm({"a": 0.9, "b": 0.8}) == {"a": 1.0, "b": 1.0}


def replicas(rng, truth, noise, count=2):
    return truth[:, None] + noise * rng.standard_normal((len(truth), count))


def test_two_noisy_views_of_one_ranking_are_not_told_apart_and_of_two_rankings_are():
    rng = np.random.default_rng(1)
    truth, other = rng.normal(size=40), rng.normal(size=40)
    alike = rank_agreement(replicas(rng, truth, 0.5), replicas(rng, truth, 0.5), rng, draws=200)
    assert alike.low < 0 < alike.high
    apart = rank_agreement(replicas(rng, truth, 0.5, 4), replicas(rng, truth + other, 0.5, 4), rng, draws=200)
    assert apart.low > 0
    assert apart.gap == pytest.approx(apart.ceiling - apart.tau)


def test_unpaired_differences_are_scipys_welch() -> None:
    from scipy.stats import ttest_ind

    rng = np.random.default_rng(5)
    a, b = rng.normal(1.0, 0.2, size=4), rng.normal(0.7, 1.5, size=9)
    found, theirs = unpaired(a, b), ttest_ind(a, b, equal_var=False)
    assert found.p == pytest.approx(theirs.pvalue)
    assert (found.low, found.high) == pytest.approx(tuple(theirs.confidence_interval()))
    assert found.mean == pytest.approx(a.mean() - b.mean())
    assert np.isnan(unpaired([1.0], [0.5, 0.6]).p)
    assert np.isnan(unpaired([1.0, 1.0], [0.5, 0.5]).low)
    with pytest.raises(ValueError, match="shapes"):
        unpaired([], [1.0])


@pytest.mark.parametrize("noise", [(0.8, 0.8), (0.3, 1.2)])
def test_one_ranking_seen_through_unequal_noise_is_seldom_taken_for_two(noise):
    rng, gaps, shown = np.random.default_rng(4), [], 0
    for _ in range(16):
        truth = rng.normal(size=80)
        found = rank_agreement(replicas(rng, truth, noise[0], 3), replicas(rng, truth, noise[1], 3), rng, draws=30)
        gaps.append(found.gap)
        shown += found.low > 0
    assert abs(np.mean(gaps)) < 0.02
    assert shown <= 4


def test_luck_that_two_rewards_share_by_their_seeds_is_no_agreement():
    """Every replica's noise is the same for both: τ between replicas of one number would be 1."""
    rng = np.random.default_rng(2)
    truth, luck = rng.normal(size=60), 1.5 * rng.standard_normal((60, 4))
    found = rank_agreement(truth[:, None] + luck, truth[:, None] + luck, rng, draws=100)
    assert found.tau == pytest.approx(found.ceiling)
    assert found.tau < 0.5


def test_preferences_of_two_rewards_that_rank_alike_are_told_apart_as_rarely_as_promised():
    """Their best overlap, and noise moves some in and out: that is no shift."""
    rng, p_values = np.random.default_rng(7), []
    tokens = np.stack(np.meshgrid(range(3), range(3), range(2), range(2)), -1).reshape(-1, 4)
    for _ in range(60):
        truth = rng.normal(size=len(tokens))
        a, b = replicas(rng, truth, 0.8, 5), replicas(rng, 3 + 2 * truth, 1.6, 5)
        p_values.append(preference_shift(a, b, tokens, [3, 3, 2, 2], 8, rng, draws=60).p)
    assert np.mean(np.array(p_values) <= 0.1) == pytest.approx(0.1, abs=0.1)
    assert 0.3 < np.mean(p_values) < 0.7


def test_preferences_are_told_apart_as_rarely_where_replicas_share_their_luck():
    rng, p_values = np.random.default_rng(9), []
    tokens = np.stack(np.meshgrid(range(3), range(3), range(2), range(2)), -1).reshape(-1, 4)
    for _ in range(100):
        truth, luck = rng.normal(size=len(tokens)), 0.8 * rng.standard_normal((len(tokens), 5))
        a, b = (truth[:, None] + luck + 0.5 * rng.standard_normal(luck.shape) for _ in range(2))
        p_values.append(preference_shift(a, b, tokens, [3, 3, 2, 2], 8, rng, draws=60).p)
    assert 0.02 <= np.mean(np.array(p_values) <= 0.1) <= 0.2
    with pytest.raises(ValueError, match="shapes"):
        preference_shift(a, b[:, :3], tokens, [3, 3, 2, 2], 8, rng)


def test_rewards_that_prefer_another_option_are_told_apart_and_the_choice_is_named():
    rng = np.random.default_rng(8)
    tokens = np.stack(np.meshgrid(range(3), range(3), range(2), range(2)), -1).reshape(-1, 4)
    truth = 0.5 * rng.normal(size=len(tokens))
    other = truth + 1.5 * (tokens[:, 1] == 2)
    found = preference_shift(
        replicas(rng, truth, 0.3, 5), replicas(rng, other, 0.3, 5), tokens, [3, 3, 2, 2], 8, rng, draws=200
    )
    assert found.p < 0.02
    assert int(np.argmax(found.by_choice)) == 1
    assert found.distance > found.null


def test_rank_agreement_needs_replicas():
    with pytest.raises(ValueError, match="shapes"):
        rank_agreement(np.zeros((5, 1)), np.zeros((5, 2)), np.random.default_rng(0))


def test_jensen_shannon_is_scipys_and_one_for_what_has_nothing_in_common():
    from scipy.spatial.distance import jensenshannon

    rng = np.random.default_rng(0)
    a, b = rng.dirichlet(np.ones(5)), rng.dirichlet(np.ones(5))
    assert jensen_shannon(a, b) == pytest.approx(jensenshannon(a, b, base=2))
    assert jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])) == 1
    assert jensen_shannon(a, a) == 0


def test_marginals_count_options_that_nobody_chose():
    found = marginals(np.array([[0, 1], [0, 2], [1, 2], [0, 2]]), [2, 4])
    assert [row.tolist() for row in found] == [[0.75, 0.25], [0, 0.25, 0.75, 0]]


SIZES = [4, 2, 2, 3, 2, 4]


def two_runs(rng, preference=0.0, count=40):
    """Scores of the same architectures in two runs, as noisy as 0.6 of what tells them apart; in the second in other
    units, and with so many standard deviations more for one option."""
    tokens = np.column_stack([rng.integers(size, size=count) for size in SIZES])
    worth = [rng.normal(size=size) for size in SIZES]
    truth = np.sum([values[column] for values, column in zip(worth, tokens.T, strict=True)], axis=0)
    truth /= truth.std()
    a, b = (truth + 0.6 * rng.normal(size=count) for _ in range(2))
    b += preference * b.std() * (tokens[:, 1] == 0)
    return a, np.exp(3 + 0.1 * b), tokens


def test_runs_that_prefer_alike_are_told_apart_about_as_rarely_as_promised():
    rng = np.random.default_rng(11)
    p_values = np.array([shared_shift(*two_runs(rng), SIZES, rng, draws=60).p for _ in range(300)])
    assert 0.06 < np.mean(p_values <= 0.1) < 0.17
    assert 0.4 < np.mean(p_values) < 0.6


def test_a_strong_preference_among_forty_architectures_is_mostly_found_and_its_choice_named():
    rng = np.random.default_rng(12)
    found = [shared_shift(*two_runs(rng, preference=2), SIZES, rng, draws=60) for _ in range(40)]
    assert np.mean([one.p <= 0.05 for one in found]) > 0.8
    assert np.mean([int(np.argmax(one.by_choice)) == 1 for one in found]) > 0.8
    assert np.mean([one.distance > one.null for one in found]) > 0.9


def test_a_shift_of_runs_by_hand():
    """Of three architectures the best counts 9, the next 4, the worst 1, and two that are best 6.25 each."""
    tokens = np.array([[0], [0], [1]])

    def shift(a, b):
        return shared_shift(np.array(a), np.array(b), tokens, [2], np.random.default_rng(0), draws=50)

    found = shift([1.0, 2.0, 3.0], [0.9, 0.5, 0.1])
    assert found.distance == pytest.approx(jensen_shannon(np.array([5, 9]) / 14, np.array([13, 1]) / 14))
    assert found.by_choice == (pytest.approx(found.distance),)
    equal = shift([1.0, 2.0, 2.0], [2.0, 2.0, 1.0])
    expected = jensen_shannon(np.array([7.25, 6.25]) / 13.5, np.array([12.5, 1]) / 13.5)
    assert equal.distance == pytest.approx(expected)


def test_only_places_count():
    rng = np.random.default_rng(13)
    a, b, tokens = two_runs(rng)
    one = shared_shift(a, b, tokens, SIZES, np.random.default_rng(1), draws=50)
    other = shared_shift(a, 7 + b**3, tokens, SIZES, np.random.default_rng(1), draws=50)
    assert one.as_dict() == other.as_dict()
    equal = shared_shift(np.zeros(40), np.ones(40), tokens, SIZES, rng, draws=20)
    assert (equal.distance, equal.p) == (0, 1)
