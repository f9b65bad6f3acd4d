"""One block of measurements in a fresh process: reads a job on stdin, writes one JSON line per model on stdout."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.device import read_load, steal_fraction
from akd_deploy.engines import load_engine
from akd_deploy.engines.base import random_feeds, time_calls, warm_up
from akd_deploy.errors import AkdError
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


def measure_model(
    engine: Any, path: Path, protocol: dict[str, float], rng: np.random.Generator
) -> tuple[list[float], float]:
    """Load one model, warm it up and time single calls.

    Returns:
        Seconds of each call, and the share of that time in which this process had no CPU, 0 to 1: threads that
        spin count as working, a host that waits for a device does not.
    """
    with engine.load(path) as session:
        call = session.bind(random_feeds(session, rng))
        warm_up(call, protocol["warmup_s"])
        wall, cpu = time.perf_counter(), time.process_time()
        samples = time_calls(
            call,
            seconds=protocol["seconds"],
            min_samples=int(protocol["min_samples"]),
            max_samples=int(protocol["max_samples"]),
        )
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return samples, max(0.0, 1 - cpu / wall)


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
    for model in job["models"]:
        if job.get("until_s") is not None and time.monotonic() >= job["until_s"]:
            break
        samples, waiting = measure_model(engine, Path(model["path"]), job["protocol"], rng)
        after, now = reference(), read_load()
        emit(
            {
                "name": model["name"],
                "samples_s": samples,
                "reference_s": max(before, after),
                "steal": steal_fraction(load, now),
                "waiting": waiting,
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
