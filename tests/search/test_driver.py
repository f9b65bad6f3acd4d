import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from contracts.strategy_contract import SMALL_SPACE, SPACE, accuracy, budget_of_quantile, predict, score

from akd_deploy.errors import (
    InfeasibleBudgetError,
    MismatchError,
    StorageError,
    TrainingError,
    UncoveredOperatorError,
    UnknownNameError,
    UsageError,
)
from akd_deploy.search import (
    REWARD_PRESETS,
    Journal,
    Score,
    SearchSettings,
    open_journal,
    read_journal,
    search,
)
from akd_deploy.search.enumerated import exact_optimum
from akd_deploy.search.reward import reward
from akd_deploy.search.strategies import load_strategy
from akd_deploy.search_space import load_space

BUDGET_S = budget_of_quantile(SPACE, 0.5)
HERE = Path(__file__)


class Scripted:
    """A tuner that proposes what it is given and remembers what it is told."""

    def __init__(self, rows):
        self.rows, self.told, self.history = list(rows), [], []

    def __call__(self, seed, settings, budget):
        return self

    def update_search_space(self, search_space):
        self.space = search_space

    def generate_parameters(self, parameter_id):
        from nni import NoMoreTrialError

        if parameter_id >= len(self.rows):
            raise NoMoreTrialError
        return self.rows[parameter_id]

    def receive_trial_result(self, parameter_id, parameters, value):
        assert parameters == self.rows[parameter_id]
        self.told.append((parameter_id, value))

    def trial_end(self, parameter_id, success):
        self.told.append((parameter_id, "end" if success else "failed"))

    def import_data(self, data):
        self.history += data


def architectures(count, seed=0, space=SMALL_SPACE):
    """Different networks of the small space, within 1 s all of them."""
    rng, found = np.random.default_rng(seed), {}
    while len(found) < count:
        architecture = space.sample(rng)
        found.setdefault(space.network_digest(architecture), architecture)
    return list(found.values())


def run(rows, trials, score=score, predict=predict, journal=None, space=SMALL_SPACE, **settings):
    tuner = Scripted([dict(row.choices) for row in rows])
    settings = SearchSettings(**{"trials": trials, "budget_s": 1.0, **settings})
    return tuner, search(space, tuner, predict, score, settings, journal)


def test_each_trained_candidate_is_told_its_reward():
    rows = architectures(4)
    tuner, result = run(rows, 4)
    expected = [reward(accuracy(a), predict([a])[0][0], 1.0, REWARD_PRESETS["soft"]) for a in rows]
    assert tuner.told == [entry for n in range(4) for entry in ((n, expected[n]), (n, "end"))]
    assert [trial.reward for trial in result.trials] == expected
    assert result.best.reward == max(expected)
    assert result.stopped == "trials"
    assert result.seconds["training"] == 4 * 0.5


def test_the_same_network_is_trained_once_and_its_reward_told_again():
    space = load_space("mobile", {"widths": [16], "strides": [1], "layers": [[1, 2]]})
    first = space.architecture(
        {"b0.op": "conv", "b0.kernel": 3, "b0.se": 0.0, "b0.skip": "none", "b0.layers": 1, "b0.width": 1.25}
    )
    # With one layer that changes the width there is nothing to skip: another encoding of the same network.
    same = space.architecture({**first.choices, "b0.skip": "identity"})
    other = space.architecture({**first.choices, "b0.kernel": 5})
    assert space.network_digest(first) == space.network_digest(same)
    tuner, result = run(
        [first, same, first, other],
        2,
        score=lambda architecture, seed: Score(0.5),
        predict=lambda asked: (np.full(len(asked), 1e-3), np.full(len(asked), 2e-3)),
        space=space,
    )
    assert [trial.state for trial in result.trials] == ["done", "duplicate", "duplicate", "done"]
    assert {value for number, value in tuner.told if number < 3 and value != "end"} == {result.trials[0].reward}
    assert result.counts == {"done": 2, "failed": 0, "infeasible": 0, "duplicate": 2}


def test_a_candidate_over_the_budget_is_told_how_far_over_and_never_trained():
    slow_first = sorted(architectures(20), key=lambda a: -predict([a])[1][0])
    budget_s = float(predict(slow_first)[1][10])
    tuner, result = run(slow_first, 3, budget_s=budget_s)
    told = [value for _, value in tuner.told if value != "end"]
    bounds = predict(slow_first)[1]
    assert told[:10] == pytest.approx([budget_s / bound - 1 for bound in bounds[:10]])
    assert [trial.state for trial in result.trials] == ["infeasible"] * 10 + ["done"] * 3
    assert all(trial.reward is None and trial.seconds == 0 for trial in result.trials[:10])


