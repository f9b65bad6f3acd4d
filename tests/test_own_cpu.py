"""Parallel test runs: each process's commands measure on one CPU, and the process itself is never bound to it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from own_cpu import measure_on_own_cpu, on_own_cpu

from akd_deploy.profiling import blocks
from akd_deploy.target import Target

pytestmark = pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")


def target(threads: int) -> Target:
    return Target("here", device="cpu", engine="onnxruntime", engine_options={"threads": threads})


@pytest.mark.parametrize("worker", range(4))
def test_a_worker_of_one_thread_gets_the_cpu_of_its_test_process_which_stays_unbound(
    worker: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    available = sorted(os.sched_getaffinity(0))
    own = available[worker % len(available)]
    monkeypatch.setenv("PYTEST_XDIST_WORKER", f"gw{worker}")
    measure_on_own_cpu(monkeypatch)
    assert blocks.pinned_cpus(target(1)) == [own]
    if len(available) > 1:
        assert blocks.pinned_cpus(target(2)) == available[-2:]
    said = [sys.executable, "-c", "import os; print(os.sched_getaffinity(0))"]
    bound = subprocess.run(said, capture_output=True, text=True, check=True, preexec_fn=on_own_cpu)
    assert bound.stdout.strip() == str({own})
    assert sorted(os.sched_getaffinity(0)) == available


def test_outside_of_a_parallel_run_nothing_is_different(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)
    before = blocks.pinned_cpus
    measure_on_own_cpu(monkeypatch)
    assert blocks.pinned_cpus is before
    assert before(target(1)) == sorted(os.sched_getaffinity(0))[-1:]
