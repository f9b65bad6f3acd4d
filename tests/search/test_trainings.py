"""Several candidates in training at a time: one seed gives one search, whatever ends first and whoever goes on."""

from __future__ import annotations

import random

import pytest
from contracts.strategy_contract import SMALL_SPACE, SPACE, _without_times, accuracy, budget_of_quantile, predict, score

from akd_deploy.errors import ExperimentError, TrainingError
from akd_deploy.search import Journal, SearchSettings, Trainings, search
from akd_deploy.search.strategies import STRATEGIES
from akd_deploy.search.trainings import Ended

BUDGET_S = budget_of_quantile(SPACE, 0.5)


class Shuffled(Trainings):
    """`jobs` at a time, of which any may end next; breaks down when `breaks_at` have ended."""

    def __init__(self, jobs, order=0, breaks_at=None, fails=lambda seed: False):
        self.jobs, self.rng, self.breaks_at, self.fails = jobs, random.Random(order), breaks_at, fails
        self.at_work, self.most, self.ended, self.is_all = [], 0, 0, False

    def start(self, trial, reward_per_accuracy):
        assert not self.is_all
        self.at_work.append(trial)
        self.most = max(self.most, len(self.at_work))

    def next_ended(self):
        if self.ended == self.breaks_at:
            raise ExperimentError("a", "b", "c")
        self.ended += 1
        trial = self.at_work.pop(self.rng.randrange(len(self.at_work)))
        if self.fails(trial.seed):
            return Ended(trial.id, TrainingError("a loss", "nan", "Lower it."), 0.5)
        return Ended(trial.id, score(trial.architecture, trial.seed), 0.5)

    def no_more(self):
        self.is_all = True


def found(trials):
    return [_without_times(trial) for trial in trials]


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_what_ends_first_does_not_change_a_search(strategy):
    settings = SearchSettings(trials=20, budget_s=BUDGET_S, seed=2, max_failures=20)
    whole = [Shuffled(4, order, fails=lambda seed: seed % 5 == 0) for order in range(2)]
    first, second = (search(SPACE, strategy, predict, trainings, settings) for trainings in whole)
    assert found(first.trials) == found(second.trials)
    assert all(trainings.most == 4 and trainings.is_all for trainings in whole)
    assert first.counts["done"] + first.counts["failed"] == 20
    assert all(t.accuracy == accuracy(t.architecture) for t in first.trials if t.state == "done")


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_a_search_of_several_at_a_time_is_retraced_by_one_that_trains_one(strategy):
    """Broken down in the middle, with results in the journal that the strategy was not told yet."""
    settings = SearchSettings(trials=24, budget_s=BUDGET_S, seed=1, max_draws=3000)
    with Journal() as journal:
        with pytest.raises(ExperimentError):
            search(SPACE, strategy, predict, Shuffled(4, breaks_at=13), settings, journal)
        before = {trial.id: trial for trial in journal.trials()}
        assert sum(trial.state == "done" for trial in before.values()) == 13
        assert journal.overlaps()
        resumed = search(SPACE, strategy, predict, score, settings, journal)
        again = search(SPACE, strategy, predict, Shuffled(3), settings, journal)
    assert not resumed.diverged
    assert not again.diverged
    assert again.trials == resumed.trials
    for number, trial in before.items():
        if trial.state == "running":
            assert resumed.trials[number].attempts == 2
        else:
            assert resumed.trials[number] == trial
    assert resumed.counts["done"] == 24


def test_one_at_a_time_the_journal_is_that_of_this_process():
    settings = SearchSettings(trials=24, budget_s=BUDGET_S, seed=1)
    with Journal() as journal:
        elsewhere = search(SPACE, "tpe", predict, Shuffled(1), settings, journal)
        assert journal.overlaps() == {}
    assert found(elsewhere.trials) == found(search(SPACE, "tpe", predict, score, settings).trials)


def test_a_network_that_is_in_training_is_not_trained_twice():
    settings = SearchSettings(trials=1000, budget_s=1.0, max_draws=60)
    result = search(SMALL_SPACE, "evolution", predict, Shuffled(8), settings)
    networks = [trial.network for trial in result.trials if trial.state == "done"]
    assert len(networks) == len(set(networks)) > 20
    assert {trial.reward for trial in result.trials if trial.state == "duplicate"} <= {
        trial.reward for trial in result.trials if trial.state == "done"
    }


def test_more_trainings_at_a_time_than_a_population_has_members():
    settings = SearchSettings(trials=20, budget_s=1.0, strategy_settings={"population_size": 4})
    assert search(SPACE, "evolution", predict, Shuffled(9), settings).counts["done"] == 20


def test_failures_in_a_row_end_a_search_in_the_order_asked_for():
    settings = SearchSettings(trials=40, budget_s=BUDGET_S, max_failures=3)
    with Journal() as journal:
        with pytest.raises(TrainingError, match=r"asked for trial \d+; found 3 failed trainings in a row"):
            search(SPACE, "random", predict, Shuffled(4, fails=lambda seed: True), settings, journal)
        # What ended while it was counted is kept too.
        assert sum(trial.state == "failed" for trial in journal.trials()) >= 3
