import numpy as np
import pytest

from akd_deploy.pipeline.feasibility import feasibility
from akd_deploy.search_space import load_space
from akd_deploy.search_space.operations import operations

SPACE = load_space(
    "mobile",
    {"widths": [8, 16], "strides": [1, 2], "layers": [[1], [1, 2]], "operators": ["conv", "mbconv3"], "kernels": [3]},
)
TAIL = 1.25


class Tabulated:
    """Every choice costs what a fixed draw says, and pairs of neighbours something too: no sum of single choices."""

    def __init__(self, seed=0):
        rng = np.random.default_rng(seed)
        self.space = SPACE
        self.single = [rng.uniform(1, 5, len(options)) for options in SPACE.choices.values()]
        self.pair = rng.uniform(0, 1, (4, 4))

    def latencies_s(self, tokens):
        seconds = sum(cost[tokens[:, i]] for i, cost in enumerate(self.single))
        seconds = (seconds + self.pair[tokens[:, 5], tokens[:, 11]]) * 1e-6
        return seconds, 1.1 * seconds


def everything(compiled):
    options = [range(len(values)) for values in SPACE.choices.values()]
    return np.array(np.meshgrid(*options)).reshape(len(options), -1).T


@pytest.fixture
def few_samples(monkeypatch):
    """So few that the extremes are not among them, as in a space worth searching."""
    monkeypatch.setattr("akd_deploy.pipeline.feasibility.SAMPLES", 100)


@pytest.mark.parametrize("seed", range(3))
def test_the_extremes_are_those_of_the_whole_space(few_samples, seed):
    compiled = Tabulated(seed)
    latency_s, upper_s = compiled.latencies_s(everything(compiled))
    assert len(latency_s) == SPACE.size
    found = feasibility(compiled, np.random.default_rng(0), None, TAIL)
    assert found.min_s == pytest.approx(latency_s.min())
    assert found.max_s == pytest.approx(latency_s.max())
    assert found.min_s < found.median_s < found.max_s
    assert found.fastest_bound_s == pytest.approx(TAIL * upper_s.min())
    assert found.fraction_within_budget is None
    assert sum(found.counts) == found.sampled


def test_the_share_within_a_budget_is_that_of_the_whole_space():
    compiled = Tabulated()
    _, upper_s = compiled.latencies_s(everything(compiled))
    budget_s = TAIL * float(np.quantile(upper_s, 0.3))
    found = feasibility(compiled, np.random.default_rng(0), budget_s, TAIL)
    assert found.fraction_within_budget == pytest.approx(0.3, abs=0.02)
    assert found.median_s == pytest.approx(np.median(upper_s) / 1.1, rel=0.01)


def test_a_budget_is_infeasible_exactly_below_the_fastest_bound(few_samples):
    compiled = Tabulated()
    fastest_s = feasibility(compiled, np.random.default_rng(0), None, TAIL).fastest_bound_s
    just_met = feasibility(compiled, np.random.default_rng(0), fastest_s * 1.000001, TAIL)
    assert just_met.reachable
    missed = feasibility(compiled, np.random.default_rng(0), fastest_s * 0.999, TAIL)
    assert (missed.reachable, missed.fraction_within_budget) == (False, 0)


def test_parameters_are_those_of_the_architectures_at_the_extremes():
    compiled = Tabulated()
    tokens = everything(compiled)
    latency_s, _ = compiled.latencies_s(tokens)
    found = feasibility(compiled, np.random.default_rng(0), None, TAIL)
    for index, parameters in ((latency_s.argmin(), found.min_parameters), (latency_s.argmax(), found.max_parameters)):
        layers = SPACE.layers(SPACE.from_tokens(tokens[index]))
        assert parameters == sum(step.parameters for step in operations(layers))


def test_one_seed_gives_one_answer():
    first, second = (feasibility(Tabulated(), np.random.default_rng(4), 2e-5, TAIL) for _ in range(2))
    assert first == second
