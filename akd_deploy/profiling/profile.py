"""A profile: what is measured of a search space or of given networks, into a latency table."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from akd_deploy.engines import load_engine
from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.latency_table import HEADER_NAME, LatencyTable, TableHeader, TransferOrigin, read_table, table_lock
from akd_deploy.profiling.blocks import PATIENCE_S, Protocol
from akd_deploy.profiling.measured_journal import NO_TABLE, Journalled, MeasuredJournal, table_state
from akd_deploy.profiling.preparing import Preparation
from akd_deploy.profiling.preparing import counted as counted
from akd_deploy.profiling.probes import as_written
from akd_deploy.profiling.rounds import Progress, Rounds
from akd_deploy.profiling.subjects import Subjects, is_plain_data, model_subjects, space_subjects
from akd_deploy.search_space import SearchSpace
from akd_deploy.target import Target

PROFILE = Protocol(blocks=3, extra_blocks=2, max_remeasure=1, pauses_s=PATIENCE_S)
SECONDS_PER_MODEL = 0.03
"""What one model costs in one block beside its warm-up and samples: loading, the reference (seen: 10–25 ms)."""

MOST_MODELS = 930
"""Of a space, however much time there is: eight hundred probes, beyond which next to nothing is gained."""


@dataclass(frozen=True)
class ProfilePlan:
    """What a profile measures. `networks` are for calibration and scoring only.

    After `within_s` seconds, if any are given, no model is begun: what was measured by then is the profile.
    """

    probes: int = 240
    networks: int = 40
    protocol: Protocol = PROFILE
    seed: int = 0
    within_s: float | None = None


def plan_within(minutes: float, protocol: Protocol, seed: int) -> ProfilePlan:
    """A profile that ends after `minutes`: six probes for every network, as many as fit where all of them are small,
    `MOST_MODELS` at most."""
    per_model = protocol.blocks * (protocol.seconds + 2 * protocol.warmup_s + SECONDS_PER_MODEL)
    models = int(minutes * 60 / per_model)
    if models < 20:
        raise UsageError(
            asked=f"a profile in {minutes:g} minutes",
            found=f"time for {models} measurements only",
            next=f"Give at least {20 * per_model / 60:.1f} minutes.",
        )
    models = min(models, MOST_MODELS)
    probes = models * 6 // 7
    return ProfilePlan(probes, models - probes, protocol, seed, within_s=minutes * 60)


def resumed_protocol(directory: Path, otherwise: Protocol) -> Protocol:
    """How the table in `directory` takes its samples, in as many blocks as `otherwise`.

    That holds itself where there is no table, or one of measurements that were not taken by us.

    Raises:
        CorruptFileError: the table there is torn.
    """
    if not (directory / HEADER_NAME).is_file():
        return otherwise
    settings = read_table(directory).header.protocol
    if not {"warmup_s", "seconds", "min_samples", "max_samples"} <= settings.keys():
        return otherwise
    return replace(
        otherwise,
        warmup_s=float(settings["warmup_s"]),
        seconds=float(settings["seconds"]),
        min_samples=int(settings["min_samples"]),
        max_samples=int(settings["max_samples"]),
    )


@dataclass(frozen=True)
class Profiled:
    """What came of a profile.

    Attributes:
        seconds: what it took, preparing included.
        planned: blocks that the plan asks for: the protocol's, of every subject.
        measured: those of them that the table holds, earlier profiles' included.
        disturbed: blocks of this profile that stayed disturbed however often they were measured.
        torn_lines: lines of a killed profile's journal that were torn, so that their block was measured again.
    """

    table: LatencyTable
    seconds: float
    planned: int
    measured: int
    disturbed: int
    torn_lines: int


def profile_space(
    target: Target,
    space: SearchSpace,
    plan: ProfilePlan,
    directory: Path,
    *,
    typed: Callable[[Path], Path] = as_written,
    resume: bool = False,
    on_model: Progress = lambda done, total: None,
) -> tuple[LatencyTable, float]:
    """The table of a space and the seconds it took; see `space_subjects` and `measure_subjects`."""
    subjects = space_subjects(target, space, plan.probes, plan.networks, plan.seed, typed)
    profiled = measure_subjects(target, subjects, plan, directory, resume=resume, on_model=on_model)
    return profiled.table, profiled.seconds


def profile_models(
    target: Target,
    paths: Sequence[Path],
    plan: ProfilePlan,
    directory: Path,
    *,
    whole: Sequence[Path] = (),
    resume: bool = False,
    on_model: Progress = lambda done, total: None,
) -> tuple[LatencyTable, float]:
    """The table of given networks and the seconds it took; see `model_subjects` and `measure_subjects`."""
    subjects = model_subjects(target, paths, plan.probes, plan.seed, whole)
    profiled = measure_subjects(target, subjects, plan, directory, resume=resume, on_model=on_model)
    return profiled.table, profiled.seconds


def measure_subjects(
    target: Target,
    subjects: Subjects,
    plan: ProfilePlan,
    directory: Path,
    *,
    resume: bool = False,
    transfer: TransferOrigin | None = None,
    on_prepared: Progress = lambda done, total: None,
    on_model: Progress = lambda done, total: None,
    on_measured: Callable[[str], None] = lambda name: None,
) -> Profiled:
    """Measure subjects into the table in `directory`, by the plan's protocol and within its time.

    Every model is journalled as it is measured, and the table is written after every round. With `resume`, blocks
    that either holds stay, and only those they lack are measured. A script that calls this needs the guard
    `if __name__ == "__main__":`, because other processes that prepare models import it.

    Args:
        transfer: what the table builds on, for its header.
        on_prepared, on_model: called with (so far, planned) after each model is prepared, or measured.
        on_measured: called with the name of each subject as soon as the table or the journal holds a block of it.

    Raises:
        MissingRuntimeError: the target cannot run here.
        UsageError: a killed profile left blocks there, and this is not to resume it.
        MismatchError: the table or the blocks there were taken with other settings.
        CorruptFileError: a file there is not what it should be.
        StorageError: the place cannot be written, or another process is writing it.
    """
    engine = load_engine(target)
    engine.require(engine.why_not())
    began = time.monotonic()
    header = TableHeader(
        target=target,
        device=engine.fingerprint(),
        engine_version=engine.version(),
        protocol=plan.protocol.header(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        transfer=transfer,
    )
    unique = list({subject.name: subject for subject in subjects.subjects}.values())
    with (
        table_lock(directory),
        tempfile.TemporaryDirectory(prefix="akd-profile-") as scratch,
        MeasuredJournal(directory, header) as journal,
        Preparation(target, subjects.write, Path(scratch), is_plain_data) as preparation,
    ):
        if journal.path.is_file() and not resume:
            raise unfinished(journal.path)
        table, recovered = _state(header, directory, journal) if resume else (LatencyTable(header, ()), None)
        rounds = Rounds(
            table,
            directory,
            journal,
            preparation,
            plan.protocol,
            np.random.default_rng(plan.seed),
            None if plan.within_s is None else began + plan.within_s,
            on_prepared,
            on_model,
            on_measured,
        )
        rounds.measure(unique, recovered)
    planned = len(unique) * plan.protocol.blocks
    return Profiled(
        table=rounds.table,
        seconds=time.monotonic() - began,
        planned=planned,
        measured=planned - sum(rounds.lacking(subject.name) for subject in unique),
        disturbed=rounds.disturbed,
        torn_lines=0 if recovered is None else recovered.torn,
    )


def unfinished(journal: Path) -> UsageError:
    """A profile that was killed left blocks behind, and nobody said what is to become of them."""
    return UsageError(
        asked=f"a new latency table in {journal.parent}",
        found=f"blocks that a killed profile measured, in {journal.name}",
        next=f"Add --resume to go on from them, or delete {journal} to lose them.",
    )


def _state(header: TableHeader, directory: Path, journal: MeasuredJournal) -> tuple[LatencyTable, Journalled | None]:
    """The table to go on from, under the new header, and what the journal holds beyond it.

    Raises:
        MismatchError: the journal continues a table that is not there any more.
    """
    empty = LatencyTable(header, ())
    state, found = table_state(directory), journal.recover()
    table = empty.merged(read_table(directory)) if (directory / HEADER_NAME).is_file() else empty
    if found is not None and found.blocks:
        if found.table == state:
            return table, found
        if not found.is_within(table):
            if found.table == NO_TABLE:
                return empty, found  # a table that was to take the place of the one there
            raise MismatchError(
                asked=f"to go on from {journal.path}",
                found=f"{len(found.blocks)} blocks measured beyond another state of the table in {directory}",
                next="Restore the table they belong to, or delete that file to lose them.",
            )
    if found is not None:
        journal.remove()  # a crash came between writing the table and this
    journal.continue_from(state)
    return table, found and replace(found, blocks=())
