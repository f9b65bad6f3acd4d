import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, StorageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import (
    HEADER_NAME,
    NETWORK,
    PROBE,
    LatencyTable,
    TableHeader,
    TableRow,
    find_table,
    read_table,
    table_directory,
    table_lock,
    write_table,
)
from akd_deploy.measurement import Measurement
from akd_deploy.target import Target

GOLDEN = Path(__file__).parent / "golden" / "latency_table_v1"
GOLDEN_DIGEST = "101cc50db4129273"

CONV = Kernel(
    "Conv",
    ((1, 8, 12, 12), (16, 8, 3, 3)),
    ((1, 16, 6, 6),),
    attributes=(("activation", "Relu"), ("groups", 1), ("kernel_size", (3, 3)), ("strides", (2, 2))),
)
RELU = Kernel("Relu", ((1, 16, 6, 6),), ((1, 16, 6, 6),), "float16")
HERE = DeviceFingerprint({"kind": "cpu", "model": "Example CPU", "cores": "2"})
THERE = DeviceFingerprint({"kind": "cpu", "model": "Other CPU", "cores": "8"})
GENERIC = Target("cpu_example", "cpu", "onnxruntime", "fp32", 1, engine_options={"threads": 1})
NAMED = Target("board_example", "board", "tensorrt", "fp16", 4, "ssh://me@board", {"compute_capabilities": ("sm87",)})
HEADER = TableHeader(
    GENERIC, HERE, "1.31.1", {"blocks": 3, "seconds": 0.02, "clock": "perf_counter"}, "2026-01-02T03:04:05+00:00"
)


def row(
    name="conv 3×3",
    kind=PROBE,
    kernels=((CONV, 1), (RELU, 2)),
    samples=(1e-3, 1.1e-3, 1.2e-3),
    blocks=(0, 0, 1),
    **fields,
):
    return TableRow(kind, fields.pop("family", "conv"), kernels, Measurement(name, samples, blocks), **fields)


GOLDEN_TABLE = LatencyTable(
    HEADER,
    (
        row(remeasured=1),
        row("one block", samples=(2.5e-6,), blocks=(4,), kernels=((RELU, 1),)),
        row("net", NETWORK, family="mobile", samples=(0.1 + 0.2, 1 / 3), blocks=(0, 1)),
    ),
)


@pytest.fixture
def table():
    return GOLDEN_TABLE


@pytest.fixture
def written(tmp_path, table):
    write_table(table, tmp_path / "table")
    return tmp_path / "table"


@pytest.fixture
def home(tmp_path, monkeypatch):
    """An empty working directory and user directory."""
    for name in ("work", "home"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("AKD_DEPLOY_HOME", str(tmp_path / "home"))
    return tmp_path


def rows_file(directory):
    (path,) = directory.glob("*.parquet")
    return path


def change_header(directory, change):
    path = directory / HEADER_NAME
    fields = json.loads(path.read_text())
    change(fields)
    path.write_text(json.dumps(fields))


def replace_rows(directory, content):
    """Put other bytes in the rows file and promise them in the header."""
    rows_file(directory).write_bytes(content)
    change_header(directory, lambda fields: fields["rows"].update(sha256=hashlib.sha256(content).hexdigest()))


def parquet_of(records):
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(records), sink)
    return sink.getvalue().to_pybytes()


# Reading and writing


def test_a_table_is_read_back_as_it_was_written(written, table):
    again = read_table(written)
    assert again == table
    assert again.digest() == table.digest()
    assert [r.measurement.samples_s for r in again.rows] == [r.measurement.samples_s for r in table.rows]


def test_an_empty_table_is_read_back(tmp_path):
    write_table(LatencyTable(HEADER, ()), tmp_path)
    assert read_table(tmp_path) == LatencyTable(HEADER, ())


def test_a_table_of_a_named_target_keeps_all_its_settings(tmp_path):
    table = LatencyTable(replace(HEADER, target=NAMED), ())
    write_table(table, tmp_path)
    assert read_table(tmp_path).header.target == NAMED


