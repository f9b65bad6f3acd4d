"""A latency table: raw samples of probes on one target, in Parquet beside a header that says how they were taken.

On disk (`latency_tables/<target>/`, for a generic target one folder per device fingerprint inside it):
`header.json`, and the rows file it names with its SHA-256. The header's rename is the commit: a crash between the
two writes leaves the old table in force.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import AkdError, CorruptFileError, MismatchError, MissingFileError
from akd_deploy.kernel import Kernel, kernel_from_signature
from akd_deploy.measurement import Measurement
from akd_deploy.storage import exclusive_lock, write_atomically, write_text_atomically
from akd_deploy.target import Target, places, target_from_dict

FORMAT_VERSION = 1
HEADER_NAME = "header.json"
PROBE, STACK, NETWORK = "probe", "stack", "network"


@dataclass(frozen=True)
class TransferSource:
    """A table that another one builds on: its target, the digest of its device, and its own."""

    target: str
    device: str
    table: str


@dataclass(frozen=True)
class TransferOrigin:
    """What a table of a few rows builds on: other tables, and the digest of the plan that was made from them."""

    sources: tuple[TransferSource, ...]
    plan: str

    def as_dict(self) -> dict[str, Any]:
        return {"sources": [asdict(source) for source in self.sources], "plan": self.plan}

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> TransferOrigin:
        """Read back `as_dict`; KeyError or TypeError where it is none."""
        return TransferOrigin(tuple(TransferSource(**source) for source in fields["sources"]), str(fields["plan"]))


@dataclass(frozen=True)
class TableHeader:
    """What every row of a table was taken with. Tables merge only when all of it but the date agrees.

    `transfer` is there where the rows alone are too few for a predictor and complete those of other tables.
    """

    target: Target
    device: DeviceFingerprint
    engine_version: str
    protocol: Mapping[str, float | int | str]
    created: str
    format_version: int = FORMAT_VERSION
    transfer: TransferOrigin | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "protocol", MappingProxyType(dict(sorted(self.protocol.items()))))

    @property
    def imported_from(self) -> str | None:
        """The tool that measured the rows; None where they were profiled here."""
        source = self.protocol.get("source")
        return None if source is None else str(source)

    def differences(self, other: TableHeader) -> list[str]:
        """One line for each field that keeps the two from merging."""
        lines = [f"device {line}" for line in self.device.differences(other.device)]
        for name in ("target", "engine_version", "protocol", "format_version"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if name == "target":
                mine, theirs = mine.as_dict(), theirs.as_dict()
            if name == "protocol":
                mine, theirs = dict(mine), dict(theirs)
            if mine != theirs:
                lines.append(f"{name}: {mine} ≠ {theirs}")
        if self.transfer != other.transfer:
            mine, theirs = (h.transfer.as_dict() if h.transfer else "(none)" for h in (self, other))
            lines.append(f"transfer: {mine} ≠ {theirs}")
        return lines

    def as_dict(self) -> dict[str, Any]:
        return {
            "format_version": self.format_version,
            "target": self.target.as_dict(),
            "device": dict(self.device.facts),
            "engine_version": self.engine_version,
            "protocol": dict(self.protocol),
            "created": self.created,
            **({"transfer": self.transfer.as_dict()} if self.transfer else {}),
        }


@dataclass(frozen=True)
class TableRow:
    """One measured subject and the kernels it executed, with how often each.

    `kind` is "probe" (a kernel or small block: what predictors are fitted on), "stack" (copies of a probe with weights
    of their own, too many for the caches: what weights cost that come from farther away) or "network" (a whole network:
    what predictors are calibrated and scored on). `family` groups rows that resemble each other. `remeasured` counts
    blocks that were disturbed and taken again.
    """

    kind: str
    family: str
    kernels: tuple[tuple[Kernel, int], ...]
    measurement: Measurement
    remeasured: int = 0

    def __post_init__(self) -> None:
        if self.kind not in (PROBE, STACK, NETWORK):
            raise ValueError(f"row {self.name}: kind {self.kind!r} is none of {PROBE!r}, {STACK!r} and {NETWORK!r}")
        if len(dict(self.kernels)) != len(self.kernels) or any(count < 1 for _, count in self.kernels):
            raise ValueError(f"row {self.name}: a kernel is listed twice, or less than once")

    @property
    def name(self) -> str:
        return self.measurement.subject

    def counts(self) -> Counter[Kernel]:
        """Kernel → how often the subject executes it."""
        return Counter(dict(self.kernels))


@dataclass(frozen=True)
class LatencyTable:
    """Rows with unique names under one header."""

    header: TableHeader
    rows: tuple[TableRow, ...]

    def __post_init__(self) -> None:
        repeated = [name for name, n in Counter(row.name for row in self.rows).items() if n > 1]
        if repeated:
            raise ValueError(f"rows with the same name: {repeated[:5]}")

    def of_kind(self, kind: str) -> tuple[TableRow, ...]:
        """The rows of one kind, in order."""
        return tuple(row for row in self.rows if row.kind == kind)

    @property
    def sigma(self) -> float | None:
        """The median over rows of the scatter between fresh processes; labels rest on several and are steadier."""
        values = [sigma for row in self.rows if (sigma := row.measurement.sigma) is not None]
        return median(values) if values else None

    def merged(self, other: LatencyTable) -> LatencyTable:
        """Both tables' rows; rows of the same name gain each other's blocks.

        Raises:
            MismatchError: the headers differ; the message lists every difference.
        """
        differences = self.header.differences(other.header)
        if differences:
            raise MismatchError(
                asked=f"a merge into the table of {self.header.target.name}",
                found="differing headers: " + "; ".join(differences),
                next="Profile again under one setting, or keep the tables apart.",
            )
        rows = {row.name: row for row in self.rows}
        for row in other.rows:
            mine = rows.get(row.name)
            if mine is None:
                rows[row.name] = row
            elif (mine.kind, mine.family, mine.counts()) != (row.kind, row.family, row.counts()):
                raise MismatchError(
                    asked=f"a merge of row {row.name}",
                    found="another kind, family or other kernels under the same name",
                    next="Rename one.",
                )
            else:
                rows[row.name] = replace(
                    mine,
                    measurement=mine.measurement.merged(row.measurement),
                    remeasured=mine.remeasured + row.remeasured,
                )
        return LatencyTable(self.header, tuple(rows.values()))

    def digest(self) -> str:
        """First 16 hexadecimal digits over header and rows: what a predictor is keyed by."""
        hasher = hashlib.sha256(json.dumps(self.header.as_dict(), sort_keys=True).encode())
        for row in self.rows:
            hasher.update(repr((row.kind, row.family, row.kernels, row.measurement)).encode())
        return hasher.hexdigest()[:16]


def table_directory(root: Path, target: Target, device: DeviceFingerprint) -> Path:
    """Where a target's table lives under a `latency_tables` folder."""
    return root / target.name / device.digest if target.is_generic else root / target.name


