"""Nodes to leave in float: the right ones, no more than needed, in a bounded number of trials."""

from __future__ import annotations

from math import ceil, inf, log2, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.errors import UsageError
from akd_deploy.export.sensitivity import FIRST_GROUPS, Score, exclude_sensitive, output_error


class Network:
    """Whose error is the root of the sum of squares of what each quantised node adds."""

    def __init__(self, errors: list[float], limit: float) -> None:
        self.nodes = [f"n{i}" for i in range(len(errors))]
        self.errors = dict(zip(self.nodes, errors, strict=True))
        self.limit = limit
        self.asked: list[frozenset[str]] = []

    def error(self, excluded) -> float:
        return sqrt(sum(e * e for node, e in self.errors.items() if node not in excluded))

    def trial(self, excluded) -> Score:
        self.asked.append(frozenset(excluded))
        error = self.error(excluded)
        return Score(error, error <= self.limit)


def test_nothing_is_excluded_where_all_of_it_is_good_enough():
    network = Network([0.01] * 10, limit=0.1)
    found = exclude_sensitive(network.nodes, network.trial)
    assert (found.excluded, found.score.within, found.trials) == ((), True, 1)


@given(size=st.integers(1, 150), where=st.integers(0, 149))
def test_one_bad_node_is_found_alone_and_quickly(size, where):
    errors = [1e-3] * size
    errors[where % size] = 1.0
    network = Network(errors, limit=0.1)
    found = exclude_sensitive(network.nodes, network.trial)
    assert found.names == (f"n{where % size}",)
    assert found.score.within
    assert found.excluded[0].effect == pytest.approx(network.error(()) - network.error(found.names))
    group = ceil(size / FIRST_GROUPS)
    assert found.trials == len(network.asked) <= 1 + FIRST_GROUPS + 2 * ceil(log2(max(1, group))) + 1


@given(st.data())
def test_a_few_bad_nodes_are_those_that_a_search_through_all_of_them_leaves_out(data):
    """The slow way: try each node, leave the best one out, begin again."""
    size = data.draw(st.integers(3, 40))
    bad = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=3))
    scale = data.draw(st.permutations([1.0, 2.0, 4.0]))
    errors = [1e-3] * size
    for i, node in enumerate(sorted(bad)):
        errors[node] = scale[i]
    network = Network(errors, limit=0.1)
    slow: tuple[str, ...] = ()
    while network.error(slow) > network.limit:
        slow += (min((n for n in network.nodes if n not in slow), key=lambda n: network.error((*slow, n))),)
    found = exclude_sensitive(network.nodes, network.trial, max_trials=100)
    assert set(found.names) == set(slow)
    assert found.score.within


def test_nodes_that_matter_only_together_are_excluded_together():
    def trial(excluded):
        error = 0.0 if {"n2", "n3"} <= set(excluded) else 1.0
        return Score(error, error < 0.5)

    found = exclude_sensitive([f"n{i}" for i in range(16)], trial)
    assert found.names == ("n2", "n3")
    assert [(one.effect, one.together) for one in found.excluded] == [(1.0, 2), (1.0, 2)]


@given(max_trials=st.integers(1, 30), size=st.integers(1, 60))
def test_never_more_trials_than_allowed_and_what_is_not_reached_is_told(max_trials, size):
    network = Network([1.0] * size, limit=0.0)
    found = exclude_sensitive(network.nodes, network.trial, max_trials)
    assert found.trials == len(network.asked) <= max_trials
    assert len(set(network.asked)) == len(network.asked)
    assert found.score == Score(network.error(found.names), network.error(found.names) <= 0)
    assert len(set(found.names)) == len(found.names)


def test_a_network_that_overflows_everywhere_is_mended_where_it_can_be():
    def trial(excluded):
        return Score(0.01, within=True) if "n5" in excluded else Score(inf, within=False)

    found = exclude_sensitive([f"n{i}" for i in range(20)], trial)
    assert found.names == ("n5",)
    assert found.excluded[0].as_dict() == {"node": "n5", "effect": None, "together": 1}
    nothing = exclude_sensitive(["a", "b"], lambda excluded: Score(inf, within=False))
    assert (nothing.excluded, nothing.score.within) == ((), False)


def test_no_trial_is_refused():
    with pytest.raises(UsageError, match="0 trials"):
        exclude_sensitive(["a"], lambda excluded: Score(0, within=True), 0)


def test_the_error_is_the_norm_of_the_difference_over_that_of_the_reference():
    reference = [{"y": np.array([3.0, 0.0]), "z": np.array([[4.0]])}]
    candidate = [{"y": np.array([3.0, 1.0]), "z": np.array([[4.0]])}]
    assert output_error(reference, candidate) == pytest.approx(1 / 5)
    assert output_error(reference, reference) == 0
    masked = [{"y": np.array([-np.inf, 2.0])}]
    assert output_error(masked, masked) == 0
    assert output_error(masked, [{"y": np.array([1.0, 2.0])}]) == inf
    assert output_error([{"y": np.zeros(2)}], [{"y": np.zeros(2)}]) == 0
    assert output_error([{"y": np.zeros(2)}], [{"y": np.ones(2)}]) == inf
