"""One block of measurements in a fresh process: reads a job on stdin, writes one JSON line per model on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.device import read_load, steal_fraction
from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Session, Timings, random_feeds, time_calls, warm_up
from akd_deploy.errors import AkdError, UsageError
from akd_deploy.target import Target, target_from_dict


def sent_target(fields: Mapping[str, object]) -> Target:
    """The target that another process sent as `Target.as_dict`."""
    others = dict(fields)
    return target_from_dict(str(others.pop("name")), others, where="the job of another process")


def reference_call() -> Callable[[], float]:
    """A fixed piece of arithmetic whose time tells whether the CPU itself is disturbed; returns seconds."""
    matrix = np.random.default_rng(0).standard_normal((160, 160), dtype=np.float32)

    def measure() -> float:
        times = []
        for _ in range(5):
            begin = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - begin)
        return float(np.median(times))

    return measure


class Watch:
    """Between calls, now and then, a little arithmetic that touches no memory: was the CPU slowed meanwhile?

    A spell of milliseconds may fall between two reference calls, and be in a tenth of the samples. Whether a beat was
    slow is for others to say, who know what it takes in other processes. `spent_s` is all the time that watching took.
    """

    def __init__(self, fewest_calls: int) -> None:
        _beat()  # the first takes twice as long as others
        self.beats_s: list[float] = []
        self.spent_s = 0.0
        self._every = max(1, min(BEAT_EVERY, fewest_calls // FEWEST_BEATS))
        self._calls = 0

    def between(self) -> None:
        self._calls += 1
        if self._calls % self._every == 0:
            begin = time.perf_counter()
            self.beats_s.append(_beat())
            self.spent_s += time.perf_counter() - begin


BEAT_EVERY = 5
"""Calls. A call behind a beat takes as long as others (27 to 104 µs, an EPYC: 0.1 % less)."""
FEWEST_BEATS = 20
"""Fewer calls than `BEAT_EVERY` lie between two beats where there would be less than so many."""


def _beat() -> float:
    """Seconds that the arithmetic takes the second time: the first finds what the call left in the caches, and takes up
    to 2.5 times as long behind a large network."""
    sum(range(600))
    begin = time.perf_counter()
    sum(range(600))
    return time.perf_counter() - begin


@dataclass(frozen=True)
class Timed:
    """One model's samples in this process, and what they took.

    `waiting` is the share of the time, idling left out, in which this process had no CPU, 0 to 1: threads that spin
    count as working, a host that waits for a device does not. `cpu_s` is CPU time per call. `load_s` and `first_s` are
    loading the engine and its first call. `parts_s` are the parts of each call where its boundary has some.
    `beats_s` are the watch's beats, where the protocol has one.
    """

    samples_s: list[float]
    waiting: float
    cpu_s: float
    load_s: float
    first_s: float
    parts_s: dict[str, list[float]]
    beats_s: Sequence[float] = ()


def measure_model(engine: Any, path: Path, protocol: Mapping[str, Any], rng: np.random.Generator) -> Timed:
    """Load one model, warm it up and time single calls of the protocol's boundary."""
    begin = time.perf_counter()
    with engine.load(path) as session:
        load_s = time.perf_counter() - begin
        parts: list[Timings] = []
        call = bounded_call(session, random_feeds(session, rng), protocol.get("boundary", "host"), parts)
        begin = time.perf_counter()
        call()
        first_s = time.perf_counter() - begin
        warm_up(call, protocol["warmup_s"])
        parts.clear()
        slept = 0.0
        # After a pause beats scatter by themselves: clocks and caches wake up.
        watched = protocol.get("watch") and not protocol.get("idle_s") and engine.target.device == "cpu"
        watch = Watch(int(protocol["min_samples"])) if watched else None

        def pause(seconds: float) -> None:
            nonlocal slept
            asleep = time.perf_counter()
            time.sleep(seconds)
            slept += time.perf_counter() - asleep

        wall, cpu = time.perf_counter(), time.process_time()
        samples = time_calls(
            call,
            seconds=protocol["seconds"],
            min_samples=int(protocol["min_samples"]),
            max_samples=int(protocol["max_samples"]),
            idle_s=protocol.get("idle_s", 0.0),
            sleep=pause,
            between=watch.between if watch else None,
        )
        beating = watch.spent_s if watch else 0.0
        wall, cpu = time.perf_counter() - wall - slept - beating, time.process_time() - cpu - beating
    if protocol.get("boundary") == "gpu":
        samples = [part.compute_s for part in parts]
    by_part = {field.name: [getattr(part, field.name) for part in parts] for field in fields(Timings)} if parts else {}
    beats_s = watch.beats_s if watch else ()
    return Timed(samples, max(0.0, 1 - cpu / wall), max(0.0, cpu) / len(samples), load_s, first_s, by_part, beats_s)


