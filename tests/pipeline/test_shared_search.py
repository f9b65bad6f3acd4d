"""Runs that search with shared weights: who is trained by itself afterwards, what is kept, and what is refused."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from akd_deploy.architecture import Architecture
from akd_deploy.configuration import RunConfiguration, configuration_from_dict
from akd_deploy.errors import CorruptFileError, InfeasibleBudgetError, UsageError
from akd_deploy.pipeline import shared_search
from akd_deploy.pipeline.check import check_configuration
from akd_deploy.pipeline.shared_search import candidates_by_shared_weights, within_memory
from akd_deploy.pipeline.training import load_bed
from akd_deploy.recipes import oracle_kd
from akd_deploy.recipes.oracle_kd import CONTROLLER, memory_bytes
from akd_deploy.search import Score, SearchSettings, search
from akd_deploy.search.shared_weights import Judged, SharedSearchResult
from akd_deploy.search.strategies import load_strategy
from akd_deploy.search.strategies.given import given_candidates
from akd_deploy.search_space import load_space

SETTINGS = {"resolution": 12, "widths": [8, 8], "depths": [1, 1], "strides": [1, 2]}
SPACE = load_space("augmented", SETTINGS)


def configured(settings: dict[str, Any] | None = None, **search: Any) -> RunConfiguration:
    short = {"steps": 4, "batch_size": 8}
    fields: dict[str, Any] = {
        "target": "cpu_onnxruntime_fp32", "budget": "1ms",
        "data": {"settings": {"labelled": 20, "teacher_images": 60, "views": 2}},
        "teacher": {"training": short}, "space": {"name": "augmented", "settings": SETTINGS},
        "search": {
            "strategies": ["akd-reinforce"], "weights": "shared",
            "shared": {"rounds": 2, "trained": 2, "judged": 3, "derived": 6, "training": short, **search},
        },
    }  # fmt: skip
    if settings is not None:
        fields["search"]["settings"] = settings
    return configuration_from_dict(fields, "here")


def predicted(architectures: Any) -> tuple[np.ndarray, np.ndarray]:
    """A nanosecond a byte."""
    latency_s = np.array([memory_bytes(SPACE, one) for one in architectures]) * 1e-9
    return latency_s, latency_s * 1.1


BIGGEST, SMALLEST = (
    pick(memory_bytes(SPACE, SPACE.sample(np.random.default_rng(seed))) for seed in range(200)) for pick in (max, min)
)


@pytest.fixture
def run(tmp_path: Path) -> Any:
    configuration = configured()
    bed = load_bed(configuration, SPACE, tmp_path)
    told: list[Any] = []
    return SimpleNamespace(
        space=SPACE, bed=bed, configuration=configuration, directory=tmp_path, told=told,
        on_progress=lambda *what: told.append(what),
    )  # fmt: skip


def test_the_last_candidates_within_the_budget_come_best_first_and_once_each(run: Any) -> None:
    budget_s = 1.1e-9 * (BIGGEST + SMALLEST) / 2
    candidates, facts = candidates_by_shared_weights(run, "akd-reinforce", budget_s, predicted)
    digests = [SPACE.network_digest(one) for one in candidates]
    assert 1 <= len(digests) == len(set(digests)) <= 6
    assert (predicted(candidates)[1] <= budget_s).all()
    assert facts["judged"] == 2 * 3 + 6
    assert facts["refused"] > 0
    assert facts["stopped"] == "rounds"
    assert run.told == [("training shared weights (akd-reinforce)", i, 2) for i in (1, 2)]


def test_of_the_last_candidates_the_one_with_the_greatest_reward_comes_first(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sampled = {SPACE.network_digest(one): one for one in (SPACE.sample(np.random.default_rng(i)) for i in range(40))}
    some = list(sampled.values())[:9]
    rewards = [9.0, 9.0, 9.0, 0.2, 0.6, 0.4, 0.1, 0.5, 0.3]  # the first three are not of the last six
    judged = tuple(Judged(one, reward, reward, {}) for one, reward in zip(some, rewards, strict=True))
    result = SharedSearchResult(judged, judged[3:], 0)
    monkeypatch.setattr(shared_search, "search_add_ons", lambda *more, **settings: (result, None))
    candidates, facts = candidates_by_shared_weights(run, "random", 1.0, predicted)
    assert candidates == [some[i] for i in (4, 7, 5, 8, 3, 6)]
    assert facts["mean_accuracy"] == pytest.approx(0.35)


def test_a_strategy_has_its_own_settings_over_those_of_the_recipe(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []

    def load(strategy: str, seed: int, settings: dict[str, Any]) -> Any:
        asked.append((strategy, settings))
        return load_strategy(strategy, seed, settings)

    monkeypatch.setattr(oracle_kd, "load_strategy", load)
    run.configuration = configured({"akd-reinforce": {"skip_target": 0.2, "batch": 3}})
    for strategy in ("akd-reinforce", "random"):
        candidates_by_shared_weights(run, strategy, 1.0, predicted)
    assert asked == [("akd-reinforce", {**CONTROLLER, "skip_target": 0.2, "batch": 3}), ("random", {})]


def test_what_was_found_is_not_searched_for_again(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = candidates_by_shared_weights(run, "random", 1.0, predicted)
    monkeypatch.setattr(shared_search, "search_add_ons", None)
    assert candidates_by_shared_weights(run, "random", 1.0, predicted) == first
    (run.directory / "shared-random.json").write_text("{}")
    with pytest.raises(CorruptFileError, match="Delete it"):
        candidates_by_shared_weights(run, "random", 1.0, predicted)


def test_candidates_of_more_bytes_than_allowed_are_refused(run: Any) -> None:
    most = (2 * SMALLEST + BIGGEST) // 3
    run.configuration = configured(most_bytes=most)
    candidates, _ = candidates_by_shared_weights(run, "random", 1.0, predicted)
    assert all(memory_bytes(SPACE, one) <= most for one in candidates)
    run.configuration = configured(most_bytes=1)
    with pytest.raises(InfeasibleBudgetError, match="memory 1"):
        candidates_by_shared_weights(run, "evolution", 1.0, predicted)


def test_memory_may_be_traded_off_instead_of_refused(run: Any) -> None:
    run.configuration = configured(most_bytes=SMALLEST, memory_reward="soft")
    chosen, facts = candidates_by_shared_weights(run, "random", 1.0, predicted)
    assert max(memory_bytes(SPACE, one) for one in chosen) > SMALLEST
    assert facts["refused"] == 0
    assert within_memory(run, chosen[0])
    with pytest.raises(UsageError, match="most_bytes"):
        configured(memory_reward="soft")


def test_shared_weights_begin_with_those_of_a_backbone_that_is_trained_first(run: Any) -> None:
    fresh, _ = candidates_by_shared_weights(run, "random", 1.0, predicted)
    (run.directory / "shared-random.json").unlink()
    run.configuration = configured(backbone={"steps": 5})
    begun, facts = candidates_by_shared_weights(run, "random", 1.0, predicted)
    assert facts["judged"] == 2 * 3 + 6
    assert begun != fresh


def test_a_space_without_a_backbone_is_refused_before_anything_is_done() -> None:
    fields = configured(backbone={"steps": 5}).as_dict()
    check_configuration(configuration_from_dict(fields, "here"))
    with pytest.raises(UsageError, match="a space without a backbone"):
        check_configuration(configuration_from_dict({**fields, "space": {"name": "mobile"}}, "here"))


def test_given_candidates_are_trained_in_their_order_until_there_is_none_left() -> None:
    chosen = list({one.digest: one for one in map(SPACE.sample, map(np.random.default_rng, range(4)))}.values())
    strategy = given_candidates([dict(one.choices) for one in chosen], "mine")
    trained: list[Architecture] = []

    def score(architecture: Architecture, seed: int) -> Score:
        trained.append(architecture)
        return Score(0.5)

    found = search(SPACE, strategy, predicted, score, SearchSettings(trials=10, budget_s=1.0))
    assert trained == chosen
    assert found.stopped == "exhausted"
    assert {trial.strategy for trial in found.trials} == {"mine"}


def test_settings_of_shared_weights_without_them_are_refused() -> None:
    with pytest.raises(UsageError, match='weights = "shared"'):
        configuration_from_dict({"target": "t", "budget": "1ms", "search": {"shared": {"rounds": 3}}}, "here")
