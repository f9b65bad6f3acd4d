"""Put imported rows under a header that says where they come from, and into a latency table."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import UsageError
from akd_deploy.latency_table import (
    HEADER_NAME,
    LatencyTable,
    TableHeader,
    TableRow,
    read_table,
    table_lock,
    write_table,
)
from akd_deploy.profiling.importers.imported import Imported
from akd_deploy.target import Target

NOT_STATED = "not stated"
"""Engine version of a table whose importer was not told it. It equals no engine's, so that nothing is assumed."""


def stated_device(name: str) -> DeviceFingerprint:
    """A device known by what its user calls it."""
    if not name.strip():
        raise UsageError(asked="the device's name", found="an empty one", next='Name it, like "RTX 4090".')
    return DeviceFingerprint({"kind": "stated", "model": name.strip()})


def imported_table(
    imported: Imported, target: Target, device: DeviceFingerprint, engine_version: str | None
) -> LatencyTable:
    """A table of its own. Its protocol names the tool, and so it never merges with a profile of ours.

    Raises:
        UsageError: there are no rows.
    """
    if not imported.rows:
        raise UsageError(
            asked="rows of a latency table",
            found=f"none, and {len(imported.without_latency)} kernels without a latency",
            next="Give files of a run that timed its layers.",
        )
    header = TableHeader(
        target=target,
        device=device,
        engine_version=engine_version or NOT_STATED,
        protocol=imported.protocol,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return LatencyTable(header, imported.rows)


def write_imported(table: LatencyTable, directory: Path, *, append: bool) -> LatencyTable:
    """Write the table, or with `append` what it becomes with the rows that are there; returns what was written.

    Raises:
        UsageError: a table is there and `append` is not asked for, or the same measurements are there already.
        MismatchError: the table there was taken with something else, which the message lists.
        StorageError: the place cannot be written, or another process is writing it.
    """
    with table_lock(directory):
        if (directory / HEADER_NAME).is_file():
            if not append:
                raise UsageError(
                    asked=f"a new latency table in {directory}",
                    found="one that is there already",
                    next="Add --append to extend it, give another folder with -o, or delete it to start again.",
                )
            old = read_table(directory)
            _check_new(old, table)
            table = LatencyTable(table.header, ()).merged(old).merged(table)
        write_table(table, directory)
    return table


def _check_new(old: LatencyTable, new: LatencyTable) -> None:
    """The same file imported twice would count as two processes that agree perfectly."""
    known = {row.name: _blocks(row) for row in old.rows}
    common = [row for row in new.rows if row.name in known]
    if common and all(_blocks(row) <= known[row.name] for row in common):
        raise UsageError(
            asked=f"{len(common)} rows added to the table, {common[0].name} and others",
            found="the same measurements in it already",
            next="Give files of another run; or --network NAME, if these are another network's.",
        )


def _blocks(row: TableRow) -> set[tuple[float, ...]]:
    return {tuple(samples.tolist()) for samples in row.measurement.blocks.values()}
