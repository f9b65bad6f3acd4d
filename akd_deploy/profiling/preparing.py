"""Preparing: model files are written and their kernels listed, by several processes where there are many."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from functools import cache
from itertools import islice
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from pickle import PicklingError  # noqa: TID251 - what a pool cannot send; no file is one
from statistics import median
from typing import Any, Protocol

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.interruption import leave_with_the_parent
from akd_deploy.kernel import Kernel
from akd_deploy.profiling.worker import sent_target
from akd_deploy.target import Target

TRIED_FIRST = 8
"""So many models tell what one takes (seen: 25 ms in ONNX Runtime, 150 ms where it is quantised, 300 ms in torch)."""
WORTH_A_PROCESS_S = 4.0
"""Work that another process is started for: importing a runtime takes it one to three seconds."""
MAX_PROCESSES = 8
"""More would fill the memory with runtimes (picked by eye)."""
TIMED_BUILDS = frozenset({"tensorrt"})
"""Engines that choose kernels by timing them: several builds at once would choose others."""

Kernels = tuple[tuple[Kernel, int], ...]


class Subject(Protocol):
    """What a profile measures: rows' `kind` and `family` as in `TableRow`, a name equal for equal things only."""

    @property
    def kind(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def name(self) -> str: ...


WriteSubject = Callable[[Any, Path], Path]
"""(subject, folder) → the model file the target's engine reads."""


@dataclass(frozen=True)
class Prepared:
    """A model file, and the kernels it executes with how often each."""

    path: Path
    kernels: Kernels


@dataclass(frozen=True)
class ForTarget:
    """`function(path, target, seed)` as a function of the path: plain data, so other processes can be sent it."""

    function: Callable[[Path, Target, int], Path]
    target: Mapping[str, object]
    seed: int

    def __call__(self, path: Path) -> Path:
        return self.function(path, sent_target(self.target), self.seed)


def counted(kernels: Sequence[Kernel]) -> Kernels:
    """Kernels and how often each, sorted."""
    return tuple(sorted(Counter(kernels).items()))


class Preparation:
    """Prepares subjects for a target in `folder`; a context manager, whose processes stay warm until it is left.

    This process works beside at most (CPUs − 1) others, and alone while little is left to do. Subjects that cannot be
    sent to another process, or all of them where `write` cannot, are prepared here.

    Args:
        travels: whether a subject is plain data.
    """

    def __init__(self, target: Target, write: WriteSubject, folder: Path, travels: Callable[[Any], bool]) -> None:
        self._target = json.dumps(target.as_dict(), sort_keys=True)
        self._engine = load_engine(target)
        self._write, self._folder = write, folder
        self._travels = travels if target.engine not in TIMED_BUILDS and _can_be_sent(write) else lambda _: False
        self._pool: ProcessPoolExecutor | None = None
        self._processes = 0

    def __enter__(self) -> Preparation:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the other processes, which finish what they are at; they are started again where there is more."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def prepare(
        self,
        subjects: Sequence[Subject],
        known: Mapping[str, Kernels],
        on_prepared: Callable[[int, int], None],
        until_s: float | None = None,
    ) -> dict[str, Prepared]:
        """Name → what was prepared: all subjects, or with `until_s` those that came first before the time was up.

        Args:
            known: kernels by name that need not be listed again.
            on_prepared: called with (prepared so far, all) after each.
            until_s: time (of `time.monotonic`) after which none is begun, but the first one always is.

        Raises:
            AkdError: a model cannot be written, or its kernels cannot be listed.
        """
        waiting = {subject.name: subject for subject in subjects}
        order, total = list(waiting), len(waiting)
        elsewhere: dict[str, tuple[Subject, Future[Prepared]]] = {}
        result: dict[str, Prepared] = {}
        took_s: list[float] = []

        def prepare_here(subject: Subject) -> Prepared:
            begin = time.monotonic()
            prepared = _prepared(self._engine, self._write, subject, self._folder, known.get(subject.name))
            took_s.append(time.monotonic() - begin)
            return prepared

        def keep(name: str, prepared: Prepared) -> None:
            result[name] = prepared
            on_prepared(len(result), total)

        while waiting or elsewhere:
            if result and until_s is not None and time.monotonic() >= until_s:
                waiting.clear()
            if len(took_s) == TRIED_FIRST:
                self._start(sum(map(self._travels, waiting.values())) * median(took_s))
            able = (name for name in waiting if self._travels(waiting[name]))
            for name in list(islice(able, self._room(len(elsewhere)))):
                future = self._send(waiting[name], known.get(name))
                if future is not None:
                    elsewhere[name] = waiting.pop(name), future
            if waiting:
                name = next(iter(waiting))
                keep(name, prepare_here(waiting.pop(name)))
            else:
                wait([future for _, future in elsewhere.values()], return_when=FIRST_COMPLETED)
            for name in [name for name, (_, future) in elsewhere.items() if future.done()]:
                subject, future = elsewhere.pop(name)
                try:
                    keep(name, future.result())
                except BrokenExecutor:
                    # A process died, for want of memory say: here, what it was at either works or fails with a name.
                    self._pool = None
                    keep(name, prepare_here(subject))
        return {name: result[name] for name in order if name in result}

    def _start(self, work_s: float) -> None:
        """Start other processes, if there are none and so many seconds of work are worth any."""
        processes = min(MAX_PROCESSES, cpus() - 1, int(work_s / WORTH_A_PROCESS_S))
        if self._pool is None and processes > 0:
            self._processes = processes
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(self._processes, context, initializer=_begin)

    def _room(self, sent: int) -> int:
        """How many more to send: one at hand and one in reserve for every process, and the rest is anybody's."""
        return 0 if self._pool is None else max(0, 2 * self._processes - sent)

    def _send(self, subject: Subject, known: Kernels | None) -> Future[Prepared] | None:
        """A subject to be prepared elsewhere; None where a process has died, and with it all the others."""
        if self._pool is None:
            return None
        try:
            return self._pool.submit(_prepared_elsewhere, self._target, self._write, subject, self._folder, known)
        except BrokenExecutor:
            self._pool = None
            return None


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _can_be_sent(value: object) -> bool:
    try:
        ForkingPickler.dumps(value)
    except (PicklingError, AttributeError, TypeError):  # closures and lambdas, above all
        return False
    return True


def _prepared(engine: Engine, write: WriteSubject, subject: Any, folder: Path, known: Kernels | None) -> Prepared:
    path = write(subject, folder)
    if known is None:
        known = counted([executed.kernel for executed in engine.executed_kernels(path)])
    return Prepared(engine.loadable(path, folder), known)


# --- in the other processes -------------------------------------------------------------------------------------


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which ends us
    os.dup2(2, 1)  # runtimes print to stdout now and then, and the parent's is for its answer alone
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    leave_with_the_parent()


@cache
def _engine(target: str) -> Engine:
    return load_engine(sent_target(json.loads(target)))


def _prepared_elsewhere(
    target: str, write: WriteSubject, subject: Any, folder: Path, known: Kernels | None
) -> Prepared:
    return _prepared(_engine(target), write, subject, folder, known)