def find_table(target: Target, device: DeviceFingerprint) -> Path:
    """The folder of the target's table for this device, looked for in `places("latency_tables")`.

    Raises:
        MissingFileError: there is none; the message names the devices there are tables of.
    """
    others = []
    for place in places("latency_tables"):
        directory = table_directory(place, target, device)
        # A folder can be copied or renamed: for a generic target its header has the last word.
        if (directory / HEADER_NAME).is_file() and (
            not target.is_generic or _read_header(directory)[0].device == device
        ):
            return directory
        others += [_device_in(path.parent) for path in (place / target.name).glob(f"*/{HEADER_NAME}")]
    found = f"tables of other devices only ({', '.join(sorted(set(others)))})" if others else "no table"
    raise MissingFileError(
        asked=f"the latency table of target {target.name} on this device ({device.digest})",
        found=found,
        next=f"Run `akd-deploy profile --target {target.name}` here, or give the folder of a table.",
    )


def _device_in(directory: Path) -> str:
    """The device of a table, for people; its folder where the header cannot be read."""
    try:
        device = _read_header(directory)[0].device
    except AkdError:
        return directory.name
    return f"{device.digest}: {device.facts.get('model', 'unknown model')}"


def _corrupt(path: Path, found: str) -> CorruptFileError:
    return CorruptFileError(asked=f"a latency table in {path}", found=found, next="Restore it, or profile again.")


def _row_from_record(record: Mapping[str, Any]) -> TableRow:
    return TableRow(
        kind=record["kind"],
        family=record["family"],
        kernels=tuple((kernel_from_signature(k["signature"]), int(k["count"])) for k in record["kernels"]),
        measurement=Measurement(record["name"], tuple(record["samples_s"]), tuple(record["block_ids"])),
        remeasured=record["remeasured"],
    )


