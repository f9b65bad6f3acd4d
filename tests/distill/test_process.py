"""Processes as values: normalisations, interpolation, controls, files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.distill.process import (
    NORMALISATIONS,
    Process,
    constant_process,
    load_process,
    mean_process,
    weights_of,
)
from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, UnknownNameError

NAMES = ("a", "b", "c")
RISING = Process(np.array([[0.0, 1.0, 2.0], [1.0, 1.0, 0.0], [4.0, 1.0, 1.0]]), NAMES)


def test_normalisations_by_hand() -> None:
    alpha = torch.tensor([1.0, 1.0])
    assert {name: weights_of(alpha, name, 3.0).tolist() for name in NORMALISATIONS} == {
        "constant": [3.0, 3.0],
        "softmax": [0.5, 0.5],
        "biased-softmax": pytest.approx([1 / 3, 1 / 3]),
        "sigmoid": pytest.approx([0.7310586, 0.7310586]),
        "absolute": [1.0, 1.0],
        "absolute-share": [1.5, 1.5],
        "bounded-share": pytest.approx([10 / 3, 10 / 3]),
        "scaled-biased-softmax": pytest.approx([2.0, 2.0]),
    }
    with pytest.raises(UnknownNameError, match="biased-softmax"):
        weights_of(alpha, "soft-max")


@pytest.mark.parametrize("name", ["biased-softmax", "scaled-biased-softmax", "sigmoid", "absolute"])
def test_all_weights_can_vanish_together(name: str) -> None:
    alpha = torch.full((3,), 0.0 if name == "absolute" else -30.0)
    assert float(weights_of(alpha, name).sum()) < 1e-9


@given(steps=st.integers(1, 300))
def test_a_stretched_process_begins_and_ends_as_it_does_and_stays_between(steps: int) -> None:
    found = RISING.stretched(steps)
    assert found.shape == (steps, 3)
    if steps > 2:
        assert found[0].tolist() == [0.0, 1.0, 2.0]
        assert found[-1] == pytest.approx([4.0, 1.0, 1.0])
    if steps % 3 == 0:
        assert found.mean(0) == pytest.approx(RISING.time_mean().weights[0])
    assert found.mean(0) == pytest.approx(RISING.time_mean().weights[0], abs=2 / steps)
    assert (found >= RISING.weights.min(0) - 1e-12).all()
    assert (found <= RISING.weights.max(0) + 1e-12).all()


def test_between_two_moments_it_is_their_mixture_and_of_one_moment_it_is_constant() -> None:
    assert RISING.stretched(5)[1] == pytest.approx([0.4, 1.0, 1.2])
    assert RISING.stretched(1)[0] == pytest.approx([1.0, 1.0, 0.0])
    assert RISING.stretched(3) == pytest.approx(RISING.weights)
    assert constant_process({"a": 1.0, "b": 0.5}).stretched(4).tolist() == [[1.0, 0.5]] * 4


def test_controls_are_what_they_are_called() -> None:
    assert RISING.time_mean().weights == pytest.approx(np.array([[5 / 3, 1.0, 1.0]]))
    assert RISING.final().weights.tolist() == [[4.0, 1.0, 1.0]]
    assert RISING.reversed().weights.tolist() == RISING.weights[::-1].tolist()
    shuffled = RISING.shuffled(np.random.default_rng(0)).weights
    assert sorted(map(tuple, shuffled.T)) == sorted(map(tuple, RISING.weights.T))
    assert all((shuffled[:, i] != RISING.weights[:, i]).any() for i in range(3))
    assert RISING.scaled_to(1.0).weights.sum(1).mean() == pytest.approx(1.0)
    assert RISING.smoothed(2).weights == pytest.approx(np.array([[0.5, 1.0, 1.0], [4.0, 1.0, 1.0]]))
    with pytest.raises(MismatchError, match="all 0"):
        Process(np.zeros((2, 3)), NAMES).scaled_to(1.0)


def test_a_random_process_keeps_every_moments_sum_and_walks() -> None:
    long = Process(np.tile(RISING.weights, (2000, 1)), NAMES)
    random = long.at_random(np.random.default_rng(0))
    assert random.pathways == NAMES
    assert random.weights.sum(1) == pytest.approx(long.weights.sum(1))
    shares = random.weights / random.weights.sum(1, keepdims=True)
    # Evenly likely: a share of three is below x with probability 1 − (1 − x)², whichever pathway's it is.
    for x in (0.1, 0.3, 0.6):
        assert (shares < x).mean(0) == pytest.approx(1 - (1 - x) ** 2, abs=0.05)
    assert np.corrcoef(shares[1:, 0], shares[:-1, 0])[0, 1] > 0.7
    assert (random.weights != long.at_random(np.random.default_rng(1)).weights).any()


def test_processes_of_searches_of_other_lengths_are_averaged() -> None:
    other = Process(np.zeros((5, 3)), NAMES)
    assert mean_process([RISING, other]).weights == pytest.approx(RISING.stretched(5) / 2)
    with pytest.raises(MismatchError, match="2 sets"):
        mean_process([RISING, Process(np.zeros((1, 1)), ("a",))])


def test_a_process_survives_the_disk_and_what_is_none_is_said(tmp_path) -> None:
    path = tmp_path / "deep" / "process.json"
    RISING.save(path)
    again = load_process(path)
    assert again.pathways == NAMES
    assert np.array_equal(again.weights, RISING.weights)
    with pytest.raises(MissingFileError, match="nowhere"):
        load_process(tmp_path / "nowhere.json")
    for text in ("{", '{"format": 1, "pathways": ["a"], "weights": [[1, 2]]}', '{"format": 9}', "[]", '{"format": 1}'):
        path.write_text(text)
        with pytest.raises(CorruptFileError):
            load_process(path)


@pytest.mark.parametrize("weights", [[[1.0, 2.0]], [[-1.0, 0.0, 0.0]], [[np.nan, 0.0, 0.0]], np.zeros((0, 3))])
def test_weights_that_make_no_process_are_refused(weights) -> None:
    with pytest.raises(MismatchError):
        Process(np.array(weights), NAMES)
