"""Blocks: every model in every one, disturbed ones again, and no process left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest

from akd_deploy.engines.base import Engine
from akd_deploy.errors import AkdError, MissingFileError, MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.models.onnx_from_student import onnx_from_layers
from akd_deploy.profiling import blocks
from akd_deploy.profiling.blocks import Measured, Protocol, Taken, Usual, _raised_in_worker, measure_blocks, pinned_cpus
from akd_deploy.search_space import Layer
from akd_deploy.target import Target

HERE = Target("here", device="cpu", engine="onnxruntime", engine_options={"threads": 1})
MODELS = {name: Path(f"{name}.onnx") for name in "abcd"}
CALM = Taken((1.0, 2.0), reference_s=1.0, steal=0.0, beats_s=(1.0,) * 19 + (1.3,))
STOLEN = Taken((9.0, 9.0), reference_s=1.0, steal=0.5)
DRIFTED = Taken((9.0, 9.0), reference_s=1.5, steal=0.0)
WAITED = Taken((9.0, 9.0), reference_s=1.0, steal=0.0, waiting=0.5)
BURST = Taken((9.0, 9.0), reference_s=1.0, steal=0.0, beats_s=(1.0,) * 18 + (1.3,) * 2)
THROUGHOUT = Taken((9.0, 9.0), reference_s=1.0, steal=0.0, beats_s=(1.6,) * 10)


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """Stands in for worker processes: `script(model, nth time)` says what is taken; returns the orders run."""

    def install(script: Callable[[str, int], Taken]) -> list[list[str]]:
        orders: list[list[str]] = []
        times: Counter[str] = Counter()

        def run_block(
            target: Target,
            models: Mapping[str, Path],
            order: list[str],
            protocol: Protocol,
            seed: int,
            until_s: float | None,
        ) -> Generator[tuple[str, Taken], None, None]:
            orders.append(order)
            for name in order:
                times[name] += 1
                yield name, script(name, times[name])

        monkeypatch.setattr(blocks, "_run_block", run_block)
        return orders

    return install


def measure(blocks: int = 3, seed: int = 0, **more) -> dict[str, Measured]:
    return measure_blocks(HERE, MODELS, Protocol(blocks=blocks, max_remeasure=2), np.random.default_rng(seed), **more)


# --- the order of things ----------------------------------------------------------------------------------------


def test_every_model_is_in_every_block_and_every_sample_is_kept(processes) -> None:
    orders = processes(lambda name, nth: Taken((float(nth), nth + 0.5), 1.0, 0.0))
    measured = measure(blocks=4)
    assert [sorted(order) for order in orders] == [list("abcd")] * 4
    for name in MODELS:
        found = measured[name]
        assert {i: s.tolist() for i, s in found.measurement.blocks.items()} == {i: [i + 1.0, i + 1.5] for i in range(4)}
        assert (found.remeasured, found.disturbed) == (0, 0)


def test_orders_are_shuffled_and_a_function_of_the_seed(processes) -> None:
    orders = processes(lambda name, nth: CALM)
    measure(blocks=6, seed=1)
    measure(blocks=6, seed=1)
    assert orders[:6] == orders[6:]
    assert len({tuple(order) for order in orders[:6]}) > 1


def test_progress_counts_to_the_plan_and_each_block_is_handed_over(processes) -> None:
    processes(lambda name, nth: CALM)
    progress, handed = [], []
    measure(
        blocks=2,
        on_model=lambda done, total: progress.append((done, total)),
        on_block=lambda so_far: handed.append([len(m.measurement.blocks) for m in so_far.values()]),
    )
    assert progress == [(n, 8) for n in range(1, 9)]
    assert handed == [[1] * 4, [2] * 4]


def test_only_the_blocks_a_model_lacks_are_measured(processes) -> None:
    orders = processes(lambda name, nth: CALM)
    progress = []
    measured = measure(
        blocks=3, have={"a": 3, "b": 2, "c": 7}, on_model=lambda done, total: progress.append((done, total))
    )
    assert [sorted(order) for order in orders] == [["b", "d"], ["d"], ["d"]]
    assert {name: len(m.measurement.blocks) for name, m in measured.items()} == {"b": 1, "d": 3}
    assert progress == [(n, 4) for n in range(1, 5)]


# --- disturbances -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("disturbance", [STOLEN, DRIFTED, WAITED, BURST, THROUGHOUT])
def test_a_disturbed_model_is_measured_again_alone_and_the_record_says_so(processes, disturbance: Taken) -> None:
    # b's second measurement, that is block 1, is disturbed once.
    orders = processes(lambda name, nth: disturbance if (name, nth) == ("b", 2) else CALM)
    measured = measure(blocks=3)
    assert [len(order) for order in orders] == [4, 4, 1, 4]
    assert orders[2] == ["b"]
    assert (measured["b"].remeasured, measured["b"].disturbed) == (1, 0)
    assert (measured["a"].remeasured, measured["a"].disturbed) == (0, 0)
    assert 9.0 not in measured["b"].measurement.samples_s
    assert len(measured["b"].measurement.blocks) == 3


def test_what_is_disturbed_at_the_end_is_measured_again_after_each_pause(processes, monkeypatch) -> None:
    """b's block 1 is disturbed at once, at once again, and after the first pause."""
    slept: list[float] = []
    monkeypatch.setattr(blocks.time, "sleep", slept.append)
    orders = processes(lambda name, nth: DRIFTED if name == "b" and nth in (2, 3, 5) else CALM)
    protocol = Protocol(blocks=3, max_remeasure=1, pauses_s=(0.5, 1.0, 2.0))
    handed: list[int] = []
    measured = measure_blocks(
        HERE, MODELS, protocol, np.random.default_rng(0), on_block=lambda so_far: handed.append(so_far["b"].disturbed)
    )
    assert slept == [0.5, 1.0]
    assert [len(order) for order in orders] == [4, 4, 1, 4, 1, 1]
    assert handed == [0, 1, 1, 1, 0]
    assert (measured["b"].remeasured, measured["b"].disturbed) == (3, 0)
    assert len(measured["b"].measurement.blocks) == 3


