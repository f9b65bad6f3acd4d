"""What a part is compared with: a uniformly narrower teacher that is as fast, by the clock and not by prediction; and
how a run searches for gates."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from akd_deploy.configuration import configuration_from_dict
from akd_deploy.data import ViewBank
from akd_deploy.errors import UsageError
from akd_deploy.models.part import mask_from_text
from akd_deploy.pipeline.check import check_configuration
from akd_deploy.pipeline.shrink import (
    EQUALLY_SLOW,
    RIVAL_ORDERS,
    RIVALS,
    _as_slow,
    arms_of,
    gates,
    measured_rivals,
    rivals_of,
)
from akd_deploy.pipeline.summary import accuracy_parts
from akd_deploy.pipeline.training import load_bed
from akd_deploy.recipes.better_students import gated_copy, within_budget
from benchmarks.seed_systems.residual_network import residual_network

UNITS = 100


def found(
    bias: float, latency_s: float, budget_s: float, begin_s: float = 50.0, units: int = UNITS
) -> tuple[dict, int]:
    """Parts of n units are predicted to take n seconds, and take `bias` times that."""
    asked = []

    def part_within(within_s: float) -> np.ndarray:
        return np.arange(UNITS) < min(UNITS, UNITS // units * int(within_s / (UNITS / units)))

    def certified(mask: np.ndarray, number: int) -> dict:
        asked.append(number)
        median = bias * float(mask.sum())
        return {"measured_s": {"median": median}, "certificate": {"ok": median <= budget_s}}

    one = _as_slow(part_within, certified, begin_s, latency_s)
    assert asked == list(range(len(asked)))
    return one, len(asked)


@pytest.mark.parametrize("bias", [0.6, 0.8, 1.0, 1.3])
def test_a_part_of_equal_latency_is_found_however_far_predictions_are_off(bias):
    one, tries = found(bias, latency_s=50.0, budget_s=60.0)
    assert 1 <= one["measured_s"]["median"] / 50 <= 1 + EQUALLY_SLOW
    assert mask_from_text(one["mask"]).sum() == pytest.approx(50 / bias, rel=2 * EQUALLY_SLOW)
    assert tries <= 3


def test_of_coarse_parts_the_next_larger_is_taken_if_it_is_a_tenth_slower_at_most():
    """Sizes 20, 40 and so on: a rival is never handicapped by what the hand cannot cut between."""
    one, tries = found(1.0, latency_s=57.0, budget_s=100.0, begin_s=57.0, units=5)
    assert one["measured_s"]["median"] == 60.0
    assert tries <= 3


@pytest.mark.parametrize(("latency_s", "expected_s"), [(46.0, 40.0), (52.0, 60.0)])
def test_of_coarse_parts_the_nearest_is_taken_where_the_next_larger_is_far(latency_s, expected_s):
    one, tries = found(1.0, latency_s=latency_s, budget_s=100.0, begin_s=latency_s, units=5)
    assert one["measured_s"]["median"] == expected_s
    assert tries <= RIVALS


def test_of_coarse_parts_the_nearest_that_holds_is_taken():
    one, tries = found(1.0, latency_s=50.0, budget_s=50.0, begin_s=35.0, units=5)
    assert one["measured_s"]["median"] == 40.0
    assert tries <= RIVALS


def test_where_there_is_no_larger_part_the_largest_is_taken():
    one, tries = found(0.3, latency_s=50.0, budget_s=60.0)
    assert one["measured_s"]["median"] == pytest.approx(30.0)
    assert tries <= RIVALS


def test_where_no_certificate_holds_the_nearest_is_told_as_it_is():
    one, _ = found(1.0, latency_s=50.0, budget_s=10.0)
    assert one["certificate"]["ok"] is False
    assert one["measured_s"]["median"] == 50.0


@pytest.mark.parametrize("method", ["kd", "ce", "dkd", "process"])
def test_every_arm_is_trained_by_the_method_that_it_is_called_by(method):
    arms = arms_of(method, ["hand_shrunk", "shallower"])
    assert {name: by for name, by in arms.items() if name not in ("inherited", "hand_shrunk", "shallower")} == {
        name: name for name in {method, "kd", "ce"}
    }
    assert arms["inherited"] == arms["hand_shrunk"] == arms["shallower"] == method
    assert next(iter(arms)) == method


def shrinking(tmp_path: Path, **shrink: Any) -> Any:
    """As much of a run as its search for gates looks at; seconds are operations."""
    fields = {
        "target": "cpu_onnxruntime_fp32", "budget": "1ms", "space": {"name": "mobile"},
        "data": {"settings": {"labelled": 20, "teacher_images": 60, "views": 2}},
        "teacher": {"training": {"steps": 40, "batch_size": 16}},
        "shrink": {"training": {"steps": 30, "batch_size": 8}, **shrink},
    }  # fmt: skip
    configuration = configuration_from_dict(fields, "here")
    bed = load_bed(configuration, None, tmp_path)

    def gated_teacher() -> Any:
        return gated_copy(bed.teacher.module, bed.teacher.input_shape, group=8)

    gated = gated_teacher()
    return SimpleNamespace(
        configuration=configuration, bed=bed, gated=gated, gated_teacher=gated_teacher,
        bound_of=lambda mask: 1e-9 * gated.macs(mask), on_progress=lambda *what: None,
    )  # fmt: skip


def gates_of(run: Any) -> list[int]:
    whole_s = 1e-9 * run.gated.macs()
    results = {"budget": {"budget_s": 0.5 * whole_s, "least_s": 0.02 * whole_s, "whole_s": whole_s}}
    return gates(run, results)["order"]


def with_other_labels(run: Any, split: str) -> Any:
    images = getattr(run.bed.dataset, split)
    dataset = replace(run.bed.dataset, **{split: replace(images, labels=images.labels[::-1].copy())})
    views = ViewBank(dataset.train, dataset.views, run.bed.views.seed)
    run.bed = replace(run.bed, dataset=dataset, views=views)
    return run


@pytest.mark.parametrize(("images", "split"), [("student", "train"), ("teacher", "teacher_train")])
def test_gates_are_searched_without_labels(images: str, split: str, tmp_path: Path) -> None:
    order = gates_of(shrinking(tmp_path, images=images))
    assert gates_of(with_other_labels(shrinking(tmp_path, images=images), split)) == order
    by_labels = {"kd_weight": 0.0, "ce_weight": 1.0}
    assert gates_of(shrinking(tmp_path, images=images, gates=by_labels)) != gates_of(
        with_other_labels(shrinking(tmp_path, images=images, gates=by_labels), split)
    )


def test_gates_may_learn_from_the_teachers_images_and_be_weighed_by_other_costs(tmp_path: Path) -> None:
    orders = [
        gates_of(shrinking(tmp_path, **more))
        for more in ({}, {"images": "teacher"}, {"weigh": "parameters"}, {"gates": {"reverse": True}})
    ]
    assert len({tuple(order) for order in orders}) == 4
    # Seconds are operations here.
    assert gates_of(shrinking(tmp_path, weigh="operations")) == orders[0]


def test_a_setting_of_gates_out_of_its_range_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    fields = shrinking(tmp_path).configuration.as_dict()
    check_configuration(configuration_from_dict(fields, "here"))
    with pytest.raises(UsageError, match="setting closing"):
        check_configuration(
            configuration_from_dict({**fields, "shrink": {"gates": {"opening": 0.5, "closing": 0.4}}}, "here")
        )


def test_what_a_hand_would_do_is_narrower_and_where_there_are_branches_shallower_too() -> None:
    network = residual_network(classes=10, seed=0)
    assert rivals_of(gated_copy(network, (3, 32, 32), branches=False)) == ["hand_shrunk"]
    gated = gated_copy(network, (3, 32, 32))
    assert rivals_of(gated) == ["hand_shrunk", "shallower"]
    is_branch = np.array([unit.branch is not None for unit in gated.units])
    kept = {
        name: within_budget(gated, order(gated), lambda mask: float(gated.macs(mask)), 0.85 * gated.macs())
        for name, order in RIVAL_ORDERS.items()
    }
    assert not kept["hand_shrunk"][~is_branch].all()
    assert kept["shallower"][~is_branch].all()
    assert not kept["shallower"][is_branch].all()


def test_a_rival_that_is_the_part_itself_is_not_trained_beside_it() -> None:
    def confirmed(**rivals: str) -> dict[str, Any]:
        return {"mask": "110", **{name: {"mask": mask} for name, mask in rivals.items()}}

    others = {"hand_shrunk": "101", "shallower": "011"}
    assert measured_rivals(confirmed(**others)) == (others, [])
    assert measured_rivals(confirmed(hand_shrunk="101", shallower="110")) == ({"hand_shrunk": "101"}, ["shallower"])
    assert measured_rivals(confirmed(hand_shrunk="110", shallower="011")) == ({"shallower": "011"}, ["hand_shrunk"])
    assert measured_rivals(confirmed(hand_shrunk="101")) == ({"hand_shrunk": "101"}, [])


def test_every_network_shrunk_by_hand_says_what_it_takes_and_whether_it_holds() -> None:
    def measured(median_s: float, ok: bool) -> dict[str, Any]:
        return {"measured_s": {"median": median_s}, "certificate": {"ok": ok}}

    scores = {name: [{"accuracy": 0.5}, {"accuracy": 0.6}] for name in ("kd", "hand_shrunk", "shallower")}
    confirmed = {"mask": "1", "hand_shrunk": measured(1.0, True), "shallower": measured(2.0, False)}
    found = accuracy_parts({"distill": {"scores": scores}, "teacher": {"accuracy": 0.9}, "confirm": confirmed})
    assert {name: (one["latency_s"], one["within_budget"]) for name, one in found.items() if "latency_s" in one} == {
        "hand_shrunk": (1.0, True),
        "shallower": (2.0, False),
    }
