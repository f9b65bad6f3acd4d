import itertools
import logging
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from contracts.strategy_contract import SPACE, StrategyContract, accuracy, predict

from akd_deploy.errors import InfeasibleBudgetError, MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.search.strategies import STRATEGIES, LatencyBudget, load_strategy, nni_space, require_nni

SMALL = {f"c{i}": {"_type": "choice", "_value": list(range(size))} for i, size in enumerate((4, 6, 6))}
"""144 encodings, in NNI's form."""


class TestRandom(StrategyContract):
    name = "random"
    learns = False

    def drawn(self, seed, count):
        strategy = load_strategy("random", seed)
        strategy.update_search_space(SMALL)
        return [tuple(strategy.generate_parameters(number).values()) for number in range(count)]

    @pytest.mark.parametrize(("count", "redraws"), [(32, None), (100, None), (100, 1)])
    def test_of_a_small_space_every_encoding_is_drawn_about_as_often(self, count, redraws, monkeypatch):
        """The first ones too, which NNI's own replacement of repeats includes nearly always; and where what is left is
        listed."""
        if redraws is not None:
            monkeypatch.setattr("akd_deploy.search.strategies.nni_tuners.NewAtRandom.MAX_DRAWS", redraws)
        seeds, share = 300, count / 144
        often = Counter(row for seed in range(seeds) for row in self.drawn(seed, count))
        found = np.array([often[row] for row in itertools.product(range(4), range(6), range(6))]) / seeds
        # Draws without repetition: of the 144 deviations 143 are free.
        chi_square = 143 / 144 * (seeds * (found - share) ** 2 / (share * (1 - share))).sum()
        assert scipy.stats.chi2.sf(chi_square, 143) > 0.001

    def test_an_encoding_is_drawn_once_and_when_all_were_it_says_so(self):
        from nni import NoMoreTrialError

        assert len(set(self.drawn(0, 144))) == 144
        with pytest.raises(NoMoreTrialError):
            self.drawn(0, 145)


class TestEvolution(StrategyContract):
    name = "evolution"


class TestTpe(StrategyContract):
    name = "tpe"


class TestAkdPpo(StrategyContract):
    name = "akd-ppo"
    proposes_within_budget = True


class TestAkdReinforce(StrategyContract):
    name = "akd-reinforce"
    proposes_within_budget = True


class TestConstrainedEvolution(StrategyContract):
    name = "constrained_evolution"
    proposes_within_budget = True

    def test_walks_into_a_budget_that_a_single_encoding_in_221184_meets(self):
        fastest_s = 1.1e-3  # every choice at its first option
        strategy = self.fresh(0, LatencyBudget(fastest_s * 1.0001, _upper_s))
        only = strategy.generate_parameters(0)
        assert _upper_s([only])[0] == pytest.approx(fastest_s)

    def test_a_child_differs_from_every_earlier_proposal(self):
        rows = self.proposals(seed=6, count=200)
        assert len({tuple(row.items()) for row in rows}) == 200

    def test_the_oldest_leaves_the_population_even_if_it_is_the_best(self):
        strategy = load_strategy("constrained_evolution", 0, {"population": 4, "tournament": 4, "crossover": 1e-9})
        strategy.update_search_space(nni_space(SPACE))
        best = strategy.generate_parameters(0)
        strategy.receive_trial_result(0, best, 1.0)
        for number in range(1, 5):
            strategy.receive_trial_result(number, strategy.generate_parameters(number), 0.1 * number)
        parents = [tuple(map(int, strategy._parent())) for _ in range(20)]
        assert tuple(SPACE.tokens(SPACE.architecture(best))) not in parents
        assert len(set(parents)) == 1  # the whole population competes, and one of it is the best

    def test_reaches_nearly_the_best_reward_in_a_hundred_trials(self):
        """Additive accuracy: the greatest over the space is known without looking at it."""
        strategy = self.fresh(7)
        values = []
        for number in range(150):
            row = strategy.generate_parameters(number)
            values.append(accuracy(SPACE.architecture(row)))
            strategy.receive_trial_result(number, row, values[-1])
        assert max(values) > 0.97 * 0.9


def test_every_strategy_has_a_contract_test():
    tested = {kind.name for kind in StrategyContract.__subclasses__()}
    assert set(STRATEGIES) <= tested


def test_an_unknown_strategy_or_setting_is_named_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="Did you mean 'evolution'"):
        load_strategy("evolutoin", 0)
    with pytest.raises(UnknownNameError, match="population_size"):
        load_strategy("evolution", 0, {"population": 4})
    with pytest.raises(UsageError, match="n_startup_jobs"):
        load_strategy("tpe", 0, {"n_startup_jobs": 0})


