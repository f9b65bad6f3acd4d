"""Measurements in blocks: fresh processes, random order, disturbed models measured again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field, replace
from math import isfinite
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np

from akd_deploy import errors
from akd_deploy.engines import load_engine
from akd_deploy.engines.base import BOUNDARIES
from akd_deploy.errors import AkdError, MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.interruption import without_interruption
from akd_deploy.measurement import Measurement
from akd_deploy.target import Target

REFERENCE_TOLERANCE = 1.12
"""A model whose neighbouring reference ran this much slower than usual was disturbed (picked by eye: the
reference scatters by 2–3 % on a quiet shared CPU)."""
USUAL_PERCENTILE = 10
"""Of the references, what is usual: a shared CPU may run at full speed for a small part of the time only."""
STEAL_TOLERANCE = 0.03
"""So was one during which the hypervisor took more than this share of CPU time."""
SLOW_BEAT = 1.25
"""A beat between calls that took so many times what is usual was slow; picked by eye: neighbours on the same core make
it 1.4 to 2."""
SLOW_BEATS_TOLERANCE = 0.1
"""A model was disturbed, too, if so large a share of the beats between its calls were slow, and at least two: its p90
is a disturbed one. On a quiet machine 2 % are."""
WAITING_TOLERANCE = 0.03
"""So was one whose process, on a CPU target, waited for a CPU for more than this share of the time it was timed."""
T = TypeVar("T")

UNSTABLE = 0.08
"""Block medians further apart than this, relatively, ask for extra blocks; what the others were is kept."""


@dataclass(frozen=True)
class Protocol:
    """How samples are taken. `warmup_s` and `seconds` are per model and block.

    A disturbed block is measured again at once, `max_remeasure` times at most, and what is disturbed at the end once
    more after each of the pauses `pauses_s`, in seconds; a model whose blocks disagree by more than `UNSTABLE` gets up
    to `extra_blocks` more. Before every call the process sleeps `idle_s`; `boundary` is one of `BOUNDARIES`. With
    `watch` the CPU is watched between calls, for what must hold for the slower ones too.
    """

    blocks: int = 3
    warmup_s: float = 0.005
    seconds: float = 0.01
    min_samples: int = 50
    max_samples: int = 200
    max_remeasure: int = 2
    extra_blocks: int = 0
    idle_s: float = 0.0
    boundary: str = "host"
    pauses_s: tuple[float, ...] = ()
    watch: bool = False

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.min_samples < 1 or self.max_samples < self.min_samples:
            raise UsageError(asked="a measuring protocol", found=str(self), next="Take ≥ 1 block and ≥ 1 sample.")
        if not (isfinite(self.idle_s) and self.idle_s >= 0):
            raise UsageError(asked="a pause between calls", found=f"{self.idle_s} s", next="Give a duration ≥ 0.")
        if self.boundary not in BOUNDARIES:
            raise UnknownNameError("boundary", self.boundary, BOUNDARIES)

    def header(self) -> dict[str, float | int | str]:
        """The part that two tables must share to merge: everything but how many blocks and when more."""
        fields = asdict(self)
        del fields["blocks"], fields["max_remeasure"], fields["extra_blocks"], fields["pauses_s"]
        if self.idle_s == 0:
            del fields["idle_s"]  # as headers were before there were pauses
        del fields["watch"]  # it finds disturbances, and samples are what they were
        clock = "device" if self.boundary == "gpu" else "perf_counter"
        return {**fields, "clock": clock, "reference": "matmul160"}


PATIENCE_S = (0.5, 1.0, 2.0, 4.0, 8.0)
"""Pauses of what must hold for one model: a neighbour that slows a machine often does so for seconds."""
LATE_S = 30.0
"""So long, pauses included, what is disturbed at the end is measured again; what is still disturbed then stays so."""

BENCH = Protocol(
    blocks=10, warmup_s=0.05, seconds=0.1, min_samples=100, max_samples=2_000, pauses_s=PATIENCE_S, watch=True
)
"""Ten fresh processes of at least 100 samples: enough for a p90 certificate."""


@dataclass(frozen=True)
class Measured:
    """A measurement, how many of its blocks were taken again, and how many stayed disturbed.

    `details` are what is known of each block besides its samples; none of one that came from a journal.
    """

    measurement: Measurement
    remeasured: int
    disturbed: int
    details: Mapping[int, TakenDetail] = field(default_factory=dict)


@dataclass(frozen=True)
class TakenDetail:
    """What a bench tells of a block besides its samples.

    `remeasured` counts how often it was taken before, `disturbed` says whether what was kept is disturbed all the same.
    `cpu_s` is the process's CPU time per call; `load_s` and `first_s` are loading the engine and the first call, where
    this model was the first of its process; `cpus` are those it was bound to; `parts_s` are the parts of each call
    where the protocol's boundary has some.
    """

    cpu_s: float
    load_s: float | None
    first_s: float | None
    cpus: tuple[int, ...]
    parts_s: Mapping[str, Sequence[float]]
    remeasured: int = 0
    disturbed: bool = False


@dataclass(frozen=True)
class Taken:
    """One model's samples of one block, and what tells whether they were disturbed.

    `reference_s` is the slower of the two reference calls beside them; `steal` and `waiting` are shares of the time,
    0 to 1, in which the hypervisor, or other processes, had the CPU; `beats_s` the beats between the calls, where they
    were watched. `remeasured` counts the times that the block was taken before and found disturbed. `detail` is what
    else is known of them. A journal keeps neither beats nor details.
    """

    samples_s: tuple[float, ...]
    reference_s: float
    steal: float
    waiting: float = 0.0
    remeasured: int = 0
    detail: TakenDetail | None = None
    beats_s: tuple[float, ...] = ()


@dataclass
class Usual:
    """What the machine itself took so far, in all processes: every reference and every beat, in seconds.

    A process may be slow from its first call to its last, and its references, which stand around that, not: only other
    processes tell what a beat takes.
    """

    references_s: list[float] = field(default_factory=list)
    beats_s: list[float] = field(default_factory=list)

    def add(self, taken: Taken) -> None:
        self.references_s.append(taken.reference_s)
        self.beats_s.extend(taken.beats_s)

    def reference_excess(self, taken: Taken) -> float:
        """How much longer than usual a block's reference took, as a fraction; below 0 where it was quicker."""
        return taken.reference_s / float(np.percentile(self.references_s, USUAL_PERCENTILE)) - 1

    def slow_share(self, taken: Taken) -> float:
        """Share of a block's beats that took longer than usual, 0 to 1; 0 without any."""
        if not (taken.beats_s and self.beats_s):
            return 0.0
        slow_s = SLOW_BEAT * float(np.percentile(self.beats_s, USUAL_PERCENTILE))
        return float((np.asarray(taken.beats_s) > slow_s).mean())


