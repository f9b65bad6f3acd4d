"""What every search strategy must do; subclass it with a name of `STRATEGIES`."""

import functools
import random

import numpy as np
import pytest

from akd_deploy.errors import InfeasibleBudgetError, TrainingError
from akd_deploy.search import Journal, Score, SearchSettings, open_journal, search
from akd_deploy.search.strategies import LatencyBudget, load_strategy, nni_space
from akd_deploy.search_space import load_space

SPACE = load_space("mobile", {"widths": [16, 24], "strides": [1, 2], "layers": [[1, 2], [1, 2, 3]]})
"""221,184 encodings of two blocks."""

SMALL_SPACE = load_space("mobile", {"widths": [16], "strides": [1], "layers": [[1, 2]], "skips": ["none"]})
"""128 encodings of one block, each another network."""


def predict(architectures):
    """Two lookups and a sum per choice: the later an option, the slower; the bound is 10 % above."""
    latency_s = np.array([1e-3 + 1e-3 * sum(_positions(a)) for a in architectures])
    return latency_s, 1.1 * latency_s


def accuracy(architecture):
    """The later an option the better, with saturation, but each choice to another degree."""
    positions = _positions(architecture)
    weights = np.linspace(1, 3, len(positions))
    return float(0.2 + 0.7 * (weights * np.sqrt(positions)).sum() / weights.sum())


def score(architecture, seed):
    return Score(accuracy(architecture), {"seed": seed}, seconds=0.5)


@functools.cache
def budget_of_quantile(space, fraction):
    """The budget that this fraction of the encodings keeps to, in seconds."""
    tokens = space.sample_tokens(1000, np.random.default_rng(0))
    return float(np.quantile(predict([space.from_tokens(row) for row in tokens])[1], fraction))


def _positions(architecture):
    """Where each choice stands among its options, 0 to 1."""
    space = SPACE if len(architecture.settings["widths"]) == 2 else SMALL_SPACE
    tokens = space.tokens(architecture)
    return tokens / np.array([max(1, len(options) - 1) for options in space.choices.values()])


def _without_times(trial):
    fields = {name: getattr(trial, name) for name in trial.__dataclass_fields__}
    for name in ("started", "finished", "attempts"):
        del fields[name]
    return fields