def bounded_call(
    session: Session, feeds: Mapping[str, np.ndarray], boundary: str, parts: list[Timings]
) -> Callable[[], None]:
    """One inference within a boundary of `BOUNDARIES`; where the session times its parts, they are added to `parts`.

    Raises:
        UsageError: the device's own time of a session that cannot tell it.
    """
    if boundary == "host":
        return session.bind(feeds)
    timed = session.timings(feeds)
    if timed is not None:
        return lambda: parts.append(timed())
    if boundary == "gpu":
        raise no_device_clock(session.why_no_timings)
    return lambda: _ignore(session.run(feeds))


def _ignore(outputs: object) -> None:
    """A call returns nothing."""


def no_device_clock(reason: str) -> UsageError:
    """Why the boundary "gpu" cannot be measured."""
    return UsageError(
        asked="latency by the device's own clock (boundary gpu)",
        found=reason,
        next="Measure with boundary host or end-to-end.",
    )


def run_job(job: dict[str, Any], emit: Callable[[dict[str, Any]], None]) -> None:
    """Measure the job's models in order, the reference before and after every one of them.

    No model is begun after `until_s` on the clock of `time.monotonic`, which all processes share.
    """
    target = sent_target(job["target"])
    if job["cpus"]:
        os.sched_setaffinity(0, job["cpus"])
    engine = load_engine(target)
    engine.require(engine.why_not())
    reference = engine.reference_call() or reference_call()
    rng = np.random.default_rng(job["seed"])
    reference()
    before, load = reference(), read_load()
    for i, model in enumerate(job["models"]):
        if job.get("until_s") is not None and time.monotonic() >= job["until_s"]:
            break
        timed = measure_model(engine, Path(model["path"]), job["protocol"], rng)
        after, now = reference(), read_load()
        emit(
            {
                "name": model["name"],
                "samples_s": timed.samples_s,
                "reference_s": max(before, after),
                "steal": steal_fraction(load, now),
                "waiting": timed.waiting,
                "beats_s": list(timed.beats_s),
                "cpu_s": timed.cpu_s,
                # A later model finds the runtime's libraries loaded: its start was not cold.
                "load_s": timed.load_s if i == 0 else None,
                "first_s": timed.first_s if i == 0 else None,
                "cpus": sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [],
                "parts_s": timed.parts_s,
            }
        )
        before, load = after, now


def main() -> None:
    """Entry point of `python -m akd_deploy.profiling.worker`."""
    # Runtimes print to stdout now and then; the parent must read our lines only.
    channel = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def emit(line: dict[str, Any]) -> None:
        channel.write(json.dumps(line) + "\n")
        channel.flush()

    try:
        run_job(json.load(sys.stdin), emit)
    except AkdError as error:
        emit({"error": error.as_dict(), "class": type(error).__name__})
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
    # Everything is said and every engine closed; what libraries do when Python ends would only keep the next process.
    sys.stderr.flush()
    os._exit(0)
