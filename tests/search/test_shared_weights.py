"""Search with shared weights: rounds, limits, and what a strategy is told."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from akd_deploy.errors import InfeasibleBudgetError, UsageError
from akd_deploy.recipes.oracle_kd import memory_bytes
from akd_deploy.search import REWARD_PRESETS
from akd_deploy.search.shared_weights import Limit, SharedSearchSettings, search_shared_weights
from akd_deploy.search.strategies import STRATEGIES, load_strategy
from akd_deploy.search_space.augmented import IDENTITY, AugmentedSpace

SPACE = AugmentedSpace()
SMALL_SPACE = AugmentedSpace({"widths": [8, 12], "strides": [1, 2], "depths": [1, 1], "operators": [IDENTITY, "conv3"]})
"""64 encodings."""
SETTINGS = SharedSearchSettings(rounds=6, trained=4, judged=8, derived=8)


def added(architecture) -> int:
    return sum(value != IDENTITY for name, value in architecture.choices.items() if name.endswith(".op"))


def accuracy(architecture) -> float:
    """The better the more is added."""
    return 0.4 + 0.1 * added(architecture)


def limited(most: float, shape: str | None = None) -> list[Limit]:
    return [Limit("layers", added, most, None if shape is None else REWARD_PRESETS[shape])]


def found(
    limits=(), strategy="akd-reinforce", seed=0, settings=SETTINGS, rounds=None, judge=accuracy, last=None, space=SPACE
):
    def train(candidates):
        if rounds is not None:
            rounds.append(candidates)

    rng = np.random.default_rng(seed)
    asked = load_strategy(strategy, seed)
    return search_shared_weights(space, asked, train, judge, last or judge, limits, settings, rng)


def test_every_round_trains_and_judges_as_many_as_asked_and_the_best_of_the_last_is_the_result():
    rounds: list = []
    result = found(rounds=rounds)
    assert [len(candidates) for candidates in rounds] == [4] * 6
    assert len(result.judged) == 6 * 8 + 8
    assert result.last == result.judged[-8:]
    assert result.best.reward == max(one.reward for one in result.last)
    assert (result.refused, result.stopped) == (0, "rounds")


@pytest.mark.parametrize("space", [SPACE, SMALL_SPACE])
def test_those_that_the_result_is_chosen_among_are_judged_by_a_judge_of_their_own(space):
    """In a space that is used up before, too."""
    settings = SharedSearchSettings(rounds=3, trained=4, judged=13, derived=21)
    result = found(strategy="random", settings=settings, judge=lambda one: 0.25, last=accuracy, space=space)
    assert {one.accuracy for one in result.judged[:-21]} == {0.25}
    assert len(result.last) == 21
    assert all(one.accuracy == accuracy(one.architecture) for one in result.last)


def test_a_warm_up_trains_candidates_at_random_within_the_limits_and_tells_the_strategy_nothing():
    rounds: list = []
    with_warmup = found(limited(1), settings=replace(SETTINGS, warmup=5), rounds=rounds)
    assert [len(candidates) for candidates in rounds] == [4] * 11
    drawn = [one for candidates in rounds[:5] for one in candidates]
    assert all(added(one) <= 1 for one in drawn)
    assert len({one.text for one in drawn}) > 10
    # What it is told, and so what it proposes afterwards, is what it would have been without.
    rest: list = []
    without = found(limited(1), rounds=rest)
    assert rounds[5:] == rest
    assert [one.architecture for one in with_warmup.judged] == [one.architecture for one in without.judged]
    limit = Limit("layers", lambda architecture: 1 + added(architecture), 0.5)
    with pytest.raises(InfeasibleBudgetError, match="at random"):
        found([limit], settings=SharedSearchSettings(warmup=1, max_draws=20))


@pytest.mark.parametrize("strategy", ["akd-reinforce", "akd-ppo", "evolution", "random", "tpe"])
def test_nothing_over_a_hard_limit_is_trained_or_judged_by_any_strategy(strategy):
    rounds: list = []
    result = found(limited(1), strategy, rounds=rounds)
    assert all(added(one.architecture) <= 1 for one in result.judged)
    assert all(added(one) <= 1 for candidates in rounds for one in candidates)
    assert result.refused > 0
    assert all(one.costs == {"layers": added(one.architecture)} for one in result.judged)


def test_a_shape_trades_the_cost_off_instead():
    result = found(limited(1, "soft"))
    assert max(added(one.architecture) for one in result.judged) == 3
    for one in result.judged:
        if (layers := added(one.architecture)) > 0:
            assert one.reward == pytest.approx(one.accuracy * layers**-0.07)


def test_a_controller_learns_what_is_rewarded():
    settings = SharedSearchSettings(rounds=60, trained=1, judged=8, derived=8)
    result = found(settings=settings, judge=lambda architecture: 0.8 - 0.1 * added(architecture))
    first, last = result.judged[:80], result.judged[-80:]
    assert np.mean([one.accuracy for one in last]) > np.mean([one.accuracy for one in first]) + 0.05


def within_memory(strategy, times, seed, settings):
    """A search whose accuracy grows by 0.3 up to the limit of so many times the backbone, seen through a batch's noise;
    the search, and of how much of the limit its last candidates make use."""
    most, noise = times * memory_bytes(SPACE, SPACE.backbone()), np.random.default_rng([seed, 5])
    limit = Limit("memory", lambda architecture: memory_bytes(SPACE, architecture), most)

    def judge(architecture):
        return float(np.clip(0.2 + 0.3 * memory_bytes(SPACE, architecture) / most + 0.02 * noise.normal(), 0, 1))

    result = found([limit], strategy, seed, settings, judge=judge)
    return result, np.mean([one.costs["memory"] for one in result.last]) / most


@pytest.mark.parametrize("strategy", ["akd-reinforce", "akd-ppo"])
def test_a_controller_whose_reward_grows_with_memory_ends_near_the_limit(strategy):
    settings = SharedSearchSettings(rounds=40, trained=1, judged=8, derived=32)
    used = [within_memory(strategy, 1.3, seed, settings)[1] for seed in range(3)]
    assert np.mean(used) > 0.95


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_goes_on_where_most_of_what_it_draws_is_refused(strategy):
    """Of all encodings 4 % are within this limit."""
    result, used = within_memory(strategy, 1.05, 0, SharedSearchSettings())
    assert len(result.judged) == 10 * 8 + 32
    assert result.refused > 100
    assert used > 0.9


def test_one_seed_gives_one_search():
    first, again, other = (found(limited(2), seed=seed) for seed in (1, 1, 2))
    assert [one.architecture for one in first.judged] == [one.architecture for one in again.judged]
    assert [one.architecture for one in first.judged] != [one.architecture for one in other.judged]


def test_limits_that_nothing_keeps_are_an_error_that_says_how_far_off():
    limit = Limit("layers", lambda architecture: 1 + added(architecture), 0.5)
    with pytest.raises(InfeasibleBudgetError, match=r"nearest is [2-8]\.00 times over"):
        found([limit], settings=SharedSearchSettings(max_draws=20))


@pytest.mark.parametrize("strategy", ["constrained_evolution", "random", "tpe"])
def test_a_space_that_is_used_up_ends_the_search_with_the_best_of_what_was_judged(strategy):
    """After three rounds of 4 and 13 at most 13 of 64 are left for the 21 that the result is to be chosen among."""
    settings = SharedSearchSettings(rounds=3, trained=4, judged=13, derived=21)
    result = found(strategy=strategy, settings=settings, space=SMALL_SPACE)
    assert result.stopped == "exhausted"
    told = {one.architecture for one in result.judged[:-21]}
    assert len(told) == 3 * 13
    assert len({one.architecture for one in result.last}) == 21
    again = [one.architecture for one in result.last if one.architecture in told]
    assert again == [one.architecture for one in reversed(result.judged[:-21])][: len(again)]  # the newest
    assert len(again) >= 8
    assert result.best.reward == max(one.reward for one in result.last)


def test_a_space_that_is_used_up_before_anything_was_judged_is_an_error():
    settings = SharedSearchSettings(trained=70)
    with pytest.raises(
        InfeasibleBudgetError, match=r"none left after 64, \d+ of them over the limits.*fewer in a round"
    ):
        found(limited(1), "random", settings=settings, space=SMALL_SPACE)


class EverMore:
    """Proposes the backbone five times, and afterwards only what has most added."""

    def update_search_space(self, search_space):
        self.options = {name: choice["_value"] for name, choice in search_space.items()}

    def generate_parameters(self, parameter_id):
        return {name: options[0 if parameter_id < 5 else -1] for name, options in self.options.items()}

    def receive_trial_result(self, parameter_id, parameters, value):
        assert parameter_id < 5

    def trial_end(self, parameter_id, success):
        assert not success or parameter_id < 5


def test_when_nothing_more_is_within_the_limits_the_search_ends_with_what_was_judged():
    def ended(trained, judged, rounds):
        settings = SharedSearchSettings(trained=trained, judged=judged, rounds=rounds, max_draws=40)
        result = search_shared_weights(
            SPACE,
            EverMore(),
            lambda candidates: None,
            accuracy,
            accuracy,
            limited(1),
            settings,
            np.random.default_rng(0),
        )
        assert (result.stopped, result.refused) == ("draws", 40)
        assert {one.architecture for one in result.judged} == {SPACE.backbone()}
        return len(result.judged), len(result.last)

    assert ended(trained=2, judged=3, rounds=2) == (3 + 1, 1)  # judged again, once
    assert ended(trained=1, judged=2, rounds=1) == (2 + 2, 2)  # it is among the last already


@pytest.mark.parametrize("most", [0, -1, float("nan"), float("inf")])
def test_limits_and_counts_are_positive(most):
    with pytest.raises(UsageError, match="layers"):
        Limit("layers", added, most)
    with pytest.raises(UsageError, match="rounds"):
        SharedSearchSettings(rounds=0)
    with pytest.raises(UsageError, match="warmup of at least 0"):
        SharedSearchSettings(warmup=-1)
