"""The latency tables that a transfer builds on, found by target name or folder."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from akd_deploy.engines import load_engine
from akd_deploy.errors import AkdError, MissingFileError, UsageError
from akd_deploy.latency_table import HEADER_NAME, LatencyTable, find_table, read_table
from akd_deploy.pipeline.latency import device_of
from akd_deploy.predictor.cache import predictor_of
from akd_deploy.predictor.transfer_lessons import Source
from akd_deploy.target import Target, known_targets, load_target, places


@dataclass(frozen=True)
class FoundSource:
    """A table of another target or device, by the name that messages call it."""

    name: str
    directory: Path
    table: LatencyTable

    def source(self) -> Source:
        """With its predictor, fitted if need be. Tables of one model of device and one engine are of one family.

        Raises:
            UsageError: the table has too few rows.
        """
        device = self.table.header.device
        family = f"{device.facts.get('model', device.digest)}, {self.table.header.target.engine}"
        return Source(predictor_of(self.table, self.directory), self.table, family)

    def as_dict(self) -> dict[str, str]:
        """For `--json`."""
        header = self.table.header
        return {
            "name": self.name,
            "target": header.target.name,
            "precision": header.target.precision,
            "device": header.device.digest,
            "table": str(self.directory),
            "digest": self.table.digest(),
        }

    def unlike(self, target: Target) -> list[str]:
        """What a person should know: settings in which it differs from the target and that change what is executed."""
        mine = self.table.header.target
        return [
            f"source {self.name} is of {what} {theirs}, target {target.name} of {ours}"
            for what, theirs, ours in (
                ("precision", mine.precision, target.precision),
                ("batch", mine.batch, target.batch),
                ("engine", mine.engine, target.engine),
                ("threads", _threads(mine), _threads(target)),
            )
            if theirs != ours and None not in (theirs, ours)
        ]


def _threads(target: Target) -> object:
    """As the target says, or as its engine does where the target says nothing; None where neither does."""
    with suppress(AkdError):  # a table may be of an engine that is none here
        engine = load_engine(target)
        return engine.option("threads") if "threads" in engine.options else None
    return None


def find_sources(text: str, destination: Path) -> list[FoundSource]:
    """The tables that a comma-separated list of target names and table folders names.

    A target's name means what `predict` would use: its table of this device. Where there is none, or that is the one
    to be written, it means its tables of other devices.

    Args:
        destination: the folder of the table to be written, which is no source of itself.

    Raises:
        UsageError: nothing is named.
        UnknownNameError, MissingFileError: neither a target nor a folder, or no table of it.
        CorruptFileError: a table is not what it should be.
    """
    entries = [entry.strip() for entry in text.split(",") if entry.strip()]
    if not entries:
        raise UsageError(
            asked="--transfer-from", found="no target and no folder", next="Name targets, or folders of tables: T1,T2."
        )
    directories = dict.fromkeys(path for entry in entries for path in _directories(entry, destination))
    found = [(path, read_table(path)) for path in directories]
    names = [table.header.target.name for _, table in found]
    return [
        FoundSource(name if names.count(name) == 1 else f"{name} on {table.header.device.digest} ({path})", path, table)
        for name, (path, table) in zip(names, found, strict=True)
    ]


def _directories(entry: str, destination: Path) -> Sequence[Path]:
    """Folders of the tables that one entry of the list means."""
    if (Path(entry) / HEADER_NAME).is_file():
        if _same(Path(entry), destination):
            raise UsageError(
                asked=f"a transfer from {entry}",
                found="the table that is to be written",
                next="Name tables of other targets or devices.",
            )
        return [Path(entry).resolve()]
    if entry not in known_targets() and not entry.endswith(".toml"):
        raise MissingFileError(
            asked=f"the latency table {entry!r} to transfer from",
            found="no target of that name, and no folder with a table",
            next=f"Known targets: {', '.join(sorted(known_targets())) or '(none)'}.",
        )
    known = load_target(entry)
    missing: AkdError | None = None
    try:
        own = find_table(known, device_of(load_engine(known)))
        if not _same(own, destination):
            return [own.resolve()]
    except MissingFileError as error:
        missing = error
    others = [
        path.parent for place in places("latency_tables") for path in (place / known.name).glob(f"*/{HEADER_NAME}")
    ]
    others = [path.resolve() for path in sorted(others) if not _same(path, destination)]
    if not others:
        raise MissingFileError(
            asked=f"a latency table of target {known.name} to transfer from",
            found=missing.found if missing is not None else "only the one that is to be written",
            next=f"Profile it (`akd-deploy profile --target {known.name}`), or give the folder of a table.",
        )
    return others


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
