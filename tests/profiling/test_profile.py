"""Profiles: the table grows block by block, and an interrupted one goes on where it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from akd_deploy.engines import load_engine
from akd_deploy.errors import MismatchError, MissingRuntimeError, StorageError, UsageError
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, read_table, table_lock
from akd_deploy.models.onnx_from_student import onnx_from_layers
from akd_deploy.profiling import blocks, probes
from akd_deploy.profiling.blocks import Protocol, _Taken
from akd_deploy.profiling.profile import ProfilePlan, counted, plan_within, profile_space
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

HERE = Target("here", device="cpu", engine="onnxruntime")
SPACE = load_space("mobile", {"widths": [8, 16], "strides": [1, 2], "layers": [[1], [1, 2]]})
PLAN = ProfilePlan(probes=5, networks=2, protocol=Protocol(blocks=3), seed=0)


class _Machine:
    """Stands in for worker processes: every sample says which process took it; it may be interrupted."""

    def __init__(self) -> None:
        self.processes: list[list[str]] = []
        self.interrupt_at: tuple[int, int] | None = None

    def run_block(
        self, target: Target, models: Mapping[str, Path], order: list[str], protocol: Protocol, seed: int
    ) -> Generator[tuple[str, _Taken], None, None]:
        self.processes.append(order)
        for i, name in enumerate(order):
            if self.interrupt_at == (len(self.processes), i):
                raise KeyboardInterrupt
            assert models[name].is_file()
            yield name, _Taken((float(len(self.processes)),) * 3, 1.0, 0.0)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> _Machine:
    result = _Machine()
    monkeypatch.setattr(blocks, "_run_block", result.run_block)
    monkeypatch.setattr(probes.space_probes, "__defaults__", (60,))  # candidates: enough for so few probes
    return result


def profile(directory: Path, plan: ProfilePlan = PLAN, resume: bool = False, target: Target = HERE) -> LatencyTable:
    return profile_space(target, SPACE, plan, directory, resume=resume)[0]


def blocks_of(table: LatencyTable) -> Counter[int]:
    return Counter(len(row.measurement.blocks) for row in table.rows)


def test_a_profile_measures_its_plan_and_writes_what_it_returns(machine: _Machine, tmp_path: Path) -> None:
    table = profile(tmp_path / "here")
    assert read_table(tmp_path / "here") == table
    assert (len(table.of_kind(PROBE)), len(table.of_kind(NETWORK))) == (5, 2)
    assert blocks_of(table) == {3: 7}
    engine = load_engine(HERE)
    assert table.header.engine_version == engine.version()
    assert table.header.device == engine.fingerprint()
    assert table.header.protocol == PLAN.protocol.header()


def test_rows_hold_the_kernels_the_engine_executes(machine: _Machine, tmp_path: Path) -> None:
    import onnx

    table = profile(tmp_path / "here")
    rng = np.random.default_rng(PLAN.seed)
    chosen = probes.space_probes(SPACE, 5, rng) + probes.space_networks(SPACE, 2, rng)
    assert [row.name for row in table.rows if row.kind == NETWORK] == [p.name for p in chosen if p.kind == NETWORK]
    for probe in chosen:
        (row,) = (row for row in table.rows if row.name == probe.name)
        path = tmp_path / "again.onnx"
        onnx.save_model(onnx_from_layers(probe.layers, np.random.default_rng(9)), path)
        assert row.kernels == counted([e.kernel for e in load_engine(HERE).executed_kernels(path)])
        assert row.family == probe.family


def test_an_interrupted_profile_keeps_its_blocks_and_resuming_measures_what_is_missing(
    machine: _Machine, tmp_path: Path
) -> None:
    machine.interrupt_at = (2, 4)
    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path / "here")
    kept = read_table(tmp_path / "here")
    assert blocks_of(kept) == {1: 7}

    machine.interrupt_at = None
    table = profile(tmp_path / "here", resume=True)
    assert [len(order) for order in machine.processes] == [7, 7, 7, 7]
    assert blocks_of(table) == {3: 7}
    before = {row.name: row.measurement for row in kept.rows}
    for row in table.rows:
        assert row.measurement.samples_s == (1.0,) * 3 + (3.0,) * 3 + (4.0,) * 3
        assert row.measurement.samples_s[:3] == before[row.name].samples_s
    assert read_table(tmp_path / "here") == table


def test_resuming_a_finished_profile_measures_nothing(machine: _Machine, tmp_path: Path) -> None:
    table = profile(tmp_path / "here")
    assert profile(tmp_path / "here", resume=True).rows == table.rows
    assert len(machine.processes) == 3


def test_a_longer_plan_adds_rows_and_leaves_the_others_alone(machine: _Machine, tmp_path: Path) -> None:
    table = profile(tmp_path / "here")
    longer = profile(tmp_path / "here", replace(PLAN, probes=8), resume=True)
    old = {row.name: row for row in table.rows}
    assert all(old[row.name] == row for row in longer.rows if row.name in old)
    assert len(longer.of_kind(PROBE)) == 8
    assert [len(order) for order in machine.processes[3:]] == [3, 3, 3]


def test_more_blocks_are_added_to_every_row(machine: _Machine, tmp_path: Path) -> None:
    profile(tmp_path / "here")
    more = profile(tmp_path / "here", replace(PLAN, protocol=Protocol(blocks=5)), resume=True)
    assert blocks_of(more) == {5: 7}
    assert [len(order) for order in machine.processes] == [7] * 5


def test_a_plan_of_another_seed_is_not_taken_for_the_one_already_measured(machine: _Machine, tmp_path: Path) -> None:
    first = profile(tmp_path / "here")
    both = profile(tmp_path / "here", replace(PLAN, seed=1), resume=True)
    names = {row.name for row in first.rows}
    assert names < {row.name for row in both.rows}
    assert len(machine.processes) == 6


def test_without_resume_the_table_is_taken_anew(machine: _Machine, tmp_path: Path) -> None:
    profile(tmp_path / "here")
    again = profile(tmp_path / "here")
    assert blocks_of(again) == {3: 7}
    assert {s for row in again.rows for s in row.measurement.samples_s} == {4.0, 5.0, 6.0}


def test_a_table_taken_otherwise_is_not_resumed_and_stays_as_it_was(machine: _Machine, tmp_path: Path) -> None:
    table = profile(tmp_path / "here")
    with pytest.raises(MismatchError, match="protocol"):
        profile(tmp_path / "here", replace(PLAN, protocol=Protocol(seconds=0.02)), resume=True)
    assert len(machine.processes) == 3
    assert read_table(tmp_path / "here") == table


def test_two_profiles_do_not_write_one_table(machine: _Machine, tmp_path: Path) -> None:
    with table_lock(tmp_path / "here"), pytest.raises(StorageError, match="process"):
        profile(tmp_path / "here")
    assert machine.processes == []


def test_a_target_that_cannot_run_here_is_refused_before_anything_is_written(
    machine: _Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from akd_deploy.engines.onnxruntime_engine import OnnxRuntimeEngine

    monkeypatch.setattr(OnnxRuntimeEngine, "why_not", lambda self: "it is Sunday")
    with pytest.raises(MissingRuntimeError, match="Sunday"):
        profile(tmp_path / "here")
    assert not (tmp_path / "here").exists()


def test_a_plan_fits_its_minutes_six_probes_to_a_network() -> None:
    plan = plan_within(2.0, Protocol(), seed=3)
    assert plan.seed == 3
    assert plan.probes + plan.networks == pytest.approx(2 * 60 / (3 * (0.01 + 0.01 + 0.03)), abs=1)
    assert plan.probes / plan.networks == pytest.approx(6, rel=0.02)


def test_too_few_minutes_say_how_many_are_needed() -> None:
    with pytest.raises(UsageError) as caught:
        plan_within(0.01, Protocol(), seed=0)
    needed = float(caught.value.next.split()[3])
    assert plan_within(needed + 0.1, Protocol(), seed=0).probes > 0


def test_counted_kernels_are_sorted_and_summed() -> None:
    from akd_deploy.kernel import Kernel

    a, b = Kernel("Add", ((1,),), ((1,),)), Kernel("Mul", ((1,),), ((1,),))
    assert counted([b, a, b]) == ((a, 1), (b, 2))