def test_samples_from_numpy_have_the_digest_they_have_after_reading(tmp_path):
    samples = np.random.default_rng(0).lognormal(-7, 0.1, 50)
    table = LatencyTable(HEADER, (row(samples=tuple(samples), blocks=tuple(np.arange(50) // 10)),))
    write_table(table, tmp_path)
    assert read_table(tmp_path).digest() == table.digest()


def test_a_table_of_format_1_stays_readable():
    """Written once. A new format gets a folder of its own beside it; this one is never written again."""
    table = read_table(GOLDEN)
    assert table == GOLDEN_TABLE
    assert table.digest() == GOLDEN_DIGEST


def test_the_columns_written_today_are_those_of_the_golden_table(written):
    assert pq.read_schema(rows_file(written)).equals(pq.read_schema(rows_file(GOLDEN)))
    today, golden = (json.loads((folder / HEADER_NAME).read_text()) for folder in (written, GOLDEN))
    today["rows"] = golden["rows"] = {**golden["rows"], "file": "", "sha256": ""}
    assert today == golden


def test_writing_again_replaces_the_rows_and_leaves_no_other_file(written, table):
    write_table(LatencyTable(table.header, table.rows[:1]), written)
    assert read_table(written).rows == table.rows[:1]
    assert sorted(path.name for path in written.iterdir()) == [HEADER_NAME, rows_file(written).name]
    write_table(LatencyTable(table.header, table.rows[:1]), written)
    assert read_table(written).rows == table.rows[:1]


def test_a_crash_between_the_two_writes_leaves_the_old_table_in_force(written, table, monkeypatch):
    def crash(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("akd_deploy.latency_table.write_text_atomically", crash)
    with pytest.raises(KeyboardInterrupt):
        write_table(LatencyTable(table.header, table.rows[:1]), written)
    assert read_table(written) == table
    monkeypatch.undo()
    write_table(LatencyTable(table.header, table.rows[:1]), written)
    assert read_table(written).rows == table.rows[:1]
    assert len(list(written.glob("*.parquet"))) == 1


def test_a_process_killed_between_the_two_writes_leaves_the_old_table_in_force(written, table):
    code = (
        "import os, sys; from pathlib import Path; import akd_deploy.latency_table as t\n"
        "t.write_text_atomically = lambda *args: os.kill(os.getpid(), 9)\n"
        "table = t.read_table(Path(sys.argv[1]))\n"
        "with t.table_lock(Path(sys.argv[1])):\n"
        "    t.write_table(t.LatencyTable(table.header, table.rows[:1]), Path(sys.argv[1]))"
    )
    assert subprocess.run([sys.executable, "-c", code, str(written)], check=False).returncode == -9
    with table_lock(written):
        assert read_table(written) == table


@pytest.mark.parametrize("failing", [1, 2])
def test_a_disk_that_fills_up_at_either_write_leaves_the_old_table_in_force(written, table, monkeypatch, failing):
    calls = []
    fsync = os.fsync

    def full(descriptor):
        calls.append(descriptor)
        if len(calls) == failing:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match="No space left"):
        write_table(LatencyTable(table.header, table.rows[:1]), written)
    assert len(calls) == failing
    assert read_table(written) == table


def test_old_rows_that_cannot_be_removed_do_not_undo_a_write(written, table, monkeypatch):
    def refuse(self, missing_ok=False):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "unlink", refuse)
    write_table(LatencyTable(table.header, table.rows[:1]), written)
    assert read_table(written).rows == table.rows[:1]


def test_a_second_writer_is_refused_and_told_who_the_first_is(tmp_path):
    with table_lock(tmp_path), pytest.raises(StorageError, match=f"process {os.getpid()}"), table_lock(tmp_path):
        pass


# Files that are not what they should be


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=str(tmp_path)):
        read_table(tmp_path)


def test_a_header_truncated_anywhere_is_named(written):
    path = written / HEADER_NAME
    content = path.read_bytes().rstrip()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptFileError, match=str(path)):
            read_table(written)


def test_a_rows_file_truncated_anywhere_is_named(written):
    path = rows_file(written)
    content = path.read_bytes()
    for size in (0, 1, 4, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(CorruptFileError, match=rf"{path.name}.*{size} bytes.*SHA-256"):
            read_table(written)


def test_any_changed_byte_of_the_rows_file_is_found(written):
    path = rows_file(written)
    content = bytearray(path.read_bytes())
    for position in range(0, len(content), 97):
        content[position] ^= 1
        path.write_bytes(content)
        with pytest.raises(CorruptFileError, match=path.name):
            read_table(written)
        content[position] ^= 1
    path.write_bytes(content)
    read_table(written)


def test_a_header_that_promises_other_rows_is_refused(written):
    change_header(written, lambda fields: fields["rows"].update(sha256="0" * 64))
    with pytest.raises(CorruptFileError, match=rf"{rows_file(written).name}.*SHA-256 its header promises"):
        read_table(written)


@pytest.mark.parametrize("name", ["gone.parquet", "../table/header.json", "", "/etc/hostname", "a/b.parquet"])
def test_a_rows_file_that_is_missing_or_elsewhere_is_refused(written, name):
    change_header(written, lambda fields: fields["rows"].update(file=name))
    with pytest.raises(CorruptFileError, match="no such rows file"):
        read_table(written)


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_an_unknown_format_version_is_refused_with_the_one_that_is_read(written, version):
    change_header(written, lambda fields: fields.update(format_version=version))
    with pytest.raises(CorruptFileError, match=rf"{HEADER_NAME}.*format version {version!r}; this program reads 1"):
        read_table(written)


@pytest.mark.parametrize(
    "change",
    [
        lambda fields: fields.pop("device"),
        lambda fields: fields.update(device=["cpu"]),
        lambda fields: fields.update(protocol="fast"),
        lambda fields: fields["target"].update(colour="red"),
        lambda fields: fields["target"].update(batch="many"),
        lambda fields: fields["target"].pop("engine"),
        lambda fields: fields["rows"].pop("sha256"),
        lambda fields: fields.update(rows=[]),
    ],
)
def test_a_foreign_header_is_a_corrupt_file_and_named(written, change):
    change_header(written, change)
    with pytest.raises(CorruptFileError, match=HEADER_NAME):
        read_table(written)


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(data=st.data(), value=JSON)
def test_whatever_a_header_says_the_answer_is_a_table_or_a_corrupt_file(tmp_path, table, data, value):
    write_table(table, tmp_path)
    fields = json.loads((tmp_path / HEADER_NAME).read_text())
    place = fields
    key = data.draw(st.sampled_from(sorted(place)))
    while isinstance(place[key], dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place)))
    place[key] = value
    (tmp_path / HEADER_NAME).write_text(json.dumps(fields))
    with contextlib.suppress(CorruptFileError):  # any other error fails
        assert isinstance(read_table(tmp_path), LatencyTable)