def test_a_calm_machine_is_not_waited_for(processes, monkeypatch) -> None:
    processes(lambda name, nth: CALM)
    monkeypatch.setattr(blocks.time, "sleep", None)
    measure_blocks(HERE, MODELS, Protocol(blocks=2, pauses_s=(9.0,)), np.random.default_rng(0))


def test_remeasuring_is_bounded_and_what_stays_disturbed_is_kept_and_counted(processes) -> None:
    orders = processes(lambda name, nth: STOLEN if name == "c" else CALM)
    measured = measure(blocks=3)
    assert [order for order in orders if len(order) == 1] == [["c"]] * 6
    assert (measured["c"].remeasured, measured["c"].disturbed) == (6, 3)
    assert measured["c"].details == {}, "nothing is known besides"
    assert set(measured["c"].measurement.samples_s) == {9.0}


def test_a_machine_that_is_always_slow_is_not_disturbed(processes) -> None:
    orders = processes(lambda name, nth: Taken((1.0,), reference_s=100.0 + nth, steal=0.0))
    assert all(m.remeasured == 0 for m in measure().values())
    assert len(orders) == 3


def test_a_fast_start_of_the_reference_is_seen_through_later(processes) -> None:
    """What counts as usual is learnt from all references so far: one quick one does not condemn the rest."""
    processes(lambda name, nth: Taken((1.0,), 0.5 if (name, nth) == ("a", 1) else 1.0, 0.0))
    assert sum(m.disturbed for m in measure(blocks=3).values()) == 0


def test_a_host_that_waits_for_its_device_is_not_disturbed(processes) -> None:
    processes(lambda name, nth: WAITED)
    board = Target("board", device="gpu", engine="onnxruntime", engine_options={"provider": "cuda"})
    measured = measure_blocks(board, MODELS, Protocol(blocks=2), np.random.default_rng(0))
    assert all((m.remeasured, m.disturbed) == (0, 0) for m in measured.values())


def test_only_models_whose_blocks_disagree_get_extra_blocks_until_there_are_no_more(processes) -> None:
    # b's blocks never agree, and what was measured is kept however many more there are.
    orders = processes(lambda name, nth: Taken((float(nth),), 1.0, 0.0) if name == "b" else CALM)
    protocol = Protocol(blocks=2, extra_blocks=3)
    measured = measure_blocks(HERE, MODELS, protocol, np.random.default_rng(0))
    assert [sorted(order) for order in orders] == [list("abcd")] * 2 + [["b"]] * 3
    assert {name: len(m.measurement.blocks) for name, m in measured.items()} == {"a": 2, "b": 5, "c": 2, "d": 2}


