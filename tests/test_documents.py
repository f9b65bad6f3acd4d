"""What the commands of documents may end with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from documents import Document, does_its_job, run_command, run_here

GATE = "akd-deploy gate --baseline before.json --candidate after.json"
BENCH = "akd-deploy bench --onnx m.onnx --latency-budget 20ms"
WRAPPED = "│ certificate │ p90 ≤ 2 ms at 99%: does NOT │\n│             │ hold (200 of 300 over) │"


@pytest.mark.parametrize(
    ("command", "code", "stdout", "expected"),
    [
        (GATE, 0, "ratio 1.010\nno regression proven", True),
        (GATE, 3, "ratio 1.830 [1.60, 1.99] at 99%\nregressed", True),
        (GATE, 3, "", False),  # an error of that code
        (GATE, 2, "regressed", False),
        (BENCH, 3, WRAPPED, True),
        (BENCH, 3, "│ certificate │ p90 ≤ 2 ms at 99%: holds │", False),
        ("akd-deploy run --config run.toml --resume", 3, WRAPPED, True),
        ("akd-deploy bench --reproduce card.json", 3, "│ reproduction │ DIFFERS: 1.830 │", True),
        ("akd-deploy bench --reproduce card.json", 3, WRAPPED, False),
        ("akd-deploy verify bundle", 3, "regressed does NOT hold DIFFERS", False),
        ("akd-deploy verify bundle", 0, "", True),
        ("python make_model.py", 1, "", False),
    ],
)
def test_what_judges_times_measured_here_may_miss_them_if_it_says_so_and_nothing_else_may(
    command: str, code: int, stdout: str, expected: bool
) -> None:
    assert does_its_job(command, code, stdout) is expected


@pytest.mark.parametrize("run", [run_command, run_here])
def test_a_command_that_fails_is_told_with_what_it_said(run: Callable, tmp_path: Path) -> None:
    document = tmp_path / "how-to.md"
    document.write_text("```console\n$ akd-deploy targets list\n$ akd-deploy targets show nowhere\n```\n")
    with pytest.raises(AssertionError, match=r"(?s)^akd-deploy targets show nowhere\n.*found"):
        Document(document).run(tmp_path, run)
