"""A run whose searches NNI has trained comes to what a run in one process comes to."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path

import pytest
from command_line import written

from akd_deploy.search import Trial, read_journal


def _trials(run: Path, strategy: str) -> list[Trial]:
    with read_journal(run / "journal.sqlite") as journal:
        return journal.of_search(strategy).trials()


def _found(trials: list[Trial]) -> list[tuple[object, ...]]:
    return [(t.id, t.architecture.digest, t.state, t.seed, t.accuracy, t.reward) for t in trials]


@pytest.mark.slow
def test_a_run_goes_on_under_nni_and_comes_to_the_same_trials(twin, tmp_path):
    """Its second search is made anew, under another driver than the first."""
    run = tmp_path / "run"
    shutil.copytree(twin.directory, run)
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as journal, journal:
        journal.execute("DELETE FROM trials WHERE search = 'tpe'")
        journal.execute("DELETE FROM meta WHERE key LIKE 'search tpe%'")
        journal.execute("DELETE FROM stages WHERE name NOT IN ('profile', 'teacher', 'budget', ?)", (FIRST,))
    config = (twin.workshop.folder / "run.toml").read_text(encoding="utf-8")
    config = written(tmp_path / "nni.toml", config.replace("[search]\n", '[search]\ndriver = "nni"\n', 1))
    answer = twin.workshop.call("search", "--config", config, "-o", run, "--resume", "--jobs", "1", "--json")
    assert answer.code == 0, answer
    assert answer.data["trials"] == 4
    assert _found(_trials(run, "tpe")) == _found(_trials(twin.directory, "tpe"))
    assert (run / "nni" / "tpe").is_dir()
    assert not (run / "nni" / "constrained_evolution").exists()


FIRST = "search-constrained_evolution"
