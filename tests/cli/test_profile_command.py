"""`profile`: a killed one is gone on with or refused, and a time limit is kept."""

from __future__ import annotations

import shutil
import signal

from command_line import TARGET, call

from akd_deploy.latency_table import read_table
from akd_deploy.profiling.measured_journal import JOURNAL_NAME, MeasuredJournal

SIZE = ("--probes", 20, "--networks", 3, "--blocks", 1)


def test_an_interrupted_profile_is_refused_without_resume_and_goes_on_with_it(workshop, tmp_path, monkeypatch):
    space = ("--space", workshop.folder / "space.toml")
    lines, real = [], MeasuredJournal.append

    def append(journal, block):
        real(journal, block)
        lines.append((block.name, block.block, block.taken.remeasured))
        if len(lines) == 20:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(MeasuredJournal, "append", append)
    assert call(tmp_path, "profile", "--target", TARGET, *space, *SIZE, "--json").code == 130
    (journal,) = (tmp_path / "latency_tables" / TARGET).glob(f"*/{JOURNAL_NAME}")
    with journal.open("ab") as file:
        file.write(b'{"name":"prob')  # as a killed one might leave it

    refused = call(tmp_path, "profile", "--target", TARGET, *space, *SIZE, "--json")
    assert (refused.code, refused.error["kind"]) == (2, "usage")
    assert "--resume" in refused.error["next"]
    assert str(journal) in refused.error["next"]

    answer = call(tmp_path, "profile", "--target", TARGET, *space, *SIZE, "--resume", "--json")
    assert answer.code == 0
    assert answer.data["torn_lines"] == 1
    assert answer.data["planned_blocks"] == answer.data["measured_blocks"] == 23
    assert not journal.exists()
    assert len(lines) == len(set(lines))
    table = read_table(journal.parent)
    assert len(table.rows) == 23
    assert {min(row.measurement.block_ids) for row in table.rows} == {0}


def test_a_profile_of_so_many_minutes_says_how_much_of_the_plan_it_was_enough_for(workshop, tmp_path):
    space = ("--space", workshop.folder / "space.toml")
    answer = call(tmp_path, "profile", "--target", TARGET, *space, "--minutes", 0.05, "--blocks", 2, "--json")
    assert answer.code == 0
    data = answer.data
    assert 0 < data["measured_blocks"] <= data["planned_blocks"]
    assert data["planned_blocks"] == 2 * (data["probes"] + data["networks"])
    assert data["rows"] <= data["probes"] + data["networks"]


def test_a_dry_run_beside_a_journal_refuses_nothing(workshop, tmp_path):
    shutil.copytree(workshop.folder / "latency_tables", tmp_path / "latency_tables")
    (tmp_path / "latency_tables" / TARGET / workshop.table.name / JOURNAL_NAME).touch()
    answer = call(tmp_path, "profile", "--target", TARGET, "--minutes", 2, "--dry-run")
    assert answer.code == 0
    assert "2 minutes at most" in " ".join(answer.stdout.split())
