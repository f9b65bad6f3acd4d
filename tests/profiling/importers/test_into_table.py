"""Imported rows in tables: a header of their own, added to and never counted twice, never mixed with ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from akd_deploy.device import cpu_fingerprint
from akd_deploy.errors import CorruptFileError, MismatchError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import LatencyTable, read_table, write_table
from akd_deploy.profiling.blocks import BENCH
from akd_deploy.profiling.importers.imported import Imported, aggregated_row, network_row, span_rows
from akd_deploy.profiling.importers.into_table import NOT_STATED, imported_table, stated_device, write_imported
from akd_deploy.target import Target

TARGET = Target("rtx4090_tensorrt_fp32", "rtx4090", "tensorrt")
DEVICE = stated_device("RTX 4090")
RELU, ADD = Kernel("Relu", ((1, 8),), ((1, 8),)), Kernel("Add", ((1, 8), (1, 8)), ((1, 8),))


def made(network: str = "net", seconds: float = 2e-6, source: str = "trtexec") -> LatencyTable:
    rows = (
        aggregated_row(f"{network}/relu", network, [RELU], [seconds]),
        network_row(network, [RELU, ADD, RELU], [[9e-6, 8e-6]]),
    )
    return imported_table(Imported(rows, {"source": source}), TARGET, DEVICE, "10.12.0")


def test_the_header_says_who_measured_what_on_which_device(tmp_path: Path) -> None:
    write_imported(made(), tmp_path / "t", append=False)
    header = read_table(tmp_path / "t").header
    assert dict(header.protocol) == {"source": "trtexec"}
    assert dict(header.device.facts) == {"kind": "stated", "model": "RTX 4090"}
    assert header.device != cpu_fingerprint()
    assert (header.engine_version, header.target) == ("10.12.0", TARGET)
    assert imported_table(Imported(made().rows, {}), TARGET, DEVICE, None).header.engine_version == NOT_STATED


def test_a_written_table_reads_back_as_it_was(tmp_path: Path) -> None:
    table = write_imported(made(), tmp_path / "t", append=False)
    assert read_table(tmp_path / "t") == table
    row = table.rows[1]
    assert row.counts() == {RELU: 2, ADD: 1}


def test_a_table_that_is_there_is_extended_only_on_request(tmp_path: Path) -> None:
    write_imported(made("one"), tmp_path / "t", append=False)
    with pytest.raises(UsageError, match="--append"):
        write_imported(made("two"), tmp_path / "t", append=False)
    both = write_imported(made("two"), tmp_path / "t", append=True)
    assert {row.name for row in both.rows} == {"one", "one/relu", "two", "two/relu"}
    assert read_table(tmp_path / "t") == both
    assert write_imported(made("three"), tmp_path / "new", append=True).rows == made("three").rows


def test_another_run_of_a_network_adds_blocks_and_the_same_run_is_refused(tmp_path: Path) -> None:
    write_imported(made(), tmp_path / "t", append=False)
    with pytest.raises(UsageError, match="the same measurements in it already"):
        write_imported(made(), tmp_path / "t", append=True)
    again = write_imported(made(seconds=2.2e-6), tmp_path / "t", append=True)
    row = next(row for row in again.rows if row.name == "net/relu")
    assert row.measurement.samples_s == (2e-6, 2.2e-6)
    assert len(set(row.measurement.block_ids)) == 2
    with pytest.raises(UsageError, match="already"):
        write_imported(made(seconds=2.2e-6), tmp_path / "t", append=True)


def test_imports_never_merge_with_a_profile_or_with_another_tool_s(tmp_path: Path) -> None:
    ours = LatencyTable(replace(made().header, protocol=BENCH.header()), made("ours").rows)
    write_table(ours, tmp_path / "t")
    with pytest.raises(MismatchError, match="protocol"):
        write_imported(made(), tmp_path / "t", append=True)
    assert read_table(tmp_path / "t") == ours
    write_imported(made(), tmp_path / "u", append=False)
    with pytest.raises(MismatchError, match="protocol"):
        write_imported(made("other", source="onnxruntime"), tmp_path / "u", append=True)


def test_a_broken_table_is_not_overwritten_by_append(tmp_path: Path) -> None:
    write_imported(made(), tmp_path / "t", append=False)
    (tmp_path / "t" / "header.json").write_text("{")
    with pytest.raises(CorruptFileError):
        write_imported(made("other"), tmp_path / "t", append=True)


def test_a_table_of_nothing_and_a_device_without_a_name_are_refused() -> None:
    with pytest.raises(UsageError, match="2 kernels without a latency"):
        imported_table(Imported((), {}, without_latency=("a", "b")), TARGET, DEVICE, None)
    with pytest.raises(UsageError, match="device's name"):
        stated_device("  ")


def test_sums_are_made_of_as_many_processes_as_the_layers_and_not_of_one_layer() -> None:
    rows = span_rows("n", [RELU, ADD, RELU, RELU], [[1e-6, 2e-6], [3e-6, 4e-6], [5e-6, 7e-6], [1e-6, 1e-6]])
    assert [row.name for row in rows] == ["n [all layers]", "n [first half]", "n [second half]"]
    assert rows[0].measurement.samples_s == pytest.approx((10e-6, 14e-6))
    assert [row.counts() for row in rows] == [{RELU: 3, ADD: 1}, {RELU: 1, ADD: 1}, {RELU: 2}]
    assert span_rows("n", [RELU], [[1e-6]]) == span_rows("n", [], []) == []