def test_progress_does_not_count_what_is_measured_again(processes) -> None:
    processes(lambda name, nth: STOLEN if name == "c" else CALM)
    progress = []
    measure(blocks=1, on_model=lambda done, total: progress.append((done, total)))
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]


# --- nothing is lost --------------------------------------------------------------------------------------------


def test_every_model_is_handed_over_the_moment_it_is_measured(processes) -> None:
    processes(lambda name, nth: Taken((float(nth),), 1.0, 0.0))
    handed: list[tuple[str, int, float]] = []
    seen: list[int] = []
    measured = measure(
        blocks=2,
        on_taken=lambda name, block, taken: handed.append((name, block, taken.samples_s[0])),
        on_model=lambda done, total: seen.append(len(handed)),
    )
    assert seen == list(range(1, 9))
    assert sorted(handed) == sorted((name, i, i + 1.0) for name in MODELS for i in range(2))
    assert all(measured[name].measurement.samples_s[block] == sample for name, block, sample in handed)


def test_what_is_measured_again_is_handed_over_again_and_says_how_often(processes) -> None:
    processes(lambda name, nth: STOLEN if name == "c" and nth < 3 else CALM)
    handed: list[tuple[str, int, int]] = []
    measure(blocks=1, on_taken=lambda name, block, taken: handed.append((name, block, taken.remeasured)))
    assert [entry for entry in handed if entry[0] == "c"] == [("c", 0, 0), ("c", 0, 1), ("c", 0, 2)]
    assert sorted(handed[:4]) == [(name, 0, 0) for name in "abcd"]
    assert len(handed) == 6


def test_what_was_taken_earlier_is_not_measured_again(processes) -> None:
    orders = processes(lambda name, nth: Taken((5.0,), 1.0, 0.0))
    progress: list[tuple[int, int]] = []
    measured = measure(
        blocks=2,
        earlier={"a": [CALM], "b": [CALM, CALM]},
        on_model=lambda done, total: progress.append((done, total)),
    )
    assert [sorted(order) for order in orders] == [["c", "d"], ["a", "c", "d"]]
    assert measured["a"].measurement.samples_s == (1.0, 2.0, 5.0)
    assert measured["b"].measurement.samples_s == (1.0, 2.0, 1.0, 2.0)
    assert progress == [(n, 8) for n in range(4, 9)]


def test_what_was_disturbed_earlier_is_measured_again_as_often_as_is_left(processes) -> None:
    orders = processes(lambda name, nth: STOLEN)
    once, often = replace(STOLEN, remeasured=1), replace(STOLEN, remeasured=2)
    measured = measure_blocks(
        HERE,
        {name: MODELS[name] for name in "abc"},
        Protocol(blocks=1, max_remeasure=2),
        np.random.default_rng(0),
        earlier={"a": [STOLEN], "b": [once], "c": [often]},
        usual=Usual([1.0] * 3),
    )
    assert [sorted(order) for order in orders] == [["a"], ["a", "b"]]
    assert {name: (m.remeasured, m.disturbed) for name, m in measured.items()} == dict.fromkeys("abc", (2, 1))


def test_of_tries_that_all_were_disturbed_the_one_with_the_quickest_reference_is_kept(processes) -> None:
    def script(name: str, nth: int) -> Taken:
        reference_s = (1.6, 1.3, 1.9)[nth - 1] if name == "a" else 1.0
        return Taken((float(nth),), reference_s, 0.0)

    processes(script)
    measured = measure(blocks=1)["a"]
    assert measured.measurement.samples_s == (2.0,)
    assert (measured.remeasured, measured.disturbed) == (2, 1)


def test_a_try_that_was_not_disturbed_is_kept_though_another_had_as_quick_a_reference(processes) -> None:
    processes(lambda name, nth: Taken((float(nth),), 1.0 + 0.01 * nth, 0.5 if name == "a" and nth == 1 else 0.0))
    assert measure(blocks=1)["a"].measurement.samples_s == (2.0,)


def test_what_a_beat_takes_is_told_by_other_processes_earlier_ones_too() -> None:
    usual = Usual()
    for slow in ((1.6,) * 10, (1.0,) * 10):
        usual.add(replace(THROUGHOUT, beats_s=slow))
    assert usual.slow_share(THROUGHOUT) == 1.0
    assert usual.slow_share(BURST) == pytest.approx(0.1)
    assert usual.slow_share(replace(BURST, beats_s=())) == 0.0
    alone = Usual()
    alone.add(THROUGHOUT)
    assert alone.slow_share(THROUGHOUT) == 0.0