def read_table(directory: Path) -> LatencyTable:
    """Read a table, all of it or none.

    Raises:
        MissingFileError: no header there.
        CorruptFileError: header or rows are torn, truncated or foreign; names the file, and the row if one is at fault.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    header, rows_path, promised = _read_header(directory)
    if rows_path.parent != directory or not rows_path.is_file():
        raise _corrupt(rows_path, "no such rows file, though the header names it")
    content = rows_path.read_bytes()
    if hashlib.sha256(content).hexdigest() != promised:
        raise _corrupt(rows_path, f"{len(content)} bytes that do not have the SHA-256 its header promises")
    try:
        records = pq.ParquetFile(pa.BufferReader(content)).read().to_pylist()  # `read_table` would import pandas
    except (pa.ArrowException, OSError, ValueError) as error:
        raise _corrupt(rows_path, f"no Parquet ({error})") from error
    rows = []
    for index, record in enumerate(records):
        try:
            rows.append(_row_from_record(record))
        except (KeyError, TypeError, ValueError) as error:
            raise _corrupt(rows_path, f"row {index} ({record.get('name', '?')}) is not one of ours: {error}") from error
    try:
        return LatencyTable(header, tuple(rows))
    except ValueError as error:
        raise _corrupt(rows_path, str(error)) from error


def _read_header(directory: Path) -> tuple[TableHeader, Path, str]:
    """The header, the rows file it names and the SHA-256 it promises."""
    header_path = directory / HEADER_NAME
    if not header_path.is_file():
        below = sorted(str(path.parent) for path in directory.glob(f"*/{HEADER_NAME}"))
        raise MissingFileError(
            asked=f"a latency table in {directory}",
            found=f"no {HEADER_NAME}",
            next=f"Name a table below it: {', '.join(below)}." if below else "Run `akd-deploy profile`.",
        )
    try:
        fields = json.loads(header_path.read_text(encoding="utf-8"))
        version = fields["format_version"]
    except (ValueError, LookupError, TypeError) as error:
        raise _corrupt(header_path, f"no header ({type(error).__name__}: {error})") from error
    if version != FORMAT_VERSION:
        raise _corrupt(header_path, f"format version {version!r}; this program reads {FORMAT_VERSION}")
    try:
        target_fields = dict(fields["target"])
        header = TableHeader(
            target=target_from_dict(target_fields.pop("name"), target_fields, where=str(header_path)),
            device=DeviceFingerprint(fields["device"]),
            engine_version=fields["engine_version"],
            protocol=fields["protocol"],
            created=fields["created"],
            format_version=version,
            transfer=TransferOrigin.from_dict(fields["transfer"]) if "transfer" in fields else None,
        )
        return header, directory / fields["rows"]["file"], fields["rows"]["sha256"]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _corrupt(header_path, f"no header ({type(error).__name__}: {error})") from error


def _rows_content(rows: Sequence[TableRow]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = pa.schema(
        [
            ("name", pa.string()),
            ("kind", pa.string()),
            ("family", pa.string()),
            ("kernels", pa.list_(pa.struct([("signature", pa.string()), ("count", pa.int32())]))),
            ("samples_s", pa.list_(pa.float64())),
            ("block_ids", pa.list_(pa.int32())),
            ("remeasured", pa.int32()),
            ("sigma", pa.float64()),
        ]
    )
    records = [
        {
            "name": row.name,
            "kind": row.kind,
            "family": row.family,
            "kernels": [{"signature": kernel.signature, "count": count} for kernel, count in row.kernels],
            "samples_s": list(row.measurement.samples_s),
            "block_ids": list(row.measurement.block_ids),
            "remeasured": row.remeasured,
            "sigma": row.measurement.sigma,
        }
        for row in rows
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records, schema=schema), sink, compression="zstd")
    return sink.getvalue().to_pybytes()


def write_table(table: LatencyTable, directory: Path) -> None:
    """Write a table in place of what was there, atomically. Hold `table_lock` while reading, merging and writing.

    Raises:
        StorageError: no space or no permission; the old table stays as it was.
    """
    content = _rows_content(table.rows)
    digest = hashlib.sha256(content).hexdigest()
    rows_path = directory / f"rows-{digest[:12]}.parquet"
    header = {**table.header.as_dict(), "rows": {"file": rows_path.name, "sha256": digest, "count": len(table.rows)}}
    write_atomically(rows_path, content)
    write_text_atomically(directory / HEADER_NAME, json.dumps(header, indent=2, sort_keys=True) + "\n")
    for old in directory.glob("rows-*.parquet"):
        if old != rows_path:
            with suppress(OSError):  # the new table is in force; what cannot be removed is only in the way
                old.unlink()


def table_lock(directory: Path) -> AbstractContextManager[None]:
    """One writer at a time: a lock that names its holder.

    Raises:
        StorageError: another process holds it, or the place cannot be written.
    """
    return exclusive_lock(directory / ".lock")
