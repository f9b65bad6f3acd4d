"""Designs against all designs there are, and against chance."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.predictor.design import choose_probes


def covariance(regressors: np.ndarray, chosen: np.ndarray, noise: float) -> np.ndarray:
    z = regressors[list(chosen)]
    return np.linalg.inv(np.eye(regressors.shape[1]) + z.T @ z / noise**2)


def loss(regressors: np.ndarray, chosen: np.ndarray, noise: float, criterion: str) -> float:
    left = covariance(regressors, chosen, noise)
    if criterion == "D":
        return float(np.linalg.slogdet(left)[1])
    return float(np.mean([z @ left @ z for z in regressors]))


@pytest.mark.parametrize("criterion", ["D", "I"])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_choice_of_four_from_twelve_is_better(criterion: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    regressors = rng.normal(size=(12, 5)) * [2.0, 1.0, 1.0, 0.5, 0.1]
    chosen = choose_probes(regressors, 0.3, 4, rng, criterion, starts=6)
    best = min(loss(regressors, np.array(c), 0.3, criterion) for c in combinations(range(12), 4))
    assert loss(regressors, chosen, 0.3, criterion) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("criterion", ["D", "I"])
def test_a_design_beats_random_choices_on_average(criterion: str) -> None:
    rng = np.random.default_rng(1)
    designed, drawn = [], []
    for _ in range(20):
        regressors = rng.normal(size=(200, 6))
        chosen = choose_probes(regressors, 0.2, 8, rng, criterion)
        designed.append(loss(regressors, chosen, 0.2, criterion))
        drawn.append(loss(regressors, rng.choice(200, 8, replace=False), 0.2, criterion))
    assert np.mean(designed) < np.mean(drawn)
    assert np.mean(np.array(designed) < np.array(drawn)) == 1


def test_a_noisy_candidate_is_passed_over() -> None:
    regressors = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    chosen = choose_probes(regressors, np.array([5.0, 0.1, 0.1]), 2, np.random.default_rng(0))
    assert chosen.tolist() == [1, 2]


def test_probes_are_distinct_candidates_in_order_and_the_same_for_one_seed() -> None:
    regressors = np.random.default_rng(2).normal(size=(50, 4))
    candidates = [3, 7, 7, 11, 13, 17, 19, 23]
    chosen = choose_probes(regressors, 0.1, 6, np.random.default_rng(5), candidates=candidates)
    assert len(set(chosen.tolist())) == 6
    assert set(chosen.tolist()) <= set(candidates)
    assert chosen.tolist() == sorted(chosen.tolist())
    again = choose_probes(regressors, 0.1, 6, np.random.default_rng(5), candidates=candidates)
    assert chosen.tolist() == again.tolist()


def test_all_candidates_can_be_asked_for() -> None:
    chosen = choose_probes(np.eye(4), 0.1, 4, np.random.default_rng(0), "I")
    assert chosen.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("regressors", "noise", "count"),
    [
        (np.eye(3), 0.1, 4),
        (np.eye(3), 0.1, 0),
        (np.eye(3), 0.0, 1),
        (np.eye(3), np.array([0.1, np.nan, 0.1]), 1),
        (np.array([[1.0], [np.inf]]), 0.1, 1),
        (np.ones(3), 0.1, 1),
    ],
)
def test_what_cannot_be_designed_is_refused(regressors: np.ndarray, noise: float, count: int) -> None:
    with pytest.raises(UsageError):
        choose_probes(regressors, noise, count, np.random.default_rng(0))


def test_an_unknown_criterion_is_named() -> None:
    with pytest.raises(UnknownNameError, match="'A'"):
        choose_probes(np.eye(2), 0.1, 1, np.random.default_rng(0), "A")
