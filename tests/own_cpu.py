"""A CPU for each process of a parallel test run, where commands measure: two that measured on one would wait for it,
take each other for disturbances, and measure again and again."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


def on_own_cpu() -> None:
    """Bind this thread, and what it starts, to the CPU of this process of pytest-xdist; nothing outside of one."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker and hasattr(os, "sched_setaffinity"):
        cpus = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cpus[int(worker.removeprefix("gw")) % len(cpus)]})


@contextmanager
def own_cpu() -> Iterator[None]:
    """`on_own_cpu` for as long as this lasts."""
    if not hasattr(os, "sched_getaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    on_own_cpu()
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
