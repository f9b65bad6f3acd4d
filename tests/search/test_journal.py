import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from akd_deploy.architecture import Architecture
from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, StorageError, UsageError
from akd_deploy.search import Journal, Score, Trial, open_journal, read_journal
from akd_deploy.search.journal import differing_keys

GOLDEN = Path(__file__).parents[1] / "golden" / "journal_v1.sql"
CONFIGURATION = {"search": {"trials": 8, "seed": 1}, "teacher": "wide", "budget": "2ms"}


def trial(number, state="done", **fields):
    if state == "done":
        fields = {"reward": 0.91, "accuracy": 0.9, "metrics": {"agreement": 0.95}, "seconds": 2.5, **fields}
    architecture = Architecture("mobile", {"widths": [16]}, {"b0.op": "conv", "b0.width": 0.5})
    return Trial(number, "tpe", architecture, f"{number:012x}", state, 1e-3, 1.2e-3, 77, **fields)


GOLDEN_TRIALS = [
    trial(0, attempts=1, started="2026-01-02T03:04:05.678+00:00", finished="2026-01-02T03:04:08.178+00:00"),
    trial(1, "infeasible", finished="2026-01-02T03:04:09.000+00:00"),
    trial(2, "failed", attempts=2, error="TrainingError: the loss became nan"),
    trial(3, "running", attempts=1, started="2026-01-02T03:04:10.000+00:00"),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "journal.sqlite"


def test_what_was_recorded_is_read_back(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal.record(GOLDEN_TRIALS)
        journal.record_stage("profile", {"table": "cpu", "kernels": 12})
        journal.record_stage("fit", {"mape": 0.03})
        assert journal.trials() == GOLDEN_TRIALS
    with read_journal(path) as journal:
        assert journal.trials() == GOLDEN_TRIALS
        assert journal.configuration == CONFIGURATION
        assert journal.stages() == {"profile": {"table": "cpu", "kernels": 12}, "fit": {"mape": 0.03}}
        assert journal.stage_result("fit") == {"mape": 0.03}
        assert journal.stage_result("search") is None


def test_a_journal_of_format_1_stays_readable(path):
    """Regenerate with `sqlite3.Connection.iterdump` only together with a new format version."""
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.executescript(GOLDEN.read_text(encoding="utf-8"))
    connection.close()
    with read_journal(path) as journal:
        assert journal.trials() == GOLDEN_TRIALS
        assert journal.stages() == {"fit": {"mape": 0.03}}
    with open_journal(path, CONFIGURATION, resume=True) as journal:
        journal.record([replace(trial(3), attempts=2)])


def test_the_tables_written_today_are_those_of_the_golden_file(path):
    with open_journal(path, CONFIGURATION) as journal:
        written = [row[0] for row in journal._connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")]
    golden = GOLDEN.read_text(encoding="utf-8")
    assert len(written) == 3
    assert all(statement in golden for statement in written)


def test_running_trials_are_marked_interrupted_when_a_writer_opens_the_journal(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal.record(GOLDEN_TRIALS)
    with read_journal(path) as journal:
        assert journal.trials()[3].state == "running"
    with open_journal(path, CONFIGURATION, resume=True) as journal:
        assert [t.state for t in journal.trials()] == ["done", "infeasible", "failed", "interrupted"]


def test_a_finished_trial_is_never_changed_and_a_transaction_is_all_or_nothing(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal.record(GOLDEN_TRIALS)
        with pytest.raises(MismatchError, match="trial 0"):
            journal.record([trial(3), trial(4), trial(0, accuracy=1.0)])
        assert journal.trials() == GOLDEN_TRIALS


def test_a_changed_configuration_refuses_to_resume_and_names_every_difference(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal.record([trial(0)])
    changed = {"search": {"trials": 9, "seed": 1}, "budget": "2ms", "jobs": 2}
    with pytest.raises(MismatchError) as caught:
        open_journal(path, changed, resume=True)
    assert caught.value.details["differing"] == [
        "jobs: (absent) → 2",
        "search.trials: 8 → 9",
        'teacher: "wide" → (absent)',
    ]
    open_journal(path, CONFIGURATION, resume=True).close()  # the refusal let go of the lock


def test_a_changed_configuration_begins_anew_while_there_is_no_trial(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal.record_stage("profile", {"seconds": 1})
    for resume in (False, True):
        with open_journal(path, {"budget": f"{2 + resume}ms"}, resume=resume) as journal:
            assert journal.stages() == {}
            assert journal.configuration == {"budget": f"{2 + resume}ms"}


def test_differing_keys_takes_a_tuple_for_the_list_it_becomes():
    assert differing_keys({"a": [1, 2], "b": {"c": 1}}, {"a": (1, 2), "b": {"c": 1}}) == []
    assert differing_keys({"b": {"c": 1}}, {"b": 3}) == ['b: {"c": 1} → 3']


def test_a_second_run_in_the_same_directory_needs_resume(path):
    open_journal(path, CONFIGURATION).close()
    with pytest.raises(UsageError, match="--resume"):
        open_journal(path, CONFIGURATION)


def test_a_second_writer_is_refused_with_the_name_of_the_first(path):
    with open_journal(path, CONFIGURATION):
        with pytest.raises(StorageError, match=f"process {os.getpid()} on "):
            open_journal(path, CONFIGURATION, resume=True)
        with read_journal(path) as reader:
            assert reader.trials() == []
    open_journal(path, CONFIGURATION, resume=True).close()


@pytest.mark.parametrize("content", [b"", b"not a database, but long enough to be looked at\n" * 40])
def test_a_file_that_is_no_journal_is_named(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    for opened in (lambda: read_journal(path), lambda: open_journal(path, CONFIGURATION, resume=True)):
        with pytest.raises(CorruptFileError, match=str(path)):
            opened()
    assert path.read_bytes() == content


def test_another_sqlite_file_is_named(path):
    path.parent.mkdir()
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE songs (title TEXT)")
    connection.close()
    with pytest.raises(CorruptFileError, match="tables: songs"):
        read_journal(path)


def test_a_truncated_journal_is_never_half_read(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal.record([trial(number) for number in range(200)])
    whole = path.read_bytes()
    for size in range(0, len(whole), 4096 * 3 + 501):
        path.write_bytes(whole[:size])
        with pytest.raises(CorruptFileError, match=str(path)):
            read_journal(path)


def test_damaged_rows_are_named(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal.record([trial(0), trial(1)])
        for column, text in (("state", "finished"), ("metrics", "{"), ("architecture", "[]")):
            before = journal._connection.execute(f"SELECT {column} FROM trials WHERE id = 1").fetchone()
            journal._connection.execute(f"UPDATE trials SET {column} = ? WHERE id = 1", (text,))
            with pytest.raises(CorruptFileError, match=r"trial 1 of .*journal\.sqlite"):
                journal.trials()
            journal._connection.execute(f"UPDATE trials SET {column} = ? WHERE id = 1", before)
        journal._connection.execute("UPDATE meta SET value = '{}' WHERE key = 'configuration'")
        with pytest.raises(CorruptFileError, match="checksum"):
            _ = journal.configuration


def test_a_newer_format_is_refused(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal._connection.execute("UPDATE meta SET value = '2' WHERE key = 'format_version'")
    with pytest.raises(MismatchError, match="format 2"):
        read_journal(path)


def test_a_missing_journal_is_named(path):
    with pytest.raises(MissingFileError, match=str(path)):
        read_journal(path)


def test_a_place_that_cannot_be_written_is_a_storage_error():
    with pytest.raises(StorageError, match="/proc/"):
        open_journal(Path("/proc/run/journal.sqlite"), CONFIGURATION)


def test_a_journal_opened_for_reading_cannot_be_written(path):
    open_journal(path, CONFIGURATION).close()
    with read_journal(path) as journal, pytest.raises(StorageError, match="readonly"):
        journal.record([trial(0)])


def test_a_full_disk_leaves_what_was_recorded(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal.record([trial(0)])
        pages = journal._connection.execute("PRAGMA page_count").fetchone()[0]
        journal._connection.execute(f"PRAGMA max_page_count = {pages + 1}")
        with pytest.raises(StorageError, match="full"):
            journal.record([trial(number) for number in range(1, 200)])
        assert journal.trials() == [trial(0)]
        journal.record([trial(1)])
    with read_journal(path) as journal:
        assert journal.trials() == [trial(0), trial(1)]


def test_a_failing_write_leaves_what_was_recorded(path):
    """The system refuses the file to grow, as a quota does."""
    with open_journal(path, CONFIGURATION) as journal:
        journal.record([trial(0)])
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 4096, limits[1]))
        try:
            with pytest.raises(StorageError):
                journal.record([trial(number) for number in range(1, 200)])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert journal.trials() == [trial(0)]
    with open_journal(path, CONFIGURATION, resume=True) as journal:
        journal.record([trial(1)])
        assert len(journal.trials()) == 2


def test_results_that_are_not_json_are_refused(path):
    with open_journal(path, CONFIGURATION) as journal:
        with pytest.raises(UsageError, match="stage fit"):
            journal.record_stage("fit", {"mape": float("nan")})
        assert journal.stages() == {}


def test_a_journal_in_memory_does_the_same():
    with Journal() as journal:
        journal.record(GOLDEN_TRIALS)
        assert journal.trials() == GOLDEN_TRIALS
        assert journal.configuration == {}


@pytest.mark.parametrize(("accuracy", "metrics"), [(1.01, {}), (float("nan"), {}), (0.5, {"loss": float("inf")})])
def test_a_score_that_cannot_be_one_is_refused(accuracy, metrics):
    with pytest.raises(ArithmeticError):
        Score(accuracy, metrics)


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal import CONFIGURATION, trial
from akd_deploy.search import open_journal
with open_journal(Path(sys.argv[1]), CONFIGURATION, resume=True) as journal:
    number = len(journal.trials())
    for row in journal.trials():
        if row.state == "interrupted":
            journal.record([trial(row.id)])
    while True:
        journal.record([trial(number, "running")])
        print(number, "running", flush=True)
        journal.record([trial(number)])
        print(number, "done", flush=True)
        number += 1
"""


def test_a_killed_writer_loses_nothing_it_was_told_is_written(path):
    for delay_s in (0.0, 0.003, 0.011, 0.019):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        said = [writer.stdout.readline()]
        time.sleep(delay_s)
        writer.send_signal(signal.SIGKILL)
        said += [line for line in writer.stdout.read().splitlines(keepends=True) if line.endswith("\n")]
        writer.wait()
        writer.stdout.close()
        with open_journal(path, CONFIGURATION, resume=True) as journal:
            trials = journal.trials()
        assert [t.id for t in trials] == list(range(len(trials)))
        states = {t.id: t.state for t in trials}
        for line in said:
            number, state = line.split()
            assert states[int(number)] in (("interrupted", "done") if state == "running" else ("done",))
        assert sum(state != "done" for state in states.values()) <= 1


KILLED_INSIDE_A_TRANSACTION = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_journal import CONFIGURATION, trial
from akd_deploy.search import open_journal
journal = open_journal(Path(sys.argv[1]), CONFIGURATION)
journal.record([trial(0)])
journal._connection.execute("PRAGMA cache_size = 1")  # so that uncommitted pages reach the file
def rows():
    for number in range(1, 500):
        yield trial(number)
    os.kill(os.getpid(), signal.SIGKILL)
journal.record(rows())
"""


def test_a_reader_sees_nothing_of_a_transaction_that_was_cut_off(path):
    command = [sys.executable, "-c", KILLED_INSIDE_A_TRANSACTION, str(path), str(Path(__file__).parent)]
    assert subprocess.run(command).returncode == -signal.SIGKILL
    assert path.with_name("journal.sqlite-journal").exists()
    with read_journal(path) as journal:
        assert journal.trials() == [trial(0)]


def dump_golden():
    """How the golden file was written."""
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        journal = open_journal(Path(directory) / "journal.sqlite", CONFIGURATION)
        journal.record(GOLDEN_TRIALS)
        journal.record_stage("fit", {"mape": 0.03})
        return "\n".join(journal._connection.iterdump()) + "\n"


def test_the_architecture_text_in_a_row_is_the_canonical_one(path):
    with open_journal(path, CONFIGURATION) as journal:
        journal.record([trial(0)])
        text = journal._connection.execute("SELECT architecture FROM trials").fetchone()[0]
    assert text == trial(0).architecture.text
    assert json.loads(text)["choices"] == {"b0.op": "conv", "b0.width": 0.5}


def test_searches_share_a_journal_without_seeing_each_others_trials(tmp_path: Path) -> None:
    with open_journal(tmp_path / "journal.sqlite", {}) as journal:
        first, second = journal.of_search("tpe"), journal.of_search("evolution")
        first.record([trial(0), trial(1)])
        second.record([trial(0)])
        first.agree_on("search tpe", {"seed": 1})
        second.agree_on("search evolution", {"seed": 2})
    with open_journal(tmp_path / "journal.sqlite", {}, resume=True) as journal:
        assert [t.id for t in journal.of_search("tpe").trials()] == [0, 1]
        assert [t.id for t in journal.of_search("evolution").trials()] == [0]
        assert journal.trials() == []
