"""Profiles: the table grows block by block, and an interrupted one goes on where it was."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from akd_deploy import latency_table
from akd_deploy.engines import load_engine
from akd_deploy.errors import MismatchError, MissingRuntimeError, StorageError, UsageError
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, read_table, table_lock
from akd_deploy.models.onnx_from_student import onnx_from_layers
from akd_deploy.profiling import blocks, preparing, probes, rounds
from akd_deploy.profiling import profile as profile_module
from akd_deploy.profiling.blocks import Protocol, Taken
from akd_deploy.profiling.measured_journal import JOURNAL_NAME, MeasuredBlock, MeasuredJournal
from akd_deploy.profiling.profile import (
    Profiled,
    ProfilePlan,
    counted,
    measure_subjects,
    plan_within,
    profile_space,
)
from akd_deploy.profiling.subjects import evenly, space_subjects
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

HERE = Target("here", device="cpu", engine="onnxruntime")
SPACE = load_space("mobile", {"widths": [8, 16], "strides": [1, 2], "layers": [[1], [1, 2]]})
PLAN = ProfilePlan(probes=5, networks=2, protocol=Protocol(blocks=3), seed=0)


class _Clock:
    """A clock that stands still unless it is set."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


class _Machine:
    """Stands in for worker processes: every sample says which process took it; it may be interrupted.

    `stolen` are (process, place in its order) that the hypervisor disturbed.
    """

    def __init__(self) -> None:
        self.processes: list[list[str]] = []
        self.interrupt_at: tuple[int, int] | None = None
        self.stolen: set[tuple[int, int]] = set()
        self.clock, self.model_s = _Clock(), 0.0

    def run_block(
        self,
        target: Target,
        models: Mapping[str, Path],
        order: list[str],
        protocol: Protocol,
        seed: int,
        until_s: float | None,
    ) -> Generator[tuple[str, Taken], None, None]:
        self.processes.append(order)
        self.clock.now += 1.0 if self.model_s else 0.0
        for i, name in enumerate(order):
            if until_s is not None and self.clock.now >= until_s:
                return
            self.clock.now += self.model_s
            if self.interrupt_at == (len(self.processes), i):
                raise KeyboardInterrupt
            assert models[name].is_file()
            steal = 0.5 if (len(self.processes), i) in self.stolen else 0.0
            yield name, Taken((float(len(self.processes)),) * 3, 1.0, steal)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> _Machine:
    result = _Machine()
    monkeypatch.setattr(blocks, "_run_block", result.run_block)
    monkeypatch.setattr(probes.space_probes, "__defaults__", (60,))  # candidates: enough for so few probes
    return result


def profile(directory: Path, plan: ProfilePlan = PLAN, resume: bool = False, target: Target = HERE) -> LatencyTable:
    return profile_space(target, SPACE, plan, directory, resume=resume)[0]


def measure(directory: Path, plan: ProfilePlan = PLAN, resume: bool = False) -> Profiled:
    subjects = space_subjects(HERE, SPACE, plan.probes, plan.networks, plan.seed)
    return measure_subjects(HERE, subjects, plan, directory, resume=resume)


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
    assert [len(order) for order in machine.processes] == [7, 7, 3, 7]
    assert sorted(machine.processes[1][:4] + machine.processes[2]) == sorted(machine.processes[0])
    assert blocks_of(table) == {3: 7}
    before = {row.name: row.measurement for row in kept.rows}
    for row in table.rows:
        second = 2.0 if row.name in machine.processes[1][:4] else 3.0
        assert row.measurement.samples_s == (1.0,) * 3 + (second,) * 3 + (4.0,) * 3
        assert row.measurement.samples_s[:3] == before[row.name].samples_s
    assert read_table(tmp_path / "here") == table
    assert not (tmp_path / "here" / JOURNAL_NAME).exists()


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
    assert (plan.seed, plan.within_s) == (3, 120.0)
    assert plan.probes + plan.networks == pytest.approx(2 * 60 / (3 * (0.01 + 0.01 + 0.03)), abs=1)
    assert plan.probes / plan.networks == pytest.approx(6, rel=0.02)


def test_too_few_minutes_say_how_many_are_needed() -> None:
    with pytest.raises(UsageError) as caught:
        plan_within(0.01, Protocol(), seed=0)
    needed = float(caught.value.next.split()[3])
    assert plan_within(needed + 0.1, Protocol(), seed=0).probes > 0


