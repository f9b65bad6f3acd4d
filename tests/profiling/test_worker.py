"""The measuring process: one line per model, and nothing but those lines on its channel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from akd_deploy.engines.base import TensorSpec, Timings
from akd_deploy.errors import UsageError
from akd_deploy.profiling import worker
from akd_deploy.target import Target

PROTOCOL = {"warmup_s": 0.0, "seconds": 0.0, "min_samples": 3, "max_samples": 3}


class _Session:
    inputs = (TensorSpec("x", (1, 2), "float32"),)

    def __init__(self, path: Path, log: list[str]) -> None:
        self.path, self.log = path, log

    def __enter__(self) -> _Session:
        self.log.append(f"open {self.path}")
        return self

    def __exit__(self, *exc: object) -> None:
        self.log.append(f"close {self.path}")

    def bind(self, feeds: Mapping[str, np.ndarray]):
        assert feeds["x"].shape == (1, 2)
        return lambda: self.log.append(f"call {self.path}")


class _Engine:
    def __init__(self) -> None:
        self.log: list[str] = []

    def why_not(self) -> None:
        return None

    def require(self, reason: str | None) -> None:
        assert reason is None

    def reference_call(self) -> None:
        return None

    def load(self, path: Path) -> _Session:
        return _Session(path, self.log)


def job(*names: str) -> dict[str, Any]:
    return {
        "target": Target("here", "cpu", "onnxruntime").as_dict(),
        "models": [{"name": name, "path": f"{name}.onnx"} for name in names],
        "protocol": PROTOCOL,
        "cpus": [],
        "seed": 0,
    }


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> _Engine:
    result = _Engine()
    monkeypatch.setattr(worker, "load_engine", lambda target: result)
    return result


def test_models_are_measured_in_the_order_asked_and_closed_before_the_next(engine: _Engine) -> None:
    lines: list[dict[str, Any]] = []
    worker.run_job(job("b", "a"), lines.append)
    assert [line["name"] for line in lines] == ["b", "a"]
    for line in lines:
        assert len(line["samples_s"]) == 3
        assert all(sample > 0 for sample in line["samples_s"])
        assert line["reference_s"] > 0
        assert 0 <= line["steal"] <= 1
        assert 0 <= line["waiting"] <= 1
    opened_and_closed = [entry for entry in engine.log if not entry.startswith("call")]
    assert opened_and_closed == ["open b.onnx", "close b.onnx", "open a.onnx", "close a.onnx"]


def test_no_model_is_begun_after_its_time(engine: _Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 19.9, 20.0, 21.0])
    monkeypatch.setattr(worker.time, "monotonic", lambda: next(clock))
    lines: list[dict[str, Any]] = []
    worker.run_job({**job("a", "b", "c", "d"), "until_s": 20.0}, lines.append)
    assert [line["name"] for line in lines] == ["a", "b"]


def test_a_models_reference_is_the_slower_of_the_one_before_and_the_one_after(
    engine: _Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # one to warm up, one before a, one between a and b, one after b
    references = iter([9.0, 1.0, 3.0, 2.0])
    monkeypatch.setattr(worker, "reference_call", lambda: lambda: next(references))
    lines: list[dict[str, Any]] = []
    worker.run_job(job("a", "b"), lines.append)
    assert [line["reference_s"] for line in lines] == [3.0, 3.0]


def test_a_model_that_sleeps_has_waited_and_one_that_works_has_not(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"wall": 0.0, "cpu": 0.0}

    class Sleeper(_Session):
        def bind(self, feeds: Mapping[str, np.ndarray]):
            def call() -> None:
                clocks["wall"] += 4.0
                clocks["cpu"] += 4.0 if self.path.stem == "worker" else 1.0

            return call

    monkeypatch.setattr(worker, "warm_up", lambda call, seconds: 0)
    monkeypatch.setattr(worker.time, "perf_counter", lambda: clocks["wall"])
    monkeypatch.setattr(worker.time, "process_time", lambda: clocks["cpu"])
    engine = _Engine()
    monkeypatch.setattr(engine, "load", lambda path: Sleeper(path, []))
    waiting = [
        worker.measure_model(engine, Path(name), PROTOCOL, np.random.default_rng(0)).waiting
        for name in ("sleeper.onnx", "worker.onnx")
    ]
    assert waiting == [0.75, 0.0]


def test_a_pause_between_calls_is_no_waiting_for_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {"wall": 0.0, "cpu": 0.0}

    class Worker(_Session):
        def bind(self, feeds: Mapping[str, np.ndarray]):
            def call() -> None:
                clocks["wall"] += 4.0
                clocks["cpu"] += 4.0

            return call

    def sleep(seconds: float) -> None:
        clocks["wall"] += 2 * seconds  # a sleeper wakes up late

    monkeypatch.setattr(worker, "warm_up", lambda call, seconds: 0)
    monkeypatch.setattr(worker.time, "perf_counter", lambda: clocks["wall"])
    monkeypatch.setattr(worker.time, "process_time", lambda: clocks["cpu"])
    monkeypatch.setattr(worker.time, "sleep", sleep)
    engine = _Engine()
    monkeypatch.setattr(engine, "load", lambda path: Worker(path, []))
    timed = worker.measure_model(engine, Path("m.onnx"), {**PROTOCOL, "idle_s": 10.0}, np.random.default_rng(0))
    assert (timed.samples_s, timed.waiting, timed.cpu_s) == ([4.0] * 3, 0.0, 4.0)
    assert clocks["wall"] == 4.0 + 3 * (20.0 + 4.0)  # the first call, and three with a pause before each


def test_a_start_is_the_loading_and_the_first_call_and_cold_for_the_first_model_alone(
    engine: _Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    wall = {"now": 0.0}
    calls: list[Path] = []

    class Slow(_Session):
        def bind(self, feeds: Mapping[str, np.ndarray]):
            def call() -> None:
                wall["now"] += 1.0 if self.path in calls else 30.0
                calls.append(self.path)

            return call

    def load(path: Path) -> Slow:
        wall["now"] += 500.0
        return Slow(path, [])

    monkeypatch.setattr(engine, "load", load)
    monkeypatch.setattr(worker, "reference_call", lambda: lambda: 1.0)
    monkeypatch.setattr(worker.time, "perf_counter", lambda: wall["now"])
    monkeypatch.setattr(worker.time, "process_time", lambda: wall["now"])
    lines: list[dict[str, Any]] = []
    worker.run_job(job("a", "b"), lines.append)
    assert [(line["load_s"], line["first_s"]) for line in lines] == [(500.0, 30.0), (None, None)]
    assert all(line["samples_s"] == [1.0] * 3 for line in lines)
    assert lines[0]["cpus"] == sorted(os.sched_getaffinity(0))


class _OnDevice(_Session):
    """Its parts, and what a caller on the host sees, differ."""

    def bind(self, feeds: Mapping[str, np.ndarray]):
        return lambda: self.log.append("bound")

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.log.append("run")
        return {}

    def timings(self, feeds: Mapping[str, np.ndarray]):
        def call() -> Timings:
            self.log.append("timed")
            return Timings(enqueue_s=1.0, h2d_s=2.0, compute_s=3.0, d2h_s=4.0, end_to_end_s=11.0)

        return call


class _OnHost(_OnDevice):
    why_no_timings = "its clock is at the mender's"

    def timings(self, feeds: Mapping[str, np.ndarray]) -> None:
        return None


@pytest.mark.parametrize(
    ("session", "boundary", "way"),
    [
        (_OnDevice, "host", "bound"),
        (_OnDevice, "gpu", "timed"),
        (_OnDevice, "end-to-end", "timed"),
        (_OnHost, "host", "bound"),
        (_OnHost, "end-to-end", "run"),
    ],
)
def test_each_boundary_is_measured_in_its_own_way(session: type[_OnDevice], boundary: str, way: str) -> None:
    engine = _Engine()
    engine.load = lambda path: session(path, engine.log)  # type: ignore[method-assign]
    protocol = {**PROTOCOL, "boundary": boundary}
    timed = worker.measure_model(engine, Path("m.onnx"), protocol, np.random.default_rng(0))
    calls = [entry for entry in engine.log if entry in ("bound", "run", "timed")]
    assert set(calls) == {way}
    assert len(timed.samples_s) == 3
    if boundary == "gpu":
        assert timed.samples_s == [3.0] * 3
    else:
        assert max(timed.samples_s) < 1.0  # by the host's clock
    expected = {"enqueue_s": 1.0, "h2d_s": 2.0, "compute_s": 3.0, "d2h_s": 4.0, "end_to_end_s": 11.0}
    assert timed.parts_s == ({part: [s] * 3 for part, s in expected.items()} if way == "timed" else {})


def test_the_devices_own_time_of_a_session_that_cannot_tell_it_is_refused() -> None:
    engine = _Engine()
    engine.load = lambda path: _OnHost(path, engine.log)  # type: ignore[method-assign]
    with pytest.raises(UsageError, match=r"boundary gpu.*at the mender's"):
        worker.measure_model(engine, Path("m.onnx"), {**PROTOCOL, "boundary": "gpu"}, np.random.default_rng(0))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_process_is_bound_before_the_engine_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    happened: list[object] = []
    monkeypatch.setattr(worker.os, "sched_setaffinity", lambda pid, cpus: happened.append((pid, cpus)))

    def load(target: Target) -> _Engine:
        happened.append("load")
        return _Engine()

    monkeypatch.setattr(worker, "load_engine", load)
    worker.run_job({**job(), "cpus": [0]}, happened.append)
    assert happened == [(0, [0]), "load"]


def run(program: str, stdin: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", program], input=stdin, capture_output=True, text=True, timeout=60, check=False
    )


def test_what_a_runtime_prints_does_not_reach_the_channel() -> None:
    program = (
        "import os\n"
        "import akd_deploy.profiling.worker as worker\n"
        "def noisy(job, emit):\n"
        "    print('runtime: hello', flush=True)\n"
        "    os.system('echo library: hello')\n"
        "    emit({'name': job['name']})\n"
        "worker.run_job = noisy\n"
        "worker.main()\n"
    )
    done = run(program, '{"name": "m"}')
    assert done.stdout == '{"name": "m"}\n'
    assert "runtime: hello" in done.stderr
    assert "library: hello" in done.stderr
    assert done.returncode == 0


def test_a_refusal_is_a_line_that_tells_all_and_an_exit_code() -> None:
    wrong = job("m")
    wrong["target"] = {**wrong["target"], "engine": "onnxrumtime"}
    done = run("import akd_deploy.profiling.worker as worker; worker.main()", json.dumps(wrong))
    line = json.loads(done.stdout)
    assert line["class"] == "UnknownNameError"
    assert line["error"]["name"] == "onnxrumtime"
    assert "onnxruntime" in line["error"]["known"]
    assert done.returncode == 2


@pytest.mark.parametrize(
    ("fewest_calls", "calls", "beats"), [(100, 100, 20), (1_000, 1_000, 200), (50, 50, 25), (3, 3, 3), (1, 0, 0)]
)
def test_the_watch_keeps_every_beat_but_the_first(monkeypatch, fewest_calls, calls, beats) -> None:
    given, clock = iter(range(1_000)), iter(range(10_000))
    monkeypatch.setattr(worker, "_beat", lambda: next(given))
    monkeypatch.setattr(worker.time, "perf_counter", lambda: float(next(clock)))
    watch = worker.Watch(fewest_calls)
    for _ in range(calls):
        watch.between()
    assert watch.beats_s == list(range(1, beats + 1))
    assert watch.spent_s == beats  # all of it, not the beat alone


def test_a_beat_is_timed_when_caches_hold_it(monkeypatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(worker, "sum", lambda values: told.append(f"sum of {len(values)}"), raising=False)
    monkeypatch.setattr(worker.time, "perf_counter", lambda: told.append("clock") or float(len(told)))
    assert worker._beat() == 2.0
    assert told == ["sum of 600", "clock", "sum of 600", "clock"]


@pytest.mark.parametrize(
    ("watch", "device", "idle_s", "beats"),
    [(True, "cpu", 0.0, 20), (False, "cpu", 0.0, 0), (True, "gpu", 0.0, 0), (True, "cpu", 1e-4, 0)],
)
def test_calls_are_watched_where_the_protocol_says_so_on_a_cpu(monkeypatch, watch, device, idle_s, beats) -> None:
    taken: list[float] = []

    def beat() -> float:
        taken.append(float(len(taken)))
        return taken[-1]

    monkeypatch.setattr(worker, "_beat", beat)
    engine = _Engine()
    engine.target = Target("t", device, "onnxruntime")
    protocol = {**PROTOCOL, "min_samples": 20, "max_samples": 20, "watch": watch, "idle_s": idle_s}
    timed = worker.measure_model(engine, Path("m"), protocol, np.random.default_rng(0))
    assert len(timed.samples_s) == 20
    assert list(timed.beats_s) == taken[1:] == [float(i + 1) for i in range(beats)]
    assert timed.waiting >= 0
    assert timed.cpu_s >= 0