@pytest.mark.parametrize(
    ("strategy", "setting", "value"),
    [
        ("constrained_evolution", "crossover", 1.5),
        ("akd-ppo", "baseline_decay", 1.01),
        ("akd-reinforce", "baseline_decay", 2),
        ("akd-ppo", "entropy", float("inf")),
        ("akd-ppo", "clip", float("nan")),
        ("akd-ppo", "batch", 1.5),
        ("evolution", "population_size", True),
    ],
)
def test_a_setting_out_of_its_range_is_refused(strategy, setting, value):
    with pytest.raises(UsageError, match=f"setting {setting} of strategy {strategy}"):
        load_strategy(strategy, 0, {setting: value})


def test_the_space_in_nni_form_keeps_names_options_and_order():
    form = nni_space(SPACE)
    assert list(form) == list(SPACE.choices)
    assert form["b0.op"] == {"_type": "choice", "_value": ["conv", "dw_separable", "mbconv3", "mbconv6"]}


def test_an_infeasible_budget_is_told_after_bounded_work():
    asked = []

    def upper_s(candidates):
        asked.append(len(candidates))
        return _upper_s(candidates)

    strategy = load_strategy("constrained_evolution", 0, budget=LatencyBudget(1e-3, upper_s))
    strategy.update_search_space(nni_space(SPACE))
    with pytest.raises(InfeasibleBudgetError, match=r"within 1 ms.*bound by 1\.1 ms"):
        strategy.generate_parameters(0)
    assert sum(asked) < 20_000


def test_without_nni_the_error_says_where_it_can_be_had(monkeypatch):
    monkeypatch.setitem(sys.modules, "nni", None)
    with pytest.raises(MissingRuntimeError, match="x86_64"):
        load_strategy("random", 0)


def test_nni_writes_nothing_to_standard_output(capsys):
    require_nni()
    logging.getLogger("nni.tuner.tpe").info("heard by nobody")
    strategy = load_strategy("tpe", 0)
    strategy.update_search_space(nni_space(SPACE))
    strategy.generate_parameters(0)
    logging.getLogger("nni").warning("no handler of NNI's left")
    assert capsys.readouterr().out == ""


def test_importing_the_room_loads_neither_nni_nor_torch():
    code = "import sys, akd_deploy.search; print([m for m in ('nni', 'torch', 'scipy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def _upper_s(candidates):
    return np.asarray(predict([SPACE.architecture(candidate) for candidate in candidates])[1])


def test_strategies_begin_to_learn_within_a_quarter_of_a_small_search() -> None:
    from akd_deploy.search.strategies import BEGINS_TO_LEARN, settings_for
    from akd_deploy.search.strategies.constrained_evolution import ConstrainedEvolutionSettings
    from akd_deploy.search.strategies.nni_tuners import TpeSettings
    from akd_deploy.search.strategies.policy_gradient import ReinforceSettings

    classes = {
        "akd-reinforce": ReinforceSettings, "tpe": TpeSettings, "constrained_evolution": ConstrainedEvolutionSettings,
    }  # fmt: skip
    assert BEGINS_TO_LEARN.keys() == classes.keys()
    for name, (setting, default) in BEGINS_TO_LEARN.items():
        assert getattr(classes[name](), setting) == default
        assert settings_for(name, 1_000, {}) == {setting: default}
        assert settings_for(name, 16, {}) == {setting: 4}
        assert settings_for(name, 3, {}) == {setting: 4}
        assert settings_for(name, 16, {setting: 12}) == {setting: 12}
    assert settings_for("random", 16, {}) == {}


def test_a_search_of_sixteen_trials_breeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the population of a large search all of its candidates would be random ones."""
    from akd_deploy.search import SearchSettings, search
    from akd_deploy.search.strategies import constrained_evolution
    from akd_deploy.search.trial import Score

    bred: list[object] = []
    child = constrained_evolution.ConstrainedEvolution._child

    def watched(self: constrained_evolution.ConstrainedEvolution) -> object:
        bred.append(child(self))
        return bred[-1]

    monkeypatch.setattr(constrained_evolution.ConstrainedEvolution, "_child", watched)
    found = search(
        SPACE,
        "constrained_evolution",
        lambda architectures: (np.full(len(architectures), 1e-4), np.full(len(architectures), 1e-4)),
        lambda architecture, seed: Score(0.5),
        SearchSettings(trials=16, budget_s=1e-3),
    )
    assert sum(trial.state == "done" for trial in found.trials) == 16
    assert len(bred) == len(found.trials) - 4