# --- killed, and gone on with -----------------------------------------------------------------------------------


class Killed(BaseException):
    """Stands in for SIGKILL: nothing of ours may catch it, and nothing after it happens."""


class Crash:
    """Lets so many steps that change the disk happen, then none; a step is a journalled line, half of one, a file of
    the table or the journal's removal."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, after: int | None) -> None:
        self.left, self.events, self.torn = after, list[str](), 0
        real_append, real_remove = MeasuredJournal.append, MeasuredJournal.remove
        real_write = latency_table.write_atomically

        def append(journal: MeasuredJournal, block: MeasuredBlock) -> None:
            self.step("half a line", lambda: self.tear(journal))
            real_append(journal, block)
            self.events.append(f"{block.name} {block.block} {block.taken.remeasured}")

        def write(path: Path, content: bytes) -> None:
            self.step("table", lambda: None)
            real_write(path, content)

        def remove(journal: MeasuredJournal) -> None:
            self.step("remove", lambda: None)
            real_remove(journal)

        monkeypatch.setattr(MeasuredJournal, "append", append)
        monkeypatch.setattr(MeasuredJournal, "remove", remove)
        monkeypatch.setattr(latency_table, "write_atomically", write)
        monkeypatch.setattr(latency_table, "write_text_atomically", lambda path, text: write(path, text.encode()))

    def step(self, name: str, instead: Callable[[], None]) -> None:
        if self.left == 0:
            instead()
            raise Killed(name)
        if self.left is not None:
            self.left -= 1

    def tear(self, journal: MeasuredJournal) -> None:
        self.torn += 1
        with journal.path.open("ab") as file:
            file.write(b'{"name":"probe-')


TWO = replace(PLAN, probes=2, networks=1, protocol=Protocol(blocks=2))


def test_wherever_a_profile_is_killed_every_block_is_measured_once_and_kept(
    machine: _Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before and within every line, between the files of a table, and between the table and the journal's removal."""
    with monkeypatch.context() as patch:
        whole = Crash(patch, None)
        profile(tmp_path / "whole", TWO)
    assert len(whole.events) == 6
    points = set()
    for after in range(100):
        directory = tmp_path / str(after)
        machine.processes.clear()
        with monkeypatch.context() as patch:
            crash = Crash(patch, after)
            try:
                profile(directory, TWO)
                break
            except Killed as killed:
                points.add(str(killed))
            crash.left = None
            kept = list(crash.events)
            profiled = measure(directory, TWO, resume=True)
        assert profiled.torn_lines == crash.torn
        assert sorted(crash.events) == sorted(whole.events), kept
        assert blocks_of(profiled.table) == {2: 3}
        for row in profiled.table.rows:
            assert set(row.measurement.blocks) == {0, 1}
        assert read_table(directory) == profiled.table
        assert (profiled.measured, profiled.planned) == (6, 6)
        assert [path.name for path in directory.iterdir() if path.suffix == ".jsonl"] == []
    assert points == {"half a line", "table", "remove"}
    assert after > 12


def test_a_profile_killed_again_and_again_comes_to_its_end(
    machine: _Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    crash = Crash(monkeypatch, None)
    for _ in range(40):
        crash.left = 2
        try:
            profiled = measure(tmp_path / "here", TWO, resume=True)
            break
        except Killed:
            continue
    assert blocks_of(profiled.table) == {2: 3}
    assert len(crash.events) == len(set(crash.events)) == 6


def test_a_journal_left_behind_is_told_where_it_is_not_resumed(machine: _Machine, tmp_path: Path) -> None:
    machine.interrupt_at = (1, 2)
    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path / "here")
    with pytest.raises(UsageError, match="--resume"):
        profile(tmp_path / "here")
    assert (tmp_path / "here" / JOURNAL_NAME).is_file()


def test_a_table_that_was_to_be_replaced_is_replaced_when_the_profile_goes_on(
    machine: _Machine, tmp_path: Path
) -> None:
    profile(tmp_path / "here")
    machine.interrupt_at = (4, 2)
    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path / "here")
    table = profile(tmp_path / "here", resume=True)
    assert blocks_of(table) == {3: 7}
    assert {s for row in table.rows for s in row.measurement.samples_s} == {4.0, 5.0, 6.0, 7.0}