def test_a_failed_training_is_recorded_with_its_error_and_told_as_failed():
    def failing(architecture, seed):
        raise [TrainingError("a loss", "nan", "Lower it."), ZeroDivisionError("by 0"), RuntimeError("memory")].pop(
            len(seen) % 3
        )

    seen = []

    def score_or_fail(architecture, seed):
        seen.append(seed)
        return score(architecture, seed) if len(seen) > 3 else failing(architecture, seed)

    with Journal() as journal:
        tuner, result = run(architectures(5), 5, score_or_fail, journal=journal)
        errors = [trial.error for trial in journal.trials()[:3]]
    assert [text.split(":")[0] for text in errors] == ["ZeroDivisionError", "RuntimeError", "TrainingError"]
    assert tuner.told[:3] == [(0, "failed"), (1, "failed"), (2, "failed")]
    assert result.counts["done"] == 2


def test_failures_in_a_row_stop_the_search_with_the_last_error():
    def failing(architecture, seed):
        raise RuntimeError("out of memory")

    with Journal() as journal:
        with pytest.raises(TrainingError, match=r"3 failed trainings in a row.*out of memory") as caught:
            run(architectures(5), 5, failing, journal=journal, max_failures=3)
        assert isinstance(caught.value.__cause__, RuntimeError)
        assert [trial.state for trial in journal.trials()] == ["failed"] * 3
        _, result = run(architectures(5), 5, score, journal=journal, max_failures=3)
        assert result.counts == {"done": 2, "failed": 3, "infeasible": 0, "duplicate": 0}


def test_a_search_whose_trainings_all_failed_is_an_error():
    def failing(architecture, seed):
        raise RuntimeError("no")

    with pytest.raises(TrainingError, match="at least one trained student"):
        run(architectures(2), 2, failing)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), StorageError("a", "b", "c"), TypeError("a bug")])
def test_what_is_not_the_candidates_fault_leaves_its_trial_running(error):
    def broken(architecture, seed):
        raise error

    with Journal() as journal:
        with pytest.raises(type(error)):
            run(architectures(2), 2, broken, journal=journal)
        assert [trial.state for trial in journal.trials()] == ["running"]
        _, result = run(architectures(2), 2, score, journal=journal)
    assert [trial.attempts for trial in result.trials] == [2, 1]


def test_an_unknown_operator_ends_the_search():
    def uncovered(architectures):
        raise UncoveredOperatorError(["Einsum"], "a prediction", "Profile it.")

    with pytest.raises(UncoveredOperatorError):
        run(architectures(2), 2, predict=uncovered)


@pytest.mark.parametrize(
    "prediction",
    [
        (np.array([1e-3, 1e-3]), np.array([1e-3, 1e-3])),
        (np.array([np.nan]), np.array([1e-3])),
        (np.array([0.0]), np.array([1e-3])),
        (np.array([2e-3]), np.array([1e-3])),
        (np.array([1e-3]), np.array([np.inf])),
    ],
)
def test_impossible_predictions_are_refused(prediction):
    with pytest.raises(MismatchError):
        run(architectures(1), 1, predict=lambda _: prediction)


def test_refused_candidates_in_a_row_end_in_an_error_that_names_the_fastest():
    rows = architectures(20)
    with pytest.raises(InfeasibleBudgetError) as caught:
        run(rows, 3, budget_s=1e-4, max_draws=10)
    assert caught.value.details["fastest_s"] == pytest.approx(predict(rows[:10])[1].min())


def test_a_search_that_trained_something_ends_quietly_when_nothing_new_comes():
    row = architectures(1)[0]
    _, result = run([row] * 50, 3, max_draws=10)
    assert (result.stopped, result.counts["done"], result.counts["duplicate"]) == ("draws", 1, 10)
    _, result = run(architectures(2), 3)
    assert (result.stopped, result.counts["done"]) == ("exhausted", 2)


def test_a_seed_belongs_to_the_network_and_to_the_search():
    seeds = {}

    def remembering(architecture, seed):
        seeds.setdefault(architecture.text, []).append(seed)
        return score(architecture, seed)

    rows = architectures(3)
    run(rows, 3, remembering)
    run(rows[::-1], 3, remembering)
    assert all(len(set(values)) == 1 for values in seeds.values())
    assert len({values[0] for values in seeds.values()}) == 3
    run(rows, 3, remembering, seed=1)
    assert all(len(set(values)) == 2 for values in seeds.values())