def is_disturbed(taken: Taken, target: Target, usual: Usual) -> bool:
    """Whether something else than the model had a part in these samples' times.

    Args:
        usual: everything so far, this block among it.
    """
    waited = target.device == "cpu" and taken.waiting > WAITING_TOLERANCE
    share = usual.slow_share(taken)
    slowed = share >= SLOW_BEATS_TOLERANCE and share * len(taken.beats_s) > 1.5
    drifted = usual.reference_excess(taken) > REFERENCE_TOLERANCE - 1
    return drifted or waited or taken.steal > STEAL_TOLERANCE or slowed


def _calmer(before: Taken, again: Taken, target: Target, usual: Usual) -> Taken:
    """What was measured again, unless it was disturbed even more: told by all but the model's own samples."""

    def trouble(one: Taken) -> float:
        """Shares of the time that were lost, and how much slower than usual the reference was."""
        waited = one.waiting if target.device == "cpu" else 0.0
        return usual.slow_share(one) + one.steal + waited + usual.reference_excess(one)

    worse = is_disturbed(again, target, usual) and trouble(again) > trouble(before)
    return before if worse else again


def is_unstable(block_medians_s: Sequence[float] | np.ndarray) -> bool:
    """Whether a model's blocks disagree so much that it should have more of them."""
    return len(block_medians_s) > 1 and max(block_medians_s) / min(block_medians_s) - 1 > UNSTABLE


def pinned_cpus(target: Target) -> list[int]:
    """The CPUs a measuring process is bound to: as many as the target's threads; none where that is impossible."""
    if target.device != "cpu" or not hasattr(os, "sched_getaffinity"):
        return []
    threads = target.engine_options.get("threads", 1)
    available = sorted(os.sched_getaffinity(0))
    # The last CPUs: interrupts and the shell live on the first ones more often than not.
    return available[-max(1, int(threads if isinstance(threads, int) else 1)) :]


