"""Choosing among trained candidates, and the baseline that a person would have tried."""

from types import SimpleNamespace

import numpy as np
import pytest

from akd_deploy.configuration import CertificateTable, configuration_from_dict
from akd_deploy.errors import CorruptFileError, MismatchError
from akd_deploy.measurement import Measurement
from akd_deploy.models.student import load_student
from akd_deploy.pipeline import choose
from akd_deploy.pipeline.choose import _widest_within, front, hand_shrunk, trained
from akd_deploy.recipes.oracle_kd import memory_bytes
from akd_deploy.search import Journal, Score
from akd_deploy.search.strategies import load_strategy
from akd_deploy.search_space import load_space, space_of

SPACE = load_space("mobile")


def row(network, latency_s, accuracy, reward, state="done"):
    return {
        "network": network, "digest": f"d-{network}", "arch": {"n": network}, "latency_s": latency_s,
        "accuracy": accuracy, "reward": reward, "state": state,
    }  # fmt: skip


RESULTS = {
    "teacher": {"accuracy": 1.0},
    "search-tpe": {
        "trials": [
            row("slow", 3.0, 0.9, 0.7),
            row("refused", 9.0, None, None, "infeasible"),
            row("broken", 1.0, None, None, "failed"),
            row("both", 1.0, 0.6, 0.6),
        ]
    },
    "search-random": {"trials": [row("both", 1.0, 0.6, 0.65), row("worse", 2.0, 0.5, 0.5), row("good", 2.0, 0.8, 0.8)]},
}


def test_candidates_of_all_searches_come_best_reward_first_and_each_network_once():
    rows = trained(RESULTS)
    assert [(r["network"], r["reward"]) for r in rows] == [
        ("good", 0.8), ("slow", 0.7), ("both", 0.65), ("worse", 0.5),
    ]  # fmt: skip


def test_the_front_is_what_no_other_candidate_beats_in_both():
    rows = front(RESULTS)
    assert [r["digest"] for r in rows] == ["d-both", "d-good", "d-slow"]
    everyone = trained(RESULTS)
    for candidate in everyone:
        beaten = any(
            o["latency_s"] <= candidate["latency_s"]
            and o["accuracy"] >= candidate["accuracy"]
            and (o["latency_s"], o["accuracy"]) != (candidate["latency_s"], candidate["accuracy"])
            for o in everyone
        )
        assert beaten == (candidate["digest"] not in {r["digest"] for r in rows})


def searching(most_bytes=None):
    return SimpleNamespace(shared=SimpleNamespace(most_bytes=most_bytes, memory_reward=None))


def a_run(latency_of, family=None, most_bytes=None):
    """As much of a run as choosing a hand-shrunk network needs."""

    def predict(architecture):
        seconds = latency_of(architecture)
        return SimpleNamespace(latency_s=seconds, upper_s=1.1 * seconds)

    return SimpleNamespace(
        latency=SimpleNamespace(predict_architecture=predict),
        bound_s=lambda upper_s: 1.2 * upper_s,
        space=SimpleNamespace(hand_shrunk=lambda: family),
        configuration=SimpleNamespace(search=searching(most_bytes)),
    )


@pytest.mark.parametrize("driver", ["in-process", "nni"])
def test_a_strategy_searches_with_its_own_settings_and_goes_on_with_no_others(driver, monkeypatch):
    """And not with another strategy's."""
    asked = []

    def load(strategy, seed, settings, budget):
        asked.append((strategy, dict(settings)))
        return load_strategy(strategy, seed, settings, budget)

    def searched(population_size):
        own = {"strategies": ["evolution", "tpe"], "settings": {"evolution": {"population_size": population_size}}}
        fields = {"target": "t", "budget": "1ms", "search": {**own, "driver": driver, "trials": 2}}
        configuration = configuration_from_dict(fields, "here")
        run = SimpleNamespace(
            configuration=configuration, space=SPACE, journal=journal, bed=SimpleNamespace(score=score),
            latency=SimpleNamespace(predict_architecture=lambda _: SimpleNamespace(latency_s=1e-4, upper_s=2e-4)),
            bound_s=lambda upper_s: upper_s, on_progress=lambda *_: None,
        )  # fmt: skip
        for strategy in configuration.search.strategies:
            choose.search_students(run, {"budget": {"budget_s": 1e-3}}, strategy)

    def score(architecture, seed):
        return Score(0.5)

    monkeypatch.setattr("akd_deploy.search.driver.load_strategy", load)
    monkeypatch.setattr(choose, "in_experiment", lambda run, strategy: score)
    with Journal() as journal:
        searched(3)
        assert asked == [("evolution", {"population_size": 3}), ("tpe", {"n_startup_jobs": 4})]
        with pytest.raises(MismatchError, match=r"strategy_settings\.population_size: 3 → 5"):
            searched(5)


