"""The journal of measured blocks: what was appended is read back, and what is not whole is told by file and line."""

from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import CorruptFileError, MismatchError, StorageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import PROBE, LatencyTable, TableHeader, read_table, write_table
from akd_deploy.profiling import measured_journal
from akd_deploy.profiling.blocks import Protocol, Taken
from akd_deploy.profiling.measured_journal import (
    JOURNAL_NAME,
    NO_TABLE,
    Journalled,
    MeasuredBlock,
    MeasuredJournal,
    table_state,
)
from akd_deploy.target import Target

HEADER = TableHeader(
    target=Target("here", "cpu", "onnxruntime", engine_options={"threads": 1}),
    device=DeviceFingerprint({"kind": "cpu"}),
    engine_version="1.0",
    protocol=Protocol().header(),
    created="2026-01-01T00:00:00+00:00",
)
RELU = Kernel("Relu", ((1, 8),), ((1, 8),))


def block(name: str = "probe-a", number: int = 0, start: float = 1e-5, remeasured: int = 0) -> MeasuredBlock:
    # A third has no short decimal: what comes back must be the very same number.
    taken = Taken((start / 3, start / 7), reference_s=1e-4 / 3, steal=0.01, waiting=0.02, remeasured=remeasured)
    return MeasuredBlock(name, PROBE, "mobile-conv", ((RELU, 2),), number, taken)


def written(directory: Path, *blocks: MeasuredBlock, table: str = NO_TABLE) -> Path:
    with MeasuredJournal(directory, HEADER) as journal:
        journal.continue_from(table)
        for one in blocks:
            journal.append(one)
    return directory / JOURNAL_NAME


def recovered(directory: Path, header: TableHeader = HEADER) -> Journalled:
    with MeasuredJournal(directory, header) as journal:
        found = journal.recover()
    assert found is not None
    return found


def test_what_was_appended_is_read_back(tmp_path: Path) -> None:
    blocks = block(), block("probe-b"), block(number=1, start=2e-5)
    written(tmp_path, *blocks, table="abc")
    found = recovered(tmp_path)
    assert found == Journalled("abc", blocks, (1e-4 / 3,) * 3, torn=0)


def test_where_nothing_was_measured_there_is_no_journal(tmp_path: Path) -> None:
    written(tmp_path)
    assert not (tmp_path / JOURNAL_NAME).exists()
    with MeasuredJournal(tmp_path, HEADER) as journal:
        assert journal.recover() is None


def test_a_line_is_whole_in_the_file_when_append_returns(tmp_path: Path) -> None:
    with MeasuredJournal(tmp_path, HEADER) as journal:
        for count in range(1, 4):
            journal.append(block(f"probe-{count}"))
            content = journal.path.read_bytes()
            assert content.endswith(b"\n")
            assert content.count(b"\n") == 1 + count


def test_a_block_measured_again_replaces_the_one_before(tmp_path: Path) -> None:
    again = block(start=2e-5, remeasured=1)
    written(tmp_path, block(), block("probe-b"), again)
    found = recovered(tmp_path)
    assert {one.name: one for one in found.blocks} == {"probe-a": again, "probe-b": block("probe-b")}
    assert len(found.references_s) == 3


def test_a_torn_last_line_is_dropped_counted_and_written_over_wherever_it_was_torn(tmp_path: Path) -> None:
    path = written(tmp_path, block(), block("probe-b"))
    whole = path.read_bytes()
    last = whole.rindex(b"\n", 0, -1) + 1
    for length in range(len(whole) - 1, last, -7):
        path.write_bytes(whole[:length])
        with MeasuredJournal(tmp_path, HEADER) as journal:
            found = journal.recover()
            assert found is not None
            assert (found.blocks, found.torn) == ((block(),), 1)
            journal.append(block("probe-c"))
        assert recovered(tmp_path) == Journalled(NO_TABLE, (block(), block("probe-c")), (1e-4 / 3,) * 2, torn=0)


def test_a_torn_first_line_is_no_journal(tmp_path: Path) -> None:
    path = written(tmp_path, block())
    path.write_bytes(path.read_bytes()[:30])
    found = recovered(tmp_path)
    assert (found.blocks, found.torn) == ((), 1)
    assert not path.exists()


