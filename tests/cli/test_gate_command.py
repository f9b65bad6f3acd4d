"""`gate` as a workflow sees it: exit codes, annotations and the summary."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from command_line import Answer, call

FAST = [1.00, 1.01, 0.99, 1.02, 1.0, 0.98, 1.01, 1.0]


def bench(path: Path, factor: float = 1.0, **more: object) -> Path:
    fields = {
        "target": {"name": "t"},
        "device": {"model": "CPU"},
        "protocol": {"seconds": 0.1, "blocks": 8},
        "engine_version": "1.0",
        "blocks": {str(i): [1e-3 * factor * s] * 3 for i, s in enumerate(FAST)},
        **more,
    }
    path.write_text(json.dumps(fields), encoding="utf-8")
    return path


def gate(folder: Path, factor: float, *more: object, on_github: bool = False, **changes: object) -> Answer:
    before, after = bench(folder / "before.json"), bench(folder / "after.json", factor, **changes)
    github = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(folder / "summary.md")}
    return call(
        folder, "gate", "--baseline", before, "--candidate", after, *more, environment=github if on_github else {}
    )


@pytest.mark.parametrize(
    ("factor", "flags", "code"),
    [
        (1.0, (), 0),
        (1.2, (), 3),
        (1.03, (), 0),  # the interval straddles the limit of 3 %: nothing is proven
        (1.03, ("--fail-inconclusive",), 3),
        (1.0, ("--fail-inconclusive",), 0),
        (1.2, ("--max-regression", "30%"), 0),
    ],
)
def test_a_gate_fails_on_what_is_proven_and_on_request_on_what_is_not(tmp_path, factor, flags, code):
    answer = gate(tmp_path, factor, *flags, "--json")
    assert answer.code == code
    assert answer.data["regressed"] == (factor == 1.2 and code == 3)
    assert answer.data["conclusive"] == (factor != 1.03)


def test_annotations_are_printed_on_github_and_nowhere_else(tmp_path):
    assert "::error" not in gate(tmp_path, 1.2).stdout
    answer = gate(tmp_path, 1.2, on_github=True)
    (line,) = [line for line in answer.stdout.splitlines() if line.startswith("::")]
    assert line.startswith("::error title=Latency regression::1.200× the baseline's latency (")
    assert line.endswith("over the limit of 1.030×")
    assert gate(tmp_path, 1.0, on_github=True).stdout.count("::") == 0


def test_with_json_annotations_leave_stdout_to_the_object(tmp_path):
    answer = gate(tmp_path, 1.2, "--json", on_github=True)
    assert answer.data["regressed"]  # one JSON object and nothing else
    assert answer.stderr.startswith("::error title=Latency regression::")


@pytest.mark.parametrize("flags", [(), ("--json",)])
def test_a_step_summary_is_added_to(tmp_path, flags):
    summary = tmp_path / "summary.md"
    summary.write_text("from an earlier command\n", encoding="utf-8")
    for factor in (1.2, 1.0):
        gate(tmp_path, factor, *flags, on_github=True)
    lines = summary.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "from an earlier command"
    assert lines.count("### akd-deploy gate") == 2
    assert sum("**regressed**" in line for line in lines) == 1


def test_another_version_is_refused_with_the_flag_that_allows_it(tmp_path):
    answer = gate(tmp_path, 1.0, "--json", engine_version="2.0")
    assert (answer.code, answer.error["kind"]) == (2, "mismatch")
    assert "--across-versions" in answer.error["next"]
    assert gate(tmp_path, 1.0, "--across-versions", "--json", engine_version="2.0").code == 0


def test_accuracy_is_judged_where_both_benches_have_it(tmp_path):
    answer = gate(tmp_path, 1.0, "--max-accuracy-loss", "1%", "--json")
    assert (answer.code, answer.error["kind"]) == (2, "usage")
    assert "--samples" in answer.error["next"]
    right = {"accuracy": 1.0, "correct": [1] * 200, "samples_sha256": "0"}
    wrong = {"accuracy": 0.85, "correct": [0] * 30 + [1] * 170, "samples_sha256": "0"}
    before, after = bench(tmp_path / "a.json", **right), bench(tmp_path / "b.json", **wrong)
    answer = call(tmp_path, "gate", "--baseline", before, "--candidate", after, "--max-accuracy-loss", "1%", "--json")
    assert (answer.code, answer.data["accuracy_loss"]) == (3, pytest.approx(0.15))
    shown = call(tmp_path, "gate", "--baseline", before, "--candidate", after, "--max-accuracy-loss", "1%").stdout
    assert "accuracy lower by 15.00 percentage points [" in shown
    assert "1.000× the baseline's latency [0.990×, 1.010×] at 95%, 1.030× allowed" in shown


def test_without_a_baseline_the_records_own_comparison_is_judged(tmp_path):
    blocks = {str(i): [1e-3 * s] * 3 for i, s in enumerate(FAST)}
    pair = bench(tmp_path / "pair.json", 1.2, compared={"blocks": blocks})
    answer = call(tmp_path, "gate", "--candidate", pair, "--json")
    assert (answer.code, answer.data["paired"], answer.data["ratio"]) == (3, True, pytest.approx(1.2))
    answer = call(tmp_path, "gate", "--candidate", pair, "--max-accuracy-loss", "1%", "--json")
    assert (answer.code, answer.error["found"]) == (2, "no --baseline")


@pytest.mark.parametrize(("factor", "code"), [(1.0, 0), (1.2, 3)])
def test_a_summary_that_cannot_be_written_hides_no_verdict(tmp_path, factor, code):
    before, after = bench(tmp_path / "before.json"), bench(tmp_path / "after.json", factor)
    environment = {"GITHUB_STEP_SUMMARY": str(tmp_path / "gone" / "summary.md")}
    answer = call(tmp_path, "gate", "--baseline", before, "--candidate", after, environment=environment)
    assert (answer.code, "regress" in answer.stdout) == (code, True)
    assert "no summary in " in answer.stderr


def test_blocks_that_stayed_disturbed_are_told(tmp_path):
    answer = gate(tmp_path, 1.0, disturbed=3)
    assert "3 of 8 blocks of the candidate stayed disturbed: bench again" in answer.stdout
    told = gate(tmp_path, 1.0, "--json", disturbed=3).data["disturbed"]
    assert told == {"candidate": 3, "baseline": 0}


def test_on_github_disturbed_blocks_stand_beside_the_change_and_in_the_summary(tmp_path):
    answer = gate(tmp_path, 1.0, on_github=True, disturbed=3)
    told = "3 of 8 blocks of the candidate stayed disturbed: bench again"
    assert f"::warning title=Disturbed bench::{told}" in answer.stdout.splitlines()
    assert f"{told}.\n" in (tmp_path / "summary.md").read_text(encoding="utf-8")


def test_disturbed_blocks_of_what_was_measured_beside_are_the_baselines(tmp_path):
    blocks = {str(i): [1e-3 * s] * 3 for i, s in enumerate(FAST)}
    pair = bench(tmp_path / "pair.json", compared={"blocks": blocks, "disturbed": 2})
    assert call(tmp_path, "gate", "--candidate", pair, "--json").data["disturbed"] == {"candidate": 0, "baseline": 2}
    shown = call(tmp_path, "gate", "--candidate", pair).stdout
    assert "2 of 8 blocks of the baseline stayed disturbed: bench again" in shown


def test_a_sample_beyond_any_time_is_a_corrupt_file(tmp_path):
    blocks = {str(i): [10**400 if i == 3 else 1e-3] * 3 for i in range(8)}
    answer = gate(tmp_path, 1.0, "--json", blocks=blocks)
    assert (answer.error["kind"], "of block '3'" in answer.error["found"]) == ("corrupt_file", True)


def test_no_more_blocks_are_disturbed_than_there_are(tmp_path):
    assert gate(tmp_path, 1.0, "--json", disturbed=99).data["disturbed"]["candidate"] == 8