@pytest.mark.parametrize("content", [b"", b"name,kind\n", b"PAR1" + b"\0" * 64 + b"PAR1"])
def test_rows_that_are_no_parquet_are_named(written, content):
    replace_rows(written, content)
    with pytest.raises(CorruptFileError, match=rf"{rows_file(written).name}.*no Parquet"):
        read_table(written)


def test_a_truncated_parquet_is_named_even_where_its_hash_agrees(written):
    replace_rows(written, rows_file(written).read_bytes()[:-20])
    with pytest.raises(CorruptFileError, match=rows_file(written).name):
        read_table(written)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "guess"},
        {"kernels": None},
        {"kernels": [{"signature": "Conv-3x3", "count": 1}]},
        {"kernels": [{"signature": CONV.signature, "count": 0}]},
        {"kernels": [{"signature": CONV.signature, "count": 1}] * 2},
        {"samples_s": None},
        {"samples_s": []},
        {"samples_s": [1e-3, None, 1e-3]},
        {"samples_s": [1e-3, -1e-3, 1e-3]},
        {"samples_s": [1e-3, float("nan"), 1e-3]},
        {"samples_s": [1e-3, 1e-3]},
        {"block_ids": [0, 0, None]},
        {"block_ids": None},
    ],
)
def test_a_torn_or_foreign_row_is_named_with_its_file(written, change):
    records = pq.read_table(rows_file(written)).to_pylist()[:1]
    records.append({**records[0], "name": "torn", **change})
    replace_rows(written, parquet_of(records))
    with pytest.raises(CorruptFileError, match=rf"{rows_file(written).name}.*row 1 \(torn\)"):
        read_table(written)