@pytest.mark.parametrize("line", [1, 2, 3])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: text.replace('"header"', '"heeder"'),
        lambda text: text.replace(":", ";", 1),
        lambda text: "",
        lambda text: "[]",
    ],
)
def test_any_other_line_that_is_not_whole_is_told_by_file_and_line(tmp_path: Path, line: int, damage) -> None:
    path = written(tmp_path, block(), block("probe-b"), block("probe-c"))
    lines = path.read_text().splitlines()
    lines[line - 1] = damage(lines[line - 1])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(CorruptFileError) as caught:
        recovered(tmp_path)
    assert str(path) in caught.value.asked
    assert f"line {line}" in caught.value.asked
    assert path.is_file()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("samples_s", []),
        ("samples_s", [1e-5, -1e-5]),
        ("samples_s", ["fast"]),
        ("reference_s", float("nan")),
        ("steal", None),
        ("kind", "kernel"),
        ("kernels", [["no signature", 1]]),
        ("kernels", [[RELU.signature, 0]]),
        ("header", "0" * 12),
        ("remeasured", 1),
        ("block", "first"),
    ],
)
def test_a_line_that_says_what_cannot_be_is_told(tmp_path: Path, field: str, value: object) -> None:
    path = written(tmp_path, block())
    head, line = path.read_text().splitlines()
    path.write_text(f"{head}\n{json.dumps({**json.loads(line), field: value})}\n")
    with pytest.raises(CorruptFileError, match="line 2"):
        recovered(tmp_path)


def test_one_block_twice_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, block())
    path.write_text(path.read_text() + path.read_text().splitlines()[1] + "\n")
    with pytest.raises(CorruptFileError, match="a second time"):
        recovered(tmp_path)


def test_a_journal_of_another_format_is_told(tmp_path: Path) -> None:
    path = written(tmp_path, block())
    path.write_text(path.read_text().replace('"format_version":1', '"format_version":99', 1))
    with pytest.raises(CorruptFileError, match="99"):
        recovered(tmp_path)


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(HEADER, engine_version="2.0"), "engine_version: 1.0 ≠ 2.0"),
        (replace(HEADER, protocol=Protocol(seconds=0.5).header()), "protocol"),
        (replace(HEADER, device=DeviceFingerprint({"kind": "toaster"})), "toaster"),
    ],
)
def test_blocks_taken_otherwise_are_not_gone_on_from(tmp_path: Path, other: TableHeader, named: str) -> None:
    written(tmp_path, block())
    with pytest.raises(MismatchError, match=named):
        recovered(tmp_path, other)


def test_the_date_makes_no_difference(tmp_path: Path) -> None:
    written(tmp_path, block())
    assert recovered(tmp_path, replace(HEADER, created="2027-01-01T00:00:00+00:00")).blocks == (block(),)


def test_a_full_disk_is_told_and_the_lines_before_stay_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write

    def half(descriptor: int, data: bytes) -> int:
        if len(data) < 20:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[: len(data) // 2])

    with MeasuredJournal(tmp_path, HEADER) as journal:
        journal.append(block())
        with monkeypatch.context() as patch:
            patch.setattr(measured_journal.os, "write", half)
            with pytest.raises(StorageError, match="No space left"):
                journal.append(block("probe-b"))
        journal.append(block("probe-c"))
    assert [one.name for one in recovered(tmp_path).blocks] == ["probe-a", "probe-c"]


def test_a_place_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / JOURNAL_NAME).mkdir()
    with MeasuredJournal(tmp_path, HEADER) as journal, pytest.raises(StorageError, match=JOURNAL_NAME):
        journal.append(block())


def test_blocks_are_within_a_table_only_sample_for_sample(tmp_path: Path) -> None:
    table = LatencyTable(HEADER, (block().row,)).merged(LatencyTable(HEADER, (block("probe-b").row,)))
    write_table(table, tmp_path)
    table = read_table(tmp_path)
    written(tmp_path, block(), block("probe-b"))
    found = recovered(tmp_path)
    assert found.is_within(table)
    assert not replace(found, blocks=(*found.blocks, block("probe-c"))).is_within(table)
    assert not replace(found, blocks=(block(number=1),)).is_within(table)
    assert not replace(found, blocks=(block(start=3e-5),)).is_within(table)


def test_the_state_of_a_table_changes_with_every_write_of_something_else(tmp_path: Path) -> None:
    states = [table_state(tmp_path)]
    for rows in ((), (block().row,), (block(start=2e-5).row,)):
        write_table(LatencyTable(HEADER, rows), tmp_path)
        states.append(table_state(tmp_path))
    assert states[0] == NO_TABLE
    assert len(set(states)) == 4
    write_table(LatencyTable(HEADER, (block(start=2e-5).row,)), tmp_path)
    assert table_state(tmp_path) == states[-1]
