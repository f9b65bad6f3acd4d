"""Step costs are measured in turns, and say what they claim."""

from __future__ import annotations

import numpy as np

from benchmarks import process_step
from benchmarks.kd_step import Case, in_turns

TINY = Case("tiny", 12, 1, 4, 4, (4, 8), images=16, views=2)


def test_subjects_take_turns_in_an_order_that_turns_around_after_a_round_that_does_not_count() -> None:
    asked: list[tuple[str, int]] = []

    def taking(name: str, seconds: float):
        return lambda seed: asked.append((name, seed)) or seconds + seed

    found = in_turns({"a": taking("a", 1.0), "b": taking("b", 2.0)}, 2)
    assert asked == [("a", 0), ("b", 0), ("b", 0), ("a", 0), ("a", 1), ("b", 1)]
    assert {name: taken.tolist() for name, taken in found.items()} == {"a": [1.0, 2.0], "b": [2.0, 3.0]}


def test_a_step_of_a_search_is_held_against_one_by_a_process(monkeypatch) -> None:
    taken = {"plain": 1.0, "exact": 2.0, "finite-difference": 2.5, "current": 1.5}
    monkeypatch.setattr(
        process_step, "step_seconds", lambda case, views, teacher, kind, steps, seed: taken[kind] * (1 + 0.01 * seed)
    )
    found = process_step.measure(TINY, rounds=8, steps=1)
    assert {kind: ratio["ratio"] for kind, ratio in found["ratio_to_plain"].items()} == {
        kind: seconds for kind, seconds in taken.items() if kind != "plain"
    }
    assert found["holds"]
    taken["exact"] = 2.3
    assert not process_step.measure(TINY, rounds=8, steps=1)["holds"]


def test_steps_of_both_kinds_are_timed() -> None:
    views, teacher = process_step.bed_of(TINY)
    for kind in ("plain", "exact"):
        assert np.isfinite(process_step.step_seconds(TINY, views, teacher, kind, steps=1, seed=0))