def test_rows_without_a_column_are_refused(written):
    for column in ("name", "kind", "family", "kernels", "samples_s", "block_ids", "remeasured"):
        records = [{"name": "a"} | r for r in pq.read_table(rows_file(GOLDEN)).to_pylist()]
        for record in records:
            del record[column]
        replace_rows(written, parquet_of(records))
        with pytest.raises(CorruptFileError, match=rf"row 0.*{column}"):
            read_table(written)


def test_a_row_that_is_there_twice_is_named(written):
    records = pq.read_table(rows_file(written)).to_pylist()
    replace_rows(written, parquet_of(records + records[:1]))
    with pytest.raises(CorruptFileError, match=r"same name.*conv 3×3"):
        read_table(written)


# Merging


def test_a_merge_gives_rows_of_one_name_each_others_blocks(table):
    more = LatencyTable(
        replace(HEADER, created="2027-01-01T00:00:00+00:00"),
        (row(samples=(9e-3, 8e-3), blocks=(0, 1), remeasured=2), row("new")),
    )
    merged = table.merged(more)
    assert [r.name for r in merged.rows] == ["conv 3×3", "one block", "net", "new"]
    first = merged.rows[0]
    assert first.measurement.samples_s == (1e-3, 1.1e-3, 1.2e-3, 9e-3, 8e-3)
    assert first.measurement.block_ids == (0, 0, 1, 2, 3)
    assert first.remeasured == 3
    assert merged.rows[1:3] == table.rows[1:]
    assert merged.header == HEADER


def test_a_merge_of_differing_headers_lists_every_difference(table):
    other = TableHeader(replace(GENERIC, batch=2), THERE, "1.32.0", {"blocks": 10, "seconds": 0.02}, HEADER.created, 2)
    with pytest.raises(MismatchError) as error:
        table.merged(LatencyTable(other, ()))
    for part in (
        "device cores: 2 ≠ 8",
        "device model: Example CPU ≠ Other CPU",
        "'batch': 1",
        "'batch': 2",
        "engine_version: 1.31.1 ≠ 1.32.0",
        "'blocks': 3",
        "'blocks': 10",
        "format_version: 1 ≠ 2",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    "change",
    [
        {"target": replace(GENERIC, engine_options={"threads": 2})},
        {"target": replace(GENERIC, name="cpu_renamed")},
        {"device": THERE},
        {"engine_version": "1.31.2"},
        {"protocol": {"blocks": 3}},
        {"format_version": 2},
    ],
)
def test_a_merge_is_refused_for_any_single_difference(table, change):
    with pytest.raises(MismatchError, match=next(iter(change))):
        table.merged(LatencyTable(replace(HEADER, **change), ()))


@pytest.mark.parametrize("other", [row(kernels=((CONV, 2), (RELU, 2))), row(kind=NETWORK), row(family="pool")])
def test_another_subject_under_the_same_name_does_not_merge(table, other):
    with pytest.raises(MismatchError, match="row conv 3×3"):
        table.merged(LatencyTable(HEADER, (other,)))


# Values


@pytest.mark.parametrize(
    "change",
    [
        {"samples": (1e-3, 1.1e-3, np.nextafter(1.2e-3, 1))},
        {"blocks": (0, 1, 1)},
        {"family": "other"},
        {"kind": NETWORK},
        {"kernels": ((CONV, 1), (RELU, 3))},
        {"name": "renamed"},
    ],
)
def test_the_digest_changes_with_any_sample_block_kernel_or_name(change):
    assert LatencyTable(HEADER, (row(),)).digest() != LatencyTable(HEADER, (row(**change),)).digest()


def test_the_digest_changes_with_the_header():
    digests = {
        LatencyTable(h, (row(),)).digest()
        for h in (HEADER, replace(HEADER, device=THERE), replace(HEADER, engine_version="2"))
    }
    assert len(digests) == 3


