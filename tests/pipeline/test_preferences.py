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


def test_a_network_counts_once_and_runs_alike_do_not_differ() -> None:
    rows = random_rows(0, 40)
    first = run("kd", rows)
    first["search"]["trials"] += first["search"]["trials"][:5]
    found = compare_preferences(first, run("ce", rows))
    assert found["distance"] == 0.0
    assert found["in_common"] == {"students": 40, "distance": 0.0, "null": 0.0, "p": 1.0}


def scored(name: str, rows: list[list[int]], rewards: Any, *, first: int = 0) -> dict[str, Any]:
    """Students by number from `first` on, with these rewards."""
    summary = run(name, rows)
    for i, trial in enumerate(summary["search"]["trials"][:-1]):
        trial |= {"network": f"{first + i}", "reward": float(rewards[i])}
    return summary


def test_the_students_that_both_runs_trained_tell_whether_a_difference_is_chance() -> None:
    rng, rows = np.random.default_rng(3), random_rows(3, 40)
    truth = rng.normal(size=40)
    one, alike = (scored(name, rows, truth + 0.5 * rng.normal(size=40)) for name in ("kd", "other seed"))
    depthwise = np.array(rows)[:, 1] == 1
    other = scored("ce", rows, 20 + 3 * (truth + 0.5 * rng.normal(size=40) + 2.2 * depthwise))
    assert compare_preferences(one, alike)["in_common"]["p"] > 0.05
    found = compare_preferences(one, other)
    assert found["in_common"]["students"] == 40
    assert found["in_common"]["p"] < 0.02
    assert found["in_common"]["distance"] > found["in_common"]["null"]


def test_students_of_one_run_alone_do_not_tell_what_is_preferred() -> None:
    """Descendants of one candidate each, as two searches' are, whatever they prefer: only seven are of both."""
    shared = random_rows(4, 7)
    runs = [
        scored("kd", shared + [[0, 0, 0]] * 20, range(27)),
        scored("ce", shared + [[1, 2, 1]] * 20, range(27)),
    ]
    for i, trial in enumerate(runs[1]["search"]["trials"][7:-1]):
        trial["network"] = f"of its own {i}"
    found = compare_preferences(*runs)
    assert found["distance"] == 1.0
    assert found["in_common"] == {"students": 7, "distance": None, "null": None, "p": None}


def test_another_encoding_of_the_same_network_is_no_preference() -> None:
    rows = random_rows(5, 40)
    encoded = [[a, b, 1 - c] for a, b, c in rows]
    found = compare_preferences(run("kd", rows), run("ce", encoded))
    assert found["in_common"]["distance"] == 0.0


def test_runs_of_other_spaces_without_a_search_or_with_few_students_are_refused() -> None:
    whole = run("kd", random_rows(0, 16))
    with pytest.raises(MismatchError, match="runs/ce"):
        compare_preferences(whole, run("ce", random_rows(0, 16), choices={**CHOICES, "b0.width": [1.0]}))
    with pytest.raises(UsageError, match="nothing in its summary"):
        compare_preferences(whole, {"name": "shrunk", "run_dir": "runs/shrunk", "winner": {"method": "kd"}})
    with pytest.raises(UsageError, match="at least 4"):
        compare_preferences(whole, run("ce", random_rows(0, 3)))


def test_both_runs_are_drawn_side_by_side() -> None:
    one, other = run("kd", [[0, 0, 1]] * 8), scored("ce", [[1, 2, 1]] * 8, range(8), first=100)
    found = compare_preferences(one, other)
    figure = preferences_figure({"preferences": found})
    assert figure is not None
    first, second = figure.spec["data"]
    assert first["x"] == [["op", "op", "op", "width", "width"], ["conv", "depthwise", "none", "0.5", "1.0"]]
    assert first["y"] == [100.0, 0.0, 0.0, 0.0, 100.0]
    assert second["y"] == [0.0, 50.0, 50.0, 0.0, 100.0]
    assert "differ most is b0.op" in figure.alt
    assert "4 of runs/kd (by kd) and 4 of runs/ce (by ce)" in figure.caption
    assert "The runs trained 0 students in common, too few to tell" in figure.caption
    rows = random_rows(0, 40)
    figure = preferences_figure({"preferences": compare_preferences(run("kd", rows), run("ce", rows))})
    assert figure is not None
    assert "Of the 40 students that both runs trained" in figure.caption
    assert "at random (p 1.00)." in figure.caption
    assert preferences_figure({}) is None