def test_a_strategy_that_proposes_something_else_on_resume_gets_the_journal_as_history(caplog):
    rows, others = architectures(12), architectures(40, seed=5)
    others = [a for a in others if a not in rows]

    def interrupted(architecture, seed):
        if architecture == rows[6]:
            raise KeyboardInterrupt
        return score(architecture, seed)

    with Journal() as journal:
        with pytest.raises(KeyboardInterrupt):
            run(rows, 9, interrupted, journal=journal)
        with caplog.at_level(logging.WARNING):
            tuner, result = run(rows[:4] + others, 9, journal=journal)
        assert [t.architecture for t in result.trials] == rows[:7] + others[3:5]
        assert result.diverged
        assert tuner.told[8] == (4, "failed")
        assert [row["parameter"] for row in tuner.history] == [dict(row.choices) for row in rows[4:7]]
        assert [row["value"] for row in tuner.history] == [t.reward for t in result.trials[4:7]]
    assert "trial 4" in caplog.text


@pytest.mark.parametrize("name", ["constrained_evolution", "evolution", "random", "tpe"])
def test_every_strategy_carries_on_after_another_seeds_journal(name):
    """As after a change of NNI or numpy: what it would propose is not what the journal holds."""

    def of_seed(seed):
        def factory(_, settings, budget):
            return load_strategy(name, seed, settings, budget)

        return factory

    calls = iter(range(100))

    def interrupted(architecture, seed):
        if next(calls) == 15:
            raise KeyboardInterrupt
        return score(architecture, seed)

    settings = SearchSettings(trials=30, budget_s=BUDGET_S)
    with Journal() as journal:
        with pytest.raises(KeyboardInterrupt):
            search(SPACE, of_seed(0), predict, interrupted, settings, journal)
        before = [trial for trial in journal.trials() if trial.state != "running"]
        result = search(SPACE, of_seed(1), predict, score, settings, journal)
    assert result.diverged
    assert list(result.trials[: len(before)]) == before
    assert result.counts["done"] == 30


def test_a_journal_of_other_settings_is_refused_with_the_difference():
    with Journal() as journal:
        run(architectures(2), 2, journal=journal)
        with pytest.raises(MismatchError, match="seed: 0 → 4; trials: 2 → 3"):
            run(architectures(3), 3, journal=journal, seed=4)


def test_a_finished_search_is_read_from_its_journal_without_training():
    def forbidden(architecture, seed):
        raise AssertionError("trained again")

    heard = []
    settings = SearchSettings(trials=10, budget_s=BUDGET_S)
    with Journal() as journal:
        whole = search(SPACE, "tpe", predict, score, settings, journal, heard.append)
        assert tuple(heard) == whole.trials
        again = search(SPACE, "tpe", predict, forbidden, settings, journal, heard.append)
        assert tuple(heard) == whole.trials == again.trials == tuple(journal.trials())


def test_the_front_is_what_a_slow_second_look_finds():
    _, result = run(architectures(60), 60)
    done = [t for t in result.trials if t.state == "done"]
    points = {(t.latency_s, t.accuracy) for t in done}
    undominated = [p for p in points if not any(q != p and q[0] <= p[0] and q[1] >= p[1] for q in points)]
    assert 1 < len(undominated) < len(points)
    assert [(row["latency_s"], row["accuracy"]) for row in result.front()] == sorted(undominated)
    assert set(result.front()[0]) == {"arch", "latency_s", "reward", "accuracy"}
    json.dumps(result.front())


def test_conventional_search_differs_in_the_accuracy_alone():
    """The same code with another score: nothing else in the trials changes for a strategy that does not learn."""

    def labels_alone(architecture, seed):
        return Score(accuracy(architecture) / 2)

    settings = SearchSettings(trials=15, budget_s=BUDGET_S)
    kd, ce = (search(SPACE, "random", predict, function, settings) for function in (score, labels_alone))
    assert [t.architecture for t in kd.trials] == [t.architecture for t in ce.trials]
    assert [t.reward for t in ce.trials if t.reward] == pytest.approx([t.reward / 2 for t in kd.trials if t.reward])