@pytest.mark.parametrize(
    "fields",
    [{"kind": "guess"}, {"kernels": ((CONV, 1), (CONV, 2))}, {"kernels": ((CONV, 0),)}, {"kernels": ((CONV, -1),)}],
)
def test_a_row_that_counts_nonsense_is_refused_by_name(fields):
    with pytest.raises(ValueError, match="row conv 3×3"):
        row(**fields)


def test_rows_of_one_name_are_refused():
    with pytest.raises(ValueError, match="conv 3×3"):
        LatencyTable(HEADER, (row(), row()))


def test_a_tables_sigma_is_the_median_of_its_rows_scatter(table):
    assert LatencyTable(HEADER, (table.rows[1],)).sigma is None
    rows = [row(str(i), samples=(1 - x, 1 + x), blocks=(0, 1)) for i, x in enumerate((0.01, 0.02, 0.03, 0.08))]
    assert LatencyTable(HEADER, (*rows, table.rows[1])).sigma == pytest.approx(0.025 * np.sqrt(2))


def test_rows_are_told_apart_by_kind_and_count_their_kernels(table):
    assert [r.name for r in table.of_kind(PROBE)] == ["conv 3×3", "one block"]
    assert [r.name for r in table.of_kind(NETWORK)] == ["net"]
    assert table.rows[0].counts() == {CONV: 1, RELU: 2}


# Finding


def store(place, target, device):
    directory = table_directory(place / "latency_tables", target, device)
    write_table(LatencyTable(replace(HEADER, target=target, device=device), (row(),)), directory)
    return directory


def test_a_generic_target_has_one_folder_for_each_device(home):
    here, there = (store(home / "work", GENERIC, device) for device in (HERE, THERE))
    assert here != there
    assert find_table(GENERIC, HERE) == here
    assert find_table(GENERIC, THERE) == there
    assert read_table(here).header.device == HERE


def test_a_named_target_has_one_table_whoever_asks(home):
    directory = store(home / "work", NAMED, THERE)
    assert directory == home / "work" / "latency_tables" / NAMED.name
    assert find_table(NAMED, HERE) == directory


def test_the_nearest_table_is_found(home):
    users = store(home / "home", GENERIC, HERE)
    assert find_table(GENERIC, HERE) == users
    nearest = store(home / "work", GENERIC, HERE)
    assert find_table(GENERIC, HERE) == nearest


def test_another_devices_table_is_never_used_and_the_devices_there_are_are_named(home):
    store(home / "work", GENERIC, THERE)
    with pytest.raises(MissingFileError) as error:
        find_table(GENERIC, HERE)
    for part in (GENERIC.name, HERE.digest, THERE.digest, "Other CPU", f"profile --target {GENERIC.name}"):
        assert part in str(error.value)


def test_a_folder_renamed_to_this_device_is_not_this_devices_table(home):
    foreign = store(home / "work", GENERIC, THERE)
    shutil.move(foreign, foreign.parent / HERE.digest)
    with pytest.raises(MissingFileError, match="Other CPU"):
        find_table(GENERIC, HERE)
    users = store(home / "home", GENERIC, HERE)
    assert find_table(GENERIC, HERE) == users


def test_another_devices_torn_header_is_in_nobodys_way(home):
    (store(home / "work", GENERIC, THERE) / HEADER_NAME).write_text("{")
    with pytest.raises(MissingFileError, match=THERE.digest):
        find_table(GENERIC, HERE)
    mine = store(home / "work", GENERIC, HERE)
    assert find_table(GENERIC, HERE) == mine


def test_this_devices_torn_header_is_named_and_not_passed_over(home):
    store(home / "home", GENERIC, HERE)
    (store(home / "work", GENERIC, HERE) / HEADER_NAME).write_text("{")
    with pytest.raises(CorruptFileError, match=HEADER_NAME):
        find_table(GENERIC, HERE)


def test_no_table_at_all_says_how_to_make_one(home):
    with pytest.raises(MissingFileError, match=r"no table.*akd-deploy profile --target cpu_example"):
        find_table(GENERIC, HERE)