@pytest.mark.parametrize("budget_s", np.linspace(0.1, 2.5, 13))
def test_the_widest_within_the_budget_is_what_trying_all_of_them_finds(budget_s):
    family = SPACE.hand_shrunk()[0]
    seconds = {a.digest: 0.2 + 0.03 * i for i, a in enumerate(family)}
    found = _widest_within(a_run(lambda a: seconds[a.digest]), family, budget_s)
    fitting = [a for a in family if 1.2 * 1.1 * seconds[a.digest] <= budget_s]
    if not fitting:
        assert found is None
    else:
        assert found is not None
        assert found[0].digest == fitting[-1].digest
        assert found[1] == seconds[fitting[-1].digest]


def test_the_hand_has_no_more_memory_than_candidates_have():
    family = SPACE.hand_shrunk()[0]
    sizes = [memory_bytes(space_of(architecture), architecture) for architecture in family]
    assert sorted(sizes) == sizes
    for place in (0, len(family) // 2, len(family) - 1):
        found = _widest_within(a_run(lambda a: 0.1, most_bytes=sizes[place]), family, 1.0)
        assert found is not None
        assert memory_bytes(space_of(found[0]), found[0]) == sizes[place]
    assert _widest_within(a_run(lambda a: 0.1, most_bytes=sizes[0] - 1), family, 1.0) is None


def test_where_no_hand_shrunk_network_is_bound_to_fit_the_narrowest_stand_in_and_are_said_not_to():
    families = SPACE.hand_shrunk()
    run = a_run(lambda a: 5.0, families)
    run.on_progress = lambda *_: None
    run.configuration = SimpleNamespace(seed=0, search=searching())
    run.bed = SimpleNamespace()
    run.bed.score = lambda architecture, _: SimpleNamespace(accuracy=int(architecture.digest, 16) / 2**256)
    found = hand_shrunk(run, {"budget": {"budget_s": 1.0}})
    narrowest = [family[0].as_dict() for family in families]
    assert found["bound_to_fit"] is False
    assert [row["arch"] for row in found["considered"]] == narrowest


def measured_of(seconds):
    return SimpleNamespace(measurement=Measurement("m", (seconds,) * 1000, tuple(i // 100 for i in range(1000))))


@pytest.mark.parametrize(("plain_s", "baseline"), [((0.7, 0.6, 0.1), 0), ((1.7, 0.6, 0.1), 1), ((1.7, 1.6, 0.1), 0)])
def test_candidates_and_hand_shrunk_networks_are_measured_in_turn_and_the_best_within_budget_is_chosen(
    plain_s, baseline, monkeypatch, tmp_path
):
    asked = []
    times = {"n0": 2.0, "n1": 0.5, "n2": 0.4, "n3": 0.3} | {f"hand-shrunk {i}": s for i, s in enumerate(plain_s)}

    def measure_blocks(target, models, protocol, rng, on_progress):
        asked.append(set(models))
        return {name: measured_of(times[name]) for name in models}

    monkeypatch.setattr(choose, "write_model", lambda *_: tmp_path / "model.onnx")
    monkeypatch.setattr(choose, "measure_blocks", measure_blocks)
    run = SimpleNamespace(target=None, directory=tmp_path, rng=lambda _: None, on_progress=lambda *_: None)
    run.configuration = SimpleNamespace(certificate=CertificateTable())
    arch = SPACE.sample(np.random.default_rng(0)).as_dict()
    trials = [
        {"network": f"n{i}", "digest": f"d{i}", "arch": arch, "state": "done", "reward": 1 - i / 10, "accuracy": 0.9}
        for i in range(6)
    ]
    considered = [{"arch": arch, "accuracy": accuracy} for accuracy in (0.7, 0.9, 0.8)]
    results = {"budget": {"budget_s": 1.0}, "search-tpe": {"trials": trials}, "hand-shrunk": {"considered": considered}}
    found = choose.confirm(run, results)
    assert asked == [{"n0", "n1", "n2", "n3", "hand-shrunk 0", "hand-shrunk 1"}]
    assert [row["certificate"]["ok"] for row in found["candidates"]] == [False, True, True, True]
    assert found["winner"]["network"] == "n1"
    assert found["hand_shrunk"]["accuracy"] == (0.9, 0.8)[baseline]
    assert found["hand_shrunk"]["measured_s"]["median"] == plain_s[baseline]
    assert found["hand_shrunk"]["certificate"]["ok"] is (plain_s[baseline] < 1)


def test_a_finished_student_whose_file_is_torn_says_what_to_delete(tmp_path):
    path = tmp_path / "kd-1000.safetensors"
    path.write_bytes(b"torn")
    with pytest.raises(CorruptFileError, match=r"Delete .*kd-1000\.safetensors: --resume trains it again"):
        choose.finished(path, load_student)