def test_a_try_that_was_slow_throughout_gives_way_to_one_that_was_for_a_while(processes) -> None:
    tries = (THROUGHOUT, replace(BURST, samples_s=(8.0,)), THROUGHOUT)
    processes(lambda name, nth: tries[nth - 1] if name == "a" else CALM)
    measured = measure(blocks=1)["a"]
    assert measured.measurement.samples_s == (8.0,)
    assert (measured.remeasured, measured.disturbed) == (2, 1)


def test_one_slow_beat_of_a_few_says_nothing(processes) -> None:
    orders = processes(lambda name, nth: replace(CALM, beats_s=(1.0,) * 4 + (1.6,)))
    assert measure(blocks=1)["a"].disturbed == 0
    assert len(orders) == 1


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_of_disturbed_tries_a_hair_of_waiting_does_not_outweigh_the_reference(processes, device: str) -> None:
    """On a GPU the host waits for the device: that is no disturbance at all."""
    target = replace(HERE, device=device, engine_options={"provider": "cpu" if device == "cpu" else "cuda"})
    tries = {1: Taken((1.0,), 1.2, 0.0, waiting=0.9001), 2: Taken((2.0,), 2.0, 0.0, waiting=0.9)}
    processes(lambda name, nth: tries[nth] if name == "a" else replace(CALM, beats_s=()))
    measured = measure_blocks(target, MODELS, Protocol(blocks=1, max_remeasure=1), np.random.default_rng(0))["a"]
    assert measured.measurement.samples_s == (1.0,)


def test_on_a_gpu_waiting_does_not_choose_between_tries(processes) -> None:
    target = replace(HERE, device="gpu", engine_options={"provider": "cuda"})
    tries = {1: Taken((1.0,), 1.2, 0.0, waiting=0.95), 2: Taken((2.0,), 2.0, 0.0)}
    processes(lambda name, nth: tries[nth] if name == "a" else replace(CALM, beats_s=()))
    measured = measure_blocks(target, MODELS, Protocol(blocks=1, max_remeasure=1), np.random.default_rng(0))["a"]
    assert measured.measurement.samples_s == (1.0,)


def test_full_speed_is_usual_though_it_is_rare(processes) -> None:
    orders = processes(lambda name, nth: Taken((1.0,), 1.0 if name == "a" else 1.5, 0.0))
    measure_blocks(HERE, MODELS, Protocol(blocks=1, max_remeasure=1), np.random.default_rng(0))
    assert [sorted(order) for order in orders] == [["a", "b", "c", "d"], ["b", "c", "d"]]


# --- a time limit -----------------------------------------------------------------------------------------------


def test_models_are_shuffled_among_their_neighbours_alone(processes) -> None:
    orders = processes(lambda name, nth: CALM)
    models = {f"m{i:02d}": Path("m.onnx") for i in range(25)}
    measure_blocks(HERE, models, Protocol(blocks=4), np.random.default_rng(0), group=10)
    names = list(models)
    for order in orders:
        assert [sorted(order[i : i + 10]) for i in (0, 10, 20)] == [names[:10], names[10:20], names[20:]]
        assert order != names
    assert len({tuple(order) for order in orders}) == 4


def test_once_the_time_is_up_nothing_is_measured_again(processes) -> None:
    orders = processes(lambda name, nth: STOLEN)
    measured = measure(blocks=1, until_s=time.monotonic() - 1)
    assert len(orders) == 1
    assert all((m.remeasured, m.disturbed) == (0, 1) for m in measured.values())


# --- what is refused --------------------------------------------------------------------------------------------