def test_blocks_of_another_table_are_not_mixed_in(machine: _Machine, tmp_path: Path) -> None:
    machine.interrupt_at = (2, 4)
    for name in ("here", "there"):
        machine.processes.clear()
        with pytest.raises(KeyboardInterrupt):
            profile(tmp_path / name, replace(PLAN, seed=len(name)))
    (tmp_path / "there" / JOURNAL_NAME).rename(tmp_path / "here" / JOURNAL_NAME)
    before = read_table(tmp_path / "here")
    with pytest.raises(MismatchError, match="another state of the table"):
        profile(tmp_path / "here", resume=True)
    assert read_table(tmp_path / "here") == before
    assert (tmp_path / "here" / JOURNAL_NAME).is_file()


def test_what_was_disturbed_before_a_profile_was_killed_is_measured_again(machine: _Machine, tmp_path: Path) -> None:
    machine.stolen = {(1, 0), (1, 1)}
    machine.interrupt_at = (1, 3)
    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path / "here")
    bad = machine.processes[0][:2]
    table = profile(tmp_path / "here", resume=True)
    assert sorted(machine.processes[1]) == sorted(bad)
    assert {row.name: row.remeasured for row in table.rows if row.remeasured} == dict.fromkeys(bad, 1)
    assert all(row.measurement.samples_s[0] == (2.0 if row.name in bad else 3.0)
               for row in table.rows if row.name not in machine.processes[0][:3] or row.name in bad)  # fmt: skip
    assert blocks_of(table) == {3: 7}


def test_blocks_of_a_plan_that_is_not_this_one_are_kept(machine: _Machine, tmp_path: Path) -> None:
    machine.interrupt_at = (1, 3)
    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path / "here")
    begun = set(machine.processes[0][:3])
    table = profile(tmp_path / "here", replace(PLAN, seed=1), resume=True)
    assert begun <= {row.name for row in table.rows}
    assert blocks_of(table) == {1: 3, 3: 7}


def test_models_whose_blocks_disagree_get_extra_blocks_and_a_resumed_profile_no_more_of_them(
    machine: _Machine, tmp_path: Path
) -> None:
    """Here every process is slower than the one before, so that all of them disagree."""
    plan = replace(PLAN, protocol=Protocol(blocks=2, extra_blocks=1))
    assert blocks_of(profile(tmp_path / "here", plan)) == {3: 7}
    assert blocks_of(profile(tmp_path / "here", plan, resume=True)) == {3: 7}
    assert len(machine.processes) == 3


