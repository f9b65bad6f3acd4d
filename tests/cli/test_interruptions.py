"""A run that is interrupted or killed goes on where it stopped, and repeats no finished trial."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from command_line import TARGET, call, written
from own_cpu import ONCE, on_own_cpu

from akd_deploy.errors import AkdError
from akd_deploy.search import Trial, read_journal

pytestmark = pytest.mark.slow

STRATEGIES = ("constrained_evolution", "tpe")
PATIENCE_S = 120.0
"""So long a test waits for a process that is making progress on a busy machine."""


def _trials(run: Path) -> list[Trial]:
    with read_journal(run / "journal.sqlite") as journal:
        return [trial for name in STRATEGIES for trial in journal.of_search(name).trials()]


def _found(trials: list[Trial]) -> list[tuple[object, ...]]:
    """What a trial came to; not how long it took."""
    return [(t.strategy, t.id, t.architecture.digest, t.state, t.seed, t.accuracy, t.reward) for t in trials]


def _rewound(twin, run: Path) -> Path:
    """A copy of the twin as it was before its first search."""
    shutil.copytree(twin.directory, run)
    shutil.rmtree(run / "students")
    with contextlib.closing(sqlite3.connect(run / "journal.sqlite")) as journal, journal:
        journal.execute("DELETE FROM trials")
        journal.execute("DELETE FROM meta WHERE key LIKE 'search %'")
        journal.execute("DELETE FROM stages WHERE name NOT IN ('profile', 'teacher', 'budget')")
    return run


def _interrupting(stop: Callable[[str, int], bool]) -> Callable[[bool], object]:
    """In place of progress bars: Ctrl-C, as a signal, at every report that `stop` (what, how often) asks for."""

    @contextlib.contextmanager
    def progress(as_json: bool) -> Iterator[Callable[[str, int, int], None]]:
        reports: dict[str, int] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            reports[what] = reports.get(what, 0) + 1
            if stop(what, reports[what]):
                signal.raise_signal(signal.SIGINT)

        yield on_progress

    return progress


def test_a_run_interrupted_at_every_stage_in_turn_comes_to_the_same_trials(twin, tmp_path, monkeypatch):
    run, seen = tmp_path / "run", []

    def stop(what: str, reports: int) -> bool:
        if what in seen:
            return False
        seen.append(what)
        return True

    monkeypatch.setattr("akd_deploy.cli.run_commands.progress_bars", _interrupting(stop))
    children = set(psutil.Process().children(recursive=True))
    for _ in range(20):
        answer = twin.workshop.call("run", "--config", "run.toml", "-o", run, "--resume", "--json")
        assert set(psutil.Process().children(recursive=True)) <= children
        if answer.code != 130:
            break
        assert answer.error["kind"] == "interrupted"
        assert "--resume" in answer.error["next"]
    assert answer.code in (0, 3)
    assert {
        "training the teacher",
        "compiling the space's latencies",
        "searching (constrained_evolution)",
        "searching (tpe)",
        "measuring the best candidates",
        "training finalists",
        "exporting",
        f"building {TARGET}",
        "measuring engines",
    } <= set(seen)
    assert _found(_trials(run)) == _found(_trials(twin.directory))
    assert all(trial.attempts <= 1 for trial in _trials(run))
    students = {path.name for path in (run / "students").iterdir()}
    assert students == {path.name for path in (twin.directory / "students").iterdir()}
    assert twin.workshop.call("verify", run / "bundle", "--json").code == 0


def test_an_interrupted_training_is_trained_again_and_no_other(twin, tmp_path, monkeypatch):
    from akd_deploy.pipeline import training

    run, asked, real = _rewound(twin, tmp_path / "run"), [], training.Bed.score

    def interrupted_once(bed, architecture, seed):
        asked.append(seed)
        if len(asked) == 2:
            signal.raise_signal(signal.SIGINT)
        return real(bed, architecture, seed)

    monkeypatch.setattr(training.Bed, "score", interrupted_once)
    arguments = ("search", "--config", "run.toml", "-o", run, "--resume", "--json")
    assert twin.workshop.call(*arguments).code == 130
    running = [trial for trial in _trials(run) if trial.state == "running"]
    assert [trial.seed for trial in running] == [asked[1]]
    assert twin.workshop.call(*arguments).code == 0
    assert asked[2] == asked[1]
    assert len(asked) == 5  # four trainings, one of them twice
    attempts = {(t.strategy, t.id): t.attempts for t in _trials(run) if t.state == "done"}
    assert sorted(attempts.values()) == [1, 1, 1, 2]
    assert attempts[running[0].strategy, running[0].id] == 2
    assert _found(_trials(run)) == _found(_trials(twin.directory))


def _start(folder: Path, *arguments: object) -> subprocess.Popen[str]:
    """The command as a process of its own, in a group of its own as a shell would start it."""
    return subprocess.Popen(
        [sys.executable, ONCE, *map(str, arguments)],
        cwd=folder,
        env={**os.environ, "AKD_DEPLOY_HOME": str(folder / "home"), "PYTHONWARNINGS": "error"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=on_own_cpu,
    )


def _wait_for(process: subprocess.Popen[str], reached: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not reached():
        if process.poll() is not None:
            raise AssertionError(f"ended early with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.005)


def _workers(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The measuring processes that it has started."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if "akd_deploy.profiling.worker" in child.cmdline():
                found.append(child)
        except psutil.Error:
            continue
    return found


def test_a_process_that_is_interrupted_and_another_that_is_killed_leave_a_search_that_finishes(workshop, tmp_path):
    """Ctrl-C while a measuring process is at work, then SIGKILL in the middle of a training, then the rest."""
    config, run = workshop.run_toml(tmp_path / "run.toml", steps=60), tmp_path / "run"
    arguments = ("search", "--config", config, "-o", run, "--resume", "--json")

    process = _start(workshop.folder, *arguments)
    workers: list[psutil.Process] = []

    def measuring() -> bool:
        workers.extend(_workers(process))
        return bool(workers)

    _wait_for(process, measuring)
    os.killpg(process.pid, signal.SIGINT)  # what a terminal does
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 130, stderr
    assert json.loads(stdout)["error"]["kind"] == "interrupted"
    assert "Traceback" not in stderr
    assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1]

    def training_the_second() -> bool:
        try:
            states = [trial.state for trial in _trials(run)]
        except AkdError:
            return False
        return "done" in states and states[-1] == "running"

    process = _start(workshop.folder, *arguments)
    _wait_for(process, training_the_second)
    process.kill()
    process.communicate(timeout=PATIENCE_S)
    before = _trials(run)
    assert {"done", "running"} <= {trial.state for trial in before}

    answer = workshop.call(*arguments)
    assert answer.code == 0, answer
    after = {(trial.strategy, trial.id): trial for trial in _trials(run)}
    for trial in before:
        now = after[trial.strategy, trial.id]
        if trial.state == "running":
            assert (now.state, now.attempts) == ("done", 2)
        else:
            assert now == trial  # to the very timestamps


def test_two_processes_cannot_work_in_one_run(twin, tmp_path):
    from akd_deploy.search import open_journal

    run = tmp_path / "run"
    shutil.copytree(twin.directory, run)
    with read_journal(run / "journal.sqlite") as journal:
        configuration = journal.configuration
    with open_journal(run / "journal.sqlite", configuration, resume=True):
        answer = twin.workshop.call("run", "--config", "run.toml", "-o", run, "--resume", "--json")
    assert (answer.code, answer.error["kind"]) == (5, "storage")
    assert f"process {os.getpid()}" in answer.error["found"]


def test_a_table_that_a_run_began_to_measure_is_finished_before_it_is_used(workshop, tmp_path, monkeypatch):
    """After an interruption a part of the table is on disk; it must not pass for a table that was there before."""
    target = written(
        tmp_path / "targets" / "own_fp32.toml", 'device = "cpu"\nengine = "onnxruntime"\nprecision = "fp32"\n'
    )
    config = workshop.run_toml(tmp_path / "run.toml", target=target.stem)
    rows = 52  # probes and networks, each measured once in a block

    def stop(what: str, reports: int) -> bool:
        return what == "profiling kernels" and reports == rows + 5

    monkeypatch.setattr("akd_deploy.cli.run_commands.progress_bars", _interrupting(stop))
    assert call(tmp_path, "search", "--config", config, "--json").code == 130
    (header,) = (tmp_path / "latency_tables" / target.stem).glob("*/header.json")
    from akd_deploy.latency_table import read_table

    assert {len(row.measurement.blocks) for row in read_table(header.parent).rows} == {1}

    def after_profiling(what: str, reports: int) -> bool:
        return what != "profiling kernels"

    monkeypatch.setattr("akd_deploy.cli.run_commands.progress_bars", _interrupting(after_profiling))
    assert call(tmp_path, "search", "--config", config, "--resume", "--json").code == 130
    # Models whose blocks disagree, as they do on a busy machine, get more than two.
    assert min(len(row.measurement.blocks) for row in read_table(header.parent).rows) == 2
    with read_journal(tmp_path / "runs" / "twin" / "journal.sqlite") as journal:
        stage = journal.stage_result("profile")
    assert stage is not None
    assert stage["result"]["measured_here"] is True