def test_an_engine_that_takes_no_models_is_given_what_it_builds_once_and_its_own_files_as_they_are(
    processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[str] = []

    class Builds:
        loads_models, suffix = False, ".plan"

        def build(self, path: Path, folder: Path) -> SimpleNamespace:
            built.append(path.name)
            return SimpleNamespace(path=folder / f"{path.stem}.plan")

        loadable = Engine.loadable

    seen: list[dict[str, Path]] = []
    processes(lambda name, nth: CALM)
    run_block = blocks._run_block

    def watched(target, models, *more):
        seen.append(dict(models))
        return run_block(target, models, *more)

    monkeypatch.setattr(blocks, "_run_block", watched)
    monkeypatch.setattr(blocks, "load_engine", lambda _: Builds())
    models = {"a": Path("a.onnx"), "b": Path("b.plan")}
    measure_blocks(HERE, models, Protocol(blocks=3), np.random.default_rng(0))
    assert built == ["a.onnx"]
    assert len(seen) == 3
    assert all(one["a"].name == "a.plan" and one["a"].parent != Path() and one["b"] == Path("b.plan") for one in seen)


def test_a_remote_host_is_refused() -> None:
    remote = Target("board", device="orin", engine="onnxruntime", host="ssh://me@board")
    with pytest.raises(MissingRuntimeError, match="ssh://me@board"):
        measure_blocks(remote, MODELS, Protocol(), np.random.default_rng(0))


@pytest.mark.parametrize("wrong", [{"blocks": 0}, {"min_samples": 0}, {"min_samples": 9, "max_samples": 8}])
def test_a_protocol_without_samples_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match="protocol"):
        Protocol(**wrong)


def test_tables_of_more_blocks_merge_and_of_longer_samples_do_not() -> None:
    assert Protocol(blocks=3).header() == Protocol(blocks=9).header()
    assert Protocol(seconds=0.01).header() != Protocol(seconds=0.02).header()
    assert Protocol(watch=True).header() == Protocol().header()


def test_a_pause_or_another_boundary_is_another_protocol_and_headers_without_either_are_as_they_were() -> None:
    plain = Protocol().header()
    assert plain == {
        "warmup_s": 0.005,
        "seconds": 0.01,
        "min_samples": 50,
        "max_samples": 200,
        "clock": "perf_counter",
        "boundary": "host",
        "reference": "matmul160",
    }
    assert Protocol(idle_s=0.01).header() == {**plain, "idle_s": 0.01}
    assert Protocol(boundary="end-to-end").header() == {**plain, "boundary": "end-to-end"}
    assert Protocol(boundary="gpu").header() == {**plain, "boundary": "gpu", "clock": "device"}
    for nonsense in (-1.0, float("nan")):
        with pytest.raises(UsageError, match="pause"):
            Protocol(idle_s=nonsense)
    with pytest.raises(UnknownNameError, match="Did you mean 'host'"):
        Protocol(boundary="hots")


def test_a_process_is_bound_to_as_many_cpus_as_the_target_has_threads() -> None:
    available = sorted(os.sched_getaffinity(0))
    assert pinned_cpus(HERE) == available[-1:]
    many = Target("many", device="cpu", engine="onnxruntime", engine_options={"threads": 10_000})
    assert pinned_cpus(many) == available
    assert pinned_cpus(Target("gpu", device="gpu", engine="onnxruntime")) == []


# --- real processes ---------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_model(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.onnx"
    onnx.save_model(onnx_from_layers([Layer("l", "conv", 4, 4, 6)], np.random.default_rng(0)), path)
    return path


QUICK = Protocol(blocks=2, warmup_s=0.001, seconds=0.001, min_samples=5, max_samples=20, max_remeasure=0)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[subprocess.Popen]:
    """Every process started."""
    result: list[subprocess.Popen] = []

    class Recorded(subprocess.Popen):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            result.append(self)

    monkeypatch.setattr(blocks.subprocess, "Popen", Recorded)
    return result


