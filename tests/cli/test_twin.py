"""The demo's smaller twin, from run.toml to a verified bundle."""

from __future__ import annotations

import json
import shutil
import tomllib

import pytest

from akd_deploy.configuration import HOW_SEARCHED
from akd_deploy.search import read_journal

pytestmark = pytest.mark.slow


def _is_seconds(value: object) -> bool:
    return isinstance(value, float) and 1e-7 < value < 1


def test_it_says_what_the_contract_promises_of_the_winner(twin):
    data = twin.answer.data
    winner = data["winner"]
    assert data["run_dir"] == "runs/twin"
    assert set(winner) == {
        "arch", "budget_s", "predicted_s", "interval_s", "measured_s", "certificate", "accuracy", "bundle",
    }  # fmt: skip
    assert set(winner["arch"]) == {"space", "settings", "choices"}
    low, high = winner["interval_s"]
    assert low <= winner["predicted_s"] <= high <= winner["budget_s"]
    measured = winner["measured_s"]
    assert set(measured) == {"median", "p90", "p99"}
    assert measured["median"] <= measured["p90"] <= measured["p99"]
    assert all(map(_is_seconds, [*measured.values(), winner["predicted_s"], winner["budget_s"]]))
    certificate = winner["certificate"]
    assert {"percentile", "confidence", "samples", "exceeding", "ok"} <= set(certificate)
    assert (certificate["percentile"], certificate["confidence"], certificate["samples"]) == (90, 0.99, 300)
    assert set(winner["accuracy"]) == {"teacher", "kd", "ce", "hand_shrunk"}
    for name, row in winner["accuracy"].items():
        assert {"mean", "spread", "seeds"} <= set(row)
        assert 0 <= row["mean"] <= 1
        assert row["seeds"] == (1 if name == "teacher" else 2)


def test_it_exits_with_3_exactly_when_the_certificate_does_not_hold(twin):
    certificate = twin.answer.data["winner"]["certificate"]
    assert (twin.answer.code == 3) == (not certificate["ok"])
    assert certificate["ok"] == (certificate["exceeding"] <= certificate["allowed"])


def test_its_folder_has_what_a_run_directory_has(twin):
    names = {path.name for path in twin.directory.iterdir()}
    assert {"run.toml", "journal.sqlite", "students", "engines", "report.html", "summary.json", "bundle"} <= names
    resolved = tomllib.loads((twin.directory / "run.toml").read_text(encoding="utf-8"))
    with read_journal(twin.directory / "journal.sqlite") as journal:
        what_is_run = {key: value for key, value in resolved["search"].items() if key not in HOW_SEARCHED}
        assert {**resolved, "search": what_is_run} == journal.configuration
    assert resolved["profile"] == {"probes": 40, "networks": 12, "blocks": 2}
    students = {path.name.rpartition("-")[0] for path in (twin.directory / "students").iterdir()}
    assert students == {"kd", "ce", "hand_shrunk"}
    assert len(list((twin.directory / "students").iterdir())) == 6


def test_its_journal_has_every_trial_of_every_strategy(twin):
    shown = json.loads((twin.directory / "summary.json").read_text(encoding="utf-8"))["search"]["trials"]
    with read_journal(twin.directory / "journal.sqlite") as journal:
        recorded = [t for name in ("constrained_evolution", "tpe") for t in journal.of_search(name).trials()]
        assert [(t.strategy, t.id, t.state, t.reward) for t in recorded] == [
            (row["strategy"], row["id"], row["state"], row["reward"]) for row in shown
        ]
        assert list(journal.stages())[-1] == "bundle"
    for strategy in ("constrained_evolution", "tpe"):
        trained = [t for t in recorded if t.strategy == strategy and t.state == "done"]
        assert len(trained) == 2
        assert all(t.attempts == 1 and t.accuracy is not None for t in trained)


def test_the_shipped_student_was_trained_with_a_seed_no_search_has_used(twin):
    with read_journal(twin.directory / "journal.sqlite") as journal:
        searched = {t.seed for name in ("constrained_evolution", "tpe") for t in journal.of_search(name).trials()}
    manifest = json.loads((twin.directory / "bundle" / "manifest.json").read_text(encoding="utf-8"))
    shipped = manifest["provenance"]["seed"]
    assert (twin.directory / "students" / f"kd-{shipped}.safetensors").is_file()
    assert shipped not in searched
    assert manifest["provenance"]["architecture"] == twin.answer.data["winner"]["arch"]


def test_its_bundle_verifies_and_its_report_can_be_written_again(twin, tmp_path):
    verified = twin.workshop.call("verify", twin.directory / "bundle", "--json")
    assert (verified.code, verified.data["ok"], verified.data["problems"]) == (0, True, [])
    answer = twin.workshop.call("report", twin.directory, "-o", tmp_path / "again.html", "--json")
    assert (answer.code, answer.data["report"]) == (0, str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_bytes() == (twin.directory / "report.html").read_bytes()


def _files(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_resuming_a_finished_run_does_nothing_again_and_says_the_same(twin, tmp_path, monkeypatch):
    copy = tmp_path / "twin"
    shutil.copytree(twin.directory, copy)
    before, summary = _files(copy), json.loads((copy / "summary.json").read_text(encoding="utf-8"))
    for place in ("akd_deploy.pipeline.training.train", "akd_deploy.profiling.blocks._run_block"):
        monkeypatch.setattr(place, _must_not_be_called)
    answer = twin.workshop.call("run", "--config", "run.toml", "--resume", "-o", copy, "--json")
    assert answer.code == twin.answer.code
    same = {**twin.answer.data["winner"], "bundle": str(copy / "bundle")}
    assert answer.data["winner"] == same
    assert answer.data["seconds"] == twin.answer.data["seconds"]
    changed = {path.name for path, at in _files(copy).items() if before.get(path) != at}
    assert changed <= {"summary.json", "report.html", "run.toml", "journal.sqlite.lock"}
    again = json.loads((copy / "summary.json").read_text(encoding="utf-8"))
    for text in ("created", "run_dir"):
        del summary[text], again[text]
    summary["winner"].pop("bundle"), again["winner"].pop("bundle")
    assert again == summary


def _must_not_be_called(*arguments, **named):
    raise AssertionError("this was done before")


def test_people_see_one_closing_table(twin, tmp_path):
    copy = tmp_path / "twin"
    shutil.copytree(twin.directory, copy)
    answer = twin.workshop.call("run", "--config", "run.toml", "--resume", "-o", copy)
    for words in ("budget", "predicted", "certificate", "winner, distilled", "winner, labels only", "bundle"):
        assert words in answer.stdout
    held = twin.answer.data["winner"]["certificate"]["ok"]
    assert ("does NOT hold" in answer.stdout) == (not held)


def test_search_goes_as_far_as_the_front_and_run_goes_on_from_there(twin, tmp_path):
    copy = tmp_path / "twin"
    shutil.copytree(twin.directory, copy)
    answer = twin.workshop.call("search", "--config", "run.toml", "--resume", "-o", copy, "--json")
    assert answer.code == 0
    data = answer.data
    assert data["trials"] == 4
    assert data["seconds"] > 0
    assert data["front"]
    for row in data["front"]:
        assert {"arch", "latency_s", "reward", "accuracy"} <= set(row)
    latencies = [row["latency_s"] for row in data["front"]]
    accuracies = [row["accuracy"] for row in data["front"]]
    assert latencies == sorted(latencies)
    assert accuracies == sorted(accuracies)
