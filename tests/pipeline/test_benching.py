"""The record of a bench: what it says, and what is refused before anything is measured."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pipeline.benched import HERE, classifier, install, steady

from akd_deploy.engines import load_engine
from akd_deploy.errors import BuildError, MismatchError, MissingFileError, UnknownNameError, UsageError
from akd_deploy.measurement import Measurement
from akd_deploy.pipeline import benching
from akd_deploy.pipeline.benching import BenchSettings, bench_models, bench_protocol, upper_bounds_s
from akd_deploy.pipeline.correctness import LabelledSamples
from akd_deploy.target import Target


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "m.onnx")


def bench(model: Path, other: Path | None = None, blocks: int = 10, **settings):
    protocol = bench_protocol(blocks, 0.1, settings.pop("idle_s", 0.0), settings.pop("boundary", "host"))
    return bench_models(
        HERE, model, other, BenchSettings(protocol, **settings), np.random.default_rng(0), lambda done, total: None
    )


@pytest.mark.parametrize(("samples", "p90", "p99"), [(28, None, None), (29, 29.0, None), (299, 278.0, 299.0)])
def test_bounds_of_alike_processes_are_order_statistics_and_absent_where_samples_are_too_few(samples, p90, p99):
    # Three processes of equal medians: those of 1, 2, 3 … taken in turn differ by a step or two.
    values = tuple(float(i) for i in range(1, samples + 1))
    bounds = upper_bounds_s(Measurement("m", values, tuple(i % 3 for i in range(samples))))
    assert (bounds["p90"] is None, bounds["p99"] is None) == (p90 is None, p99 is None)
    assert p90 is None or p90 <= bounds["p90"]
    assert p99 is None or p99 <= bounds["p99"]


def test_two_processes_bound_nothing():
    assert upper_bounds_s(Measurement("m", (1.0,) * 600, (0, 1) * 300)) == {"p90": None, "p99": None}


def test_a_record_tells_what_was_measured_on_what_and_how(monkeypatch, model):
    install(monkeypatch, steady())
    record, code = bench(model, budget_s=2e-3)
    assert code == 0
    assert json.loads(json.dumps(record)) == record
    assert record["device"]["kind"] == "cpu"
    assert record["flags"]["threads"] == 1
    assert {"provider", "graph_optimization"} <= set(record["flags"])  # defaults too
    assert record["cpus"] == [1]
    assert set(record["clocks"]) == {"before", "after"}
    assert len(record["sha256"]) == 64
    assert record["cpu_s"] == dict.fromkeys(map(str, range(10)), 2e-3)
    assert "idle_s" not in record["protocol"]
    assert (record["aa"], record["detect"], record["accuracy"], record["boundaries_s"]) == (None, None, None, None)
    assert record["certificate"]["ok"]


def test_cold_starts_have_an_interval_over_processes(monkeypatch, model):
    install(monkeypatch, steady())
    starts = bench(model)[0]["cold_start_s"]
    assert starts["load"]["blocks"] == {str(i): 0.5 + i for i in range(10)}
    # Of ten values the second smallest and second largest hold the median with 97.9 %, the third ones with 89.1 %.
    assert (starts["load"]["median"], starts["load"]["interval"]) == (5.0, [1.5, 8.5])
    assert (starts["first"]["median"], starts["first"]["interval"]) == (0.25, [0.25, 0.25])


def test_only_the_model_that_began_a_process_had_a_cold_start(monkeypatch, model):
    install(monkeypatch, steady())
    starts = bench(model, model)[0]["cold_start_s"]["load"]["blocks"]
    assert 0 < len(starts) < 10
    monkeypatch.undo()
    install(monkeypatch, steady())
    assert bench(model, blocks=3)[0]["cold_start_s"]["load"]["interval"] is None


def test_the_same_model_twice_has_a_verdict(monkeypatch, model):
    install(monkeypatch, steady())
    record, _ = bench(model, model, aa=True)
    aa = record["aa"]
    assert aa == {
        "differs": record["compared"]["differs"],
        "ratio": record["compared"]["ratio"],
        "interval": [record["compared"]["low"], record["compared"]["high"]],
        "alpha": 0.05,
    }
    monkeypatch.undo()
    slower, same = steady(1.1), steady()
    install(monkeypatch, lambda name, nth: slower(name, nth) if name == "model" else same(name, nth))
    record, _ = bench(model, model, aa=True)
    assert record["aa"]["differs"]
    assert bench(model, model)[0]["aa"] is None


@pytest.mark.parametrize(("scatter", "enough"), [(0.001, True), (0.05, False)])
def test_the_blocks_that_a_slow_down_takes_follow_from_the_scatter_seen(monkeypatch, model, scatter, enough):
    install(monkeypatch, steady(scatter=scatter))
    paired = bench(model, model, detect=0.03)[0]["detect"]
    assert (paired["paired"], paired["enough"]) == (True, enough)
    alone = bench(model, detect=0.03)[0]["detect"]
    assert (alone["paired"], alone["blocks"]) == (False, 10)
    assert (alone["blocks_needed"] <= 10) == enough
    if not enough:  # σ of 5 %: two benches of about 60 to 100 blocks, by the formula of `blocks_needed`
        assert 20 < paired["blocks_needed"] < 300
        assert 20 < alone["blocks_needed"] < 300


def test_pauses_and_boundaries_reach_the_processes_and_the_record(monkeypatch, model):
    told = install(monkeypatch, steady())
    record, _ = bench(model, idle_s=0.01, boundary="end-to-end")
    assert {(protocol.idle_s, protocol.boundary) for protocol in told} == {(0.01, "end-to-end")}
    assert (record["protocol"]["idle_s"], record["protocol"]["boundary"]) == (0.01, "end-to-end")
    assert record["boundaries_s"]["compute"] == {"median": 1e-3, "p90": 1e-3, "p99": 1e-3}
    assert set(record["boundaries_s"]) == {"enqueue", "compute"}


def test_accuracy_is_recorded_sample_by_sample(monkeypatch, model):
    install(monkeypatch, steady())
    samples = LabelledSamples({"x": np.eye(3, dtype=np.float32)}, np.array([0, 1, 1]))
    record, _ = bench(model, samples=samples)
    assert (record["correct"], record["accuracy"]) == ([1, 1, 0], pytest.approx(2 / 3))
    assert record["samples_sha256"] == samples.digest


@pytest.mark.parametrize(
    ("wrong", "kind", "message"),
    [
        ({"boundary": "gpu"}, UsageError, "boundary gpu.*this CPU"),
        ({"boundary": "inside"}, UnknownNameError, "inside"),
        ({"blocks": 9, "budget_s": 1.0}, UsageError, "--blocks 9.*at least 10"),
        ({"blocks": 5, "aa": True}, UsageError, "--blocks 5.*at least 6"),
        ({"blocks": 1, "detect": 0.03}, UsageError, "--blocks 1.*at least 2"),
    ],
)
def test_what_would_fail_in_the_end_is_refused_before_anything_is_measured(monkeypatch, model, wrong, kind, message):
    told = install(monkeypatch, steady())
    with pytest.raises(kind, match=message):
        bench(model, model if wrong.get("aa") else None, **wrong)
    assert told == []


def test_a_missing_model_and_samples_that_do_not_fit_are_refused_before_anything_is_measured(monkeypatch, model):
    told = install(monkeypatch, steady())
    with pytest.raises(MissingFileError, match="gone"):
        bench(model, Path("gone.onnx"))
    with pytest.raises(UsageError, match="'x'"):
        bench(model, samples=LabelledSamples({"x": np.eye(4, dtype=np.float32)}, np.arange(4)))
    assert told == []


def test_a_target_on_a_gpu_may_be_asked_for_its_own_clock(monkeypatch, model):
    """What cannot run here is refused for that, not for its boundary."""
    board = Target("board", device="gpu", engine="tensorrt", precision="fp16")
    with pytest.raises(Exception, match="tensorrt") as caught:
        bench_models(
            board, model, None, BenchSettings(bench_protocol(3, 0.1, 0.0, "gpu")), np.random.default_rng(0), print
        )
    assert "boundary" not in str(caught.value)


# --- disturbed blocks ------------------------------------------------------------------------------------------


def test_a_record_says_which_blocks_were_taken_again_and_which_stayed_disturbed(monkeypatch, model, tmp_path):
    """Of each model: the times are those of its own samples. Each is measured in blocks 0 to 9 first, then again."""
    order = {"model": [], "other": []}

    def steal(name: str, nth: int) -> float:
        order[name].append(nth)
        # The model's second time, which is block 1, and the other's third time, all that follow within block 2, and
        # all at the end.
        return 0.5 if (name, nth) == ("model", 1) or (name == "other" and nth in (2, 3, 4, *range(12, 17))) else 0.0

    install(monkeypatch, steady(), steal)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    record, _ = bench(model, classifier(tmp_path / "other.onnx"))
    assert (record["remeasured"], record["disturbed"]) == (1, 0)
    assert (record["remeasured_blocks"], record["disturbed_blocks"]) == ({"1": 1}, [])
    compared = record["compared"]
    assert (compared["remeasured"], compared["disturbed"]) == (7, 1)
    assert (compared["remeasured_blocks"], compared["disturbed_blocks"]) == ({"2": 7}, ["2"])
    assert set(compared["disturbed_blocks"]) <= compared["blocks"].keys()
    assert json.loads(json.dumps(record)) == record


# --- files that change -----------------------------------------------------------------------------------------


def meddling(monkeypatch, path: Path):
    """Measures, and somebody writes to `path` meanwhile; gives what each process would have opened then."""
    install(monkeypatch, steady())
    measure, opened = benching.measure_blocks, []

    def measure_blocks(target, models, *others):
        path.write_bytes(b"another network")
        opened.extend(file.read_bytes() for file in models.values())
        return measure(target, models, *others)

    monkeypatch.setattr(benching, "measure_blocks", measure_blocks)
    return opened


def test_a_budget_is_not_certified_on_a_target_of_another_precision(monkeypatch, model):
    told = install(monkeypatch, steady())
    monkeypatch.setattr(benching, "load_engine", lambda _: load_engine(replace(HERE, precision="int8")))
    with pytest.raises(BuildError, match="float32") as caught:
        bench(model, budget_s=2e-3)
    assert "int8" in caught.value.asked
    assert told == []
    bench(model)  # that is a measurement, and promises nothing


def test_a_model_that_changes_while_it_is_measured_has_no_record(monkeypatch, model):
    meddling(monkeypatch, model)
    with pytest.raises(MismatchError, match=rf"{model.name} \(SHA-256 .*another file there when it was done"):
        bench(model)


def test_a_model_that_is_compared_with_may_not_change_either(monkeypatch, model, tmp_path):
    other = classifier(tmp_path / "other.onnx")
    meddling(monkeypatch, other)
    with pytest.raises(MismatchError, match=r"other\.onnx"):
        bench(model, other)


def test_the_copy_that_was_checked_is_what_is_measured_and_told_under_its_own_name(monkeypatch, model, tmp_path):
    (tmp_path / "private").mkdir()
    copy = classifier(tmp_path / "private" / "m.onnx")
    content = copy.read_bytes()
    opened = meddling(monkeypatch, model)
    settings = BenchSettings(bench_protocol(10, 0.1), aa=True)
    record, _ = bench_models(HERE, model, model, settings, np.random.default_rng(0), lambda *_: None, {model: copy})
    assert opened == [content, content]
    assert record["model"] == str(model)
    assert record["sha256"] == hashlib.sha256(content).hexdigest()


def test_an_engine_given_as_such_is_audited_like_any_network(tmp_path: Path) -> None:
    """What was checked to be ours may still compute in another precision than the target's."""
    model = classifier(tmp_path / "m.onnx")
    settings = BenchSettings(bench_protocol(10, 0.001), budget_s=1.0)
    target = replace(HERE, precision="int8")
    with pytest.raises(BuildError):
        bench_models(target, model, None, settings, np.random.default_rng(0), lambda done, total: None, {model: model})
