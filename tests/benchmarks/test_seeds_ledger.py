"""Trainings of a study are done once, whatever ended it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from benchmarks.seed_systems import ledger
from benchmarks.seed_systems.ledger import Ledger, key_of
from benchmarks.seed_systems.students import load_teacher, teacher_job, teacher_path, train_teacher


def work(job) -> dict[str, Any]:
    """Leaves a line for every time it is called."""
    with Path(job["log"]).open("a", encoding="utf-8") as file:
        file.write(f"{job['n']}\n")
    return {"square": job["n"] ** 2}


@pytest.fixture
def jobs(tmp_path: Path) -> list[dict[str, Any]]:
    return [{"n": n, "log": str(tmp_path / "log")} for n in (3, 1, 3, 2)]


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text(encoding="utf-8").split()


@pytest.mark.parametrize("processes", [1, 2])
def test_results_come_in_the_order_of_jobs_and_equal_jobs_are_done_once(tmp_path, jobs, processes) -> None:
    ledger = Ledger(tmp_path / "deep" / "t.jsonl", processes)
    assert [r["square"] for r in ledger.results(work, jobs, "squares")] == [9, 1, 9, 4]
    assert sorted(calls(tmp_path)) == ["1", "2", "3"]
    assert ledger.seconds > 0


def test_a_study_that_was_ended_goes_on_and_a_torn_line_is_done_again(tmp_path, jobs) -> None:
    path = tmp_path / "t.jsonl"
    Ledger(path, 1).results(work, jobs[:2], "squares")
    text = path.read_text(encoding="utf-8")
    path.write_text(text[: text.rindex('"result"')], encoding="utf-8")
    again = Ledger(path, 1)
    assert [r["square"] for r in again.results(work, jobs, "squares")] == [9, 1, 9, 4]
    assert calls(tmp_path) == ["3", "1", "1", "2"]
    assert [r["square"] for r in Ledger(path, 1).results(work, jobs, "squares")] == [9, 1, 9, 4]
    assert len(calls(tmp_path)) == 4


def test_jobs_are_told_apart_by_everything_in_them() -> None:
    job = {"a": 1, "b": {"c": [1, 2]}}
    assert key_of(job) == key_of(json.loads(json.dumps({"b": {"c": [1, 2]}, "a": 1})))
    assert len({key_of(job), key_of({**job, "a": 2}), key_of({"a": 1, "b": {"c": [2, 1]}})}) == 3


def test_a_ledger_holds_in_another_folder_and_names_none(tmp_path, jobs) -> None:
    path = tmp_path / "t.jsonl"
    here = [{**job, "teachers": [{"folder": str(tmp_path / "here"), "kind": "mixer"}]} for job in jobs]
    there = [{**job, "teachers": [{"folder": "there", "kind": "mixer"}]} for job in jobs]
    Ledger(path, 1).results(work, here, "squares")
    assert '"folder"' not in path.read_text(encoding="utf-8")
    assert '"kind": "mixer"' in path.read_text(encoding="utf-8")
    assert [r["square"] for r in Ledger(path, 1).results(work, there, "squares")] == [9, 1, 9, 4]
    assert len(calls(tmp_path)) == 3
    assert key_of(there[0]) != key_of({**there[0], "teachers": [{"folder": "there", "kind": "resnet"}]})


def test_a_ledger_keeps_of_a_long_list_what_tells_it_from_others(tmp_path, jobs) -> None:
    path = tmp_path / "t.jsonl"
    long = [[0.5 + i, 1.5] for i in range(500)]
    both = [
        {**jobs[0], "weights": long, "few": [1, 2]},
        {**jobs[0], "weights": [*long[:-1], [0.0, 0.0]], "few": [1, 2]},
    ]
    Ledger(path, 1).results(work, both, "squares")
    kept = [json.loads(line)["job"] for line in path.read_text(encoding="utf-8").splitlines()]
    assert [job["few"] for job in kept] == [[1, 2], [1, 2]]
    assert [job["weights"]["length"] for job in kept] == [500, 500]
    assert kept[0]["weights"]["sha256"] != kept[1]["weights"]["sha256"]
    assert len(path.read_bytes()) < 2_000
    Ledger(path, 1).results(work, both, "squares")
    assert len(calls(tmp_path)) == 2


@pytest.mark.parametrize("kind", ["convnet", "mixer", "resnet"])
def test_a_teacher_whose_weights_are_gone_is_trained_again_to_the_same(tmp_path, kind) -> None:
    data = {
        "labelled": 48, "teacher_images": 64, "reward_images": 48, "tuning_images": 48, "test_images": 48, "views": 1,
    }  # fmt: skip
    job = teacher_job(tmp_path, data, kind, {"steps": 2, "batch_size": 16})
    first = train_teacher(job)
    weights = teacher_path(job).read_bytes()
    teacher_path(job).unlink()
    assert load_teacher(job).input_shape == (3, 32, 32)
    assert teacher_path(job).read_bytes() == weights
    assert train_teacher(job) == first


def test_seconds_are_those_of_work_its_processes_included(monkeypatch: pytest.MonkeyPatch) -> None:
    """What else the machine does while a training waits is none of its cost."""
    monkeypatch.setattr(ledger.time, "process_time", lambda: 5.0)
    times = SimpleNamespace(user=1.0, system=2.0, children_user=30.0, children_system=4.0, elapsed=900.0)
    monkeypatch.setattr(ledger.os, "times", lambda: times)
    assert ledger.cpu_seconds() == 39.0


def test_a_ledger_counts_what_its_jobs_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 13.0, 20.0, 21.5])
    monkeypatch.setattr(ledger, "cpu_seconds", lambda: next(clock))
    kept = Ledger(tmp_path / "t.jsonl", 1)
    kept.results(lambda job: {"square": job["x"] ** 2}, [{"x": 1}, {"x": 2}], "squares")
    assert kept.seconds == 4.5
    later = Ledger(tmp_path / "t.jsonl", 1)
    assert later.seconds == 0, "nothing has been asked for"
    later.results(lambda job: {}, [{"x": 2}, {"x": 2}], "squares")
    assert later.seconds == 1.5


def endless(job) -> dict[str, Any]:
    """Says which process is at it."""
    (Path(job["place"]) / str(os.getpid())).touch()
    while True:
        time.sleep(0.1)


STUDY = """
import sys
from pathlib import Path
from benchmarks.seed_systems.ledger import Ledger
from tests.benchmarks.test_seeds_ledger import endless
if __name__ == "__main__":
    place = sys.argv[1]
    Ledger(Path(place) / "t.jsonl", 2).results(endless, [{"place": place, "n": n} for n in range(4)], "endless")
"""
PATIENCE_S = 60


@pytest.mark.parametrize("fate", [signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_of_a_study_that_is_ended(tmp_path: Path, fate: signal.Signals) -> None:
    program, place = tmp_path / "study.py", tmp_path / "at_work"
    program.write_text(STUDY, encoding="utf-8")
    place.mkdir()
    root = str(Path(__file__).parents[2])
    study = subprocess.Popen([sys.executable, str(program), str(place)], env={**os.environ, "PYTHONPATH": root})
    try:
        until = time.monotonic() + PATIENCE_S
        while len(at_work := [path.name for path in place.iterdir() if path.name.isdigit()]) < 2:
            assert study.poll() is None
            assert time.monotonic() < until
            time.sleep(0.1)
        workers = [psutil.Process(int(pid)) for pid in at_work]
        os.kill(study.pid, fate)
        assert study.wait(PATIENCE_S) == -fate
        assert not psutil.wait_procs(workers, timeout=PATIENCE_S)[1]
    finally:
        study.kill()
        study.wait()