def test_a_model_that_was_never_left_in_peace_is_measured_once_more_after_pauses(
    machine: _Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    victim: list[str] = []

    def restless(*arguments: Any) -> Generator[tuple[str, Taken], None, None]:
        for name, taken in machine.run_block(*arguments):
            victim[:] = victim or [name]
            yield name, replace(taken, steal=0.5) if [name] == victim and len(slept) < 2 else taken

    monkeypatch.setattr(blocks, "_run_block", restless)
    monkeypatch.setattr("time.sleep", slept.append)
    plan = replace(PLAN, protocol=Protocol(blocks=2, max_remeasure=0, pauses_s=(1.0, 2.0, 4.0)))
    table = profile(tmp_path / "here", plan)
    assert slept == [1.0, 2.0]
    assert blocks_of(table) == {2: 6, 4: 1}
    assert [row.name for row in table.rows if len(row.measurement.blocks) == 4] == victim
    assert read_table(tmp_path / "here") == table


def test_kernels_that_are_known_are_not_listed_again(
    machine: _Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.interrupt_at = (1, 3)
    with pytest.raises(KeyboardInterrupt):
        profile(tmp_path / "here")
    engine, listed = type(load_engine(HERE)), []
    real = engine.executed_kernels
    monkeypatch.setattr(engine, "executed_kernels", lambda self, path: listed.append(path.stem) or real(self, path))
    profile(tmp_path / "here", resume=True)
    assert sorted(listed) == sorted(machine.processes[0][3:])


# --- a time limit -----------------------------------------------------------------------------------------------


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch, machine: _Machine) -> _Clock:
    """Time that passes only where something is prepared (0.1 s), a process starts (1 s) or a model is measured."""
    result = _Clock()
    for module in (rounds, preparing, profile_module, blocks):
        monkeypatch.setattr(module, "time", result)
    real = preparing._prepared

    def prepared(*arguments: object) -> preparing.Prepared:
        result.now += 0.1
        return real(*arguments)

    monkeypatch.setattr(preparing, "_prepared", prepared)
    monkeypatch.setattr(preparing, "cpus", lambda: 1)
    machine.clock = result
    return result


MANY = ProfilePlan(probes=48, networks=8, protocol=Protocol(blocks=3), seed=0)


@pytest.mark.parametrize("within_s", [5.0, 30.0, 50.0, 60.0, 70.0, 80.0, 1_000.0])
def test_a_profile_ends_in_its_time_with_a_balanced_table(
    machine: _Machine, clock: _Clock, tmp_path: Path, within_s: float
) -> None:
    machine.model_s = 0.5
    profiled = measure(tmp_path / "here", replace(MANY, within_s=within_s))
    assert clock.now <= within_s + machine.model_s + 0.1
    counts = blocks_of(profiled.table)
    assert max(counts) - min(counts) <= 1
    assert (profiled.measured, profiled.planned) == (sum(n * c for n, c in counts.items()), 56 * 3)
    assert profiled.table == read_table(tmp_path / "here")
    networks = len(profiled.table.of_kind(NETWORK))
    assert networks == pytest.approx(len(profiled.table.rows) / 7, abs=1)
    if within_s == 1_000:
        assert counts == {3: 56}
    elif within_s >= 60:
        assert counts[3] == counts.total()
        assert profiled.measured > 0.7 * (within_s / (machine.model_s + 0.1 / 3))


def test_the_first_in_the_plan_are_measured_first(machine: _Machine, clock: _Clock, tmp_path: Path) -> None:
    machine.model_s = 0.5
    order = [s.name for s in space_subjects(HERE, SPACE, MANY.probes, MANY.networks, MANY.seed).subjects]
    table = measure(tmp_path / "here", replace(MANY, within_s=80.0)).table
    assert {row.name for row in table.rows} == set(order[: len(table.rows)])
    assert 35 < len(table.rows) < 56


def test_a_round_that_runs_out_of_time_has_measured_the_first_in_the_plan(
    machine: _Machine, clock: _Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All models are taken on, and then every one of them takes four times as long as it did."""
    machine.model_s = 0.5
    real = machine.run_block

    def slower(*arguments: object) -> Generator[tuple[str, Taken], None, None]:
        machine.model_s = 0.5 if len(machine.processes) < 2 else 2.0
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks, "_run_block", slower)
    order = [s.name for s in space_subjects(HERE, SPACE, MANY.probes, MANY.networks, MANY.seed).subjects]
    counts = {
        row.name: len(row.measurement.blocks)
        for row in measure(tmp_path / "here", replace(MANY, within_s=120.0)).table.rows
    }
    assert len(counts) == 56
    assert 35 < sum(count == 2 for count in counts.values()) < 56
    assert {counts[name] for name in order[: rounds.GROUP]} == {2}


def test_a_profile_that_ran_out_of_time_goes_on_where_it_was(machine: _Machine, clock: _Clock, tmp_path: Path) -> None:
    machine.model_s = 0.5
    for _ in range(6):
        clock.now = 0.0
        profiled = measure(tmp_path / "here", replace(MANY, within_s=30.0), resume=True)
    assert blocks_of(profiled.table) == {3: 56}
    assert profiled.measured == profiled.planned


def test_a_time_limit_never_ends_in_the_middle_of_preparing_with_nothing_measured(
    machine: _Machine, clock: _Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = preparing._prepared
    monkeypatch.setattr(preparing, "_prepared", lambda *given: setattr(clock, "now", clock.now + 5) or slow(*given))
    profiled = measure(tmp_path / "here", replace(MANY, within_s=60.0))
    assert 3 <= len(profiled.table.rows) <= 10
    assert clock.now < 66


def test_groups_spread_evenly_whatever_their_lengths() -> None:
    merged = evenly("abcdef", "X", "12")
    assert [c for c in merged if c in "abcdef"] == list("abcdef")
    assert [c for c in merged if c in "12"] == ["1", "2"]
    assert merged.index("X") in (3, 4)
    assert evenly([], []) == []
    longer = evenly(range(600), range(1000, 1100))
    for length in range(7, 700, 7):
        assert sum(item >= 1000 for item in longer[:length]) == pytest.approx(length / 7, abs=1)


def test_counted_kernels_are_sorted_and_summed() -> None:
    from akd_deploy.kernel import Kernel

    a, b = Kernel("Add", ((1,),), ((1,),)), Kernel("Mul", ((1,),), ((1,),))
    assert counted([b, a, b]) == ((a, 1), (b, 2))