@pytest.mark.parametrize("strategy", ["constrained_evolution", "evolution", "tpe"])
def test_regret_to_the_exact_optimum_of_a_small_space_is_small(strategy):
    """Half of the networks within the budget may be trained; the mean over seeds hides no lucky one."""
    budget_s = budget_of_quantile(SMALL_SPACE, 0.6)
    exact = exact_optimum(SMALL_SPACE, predict, accuracy, SearchSettings(trials=1, budget_s=budget_s))
    regrets = []
    for seed in range(3):
        settings = SearchSettings(trials=exact.within_budget // 2, budget_s=budget_s, seed=seed)
        regrets.append(exact.reward - search(SMALL_SPACE, strategy, predict, score, settings).best.reward)
    assert min(regrets) >= 0
    assert np.mean(regrets) < 0.02


def test_the_exact_optimum_is_that_of_a_plain_loop():
    settings = SearchSettings(trials=1, budget_s=budget_of_quantile(SMALL_SPACE, 0.3))
    exact = exact_optimum(SMALL_SPACE, predict, accuracy, settings)
    every = architectures(exact.networks, space=SMALL_SPACE)
    within = [a for a in every if predict([a])[1][0] <= settings.budget_s]
    rewards = [reward(accuracy(a), predict([a])[0][0], settings.budget_s, settings.shape) for a in within]
    assert (exact.networks, exact.within_budget, exact.reward) == (128, len(within), max(rewards))
    with pytest.raises(InfeasibleBudgetError):
        exact_optimum(SMALL_SPACE, predict, accuracy, SearchSettings(trials=1, budget_s=1e-4))
    with pytest.raises(UsageError, match="200000"):
        exact_optimum(SPACE, predict, accuracy, settings)


@pytest.mark.parametrize(
    "changes", [{"trials": 0}, {"budget_s": 0.0}, {"budget_s": float("nan")}, {"constraint": "lower"}, {"seed": -1}]
)
def test_settings_outside_their_range_are_refused(changes):
    with pytest.raises(UsageError):
        SearchSettings(**{"trials": 1, "budget_s": 1e-3, **changes})


def test_a_misspelt_strategy_setting_is_refused():
    settings = SearchSettings(trials=1, budget_s=1.0, strategy_settings={"populatoin": 3})
    with pytest.raises(UnknownNameError, match="population"):
        search(SPACE, "constrained_evolution", predict, score, settings)


# --- killed at any moment -------------------------------------------------------------------------------------------

KILL_SETTINGS = SearchSettings(trials=12, budget_s=budget_of_quantile(SPACE, 0.4), seed=2, max_draws=3000)


def killable_search(directory, strategy):
    """The search that is killed: notes every training that ended, and takes a few milliseconds for each."""
    import time

    def slow_score(architecture, seed):
        time.sleep(0.01)
        with (directory / "trained.txt").open("a") as file:
            file.write(architecture.text + "\n")
        return score(architecture, seed)

    with open_journal(directory / "journal.sqlite", {"a": 1}, resume=True) as journal:
        return search(SPACE, strategy, predict, slow_score, KILL_SETTINGS, journal)


KILLER = """
import os, random, signal, sys, time
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_driver import killable_search
from akd_deploy.search.strategies import load_strategy
for name in ("tpe", "evolution"):
    load_strategy(name, 0)  # import once, before forking
delays, kills = random.Random(int(sys.argv[5])), 0
while True:
    child = os.fork()
    if child == 0:
        killable_search(Path(sys.argv[3]), sys.argv[4])
        os._exit(0)
    time.sleep(delays.uniform(0.0, 0.03 + 0.01 * kills))  # ever longer, so that a slow machine gets through
    os.kill(child, signal.SIGKILL)
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0:
        break
    kills += 1
print(kills)
"""


@pytest.mark.parametrize("strategy", ["evolution", "tpe"])
def test_a_search_killed_at_any_moment_loses_at_most_the_training_in_flight_and_repeats_none(tmp_path, strategy):
    command = [sys.executable, "-c", KILLER, str(HERE.parent), str(HERE.parents[1]), str(tmp_path), strategy, "5"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kills = int(done.stdout)
    with read_journal(tmp_path / "journal.sqlite") as journal:
        trials = journal.trials()
    whole = search(SPACE, strategy, predict, score, KILL_SETTINGS)
    assert kills >= 1  # 12 trainings sleep for longer than the first delay can be; usually there are many
    assert [(t.id, t.architecture, t.state, t.reward) for t in trials] == [
        (t.id, t.architecture, t.state, t.reward) for t in whole.trials
    ]
    # A kill between the end of a training and its record costs that training: each has begun at most as often as
    # its row says, and all of them together at most once per kill more than there are rows.
    ended = Counter((tmp_path / "trained.txt").read_text().splitlines())
    done = [t for t in trials if t.state == "done"]
    assert all(1 <= ended[t.architecture.text] <= t.attempts for t in done)
    assert sum(t.attempts - 1 for t in done) <= kills


def test_strategies_screen_with_the_stand_in_and_candidates_are_judged_by_the_prediction():
    from akd_deploy.search import SearchSettings, search
    from akd_deploy.search_space import load_space

    space = load_space("mobile", {"widths": [8], "strides": [1], "layers": [[1, 2]]})
    screened, judged = [], []

    def predict(asked):
        judged.extend(asked)
        return np.full(len(asked), 1e-3), np.full(len(asked), 2e-3)

    def screen(asked):
        screened.append(len(asked))
        return np.full(len(asked), 1e-3), np.full(len(asked), 2e-3)

    result = search(
        space, "constrained_evolution", predict, lambda a, s: Score(0.5), SearchSettings(6, 3e-3), screen=screen
    )
    assert sum(screened) > 0
    assert len(judged) == len(result.trials)