def is_gone(process: subprocess.Popen) -> bool:
    try:
        os.kill(process.pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_a_real_model_is_measured_in_two_fresh_processes(tiny_model: Path, started: list[subprocess.Popen]) -> None:
    measured = measure_blocks(HERE, {"tiny": tiny_model, "twin": tiny_model}, QUICK, np.random.default_rng(0))
    assert len(started) == 2
    for name in ("tiny", "twin"):
        samples = measured[name].measurement
        assert samples.subject == name
        assert list(samples.blocks) == [0, 1]
        assert all(5 <= len(block) <= 20 for block in samples.blocks.values())
        assert list(measured[name].details) == [0, 1]
        assert all(d.cpu_s > 0 and list(d.cpus) == pinned_cpus(HERE) for d in measured[name].details.values())
    # One of the two began each process: its start was cold.
    for block in (0, 1):
        starts = [measured[name].details[block].load_s for name in ("tiny", "twin")]
        assert sorted(start is None for start in starts) == [False, True]
    assert all(is_gone(process) for process in started)


def test_a_process_begins_no_model_when_the_time_is_up_and_finishes_the_one_at_hand(tiny_model: Path) -> None:
    models = {f"m{i}": tiny_model for i in range(5)}
    slow = Protocol(blocks=1, warmup_s=0.001, seconds=60.0, min_samples=5, max_samples=20, max_remeasure=0)
    handed: list[str] = []

    def measured(until_s: float) -> dict[str, Measured]:
        return measure_blocks(HERE, models, slow, np.random.default_rng(0), until_s=until_s, group=1,
                              on_taken=lambda name, block, taken: handed.append(name))  # fmt: skip

    assert measured(time.monotonic() - 1) == {}
    assert list(measured(time.monotonic() + 600)) == list(models)
    assert handed == list(models)


@pytest.mark.parametrize(
    ("target", "kind", "found"),
    [
        (Target("t", "cpu", "onnxruntime", engine_options={"thread": 1}), UnknownNameError, "Did you mean 'threads'"),
        (Target("t", "gpu", "tensorrt", precision="fp16"), MissingRuntimeError, "tensorrt"),
        (HERE, MissingFileError, "nowhere"),
    ],
)
def test_what_a_worker_refuses_arrives_as_the_error_it_was(
    target: Target, kind: type[AkdError], found: str, started: list[subprocess.Popen]
) -> None:
    with pytest.raises(kind, match=found) as caught:
        measure_blocks(target, {"m": Path("/nowhere.onnx")}, QUICK, np.random.default_rng(0))
    assert caught.value.asked
    assert all(is_gone(process) for process in started)


def test_every_error_crosses_the_process_boundary_whole() -> None:
    for kind in [AkdError, *AkdError.__subclasses__()]:
        described = {"kind": kind.kind, "asked": "a", "found": "b", "next": "c.", "uncovered": ["Gelu"]}
        error = _raised_in_worker({"error": described, "class": kind.__name__})
        assert type(error) is kind
        assert error.as_dict() == described
        assert str(error) == "asked for a; found b. c."
        assert error.exit_code == kind.exit_code


def test_a_worker_that_dies_says_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    dying = tmp_path / "dying"
    dying.write_text("#!/bin/sh\necho the library fell over >&2\nexit 7\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    # Enough models that the job does not fit into a pipe nobody reads.
    models = {f"model-{i:05d}": tiny_model for i in range(5_000)}
    with pytest.raises(MissingRuntimeError, match=r"status 7.*the library fell over"):
        measure_blocks(HERE, models, QUICK, np.random.default_rng(0))


def test_an_interrupt_between_two_models_ends_the_worker_at_once(
    tiny_model: Path, started: list[subprocess.Popen]
) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    models = {f"m{i}": tiny_model for i in range(50)}
    with pytest.raises(KeyboardInterrupt) as caught:
        measure_blocks(HERE, models, Protocol(blocks=1, seconds=1.0), np.random.default_rng(0), on_model=interrupt)
    assert len(started) == 1
    # while the exception, and with it every frame it passed, is still alive
    assert is_gone(started[0]), caught


def test_ctrl_c_while_a_worker_measures_ends_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[subprocess.Popen]
) -> None:
    endless = tmp_path / "endless"
    ready = tmp_path / "ready"
    endless.write_text(f"#!/bin/sh\ncat > {ready}\nexec sleep 60\n")
    endless.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(endless))

    def interrupt() -> None:
        # Once the job has been read and some time for us to block on the answer: a signal in the instant before a
        # read begins would be noticed only when the read ends.
        while not (ready.exists() and ready.stat().st_size):
            time.sleep(0.05)
        time.sleep(1.0)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        measure_blocks(HERE, MODELS, QUICK, np.random.default_rng(0))
    assert len(started) == 1
    assert is_gone(started[0])


def test_ctrl_c_while_a_worker_is_being_started_or_ended_leaves_none_behind(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python raises KeyboardInterrupt between any two steps: here when the process runs and nobody holds it yet, and
    when it is about to be killed."""
    born: list[int] = []

    class Interrupted(subprocess.Popen):
        def __init__(self, *args, **kwargs) -> None:
            super().__init__(*args, **kwargs)
            born.append(self.pid)
            signal.raise_signal(signal.SIGINT)

        def poll(self) -> int | None:
            if len(born) == 1:
                born.append(self.pid)
                signal.raise_signal(signal.SIGINT)
            return super().poll()

    monkeypatch.setattr(blocks.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_blocks(HERE, {"tiny": tiny_model}, Protocol(blocks=1), np.random.default_rng(0))
    assert len(born) == 2
    with pytest.raises(ProcessLookupError):
        os.kill(born[0], 0)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
