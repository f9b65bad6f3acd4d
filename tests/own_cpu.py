"""A CPU for each process of a parallel test run, where commands measure: two that measured on one would wait for it,
take each other for disturbances, and measure again and again."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from akd_deploy.profiling import blocks

if TYPE_CHECKING:
    import pytest

ONCE = Path(__file__).with_name("akd_deploy_once.py")
"""The command line as a program that measures nothing again, like `measure_once`."""

_OF_THIS_MACHINE = blocks._run_block


def own_cpus(cpus: set[int]) -> set[int]:
    """Of these the one that is of this process of pytest-xdist; all of them outside of one."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    return {sorted(cpus)[int(worker.removeprefix("gw")) % len(cpus)]} if worker else cpus


def on_own_cpu() -> None:
    """Bind this process, which is about to become a command, and what it starts to its own CPU."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, own_cpus(os.sched_getaffinity(0)))


def measure_on_own_cpu(patch: pytest.MonkeyPatch) -> None:
    """Have the measuring processes that this one starts bound to its own CPU.

    This process itself never is: runtimes read but once which CPUs there are, and pools of threads stay where they
    were made.
    """
    pinned = blocks.pinned_cpus
    if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_getaffinity"):
        (own,) = own_cpus(os.sched_getaffinity(0))
        patch.setattr(blocks, "pinned_cpus", lambda target: cpus if len(cpus := pinned(target)) != 1 else [own])


def measure_once(set_attribute: Callable[[object, str, object], None]) -> None:
    """However disturbed this machine is, nothing is measured again for it, no calm waited for: what a command does, and
    how long it takes, is the same on every machine. A machine that a test has made up is disturbed as the test says."""
    if blocks._run_block is not _OF_THIS_MACHINE:
        return
    for tolerance in ("REFERENCE_TOLERANCE", "WAITING_TOLERANCE", "STEAL_TOLERANCE", "UNSTABLE"):
        assert isinstance(getattr(blocks, tolerance), float)
        set_attribute(blocks, tolerance, math.inf)
