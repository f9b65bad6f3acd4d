"""Two runs' preferences are compared choice by choice, or it is said why they cannot be."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.pipeline.preferences import compare_preferences
from akd_deploy.report.preferences_figure import preferences_figure

CHOICES = {"b0.op": ["conv", "depthwise"], "b1.op": ["conv", "depthwise", "none"], "b0.width": [0.5, 1.0]}


def run(name: str, tokens: list[list[int]], *, choices: Any = CHOICES) -> dict[str, Any]:
    """A summary whose students are the better the earlier they come."""
    trials = [
        {"network": f"{i}", "state": "done", "reward": 1.0 - 0.01 * i, "tokens": row} for i, row in enumerate(tokens)
    ]
    trials.append({"network": "x", "state": "infeasible", "reward": None, "tokens": [0, 0, 0]})
    summary = {
        "name": name, "run_dir": f"runs/{name}", "winner": {"method": name}, "teacher": {"source": "t"},
        "search": {"choices": [[choice, options] for choice, options in choices.items()], "trials": trials},
    }  # fmt: skip
    # As `summary.json` has it, whose keys are sorted.
    read: dict[str, Any] = json.loads(json.dumps(summary, sort_keys=True))
    return read


def random_rows(seed: int, count: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.integers(len(options), size=count) for options in CHOICES.values()]).tolist()


def test_only_the_best_quarter_counts_and_its_choices_are_pooled_by_kind() -> None:
    first = run("kd", [[0, 0, 1]] * 4 + random_rows(0, 12))
    second = run("ce", [[1, 2, 1]] * 4 + random_rows(1, 12))
    found = compare_preferences(first, second)
    assert [one["students"] for one in found["runs"]] == [4, 4]
    assert found["kinds"]["op"] == {"options": ["conv", "depthwise", "none"], "shares": [[1, 0, 0], [0, 0.5, 0.5]]}
    assert found["kinds"]["width"] == {"options": ["0.5", "1.0"], "shares": [[0, 1], [0, 1]]}
    assert found["by_choice"] == {"b0.op": 1.0, "b1.op": 1.0, "b0.width": 0.0}
    assert found["distance"] == pytest.approx(2 / 3)
    assert found["p"] < 0.05


def test_a_network_counts_once_and_runs_alike_do_not_differ() -> None:
    rows = random_rows(0, 40)
    first = run("kd", rows)
    first["search"]["trials"] += first["search"]["trials"][:5]
    found = compare_preferences(first, run("ce", rows))
    assert found["distance"] == 0.0
    assert found["p"] == 1.0


def test_runs_of_other_spaces_without_a_search_or_with_few_students_are_refused() -> None:
    whole = run("kd", random_rows(0, 16))
    with pytest.raises(MismatchError, match="runs/ce"):
        compare_preferences(whole, run("ce", random_rows(0, 16), choices={**CHOICES, "b0.width": [1.0]}))
    with pytest.raises(UsageError, match="nothing in its summary"):
        compare_preferences(whole, {"name": "shrunk", "run_dir": "runs/shrunk", "winner": {"method": "kd"}})
    with pytest.raises(UsageError, match="at least 4"):
        compare_preferences(whole, run("ce", random_rows(0, 3)))


def test_both_runs_are_drawn_side_by_side() -> None:
    found = compare_preferences(run("kd", [[0, 0, 1]] * 8), run("ce", [[1, 2, 1]] * 8))
    figure = preferences_figure({"preferences": found})
    assert figure is not None
    first, second = figure.spec["data"]
    assert first["x"] == [["op", "op", "op", "width", "width"], ["conv", "depthwise", "none", "0.5", "1.0"]]
    assert first["y"] == [100.0, 0.0, 0.0, 0.0, 100.0]
    assert second["y"] == [0.0, 50.0, 50.0, 0.0, 100.0]
    assert "differ most is b0.op" in figure.alt
    assert "4 of runs/kd (by kd) and 4 of runs/ce (by ce)" in figure.caption
    assert preferences_figure({}) is None
