"""Probes are chosen by what they tell of networks for the time they take."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.kernel import Kernel
from akd_deploy.predictor.features import coordinates, regime
from akd_deploy.predictor.kernel_cost import distances, matern
from akd_deploy.predictor.probe_choice import AMPLITUDE, LENGTHS, NOISE, OFFSET, OWN, choose_probes, expected_s


def conv(channels: int, size: int = 14, operator: str = "Conv") -> Kernel:
    return Kernel(
        operator,
        ((1, channels, size, size), (channels, channels, 3, 3)),
        ((1, channels, size, size),),
        attributes=(("groups", 1), ("kernel_size", (3, 3))),
    )


def relu(channels: int, size: int = 14) -> Kernel:
    return Kernel("Relu", ((1, channels, size, size),), ((1, channels, size, size),))


def expected_error(probes: list[dict[Kernel, int]], networks: list[dict[Kernel, int]]) -> float:
    """The posterior written out: Σ − ΣAᵀ(AΣAᵀ + noise)⁻¹AΣ, and the networks' relative variances under it."""
    kernels = sorted({kernel for row in (*probes, *networks) for kernel in row})
    place = np.array([coordinates(kernel) for kernel in kernels])
    same = np.array([[regime(a) == regime(b) for b in kernels] for a in kernels])
    prior = same * (OFFSET**2 + AMPLITUDE**2 * matern(distances(place, place, LENGTHS))) + OWN**2 * np.eye(len(kernels))

    def shares(row: dict[Kernel, int]) -> np.ndarray:
        seconds = np.array([row.get(kernel, 0) * expected_s(kernel) for kernel in kernels])
        return seconds / seconds.sum()

    a, t = np.array([shares(row) for row in probes]), np.array([shares(row) for row in networks])
    gain = prior @ a.T @ np.linalg.inv(a @ prior @ a.T + NOISE**2 * np.eye(len(a)))
    left = prior - gain @ a @ prior
    return float(np.sqrt(np.mean([row @ left @ row for row in t])))


rows = st.dictionaries(
    st.sampled_from([*(conv(c) for c in (8, 16, 64)), *(relu(c) for c in (8, 64)), conv(32, 7, "FusedConv")]),
    st.integers(1, 3),
    min_size=1,
    max_size=3,
)


@given(st.lists(rows, min_size=1, max_size=6), st.lists(rows, min_size=1, max_size=3))
def test_every_candidate_comes_once_and_the_error_expected_after_each_is_the_posteriors(candidates, networks) -> None:
    order = list(choose_probes(candidates, networks))
    assert sorted(choice.index for choice in order) == list(range(len(candidates)))
    for i, choice in enumerate(order):
        measured = [candidates[c.index] for c in order[: i + 1]]
        assert choice.error == pytest.approx(expected_error(measured, networks), rel=1e-6, abs=1e-9)
    errors = [choice.error for choice in order]
    assert all(b <= a + 1e-12 for a, b in pairwise(errors))


def slow_gain(measured: list[dict[Kernel, int]], candidate: dict[Kernel, int], network: dict[Kernel, int]) -> float:
    """Weighted variance of the network's kernels that the candidate takes away."""
    total = sum(count * expected_s(kernel) for kernel, count in network.items())
    gain = 0.0
    for kernel in {kernel for row in (*measured, candidate, network) for kernel in row}:
        weight = network.get(kernel, 0) * expected_s(kernel) / total + 1e-6
        before = expected_error(measured, [{kernel: 1}]) if measured else OFFSET**2 + AMPLITUDE**2 + OWN**2
        before = before**2 if measured else before
        gain += weight * (before - expected_error([*measured, candidate], [{kernel: 1}]) ** 2)
    return gain


def test_every_choice_takes_most_variance_away_given_those_before_it() -> None:
    candidates = [
        {conv(c, s): 1, relu(r): 2} for c, s, r in ((8, 14, 8), (16, 7, 64), (64, 14, 8), (64, 28, 64), (24, 9, 16))
    ]
    network = {conv(32): 3, conv(64, 28): 1, relu(16): 4}
    measured: list[dict[Kernel, int]] = []
    left = list(range(len(candidates)))
    for choice in choose_probes(candidates, [network]):
        gains = {i: slow_gain(measured, candidates[i], network) for i in left}
        assert gains[choice.index] == pytest.approx(max(gains.values()), rel=1e-3)
        measured.append(candidates[choice.index])
        left.remove(choice.index)


def test_what_networks_spend_their_time_on_is_measured_first() -> None:
    candidates = [{relu(16): 1}, {conv(256): 1}, {conv(16): 1}]
    order = [choice.index for choice in choose_probes(candidates, [{conv(256): 10, relu(256): 10}])]
    assert order[0] == 1


def test_a_probe_that_takes_longer_must_tell_more() -> None:
    candidates = [{conv(256): 1}, {conv(224): 1}]
    networks = [{conv(256): 1}]
    assert [c.index for c in choose_probes(candidates, networks, [1.0, 1.0])] == [0, 1]
    assert [c.index for c in choose_probes(candidates, networks, [10.0, 1.0])] == [1, 0]


def test_without_candidates_there_is_nothing_to_choose() -> None:
    assert list(choose_probes([], [{conv(8): 1}])) == []


def test_without_networks_every_candidate_comes_all_the_same() -> None:
    assert sorted(c.index for c in choose_probes([{conv(8): 1}, {relu(8): 1}], [])) == [0, 1]
