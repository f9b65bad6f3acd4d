"""Measurements in blocks: fresh processes, random order, disturbed models measured again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from akd_deploy.errors import AkdError, MissingRuntimeError, UsageError
from akd_deploy.measurement import Measurement
from akd_deploy.target import Target

REFERENCE_TOLERANCE = 1.12
"""A model whose neighbouring reference ran this much slower than usual was disturbed (picked by eye: the
reference scatters by 2–3 % on a quiet shared CPU)."""
STEAL_TOLERANCE = 0.03
"""So was one during which the hypervisor took more than this share of CPU time."""
WAITING_TOLERANCE = 0.03
"""So was one whose process, on a CPU target, waited for a CPU for more than this share of the time it was timed."""
UNSTABLE = 0.08
"""Block medians further apart than this, relatively, ask for extra blocks; what the others were is kept."""


@dataclass(frozen=True)
class Protocol:
    """How samples are taken. `warmup_s` and `seconds` are per model and block.

    A disturbed block is measured again `max_remeasure` times at most; a model whose blocks disagree by more than
    `UNSTABLE` gets up to `extra_blocks` more.
    """

    blocks: int = 3
    warmup_s: float = 0.005
    seconds: float = 0.01
    min_samples: int = 50
    max_samples: int = 200
    max_remeasure: int = 2
    extra_blocks: int = 0

    def __post_init__(self) -> None:
        if self.blocks < 1 or self.min_samples < 1 or self.max_samples < self.min_samples:
            raise UsageError(asked="a measuring protocol", found=str(self), next="Take ≥ 1 block and ≥ 1 sample.")

    def header(self) -> dict[str, float | int | str]:
        """The part that two tables must share to merge: everything but how many blocks and when more."""
        fields = asdict(self)
        del fields["blocks"], fields["max_remeasure"], fields["extra_blocks"]
        return {**fields, "clock": "perf_counter", "boundary": "host", "reference": "matmul160"}


BENCH = Protocol(blocks=10, warmup_s=0.05, seconds=0.1, min_samples=100, max_samples=2_000)
"""Ten fresh processes of at least 100 samples: enough for a p90 certificate."""


@dataclass(frozen=True)
class Measured:
    """A measurement, how many of its blocks were taken again, and how many stayed disturbed."""

    measurement: Measurement
    remeasured: int
    disturbed: int


@dataclass(frozen=True)
class _Taken:
    samples_s: tuple[float, ...]
    reference_s: float
    steal: float
    waiting: float = 0.0


def pinned_cpus(target: Target) -> list[int]:
    """The CPUs a measuring process is bound to: as many as the target's threads; none where that is impossible."""
    if target.device != "cpu" or not hasattr(os, "sched_getaffinity"):
        return []
    threads = target.engine_options.get("threads", 1)
    available = sorted(os.sched_getaffinity(0))
    # The last CPUs: interrupts and the shell live on the first ones more often than not.
    return available[-max(1, int(threads if isinstance(threads, int) else 1)) :]


def _run_block(
    target: Target, models: Mapping[str, Path], order: list[str], protocol: Protocol, seed: int
) -> Generator[tuple[str, _Taken], None, None]:
    """One fresh process; yields as models are finished. Closing the generator ends the process."""
    job = {
        "target": target.as_dict(),
        "models": [{"name": name, "path": str(models[name])} for name in order],
        "protocol": asdict(protocol),
        "cpus": pinned_cpus(target),
        "seed": seed,
    }
    single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "akd_deploy.profiling.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **single},
            text=True,
            start_new_session=True,  # Ctrl-C reaches us, and we end it
        )
        try:
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
                    _Taken(tuple(fields["samples_s"]), fields["reference_s"], fields["steal"], fields["waiting"]),
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
            if process.poll() is None:
                process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


def _raised_in_worker(fields: dict[str, Any]) -> AkdError:
    from akd_deploy import errors

    described = {key: value for key, value in fields["error"].items() if key != "kind"}
    kind: type[AkdError] = getattr(errors, fields["class"], AkdError)
    # Some classes write their own message when constructed; this one is written already.
    error = kind.__new__(kind)
    AkdError.__init__(error, **described)
    return error


def measure_blocks(
    target: Target,
    models: Mapping[str, Path],
    protocol: Protocol,
    rng: np.random.Generator,
    on_model: Callable[[int, int], None] = lambda done, total: None,
    on_block: Callable[[dict[str, Measured]], None] = lambda measured: None,
    have: Mapping[str, int] = MappingProxyType({}),
    references_s: list[float] | None = None,
) -> dict[str, Measured]:
    """Measure every model in every block, each block a fresh process in a fresh random order.

    Models whose reference drifted, or from which CPU time was stolen, are measured again in another
    process, `protocol.max_remeasure` times at most; what stays disturbed is kept and counted.

    Args:
        target: must run on this machine (`host` "local").
        models: name → model file.
        on_model: called with (measured so far, planned) after each model.
        on_block: called with everything measured so far after each block; write it down to resume from it.
        have: model → blocks measured earlier; only what `protocol.blocks` asks for beyond them is measured.
        references_s: what the reference took so far on this machine, extended in place: it tells what is usual
            where one call takes few models.

    Raises:
        MissingRuntimeError: the runtime is not here or died.
    """
    if target.host != "local":
        raise MissingRuntimeError(
            asked=f"a measurement on {target.host}",
            found="this version measures on the machine it runs on",
            next="Run the same command there and copy the latency_tables folder back.",
        )
    taken: dict[str, dict[int, _Taken]] = {name: {} for name in models}
    remeasured = dict.fromkeys(models, 0)
    usual_s: list[float] = [] if references_s is None else references_s
    missing = {name: max(0, protocol.blocks - have.get(name, 0)) for name in models}
    done, planned = 0, sum(missing.values())

    def disturbed(sample: _Taken) -> bool:
        drifted = sample.reference_s > REFERENCE_TOLERANCE * float(np.percentile(usual_s, 25))
        waited = target.device == "cpu" and sample.waiting > WAITING_TOLERANCE
        return drifted or waited or sample.steal > STEAL_TOLERANCE

    def collected() -> dict[str, Measured]:
        result = {}
        for name, blocks in taken.items():
            if blocks:
                samples = [s for block in blocks.values() for s in block.samples_s]
                ids = [i for i, block in blocks.items() for _ in block.samples_s]
                bad = sum(disturbed(block) for block in blocks.values())
                result[name] = Measured(Measurement(name, tuple(samples), tuple(ids)), remeasured[name], bad)
        return result

    def unstable(name: str) -> bool:
        medians = [float(np.median(block.samples_s)) for block in taken[name].values()]
        return len(medians) > 1 and max(medians) / min(medians) - 1 > UNSTABLE

    blocks = max(missing.values(), default=0)
    for block in range(blocks + protocol.extra_blocks):
        pending = [name for name in models if block < missing[name] or (block >= blocks and unstable(name))]
        if not pending:
            break
        for attempt in range(protocol.max_remeasure + 1):
            order = [pending[i] for i in rng.permutation(len(pending))]
            with closing(_run_block(target, models, order, protocol, int(rng.integers(2**31)))) as samples:
                for name, sample in samples:
                    taken[name][block] = sample
                    usual_s.append(sample.reference_s)
                    if attempt == 0 and block < blocks:
                        done += 1
                        on_model(done, planned)
            pending = [name for name in pending if disturbed(taken[name][block])]
            if not pending or attempt == protocol.max_remeasure:
                break
            for name in pending:
                remeasured[name] += 1
        on_block(collected())
    return collected()
