"""Trainings that a study needs, each done once: results are kept line by line, and a study that was ended goes on."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from akd_deploy.interruption import leave_with_the_parent

Job = Mapping[str, Any]
"""JSON types only: everything that the result depends on, and under `folder`, at any depth, where files are kept."""
Work = Callable[[Job], Mapping[str, Any]]
"""Does one job in a process of its own kind; a module's function."""
LONGEST = 2_000
"""Characters of a list that a ledger keeps whole."""


def key_of(job: Job) -> str:
    """Equal exactly for jobs that differ in nothing but their folders."""
    return hashlib.sha256(json.dumps(without_folders(job), sort_keys=True).encode()).hexdigest()[:20]


def told(value: Any) -> Any:
    """A job as a ledger keeps it: long lists, as a process's weights, by a digest of what they hold."""
    if isinstance(value, Mapping):
        return {name: told(one) for name, one in value.items()}
    text = json.dumps(value)
    if not isinstance(value, list) or len(text) <= LONGEST:
        return value
    return {"sha256": hashlib.sha256(text.encode()).hexdigest()[:20], "length": len(value)}


def without_folders(value: Any) -> Any:
    """A job as it is on every machine."""
    if isinstance(value, Mapping):
        return {name: without_folders(one) for name, one in value.items() if name != "folder"}
    return [without_folders(one) for one in value] if isinstance(value, list | tuple) else value


@dataclass
class Ledger:
    """Results by job, in a file of JSON lines; a line that was cut off is done again.

    `processes` work at a time, each with one thread. `seconds` is the CPU time of all that the study has asked for so
    far, over processes, also of what earlier runs of it did; not that of lines which it has no use for any more.
    """

    path: Path
    processes: int = 2

    def __post_init__(self) -> None:
        self._known: dict[str, dict[str, Any]] = {}
        self._asked: set[str] = set()
        if self.path.is_file():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    entry = json.loads(line)
                except ValueError:
                    continue
                self._known[entry["key"]] = entry

    @property
    def seconds(self) -> float:
        return sum(self._known[key]["seconds"] for key in self._asked)

    def cpu_s(self, jobs: Sequence[Job]) -> float:
        """Mean CPU time of some jobs that were done."""
        return sum(self._known[key_of(job)]["seconds"] for job in jobs) / len(jobs)

    def results(self, work: Work, jobs: Sequence[Job], what: str) -> list[Mapping[str, Any]]:
        """The result of every job, in order; those not known yet are done first."""
        missing = list({key_of(job): job for job in jobs if key_of(job) not in self._known}.items())
        if missing:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
            with self.path.open("a", encoding="utf-8") as file:
                file.write("\n" if torn else "")
                for done, (key, job, result, seconds) in enumerate(self._done(work, missing), start=1):
                    entry = {"key": key, "job": told(without_folders(job)), "result": result, "seconds": seconds}
                    file.write(json.dumps(entry) + "\n")
                    file.flush()
                    self._known[key] = entry
                    print(f"\r{what}: {done} of {len(missing)}", end="", file=sys.stderr, flush=True)
            print(file=sys.stderr)
        keys = [key_of(job) for job in jobs]
        self._asked.update(keys)
        return [self._known[key]["result"] for key in keys]

    def _done(
        self, work: Work, missing: Sequence[tuple[str, Job]]
    ) -> Iterator[tuple[str, Job, Mapping[str, Any], float]]:
        if self.processes == 1 or len(missing) == 1:
            _one_thread()
            for key, job in missing:
                yield key, job, *_timed(work, job)
            return
        waiting = {self._pool.submit(_timed, work, job): (key, job) for key, job in missing}
        for ended in as_completed(waiting):
            yield *waiting[ended], *ended.result()

    @cached_property
    def _pool(self) -> ProcessPoolExecutor:
        """Kept for the whole study: each process draws its images and reads its teachers once."""
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.processes, mp_context=context, initializer=_kindly)


def _timed(work: Work, job: Job) -> tuple[Mapping[str, Any], float]:
    began = cpu_seconds()
    return work(job), cpu_seconds() - began


def cpu_seconds() -> float:
    """What this process, of one thread, and those it has waited for have computed so far; what else the machine does
    is not in it."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


def _one_thread() -> None:
    """The same training gives the same result wherever it runs, and two do not get in each other's way."""
    import torch

    torch.set_num_threads(1)


def _kindly() -> None:
    """A process that only trains gives way to others, and ends with the study, however that ends."""
    _one_thread()
    os.nice(5)
    leave_with_the_parent()
