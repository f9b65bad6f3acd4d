"""`bench`: what it prints, writes and refuses; its processes are stood in for."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from command_line import TARGET, call
from pipeline.benched import classifier, install, steady


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return classifier(tmp_path / "m.onnx")


def test_an_a_a_bench_prints_and_emits_its_verdict(tmp_path, monkeypatch, model):
    install(monkeypatch, steady())
    words = ("bench", "--target", TARGET, "--onnx", model, "--aa", "--detect", "3%")
    answer = call(tmp_path, *words, "--json")
    assert set(answer.data["aa"]) == {"differs", "ratio", "interval", "alpha"}
    assert answer.data["detect"]["effect"] == 0.03
    shown = call(tmp_path, *words).stdout
    assert "A/A" in shown
    assert "from itself" in shown
    assert "to detect" in shown
    assert "first call" in shown


def test_a_certificate_that_only_pooled_samples_pass_does_not_hold(tmp_path, monkeypatch, model):
    def clock(name: str, nth: int) -> tuple[float, ...]:
        return tuple(1e-3 * (0.8 + 0.1 * (nth % 3)) * (1 + 1e-4 * np.arange(100)))

    install(monkeypatch, clock)
    words = ("bench", "--target", TARGET, "--onnx", model, "--latency-budget", "1.05ms")
    answer = call(tmp_path, *words, "--json")
    certificate = answer.data["certificate"]
    assert (answer.code, certificate["ok"], certificate["pooled_ok"]) == (3, False, True)
    shown = " ".join(call(tmp_path, *words).stdout.replace("│", " ").split())
    assert "does NOT hold" in shown
    assert "over processes below" in shown


def test_a_card_is_written_and_reproduced_and_what_differs_is_listed(tmp_path, monkeypatch, model):
    install(monkeypatch, steady())
    words = ("--onnx", model, "--idle", "20ms", "--boundary", "end-to-end", "--blocks", 6)
    assert call(tmp_path, "bench", "--target", TARGET, *words, "-o", "card.json").code == 0
    fields = json.loads((tmp_path / "card.json").read_text(encoding="utf-8"))
    assert (fields["protocol"]["idle_s"], fields["protocol"]["boundary"]) == (0.02, "end-to-end")
    monkeypatch.undo()
    told = install(monkeypatch, steady(1.5, seed=1))
    answer = call(tmp_path, "bench", "--reproduce", "card.json", "--json")
    assert (answer.code, answer.data["reproduction"]["verdict"]) == (3, "differs")
    assert {(p.idle_s, p.boundary, p.blocks) for p in told} == {(0.02, "end-to-end", 6)}
    (tmp_path / "card.json").write_text(json.dumps({**fields, "engine_version": "0.9"}), encoding="utf-8")
    shown = call(tmp_path, "bench", "--reproduce", "card.json").stdout
    assert "DIFFERS" in shown
    assert 'engine_version: "0.9" ≠ ' in shown


def test_a_comparison_says_of_what_its_ratio_is_and_which_blocks_were_disturbed(tmp_path, monkeypatch, model):
    """The candidate takes 1.2 times what the other does; one block of the other is never left in peace."""

    def clock(name: str, nth: int) -> tuple[float, ...]:
        return tuple((1.2e-3 if name == "model" else 1e-3) * (1 + 1e-4 * np.arange(100)))

    # Blocks 0 to 9 come first, the first of them three times; then that one again after every pause.
    install(monkeypatch, clock, lambda name, nth: 0.5 if name == "other" and (nth < 3 or nth > 11) else 0.0)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    classifier(tmp_path / "old.onnx")
    words = ("bench", "--target", TARGET, "--onnx", model, "--compare-with", "old.onnx", "--detect", "3%")
    shown = " ".join(call(tmp_path, *words).stdout.replace("│", " ").split())
    assert "beside old.onnx 1.200× its latency [1.200×, 1.200×] at 95%; its median 1 ms; they differ" in shown
    assert "disturbed, old.onnx 1 blocks stayed disturbed (0); taken again 7 times" in shown
    assert "a slow-down of 3 % takes 6 blocks in turn" in shown


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (("--onnx", "m.onnx"), "no --target"),
        (("--reproduce", "card.json", "--blocks", 3, "--idle", "1ms"), "--blocks, --idle besides"),
        (("--reproduce", "card.json", "--onnx", "m.onnx", "--engine", "m.onnx"), "--onnx and --engine besides"),
        (("--target", TARGET, "--onnx", "m.onnx", "--boundary", "gpu"), "this CPU"),
        (("--target", TARGET, "--onnx", "m.onnx", "--boundary", "hots"), "no such boundary"),
        (("--target", TARGET, "--onnx", "m.onnx", "--idle", "10"), "10"),
        (("--target", TARGET, "--onnx", "m.onnx", "--samples", "gone.npz"), "no such file"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_measured(tmp_path, monkeypatch, model, words, found):
    told = install(monkeypatch, steady())
    answer = call(tmp_path, "bench", *words, "--json")
    assert answer.code == 2
    assert found in answer.error["found"]
    assert told == []
