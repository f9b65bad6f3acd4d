"""A record measured again: match or differs, with confidence, and by what."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from pipeline.benched import HERE, classifier, install, steady

from akd_deploy.comparison import RatioInterval
from akd_deploy.errors import CorruptFileError, MissingFileError, UsageError
from akd_deploy.pipeline.benching import BenchSettings, bench_models, bench_protocol
from akd_deploy.pipeline.reproducing import factors_that_differ, read_card, reproduce, verdict_of
from akd_deploy.profiling.blocks import BENCH
from akd_deploy.target import Target


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bench of ten processes, measured with a pause."""
    install(monkeypatch, steady())
    settings = BenchSettings(bench_protocol(10, 0.25, 0.02))
    model = classifier(tmp_path / "m.onnx")
    record, _ = bench_models(HERE, model, None, settings, np.random.default_rng(0), lambda done, total: None)
    path = tmp_path / "card.json"
    path.write_text(json.dumps(record), encoding="utf-8")
    monkeypatch.undo()
    return path


def again(card: Path, model: Path | None = None, target: Target | None = None, tolerance: float = 0.05):
    return reproduce(read_card(card), model, target, tolerance, np.random.default_rng(1), lambda done, total: None)


@pytest.mark.parametrize(("factor", "verdict", "code"), [(1.0, "match", 0), (1.2, "differs", 3), (0.8, "differs", 3)])
def test_a_card_is_measured_again_by_its_own_protocol_and_judged(monkeypatch, card, factor, verdict, code):
    told = install(monkeypatch, steady(factor, seed=1))
    record, exit_code = again(card)
    assert {(p.blocks, p.seconds, p.idle_s, p.boundary) for p in told} == {(10, 0.25, 0.02, "host")}
    assert all(p.watch and p.pauses_s == BENCH.pauses_s for p in told)  # as `bench` measures, too
    found = record["reproduction"]
    assert (found["verdict"], exit_code) == (verdict, code)
    assert found["interval"][0] <= found["ratio"] <= found["interval"][1]
    assert found["ratio"] == pytest.approx(factor, rel=0.03)
    assert (found["factors"], found["confidence"]) == ([], 0.95)


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.97, 1.04, "match"),
        (1.01, 1.04, "match"),  # slower for sure, and by less than matters
        (1.04, 1.06, "inconclusive"),
        (0.90, 1.10, "inconclusive"),
        (1.051, 1.2, "differs"),
        (0.8, 0.95, "differs"),
        (0.8, 0.96, "inconclusive"),
    ],
)
def test_a_match_is_proven_as_a_difference_is(low, high, verdict):
    assert verdict_of(RatioInterval(1.0, low, high, 0.95, False), 0.05) == verdict


def test_the_factors_that_differ_are_named(monkeypatch, card, tmp_path):
    install(monkeypatch, steady(seed=1))
    other = classifier(tmp_path / "other.onnx", bias=(1.0, 0.0, 0.0))
    fields = json.loads(card.read_text(encoding="utf-8"))
    fields["engine_version"] = "0.9"
    fields["device"]["model"] = "Another CPU"
    card.write_text(json.dumps(fields), encoding="utf-8")
    two = Target("two", "cpu", "onnxruntime", engine_options={"threads": 2})
    factors = again(card, other, two)[0]["reproduction"]["factors"]
    assert [line.split(":")[0] for line in factors] == [
        "device.model", "engine_version", "flags.threads", "sha256", "target.engine_options.threads",
    ]  # fmt: skip
    assert "flags.threads: 1 ≠ 2" in factors


def test_names_of_targets_numbers_of_blocks_and_what_only_one_tells_of_clocks():
    card = {"target": {"name": "a", "precision": "fp32"}, "protocol": {"blocks": 10, "seconds": 0.1}}
    other = {"target": {"name": "b", "precision": "fp16"}, "protocol": {"blocks": 20, "seconds": 0.2}}
    assert factors_that_differ(card, other) == ["protocol.seconds: 0.1 ≠ 0.2", 'target.precision: "fp32" ≠ "fp16"']
    governed = {**card, "clocks": {"before": {"governor": "powersave", "mhz": {"0": 800.0}}}}
    assert factors_that_differ(governed, card) == ['clocks.governor: "powersave" ≠ (none)']
    assert factors_that_differ({**card, "clocks": {"before": None}}, card) == []


def test_a_model_that_has_gone_is_asked_for(monkeypatch, card, tmp_path):
    told = install(monkeypatch, steady())
    (tmp_path / "m.onnx").unlink()
    with pytest.raises(MissingFileError, match=r"m\.onnx"):
        again(card)
    assert told == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": 3}, "no path"),
        ({"target": {"name": "x"}}, "device"),
        ({"target": "x"}, "ValueError"),
        ({"protocol": {"blocks": 10, "seconds": 0.1, "phase": 1}}, "protocol.phase"),
        ({"protocol": {"blocks": 0}}, "protocol"),
        ({"protocol": 1}, "TypeError"),
    ],
)
def test_what_is_no_card_is_refused(card, change, message):
    fields = json.loads(card.read_text(encoding="utf-8"))
    card.write_text(json.dumps({**fields, **change}), encoding="utf-8")
    with pytest.raises(CorruptFileError, match=message):
        read_card(card)


def test_a_card_of_too_few_processes_is_refused(card):
    fields = json.loads(card.read_text(encoding="utf-8"))
    fields["blocks"] = {key: fields["blocks"][key] for key in "012"}
    card.write_text(json.dumps(fields), encoding="utf-8")
    with pytest.raises(UsageError, match="at least 4"):
        read_card(card)
