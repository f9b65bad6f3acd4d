"""Rounds: a block of every model, then the next one of every model, until all have theirs or the time is up."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from akd_deploy.latency_table import LatencyTable, TableRow, write_table
from akd_deploy.profiling.blocks import Protocol, Taken, Usual, is_disturbed, is_unstable, measure_blocks
from akd_deploy.profiling.measured_journal import Journalled, MeasuredBlock, MeasuredJournal, table_state
from akd_deploy.profiling.preparing import Preparation, Prepared, Subject

GROUP = 35
"""Within a time limit, models are shuffled among so many neighbours only, so that the last ones are what it cuts off;
and so many tell what preparing and measuring cost before more are taken on."""
SMALLEST_WAVE = 7
"""Fewer are not worth their processes; the time left then goes to models whose blocks disagree."""

Progress = Callable[[int, int], None]
"""(done, planned)."""


class Rounds:
    """A profile under way: the table so far, the blocks that only the journal has yet, and what is left to do.

    After every round the table is written, and takes over what the journal holds.

    Args:
        until_s: time (of `time.monotonic`) after which no model is begun. So many models are taken on as are
            expected to get all their blocks by then.
        on_measured: called with the name of each subject as soon as one block of it is held, before `on_model`.
    """

    def __init__(
        self,
        table: LatencyTable,
        directory: Path,
        journal: MeasuredJournal,
        preparation: Preparation,
        protocol: Protocol,
        rng: np.random.Generator,
        until_s: float | None,
        on_prepared: Progress,
        on_model: Progress,
        on_measured: Callable[[str], None] = lambda name: None,
    ) -> None:
        self.table = table
        self.disturbed = 0
        """Blocks of this profile that stayed disturbed however often they were measured."""
        self._directory, self._journal, self._preparation = directory, journal, preparation
        self._protocol, self._rng, self._until_s = protocol, rng, until_s
        self._on_prepared, self._on_model, self._on_measured = on_prepared, on_model, on_measured
        self._rows: dict[str, TableRow] = {row.name: row for row in table.rows}
        self._medians_s: dict[str, np.ndarray] = {row.name: row.measurement.block_medians_s for row in table.rows}
        self._subjects: dict[str, Subject] = {}
        self._models: dict[str, Prepared] = {}
        self._calm: set[str] = set()
        self._waiting: list[Subject] = []
        self._fresh: dict[str, MeasuredBlock] = {}
        self._usual = Usual()
        self._done = self._measured = 0
        self._preparing_s = self._measuring_s = 0.0
        self._wave = 0

    def measure(self, subjects: Sequence[Subject], recovered: Journalled | None) -> None:
        """Measure what the subjects, the most telling ones first, lack of the protocol's blocks.

        Args:
            recovered: blocks that an earlier process journalled; what is disturbed of them is measured again.
        """
        self._subjects = {subject.name: subject for subject in subjects}
        if recovered is not None:
            self._fresh = {block.name: block for block in recovered.blocks}
            self._usual = Usual(list(recovered.references_s))
            self._measure_suspects()
            self._commit()
        for name in self._subjects:
            if name in self._rows:
                self._on_measured(name)
        self._waiting = [s for s in self._subjects.values() if self.lacking(s.name) or self._wants_extra(s.name)]
        grown = True
        while grown:
            grown = self._take_on()
            for done in range(1, self._protocol.blocks):
                self._round(name for name in self._models if self._blocks(name) == done)
        for _ in range(self._protocol.extra_blocks):
            self._round(name for name in self._models if self._wants_extra(name))
        self._wait_for_calm()
        write_table(self.table, self._directory)

    def _wait_for_calm(self) -> None:
        """One more block, after each of the protocol's pauses, of models that had none undisturbed here: without one
        nobody knows how fast they are at full speed."""
        for pause_s in self._protocol.pauses_s:
            restless = [name for name in self._models if self._blocks(name) and name not in self._calm]
            if not restless or self._left_s() <= pause_s:
                return
            time.sleep(pause_s)
            self._round(restless)

    def lacking(self, name: str) -> int:
        """How many of the protocol's blocks a model lacks."""
        return max(0, self._protocol.blocks - self._blocks(name))

    def _blocks(self, name: str) -> int:
        return len(self._medians_s.get(name, ())) + (name in self._fresh)

    def _wants_extra(self, name: str) -> bool:
        allowed = self._protocol.blocks + self._protocol.extra_blocks
        return self._protocol.blocks <= self._blocks(name) < allowed and is_unstable(self._medians_s[name])

    def _left_s(self) -> float:
        return float("inf") if self._until_s is None else self._until_s - time.monotonic()

    # --- which models, and when -----------------------------------------------------------------------------------

    def _measure_suspects(self) -> None:
        """Measure again what a killed process had found disturbed, or would have."""

        def suspect(block: MeasuredBlock) -> bool:
            again = block.taken.remeasured < self._protocol.max_remeasure
            return again and is_disturbed(block.taken, self.table.header.target, self._usual)

        names = [name for name in self._subjects if name in self._fresh and suspect(self._fresh[name])]
        self._prepare([self._subjects[name] for name in names], self._until_s)
        self._measure({name: [self._fresh[name].taken] for name in names if name in self._models})

    def _take_on(self) -> bool:
        """Prepare waiting models and give each its first block, wave by wave; returns whether there were any."""
        grown = False
        while wave := self._next_wave():
            # Preparing takes half of what is left at most: something must be measured, too.
            until_s = None if self._until_s is None else time.monotonic() + self._left_s() / 2
            self._prepare(wave, until_s)
            self._waiting = [subject for subject in self._waiting if subject.name not in self._models]
            if not self._waiting:
                self._preparation.close()  # what is measured has the machine for itself
            self._round(s.name for s in wave if s.name in self._models and not self._blocks(s.name))
            grown = True
        return grown

    def _next_wave(self) -> list[Subject]:
        """The waiting models to take on next: all, or as many as are expected to get all their blocks in time."""
        if self._until_s is None:
            return list(self._waiting)
        if self._left_s() <= 0:
            return []
        if self._wave == 0:
            self._wave = GROUP
            return self._waiting[:GROUP]
        if not self._measured:
            return []
        prepare_s = self._preparing_s / len(self._models)
        block_s = self._measuring_s / self._measured
        spare_s = self._left_s() - block_s * sum(map(self.lacking, self._models))
        wave: list[Subject] = []
        self._wave *= 2
        for subject in self._waiting[: self._wave]:
            spare_s -= prepare_s + block_s * self.lacking(subject.name)
            if spare_s < 0:
                break
            wave.append(subject)
        return wave if len(wave) >= min(SMALLEST_WAVE, len(self._waiting)) else []

    # --- one wave, one round ------------------------------------------------------------------------------------

    def _prepare(self, subjects: Sequence[Subject], until_s: float | None) -> None:
        begin = time.monotonic()
        known = {name: row.kernels for name, row in self._rows.items()}
        known |= {name: block.kernels for name, block in self._fresh.items()}
        self._models |= self._preparation.prepare(subjects, known, self._on_prepared, until_s)
        self._preparing_s += time.monotonic() - begin

    def _round(self, names: Iterable[str]) -> None:
        """One more block of these models, written to the table."""
        self._measure({name: [] for name in names})
        self._commit()

    def _measure(self, earlier: dict[str, list[Taken]]) -> None:
        """One more block of these models, or what they have of it again where it is disturbed, into the journal."""
        if not earlier or self._left_s() <= 0:
            return
        begin = time.monotonic()
        measured = measure_blocks(
            self.table.header.target,
            {name: self._models[name].path for name in earlier},
            replace(self._protocol, blocks=1, extra_blocks=0, pauses_s=()),
            self._rng,
            usual=self._usual,
            on_taken=lambda name, _, taken: self._keep(name, taken),
            earlier=earlier,
            until_s=self._until_s,
            group=GROUP if self._until_s is not None else None,
        )
        self._measuring_s += time.monotonic() - begin
        self._measured += len(measured)
        self._calm |= {name for name, one in measured.items() if not one.disturbed}
        self.disturbed += sum(one.disturbed for one in measured.values())

    def _keep(self, name: str, taken: Taken) -> None:
        """Journal what was just measured; only then does it count."""
        subject, first = self._subjects[name], name not in self._fresh
        row = self._rows.get(name)
        block = 0 if row is None else max(row.measurement.block_ids) + 1
        measured = MeasuredBlock(name, subject.kind, subject.family, self._models[name].kernels, block, taken)
        self._journal.append(measured)
        is_extra = self.lacking(name) == 0
        self._fresh[name] = measured
        if row is None and first:
            self._on_measured(name)
        if first and not is_extra:
            self._done += 1
            left = sum(map(self.lacking, self._models))
            if self._until_s is None:
                left += sum(self.lacking(subject.name) for subject in self._waiting)
            self._on_model(self._done, self._done + left)

    def _commit(self) -> None:
        """Write the table with what the journal holds, and only then empty the journal."""
        if not self._fresh:
            return
        order = [*(name for name in self._subjects if name in self._fresh), *self._fresh]
        rows = tuple(self._fresh[name].row for name in dict.fromkeys(order))
        self.table = self.table.merged(LatencyTable(self.table.header, rows))
        write_table(self.table, self._directory)
        self._journal.remove()
        self._journal.continue_from(table_state(self._directory))
        self._fresh = {}
        measured = {row.name for row in rows}
        self._rows = {row.name: row for row in self.table.rows}
        self._medians_s |= {name: self._rows[name].measurement.block_medians_s for name in measured}
