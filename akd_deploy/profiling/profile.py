"""A profile: probes of a search space or of given networks, measured into a latency table."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from typing import Protocol as Protocol_

import numpy as np

from akd_deploy.engines import load_engine
from akd_deploy.errors import UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import (
    NETWORK,
    LatencyTable,
    TableHeader,
    TableRow,
    read_table,
    table_lock,
    write_table,
)
from akd_deploy.profiling.blocks import Measured, Protocol, measure_blocks
from akd_deploy.profiling.probes import Probe, probe_writer, space_networks, space_probes
from akd_deploy.profiling.windows import Window, file_windows
from akd_deploy.search_space import SearchSpace
from akd_deploy.storage import file_sha256
from akd_deploy.target import Target

if TYPE_CHECKING:
    from akd_deploy.profiling.archive_windows import ArchiveWindow

PROFILE = Protocol(blocks=3, extra_blocks=2)
SECONDS_PER_MODEL = 0.03
"""What one model costs in one block beside its warm-up and samples: loading, the reference (seen: 10–25 ms)."""


@dataclass(frozen=True)
class ProfilePlan:
    """What a profile measures. `networks` are for calibration and scoring only."""

    probes: int = 240
    networks: int = 40
    protocol: Protocol = PROFILE
    seed: int = 0


def plan_within(minutes: float, protocol: Protocol, seed: int) -> ProfilePlan:
    """The largest plan expected to take at most `minutes`, six probes for every network."""
    per_model = protocol.blocks * (protocol.seconds + 2 * protocol.warmup_s + SECONDS_PER_MODEL)
    models = int(minutes * 60 / per_model)
    if models < 20:
        raise UsageError(
            asked=f"a profile in {minutes:g} minutes",
            found=f"time for {models} measurements only",
            next=f"Give at least {20 * per_model / 60:.1f} minutes.",
        )
    return ProfilePlan(probes=models * 6 // 7, networks=models - models * 6 // 7, protocol=protocol, seed=seed)


def counted(kernels: Sequence[Kernel]) -> tuple[tuple[Kernel, int], ...]:
    """Kernels and how often each, sorted."""
    return tuple(sorted(Counter(kernels).items()))


def profile_space(
    target: Target,
    space: SearchSpace,
    plan: ProfilePlan,
    directory: Path,
    *,
    typed: Callable[[Path], Path] = lambda path: path,
    resume: bool = False,
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LatencyTable, float]:
    """Measure probes and networks of a space; see `measure_probes`.

    Args:
        typed: a float32 model file → the file in the precision the target ships.
    """
    rng = np.random.default_rng(plan.seed)
    probes = space_probes(space, plan.probes, rng) + space_networks(space, plan.networks, rng)
    plain = probe_writer(target, rng)

    def write(probe: Probe, folder: Path) -> Path:
        return typed(plain(probe, folder))

    return measure_probes(target, probes, write, plan.protocol, directory, rng, resume=resume, on_model=on_model)


def profile_models(
    target: Target,
    paths: Sequence[Path],
    plan: ProfilePlan,
    directory: Path,
    *,
    whole: Sequence[Path] = (),
    resume: bool = False,
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LatencyTable, float]:
    """Measure windows of given networks, `plan.probes` of them shared out among the networks.

    `whole` networks are measured as they are, for calibration and scores only.

    The networks are ONNX files; for the torch engine `torch.export` archives of the target's batch and precision.

    Raises:
        UsageError: a file the target's engine does not read, or nothing in the networks can be measured on its own.
        MissingFileError, CorruptFileError: a file is not there, or no network.
    """
    rng = np.random.default_rng(plan.seed)
    share = -(-plan.probes // len(paths))
    windows: list[Window] | list[ArchiveWindow]
    if target.engine == "torch":
        from akd_deploy.profiling.archive_windows import archive_windows

        found = [window for path in paths for window in archive_windows(path, share, rng)]
        windows = list({window.name: window for window in found}.values())
    else:
        windows = [window for path in paths for window in file_windows(path, target.batch, share, rng)]
    if paths and not windows:
        raise UsageError(
            asked=f"windows of {', '.join(path.name for path in paths)}",
            found="none whose inputs are float tensors of known shape",
            next="Give static shapes to the network's inputs.",
        )
    subjects: list[Window | ArchiveWindow | WholeNetwork] = [*windows, *map(WholeNetwork, whole)]

    def write(subject: Window | ArchiveWindow | WholeNetwork, folder: Path) -> Path:
        return subject.write(folder)

    return measure_probes(target, subjects, write, plan.protocol, directory, rng, resume=resume, on_model=on_model)


@dataclass(frozen=True)
class WholeNetwork:
    """A given network as it is, named after its content."""

    path: Path
    kind: str = NETWORK

    @property
    def family(self) -> str:
        return self.path.stem

    @cached_property
    def name(self) -> str:
        """Equal for equal files only."""
        return f"network-{file_sha256(self.path)[:12]}"

    def write(self, _: Path) -> Path:
        """The file itself; nothing is written."""
        return self.path


class Measurable(Protocol_):
    """What a profile measures: rows' `kind` and `family` as in `TableRow`, a name equal for equal things only."""

    @property
    def kind(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def name(self) -> str: ...


Probed = TypeVar("Probed", bound=Measurable)


def measure_probes(
    target: Target,
    probes: Sequence[Probed],
    write: Callable[[Probed, Path], Path],
    protocol: Protocol,
    directory: Path,
    rng: np.random.Generator,
    *,
    resume: bool = False,
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[LatencyTable, float]:
    """Measure probes and write the table to `directory` after every block; returns it and the seconds spent.

    With `resume`, rows that are there stay, and only the blocks they lack are measured.

    Args:
        write: (probe, folder) → the model file the target's engine reads.

    Raises:
        MissingRuntimeError: the target cannot run here.
        MismatchError: the table there was taken with other settings.
        StorageError: the place cannot be written, or another process is writing it.
    """
    engine = load_engine(target)
    engine.require(engine.why_not())
    began = time.monotonic()
    header = TableHeader(
        target=target,
        device=engine.fingerprint(),
        engine_version=engine.version(),
        protocol=protocol.header(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    with table_lock(directory), tempfile.TemporaryDirectory(prefix="akd-profile-") as scratch:
        old = read_table(directory) if resume and (directory / "header.json").is_file() else None
        base = LatencyTable(header, ()) if old is None else LatencyTable(header, ()).merged(old)
        have = {row.name: len(row.measurement.blocks) for row in base.rows}
        wanted = [probe for probe in probes if have.get(probe.name, 0) < protocol.blocks]
        models = {probe.name: write(probe, Path(scratch)) for probe in wanted}
        kernels = {name: counted([e.kernel for e in engine.executed_kernels(path)]) for name, path in models.items()}
        by_name = {probe.name: probe for probe in wanted}

        def table_of(measured: Mapping[str, Measured]) -> LatencyTable:
            rows = tuple(_row(by_name[name], kernels[name], value) for name, value in measured.items())
            return base.merged(LatencyTable(header, rows))

        result = base
        if models:
            measured = measure_blocks(
                target,
                models,
                protocol,
                rng,
                on_model,
                on_block=lambda so_far: write_table(table_of(so_far), directory),
                have=have,
            )
            result = table_of(measured)
        write_table(result, directory)
    return result, time.monotonic() - began


def _row(probe: Measurable, kernels: tuple[tuple[Kernel, int], ...], measured: Measured) -> TableRow:
    return TableRow(probe.kind, probe.family, kernels, measured.measurement, measured.remeasured)
