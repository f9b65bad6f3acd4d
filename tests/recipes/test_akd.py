import json

import numpy as np
import pytest

from akd_deploy.recipes.akd import ARMS, compare_akd_with_nas
from akd_deploy.search import Score, SearchSettings
from akd_deploy.search_space import load_space

SPACE = load_space(
    "mobile",
    {"widths": [8, 16], "strides": [1, 2], "layers": [[1], [1, 2]], "operators": ["conv", "dw_separable"]},
)
SETTINGS = SearchSettings(trials=12, budget_s=1.0, seed=3)


def predict(architectures):
    latency_s = np.array([0.1 * float(a.choices["b0.width"]) for a in architectures])
    return latency_s, 1.1 * latency_s


def taught(architecture):
    """What a network learns from the teacher: the more the wider it is."""
    return 0.2 + 0.3 * float(architecture.choices["b1.width"])


def untaught(architecture):
    """And from labels alone: the less the wider it is."""
    return 0.9 - taught(architecture)


class Trainings:
    """Score and train functions that remember their calls."""

    def __init__(self):
        self.scored, self.trained = [], []

    def score(self, architecture, seed, method):
        self.scored.append((architecture.digest, seed, method))
        return Score({"kd": taught, "ce": untaught}[method](architecture), seconds=0.25)

    def train(self, architecture, seed, method):
        self.trained.append((architecture.digest, seed, method))
        return {"kd": taught, "ce": untaught}[method](architecture) + seed / 1000


def compare(trainings, settings=SETTINGS, seeds=(11, 12, 13)):
    return compare_akd_with_nas(SPACE, "random", predict, trainings.score, trainings.train, settings, seeds)


def test_the_arms_differ_only_in_the_method_their_candidates_are_trained_by():
    trainings = Trainings()
    compare(trainings)
    by_method = {method: [call[:2] for call in trainings.scored if call[2] == method] for method in ("kd", "ce")}
    # Random search learns nothing: with one seed, both arms see the same candidates with the same seeds.
    assert by_method["kd"] == by_method["ce"]
    assert len(by_method["kd"]) == SETTINGS.trials
    assert ARMS == {"akd": "kd", "nas": "ce"}


def test_each_arm_finds_what_its_own_reward_prefers():
    comparison = compare(Trainings())
    akd, nas = comparison.winners["akd"], comparison.winners["nas"]
    assert float(akd.choices["b1.width"]) > float(nas.choices["b1.width"])
    assert comparison.searches["akd"].best.accuracy == pytest.approx(taught(akd))
    assert comparison.searches["nas"].best.accuracy == pytest.approx(untaught(nas))


def test_both_winners_are_trained_both_ways_with_the_same_seeds():
    trainings = Trainings()
    comparison = compare(trainings)
    digest = {arm: winner.digest for arm, winner in comparison.winners.items()}
    assert sorted(trainings.trained) == sorted(
        (digest[arm], seed, method) for arm in ARMS for method in ("kd", "ce") for seed in (11, 12, 13)
    )
    for arm, winner in comparison.winners.items():
        for method, accuracy in (("kd", taught), ("ce", untaught)):
            expected = [accuracy(winner) + seed / 1000 for seed in (11, 12, 13)]
            assert list(comparison.accuracies[arm][method]) == pytest.approx(expected)


def test_full_trainings_use_the_seeds_given_and_searches_their_own():
    trainings = Trainings()
    compare(trainings)
    assert {seed for _, seed, _ in trainings.trained} == {11, 12, 13}
    assert not {seed for _, seed, _ in trainings.scored} & {11, 12, 13}


def test_the_comparison_is_json_and_one_seed_gives_one_comparison():
    first, second = compare(Trainings()).as_dict(), compare(Trainings()).as_dict()
    assert json.loads(json.dumps(first, allow_nan=False)) == first
    assert first["winners"] == second["winners"]
    assert first["accuracies"] == second["accuracies"]
    assert set(first["search_seconds"]) == {"akd", "nas"}
    assert first["search_seconds"]["akd"] >= 12 * 0.25