def _run_block(
    target: Target,
    models: Mapping[str, Path],
    order: list[str],
    protocol: Protocol,
    seed: int,
    until_s: float | None = None,
) -> Generator[tuple[str, Taken], None, None]:
    """One fresh process; yields as models are finished. Closing the generator ends the process."""
    job = {
        "target": target.as_dict(),
        "models": [{"name": name, "path": str(models[name])} for name in order],
        "protocol": asdict(protocol),
        "cpus": pinned_cpus(target),
        "seed": seed,
        "until_s": until_s,
    }
    single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    process: subprocess.Popen[str] | None = None
    with tempfile.TemporaryFile() as log:
        try:
            with without_interruption():
                process = subprocess.Popen(
                    [sys.executable, "-m", "akd_deploy.profiling.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    env={**os.environ, **single},
                    text=True,
                    start_new_session=True,  # Ctrl-C reaches us, and we end it
                )
            assert process.stdin is not None
            assert process.stdout is not None
            # A process that died before it read its job tells by its status.
            with suppress(BrokenPipeError), process.stdin as stdin:
                stdin.write(json.dumps(job))
            for line in process.stdout:
                fields = json.loads(line)
                if "error" in fields:
                    raise _raised_in_worker(fields)
                yield (
                    fields["name"],
                    Taken(
                        tuple(fields["samples_s"]),
                        fields["reference_s"],
                        fields["steal"],
                        fields["waiting"],
                        beats_s=tuple(fields["beats_s"]),
                        detail=TakenDetail(
                            fields["cpu_s"],
                            fields["load_s"],
                            fields["first_s"],
                            tuple(fields["cpus"]),
                            fields["parts_s"],
                        ),
                    ),
                )
            if process.wait() != 0:
                log.seek(0)
                tail = log.read().decode(errors="replace").strip().splitlines()[-3:]
                raise MissingRuntimeError(
                    asked=f"a measurement on target {target.name}",
                    found=f"the measuring process ended with status {process.returncode}: {' | '.join(tail)}",
                    next="Run `akd-deploy doctor`.",
                )
        finally:
            if process is not None:
                with without_interruption():
                    if process.poll() is None:
                        process.kill()
                    process.wait()
                    for pipe in (process.stdin, process.stdout):
                        assert pipe is not None
                        with suppress(BrokenPipeError):  # what it was sent and nobody reads any more
                            pipe.close()


def _raised_in_worker(fields: dict[str, Any]) -> AkdError:
    described = dict(fields["error"])
    asked, found, next = (described.pop(part) for part in ("asked", "found", "next"))
    del described["kind"]
    return errors.rebuilt_error(getattr(errors, fields["class"], AkdError), asked, found, next, described)


def measure_blocks(
    target: Target,
    models: Mapping[str, Path],
    protocol: Protocol,
    rng: np.random.Generator,
    on_model: Callable[[int, int], None] = lambda done, total: None,
    on_block: Callable[[dict[str, Measured]], None] = lambda measured: None,
    have: Mapping[str, int] = MappingProxyType({}),
    usual: Usual | None = None,
    *,
    on_taken: Callable[[str, int, Taken], None] = lambda name, block, taken: None,
    earlier: Mapping[str, Sequence[Taken]] = MappingProxyType({}),
    until_s: float | None = None,
    group: int | None = None,
) -> dict[str, Measured]:
    """Measure every model in every block, each block a fresh process in a fresh random order.

    Engines that take no model files are given what they build of them, once. Models whose reference drifted, or from
    which CPU time was stolen, are measured again in another process, as the protocol says; what stays disturbed is
    counted, and the try that was disturbed least is kept.

    Args:
        target: must run on this machine (`host` "local").
        models: name → model file.
        on_model: called with (measured so far, planned) after each model.
        on_block: called with everything measured so far after each block.
        have: model → blocks measured earlier; only what `protocol.blocks` asks for beyond them is measured.
        usual: what the machine took earlier; what it takes in this call is added.
        on_taken: called with (model, block, samples) the moment a model is measured, so that nothing is lost if this
            process is killed in the next one; a block that is measured again is handed over again and replaces the
            one before. Blocks count from 0, those of `have` left out.
        earlier: model → what `on_taken` was handed of its first blocks, here or in a process that was killed: they
            count as measured here, and what is disturbed of them is measured again.
        until_s: time (of `time.monotonic`) after which no model is begun; what has none yet is left out of the result.
        group: shuffle within so many models at a time, in the order given, rather than among all: when time
            runs out, it is the last ones that are missing.

    Raises:
        MissingRuntimeError: the target cannot run here.
        AkdError: whatever the measuring process found wrong.
    """
    if target.host != "local":
        raise MissingRuntimeError(
            asked=f"a measurement on {target.host} for target {target.name}",
            found="only this machine can be measured so far",
            next="Run akd-deploy on that machine.",
        )
    with tempfile.TemporaryDirectory(prefix="akd-built-") as folder:
        engine = load_engine(target)
        ready = {name: engine.loadable(path, Path(folder, str(i))) for i, (name, path) in enumerate(models.items())}
        return _measured_blocks(
            target,
            ready,
            protocol,
            rng,
            on_model,
            on_block,
            have,
            Usual() if usual is None else usual,
            on_taken,
            earlier,
            until_s,
            group,
        )


def _measured_blocks(
    target: Target,
    models: Mapping[str, Path],
    protocol: Protocol,
    rng: np.random.Generator,
    on_model: Callable[[int, int], None],
    on_block: Callable[[dict[str, Measured]], None],
    have: Mapping[str, int],
    usual: Usual,
    on_taken: Callable[[str, int, Taken], None],
    earlier: Mapping[str, Sequence[Taken]],
    until_s: float | None,
    group: int | None,
) -> dict[str, Measured]:
    """`measure_blocks` of files that the engine loads."""
    taken: dict[str, dict[int, Taken]] = {name: dict(enumerate(earlier.get(name, ()))) for name in models}
    missing = {name: max(0, protocol.blocks - have.get(name, 0)) for name in models}
    done = sum(len(blocks) for blocks in taken.values())
    planned = sum(max(missing[name], len(blocks)) for name, blocks in taken.items())

    def disturbed(name: str, block: int) -> bool:
        return block in taken[name] and is_disturbed(taken[name][block], target, usual)

    def collected() -> dict[str, Measured]:
        result = {}
        for name, blocks in taken.items():
            if blocks:
                samples = [s for block in blocks.values() for s in block.samples_s]
                ids = [i for i, block in blocks.items() for _ in block.samples_s]
                again = sum(block.remeasured for block in blocks.values())
                bad = sum(disturbed(name, i) for i in blocks)
                details = {
                    i: replace(block.detail, remeasured=block.remeasured, disturbed=disturbed(name, i))
                    for i, block in blocks.items()
                    if block.detail is not None
                }
                result[name] = Measured(Measurement(name, tuple(samples), tuple(ids)), again, bad, details)
        return result

    def unstable(name: str) -> bool:
        return is_unstable([float(np.median(block.samples_s)) for block in taken[name].values()])

    def measure(names: list[str], block: int) -> None:
        nonlocal done
        size = max(1, group or len(names))
        order = [names[start + i] for start in range(0, len(names), size)
                 for i in rng.permutation(len(names[start : start + size]))]  # fmt: skip
        with closing(_run_block(target, models, order, protocol, int(rng.integers(2**31)), until_s)) as samples:
            for name, sample in samples:
                before = taken[name].get(block)
                usual.add(sample)
                kept = sample if before is None else _calmer(before, sample, target, usual)
                kept = replace(kept, remeasured=0 if before is None else before.remeasured + 1)
                taken[name][block] = kept
                on_taken(name, block, kept)
                if before is None and block < blocks:
                    done += 1
                    on_model(done, planned)

    blocks = max((max(missing[name], len(taken[name])) for name in models), default=0)
    for block in range(blocks + protocol.extra_blocks):
        pending = [name for name in models if block < missing[name] or (block >= blocks and unstable(name))]
        fresh = [name for name in pending if block not in taken[name]]
        suspects = [name for name in models if block in taken[name]] + fresh
        if not suspects:
            break
        if fresh:
            measure(fresh, block)
        for attempt in range(protocol.max_remeasure):
            again = [name for name in suspects if disturbed(name, block) and taken[name][block].remeasured == attempt]
            if _is_past(until_s):
                break
            if again:
                measure(again, block)
        on_block(collected())

    def late() -> list[tuple[list[str], int]]:
        numbers = sorted({block for found in taken.values() for block in found})
        suspects = [([name for name in models if disturbed(name, block)], block) for block in numbers]
        return [] if _is_past(until_s) else [one for one in suspects if one[0]]

    for names, block in after_pauses(protocol, late):
        measure(names, block)
        on_block(collected())
    return collected()


def after_pauses(protocol: Protocol, late: Callable[[], Sequence[T]], most_s: float = LATE_S) -> Iterator[T]:
    """What is to be measured once more after each of the protocol's pauses: what `late` then finds, one after the
    other, until it finds nothing or `most_s` are over."""
    end_s = time.monotonic() + most_s
    for pause_s in protocol.pauses_s:
        if not late() or _is_past(end_s):
            return
        time.sleep(pause_s)
        for one in late():
            if _is_past(end_s):
                return
            yield one


def _is_past(until_s: float | None) -> bool:
    return until_s is not None and time.monotonic() >= until_s
