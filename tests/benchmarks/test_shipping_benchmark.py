"""The shipping benchmark's arithmetic on numbers worked out by hand, and all of it once with a synthetic clock."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from own_cpu import measure_on_own_cpu, measure_once

from akd_deploy.measurement import Measurement
from akd_deploy.profiling.blocks import Measured
from benchmarks import shipping as benchmark

PREDICTED_S, UPPER_S, FACTOR = 1e-3, 1.2e-3, 1.25
BUDGET_S = UPPER_S * FACTOR
TABLE = benchmark.QUICK.certificate


def measured(median_s: float, spread: float = 0.01, disturbed: int = 0) -> Measured:
    """Ten processes whose samples rise evenly by `spread` around the median."""
    samples = median_s * np.linspace(1 - spread, 1 + spread, TABLE.samples_per_block)
    blocks = np.repeat(np.arange(TABLE.blocks), len(samples))
    return Measured(
        Measurement("m", tuple(np.tile(samples, TABLE.blocks).tolist()), tuple(blocks.tolist())), 1, disturbed
    )


def row(**changes):
    fixed = {
        "student": 0,
        "target": "cpu_onnxruntime_fp32",
        "predicted_s": PREDICTED_S,
        "interval_s": [0.9e-3, UPPER_S],
    }
    return {**fixed, "budget_s": BUDGET_S, "engine": "e.onnx", "why_not": None, **changes}


def test_a_measurement_is_judged_by_its_prediction_and_budget():
    judged = benchmark.judged(row(), measured(1.25e-3), TABLE)
    assert judged["error"] == pytest.approx(1 / 1.25 - 1)
    assert judged["in_interval"] is False
    assert judged["slack"] == pytest.approx(BUDGET_S / np.percentile(measured(1.25e-3).measurement.samples_s, 90) - 1)
    assert judged["certificate"]["ok"] is True
    assert benchmark.judged(row(), measured(1.6e-3), TABLE)["certificate"]["ok"] is False
    assert benchmark.judged(row(), measured(1.1e-3), TABLE)["in_interval"] is True


def test_a_summary_counts_certificates_and_takes_medians():
    rows = [row(**benchmark.judged(row(), measured(s), TABLE)) for s in (1.0e-3, 1.2e-3, 1.6e-3)]
    found = benchmark.summary([*rows, row()])
    assert (found["certificates"], found["pass_rate"]) == (3, pytest.approx(2 / 3))
    assert found["median_slack"] == rows[1]["slack"]
    assert found["median_error"] == pytest.approx(1 - 1 / 1.2)
    assert found["in_interval"] == pytest.approx(2 / 3)
    assert found["remeasured"] == 3
    assert benchmark.summary([row()])["pass_rate"] is None


class Clock:
    """Stands for the measuring: every engine takes the same, and says what it was asked."""

    def __init__(self, seconds: float, out: Path):
        self.seconds, self.out, self.asked = seconds, out, []

    def __call__(self, subjects, protocol, rng):
        self.asked.append((dict(subjects), protocol, json.loads(self.out.read_text()) if self.out.exists() else None))
        return {name: measured(self.seconds) for name in subjects}


@pytest.fixture
def predicted(monkeypatch):
    """A predictor that says the same of every network."""
    prediction = SimpleNamespace(latency_s=PREDICTED_S, interval_s=(0.9e-3, UPPER_S), upper_s=UPPER_S, in_domain=True)
    latency = SimpleNamespace(
        table=SimpleNamespace(header=SimpleNamespace(device=SimpleNamespace(facts={"kind": "paper"}))),
        predict_model=lambda path: prediction,
        certificate_factor=lambda table: FACTOR,
    )
    monkeypatch.setattr(benchmark, "latency_of", lambda *_: (latency, 0.0))


def test_budgets_are_written_before_anything_is_measured_and_certified_again_later(tmp_path, predicted, capsys):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "r.json"
    clock = Clock(1.25e-3, out)
    record = benchmark.run(out, replace(benchmark.QUICK, targets=("cpu_onnxruntime_fp32",)), "mobile", 0, measure=clock)
    ((subjects, protocol, stated),) = clock.asked
    assert [r["budget_s"] for r in stated["rows"]] == [BUDGET_S]
    assert "measured_s" not in stated["rows"][0]
    assert protocol.blocks == TABLE.blocks
    (only,) = record["rows"]
    assert only["parity"]["max_abs"] < 1e-3
    assert only["build_s"] > 0
    assert json.loads(out.read_text())["rows"][0]["certificate"]["ok"] is True

    slower = Clock(1.6e-3, out)
    entry = benchmark.recertify(out, measure=slower)
    assert (entry["certificates"], entry["pass_rate"]) == (1, 0.0)
    assert entry["rows"][0]["certificate"]["budget_s"] == BUDGET_S
    assert slower.asked[0][0] == subjects, "the same engines"
    kept = json.loads(out.read_text())
    assert [e["pass_rate"] for e in kept["recertified"]] == [0.0]
    assert kept["rows"] == record["rows"], "what was measured first stays"
    benchmark.show(entry["rows"], "again")
    assert "NOT certified" in capsys.readouterr().out
    told = out.with_suffix(".md").read_text(encoding="utf-8")
    (line,) = (line for line in told.splitlines() if line.startswith("| cpu_onnxruntime_fp32 | 1 of 1, "))
    assert "top-1 100%" in line
    assert line.endswith("| 1 ms, 1.25 ms | 20.0%, 20.0% | 0 of 1 | 19% | 1 of 1 | 0 of 1 |")
    assert "1 certificates: 100.0% hold" in told
    assert "of 1 that held at first 0.0% hold again" in told
    assert told.count("that held at first") == 1
    assert f"certified again, {entry['date']}: 1 certificates: 0.0% hold" in told


def test_an_engine_that_cannot_be_built_or_run_says_why_and_is_not_measured(tmp_path, predicted):
    pytest.importorskip("onnxruntime")
    out = tmp_path / "r.json"
    clock = Clock(1e-3, out)
    record = benchmark.run(out, replace(benchmark.QUICK, targets=(), rtx=("fp16",)), "mobile", 0, measure=clock)
    (only,) = record["rows"]
    assert only["why_not"]
    assert clock.asked[0][0] == {}
    assert benchmark.summary(record["rows"])["certificates"] == 0
    (line,) = (line for line in out.with_suffix(".md").read_text(encoding="utf-8").splitlines() if "rtx" in line)
    assert line.endswith("| – | – | – | – | – | – |")


def test_a_record_that_is_not_there_is_refused(tmp_path, capsys):
    assert benchmark.main(["recertify", str(tmp_path / "none.json")]) == 2
    assert "no such file" in capsys.readouterr().err


@pytest.mark.slow
def test_the_quick_benchmark_runs_from_profile_to_certificate(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime")
    measure_on_own_cpu(monkeypatch)
    measure_once(monkeypatch.setattr)
    out = tmp_path / "r.json"
    assert benchmark.main(["run", str(out), "--quick"]) == 0
    record = json.loads(out.read_text())
    assert len(record["rows"]) == 2
    for told in record["rows"]:
        assert told["why_not"] is None
        assert told["measured_s"]["median"] > 0
        assert told["parity"]["max_abs"] < 1e-3
        assert told["budget_s"] >= told["predicted_s"]
        assert told["certificate"]["samples"] == 300


def test_engines_that_compute_something_else_are_counted_in_the_table_beside_those_that_do_not():
    good = {"max_rel": 2e-3, "top1_agreement": 1.0}
    rows = [row(build_s=1.0, size_bytes=1024, parity=parity) for parity in (good, {"failed": "NaN"}, {"failed": "far"})]
    record = {
        "began": "today", "targets": {"cpu_onnxruntime_fp32": {"device": {"model": "abacus"}}}, "rows": rows,
        "recertified": [],
    }  # fmt: skip
    told = benchmark.markdown(record)
    assert "| 3 of 3, 1 s | 1 KiB | 2 FAILED, others 0.002, top-1 100% | – |" in told
    assert "today, abacus, not measured yet." in told