class StrategyContract:
    """Promises of a strategy, alone and in the in-process driver."""

    name: str
    learns = True
    proposes_within_budget = False

    def settings(self, **changes):
        return SearchSettings(**{"trials": 40, "budget_s": budget_of_quantile(SPACE, 0.5), "seed": 3, **changes})

    def fresh(self, seed, budget=None):
        strategy = load_strategy(self.name, seed, budget=budget)
        strategy.update_search_space(nni_space(SPACE))
        return strategy

    def proposals(self, seed, count=60):
        strategy, rows = self.fresh(seed), []
        for number in range(count):
            rows.append(dict(strategy.generate_parameters(number)))
            if number % 7 == 6:
                strategy.trial_end(number, False)
            else:
                value = accuracy(SPACE.architecture(rows[-1]))
                strategy.receive_trial_result(number, rows[-1], value)
                strategy.trial_end(number, True)
        return rows

    def test_every_proposal_is_an_architecture_of_the_space(self):
        for row in self.proposals(seed=0, count=150):
            SPACE.architecture(row)

    def test_one_seed_gives_one_answer_whatever_else_draws_random_numbers(self):
        first = self.proposals(seed=1)
        random.seed(99)
        before = random.getstate()
        assert self.proposals(seed=1) == first
        assert random.getstate() == before
        assert self.proposals(seed=2) != first

    def test_history_from_elsewhere_can_be_imported(self):
        strategy = self.fresh(seed=4)
        rng = np.random.default_rng(4)
        history = [SPACE.sample(rng) for _ in range(30)]
        strategy.import_data([{"parameter": dict(a.choices), "value": accuracy(a)} for a in history])
        for number in range(10):
            SPACE.architecture(strategy.generate_parameters(number))

    def test_search_improves_on_its_first_proposals(self):
        gains = []
        for seed in range(4):
            result = search(SPACE, self.name, predict, score, self.settings(trials=60, seed=seed))
            rewards = [trial.reward for trial in result.trials if trial.state == "done"]
            gains.append(np.mean(rewards[-20:]) - np.mean(rewards[:10]))
            assert result.best.reward == max(rewards)
        if self.learns:
            assert np.mean(gains) > 2 * np.std(gains, ddof=1) / 2

    def test_nothing_over_the_budget_is_trained(self):
        settings = self.settings(trials=30, budget_s=budget_of_quantile(SPACE, 0.05), max_draws=3000)
        trained = []
        result = search(SPACE, self.name, predict, lambda a, seed: trained.append(a) or score(a, seed), settings)
        assert result.counts["done"] == len(trained) == 30
        assert (predict(trained)[1] <= settings.budget_s).all()
        assert (result.counts["infeasible"] == 0) == self.proposes_within_budget

    def test_the_published_reward_acts_alone_when_nothing_is_constrained(self):
        settings = self.settings(trials=20, budget_s=budget_of_quantile(SPACE, 0.05), constraint="none")
        result = search(SPACE, self.name, predict, score, settings)
        assert result.counts["infeasible"] == 0
        assert max(trial.upper_s for trial in result.trials) > settings.budget_s

    def test_a_budget_that_nothing_meets_is_an_error_that_names_the_fastest_found(self):
        with pytest.raises(InfeasibleBudgetError) as caught:
            search(SPACE, self.name, predict, score, self.settings(budget_s=0.5e-3, max_draws=200))
        assert caught.value.details["fastest_s"] >= 1.1e-3
        assert "0.5 ms" in str(caught.value)

    def test_failed_trainings_do_not_end_the_search(self):
        calls = iter(range(1000))

        def often_failing(architecture, seed):
            if next(calls) % 3 == 2:
                raise TrainingError("a finite loss", "nan", "Lower the learning rate.")
            return score(architecture, seed)

        result = search(SPACE, self.name, predict, often_failing, self.settings(trials=30))
        assert (result.counts["done"], result.counts["failed"]) == (20, 10)

    def test_a_space_that_is_used_up_ends_the_search(self):
        settings = self.settings(trials=1000, budget_s=1.0, max_draws=400)
        result = search(SMALL_SPACE, self.name, predict, score, settings)
        assert result.stopped in ("exhausted", "draws")
        networks = [trial.network for trial in result.trials if trial.state == "done"]
        assert len(networks) == len(set(networks)) <= 128

    @pytest.mark.parametrize("fraction", [0.6, 0.1])
    def test_an_interrupted_and_resumed_search_equals_the_uninterrupted_one(self, tmp_path, fraction):
        budget_s = budget_of_quantile(SPACE, fraction)
        settings = self.settings(trials=24, budget_s=budget_s, max_draws=3000, max_failures=24)
        calls = iter(range(1000))

        def failing_on_some(architecture, seed):
            if seed % 5 == 0:
                raise ArithmeticError(f"seed {seed}")
            return score(architecture, seed)

        def interrupted_now_and_then(architecture, seed):
            if next(calls) in (0, 9, 10, 20):
                raise KeyboardInterrupt
            return failing_on_some(architecture, seed)

        whole = search(SPACE, self.name, predict, failing_on_some, settings, Journal())
        for attempt in range(5):
            with open_journal(tmp_path / "journal.sqlite", {}, resume=attempt > 0) as journal:
                if attempt < 4:
                    with pytest.raises(KeyboardInterrupt):
                        search(SPACE, self.name, predict, interrupted_now_and_then, settings, journal)
                else:
                    resumed = search(SPACE, self.name, predict, interrupted_now_and_then, settings, journal)
                    recorded = journal.trials()
        assert not resumed.diverged
        without_seconds = [_without_times(trial) | {"seconds": 0} for trial in whole.trials]
        assert [_without_times(trial) | {"seconds": 0} for trial in resumed.trials] == without_seconds
        assert [trial.id for trial in recorded] == list(range(len(whole.trials)))
        assert sum(trial.attempts for trial in recorded) == 24 + 4

    def test_the_budget_is_looked_at_through_the_function_handed_in(self):
        asked = []

        def upper_s(candidates):
            asked.extend(candidates)
            return predict([SPACE.architecture(candidate) for candidate in candidates])[1]

        budget_s = budget_of_quantile(SPACE, 0.01)
        strategy = self.fresh(5, LatencyBudget(budget_s, upper_s))
        proposed = [strategy.generate_parameters(number) for number in range(10)]
        assert bool(asked) == self.proposes_within_budget
        if self.proposes_within_budget:
            assert (upper_s(proposed) <= budget_s).all()
