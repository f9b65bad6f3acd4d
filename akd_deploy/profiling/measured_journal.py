"""The journal beside a latency table: every block of samples measured since the table was written, as it is measured.

`measured.jsonl` is only ever appended to. Its first line says which state of the table it continues and what the
samples were taken with; each other line is one model in one block. A killed process leaves at most one line torn, the
last. Writing the table makes the journal's lines part of it, and then removes the file: a crash in between leaves
lines that the table holds already, which the state of the table tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path
from typing import Any

from akd_deploy.errors import CorruptFileError, MismatchError, StorageError
from akd_deploy.kernel import Kernel, kernel_from_signature
from akd_deploy.latency_table import HEADER_NAME, LatencyTable, TableHeader, TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.profiling.blocks import Taken
from akd_deploy.storage import file_sha256, make_folder

JOURNAL_NAME = "measured.jsonl"
FORMAT_VERSION = 1
SYNC_EVERY_S = 1.0
"""How much measuring time a power failure may cost; a process that is killed loses nothing of it."""
NO_TABLE = ""
"""State of a table that is yet to be written, or is taken anew."""


@dataclass(frozen=True)
class MeasuredBlock:
    """One model's samples of one block: as in `TableRow`, with the block's id there."""

    name: str
    kind: str
    family: str
    kernels: tuple[tuple[Kernel, int], ...]
    block: int
    taken: Taken

    @property
    def row(self) -> TableRow:
        """The row this block alone would be."""
        samples = self.taken.samples_s
        measurement = Measurement(self.name, samples, (self.block,) * len(samples))
        return TableRow(self.kind, self.family, self.kernels, measurement, self.taken.remeasured)


@dataclass(frozen=True)
class Journalled:
    """What a journal holds: the state of the table it continues, the last samples of every (model, block) it names,
    the references of all, and how many torn lines were left out."""

    table: str
    blocks: tuple[MeasuredBlock, ...]
    references_s: tuple[float, ...]
    torn: int

    def is_within(self, table: LatencyTable) -> bool:
        """Whether the table holds every block already, sample for sample."""
        rows = {row.name: row.measurement.blocks for row in table.rows}
        return all(
            block.block in rows.get(block.name, {})
            and tuple(rows[block.name][block.block].tolist()) == block.taken.samples_s
            for block in self.blocks
        )


def table_state(directory: Path) -> str:
    """Equal for equal tables only: the SHA-256 of the header, which names that of the rows."""
    path = directory / HEADER_NAME
    return file_sha256(path) if path.is_file() else NO_TABLE


class MeasuredJournal:
    """A journal being written. Hold `table_lock` of its folder, and use it as a context manager."""

    def __init__(self, directory: Path, header: TableHeader) -> None:
        self.path = directory / JOURNAL_NAME
        self._settings = {key: value for key, value in header.as_dict().items() if key != "created"}
        self._digest = hashlib.sha256(json.dumps(self._settings, sort_keys=True).encode()).hexdigest()[:12]
        self._table = NO_TABLE
        self._descriptor: int | None = None
        self._synced = 0.0

    def __enter__(self) -> MeasuredJournal:
        return self

    def __exit__(self, *exc: object) -> None:
        if exc[0] is not None:
            with suppress(StorageError):  # the first failure is the one to tell
                self._close()
        self._close()

    def recover(self) -> Journalled | None:
        """What an earlier process left, or None; what is appended from now on follows it.

        A torn last line is dropped, from the file too.

        Raises:
            CorruptFileError: any other line is not one of ours; names the file and the line.
            MismatchError: the samples were taken with other settings; lists what differs.
        """
        if not self.path.is_file():
            return None
        content = self.path.read_bytes()
        *lines, tail = content.split(b"\n")
        torn = 1 if tail else 0
        if not lines:
            self.remove()
            return Journalled(NO_TABLE, (), (), torn)
        self._table = self._first(lines[0])
        blocks: dict[tuple[str, int], MeasuredBlock] = {}
        references_s = []
        for number, line in enumerate(lines[1:], start=2):
            block = self._block(line, number)
            before = blocks.get((block.name, block.block))
            if block.taken.remeasured != (0 if before is None else before.taken.remeasured + 1):
                raise self._corrupt(number, f"block {block.block} of {block.name} a second time, or out of order")
            blocks[block.name, block.block] = block
            references_s.append(block.taken.reference_s)
        if torn:
            self._open()
            self._truncate(len(content) - len(tail))
        return Journalled(self._table, tuple(blocks.values()), tuple(references_s), torn)

    def continue_from(self, table: str) -> None:
        """Say which state of the table the first line, if it is yet to be written, continues."""
        self._table = table

    def append(self, block: MeasuredBlock) -> None:
        """Write one line; when this returns the system has it, whatever happens to this process.

        Raises:
            StorageError: no space or no permission; the lines before stay whole.
        """
        if self._descriptor is None:
            self._open()
        fields = {
            "name": block.name,
            "block": block.block,
            "kind": block.kind,
            "family": block.family,
            "kernels": [[kernel.signature, count] for kernel, count in block.kernels],
            "samples_s": block.taken.samples_s,
            "reference_s": block.taken.reference_s,
            "steal": block.taken.steal,
            "waiting": block.taken.waiting,
            "remeasured": block.taken.remeasured,
            "header": self._digest,
        }
        self._write(fields)
        if time.monotonic() - self._synced >= SYNC_EVERY_S:
            self._sync()

    def remove(self) -> None:
        """Forget every line: the table on the disk holds them all now.

        Raises:
            StorageError: the file cannot be removed.
        """
        self._close()
        try:
            _sync_folder(self.path.parent)  # the table's new name first
            self.path.unlink(missing_ok=True)
            _sync_folder(self.path.parent)
        except OSError as error:
            raise self._failed(error) from error

    def _open(self) -> None:
        try:
            make_folder(self.path.parent)
            self._descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            is_new = os.fstat(self._descriptor).st_size == 0
        except OSError as error:
            raise self._failed(error) from error
        if is_new:
            self._write({"format_version": FORMAT_VERSION, "table": self._table, "header": self._settings})

    def _write(self, fields: Mapping[str, Any]) -> None:
        assert self._descriptor is not None
        line = json.dumps(fields, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        size = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, line)
            while written < len(line):
                written += os.write(self._descriptor, line[written:])
        except OSError as error:
            self._truncate(size)
            raise self._failed(error) from error

    def _truncate(self, size: int) -> None:
        assert self._descriptor is not None
        try:
            os.ftruncate(self._descriptor, size)
        except OSError as error:
            raise self._failed(error) from error

    def _sync(self) -> None:
        assert self._descriptor is not None
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._failed(error) from error
        self._synced = time.monotonic()

    def _close(self) -> None:
        if self._descriptor is None:
            return
        try:
            self._sync()
        finally:
            os.close(self._descriptor)
            self._descriptor = None

    def _first(self, line: bytes) -> str:
        """The state of the table that the journal continues."""
        try:
            fields = json.loads(line)
            version, table, settings = fields["format_version"], fields["table"], dict(fields["header"])
            if not isinstance(table, str):
                raise TypeError("the table's state is no text")
        except (ValueError, LookupError, TypeError) as error:
            raise self._corrupt(1, f"no head of a journal ({type(error).__name__}: {error})") from error
        if version != FORMAT_VERSION:
            raise self._corrupt(1, f"format version {version!r}; this program reads {FORMAT_VERSION}")
        mine = json.loads(json.dumps(self._settings))
        differing = [key for key in sorted({*mine, *settings}) if mine.get(key) != settings.get(key)]
        if differing:
            raise MismatchError(
                asked=f"to go on from {self.path}",
                found="samples taken with other settings: "
                + "; ".join(f"{key}: {settings.get(key)} ≠ {mine.get(key)}" for key in differing),
                next="Profile with the settings they were taken with, or delete that file.",
            )
        return table

    def _block(self, line: bytes, number: int) -> MeasuredBlock:
        try:
            fields = json.loads(line)
            if fields["header"] != self._digest:
                raise ValueError("its header is not that of the first line")
            samples = tuple(float(sample) for sample in fields["samples_s"])
            reference_s, steal, waiting = (float(fields[key]) for key in ("reference_s", "steal", "waiting"))
            if not all(isfinite(value) and value >= 0 for value in (reference_s, steal, waiting)):
                raise ValueError("a reference or a share of time is no number")
            block = MeasuredBlock(
                name=fields["name"],
                kind=fields["kind"],
                family=fields["family"],
                kernels=tuple((kernel_from_signature(text), int(count)) for text, count in fields["kernels"]),
                block=int(fields["block"]),
                taken=Taken(samples, reference_s, steal, waiting, int(fields["remeasured"])),
            )
            return replace(block, taken=replace(block.taken, samples_s=block.row.measurement.samples_s))
        except (ValueError, LookupError, TypeError) as error:
            raise self._corrupt(number, f"no measured block ({type(error).__name__}: {error})") from error

    def _corrupt(self, number: int, found: str) -> CorruptFileError:
        return CorruptFileError(
            asked=f"measured blocks in {self.path}, line {number}",
            found=found,
            next="Delete that line to lose its block alone, or the file.",
        )

    def _failed(self, error: OSError) -> StorageError:
        return StorageError(
            asked=f"to write {self.path}",
            found=str(error),
            next="Free some space, then add --resume: what was measured before is kept.",
        )


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
