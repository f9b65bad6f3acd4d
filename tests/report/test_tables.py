"""Rows shaped from the summary, by hand-computed cases."""

from __future__ import annotations

import math

import pytest
from example_summary import example_summary

from akd_deploy.architecture import Architecture
from akd_deploy.kernel import Kernel
from akd_deploy.report import tables


def test_one_seed_has_no_spread():
    rows = {row.name: row for row in tables.accuracy_rows(example_summary())}
    assert rows["teacher"].accuracy == "98.61\u00a0%"
    assert rows["kd"].accuracy == "97.23 ± 0.31\u00a0%"


def test_seeds_may_be_counted_or_listed():
    summary = example_summary()
    summary["accuracy"]["kd"]["seeds"] = [11, 12, 13]
    summary["accuracy"]["ce"]["seeds"] = [11]
    rows = {row.name: row for row in tables.accuracy_rows(summary)}
    assert rows["kd"].seeds == "3"
    assert "±" not in rows["ce"].accuracy


def test_latency_says_whether_it_was_measured():
    summary = example_summary()
    rows = {row.name: row for row in tables.accuracy_rows(summary)}
    assert rows["kd"].latency.endswith("(measured)")
    del summary["winner"]["measured_s"]
    rows = {row.name: row for row in tables.accuracy_rows(summary)}
    assert rows["kd"].latency == rows["ce"].latency
    assert rows["kd"].latency.endswith("(predicted)")


@pytest.mark.parametrize(
    ("low", "high", "reading"),
    [(0.001, 0.01, "first is better"), (-0.01, -0.001, "second is better"), (-0.001, 0.01, "not resolved"),
     (0.0, 0.01, "not resolved"),
     (math.nan, math.nan, "too few seeds for an interval"), (None, None, "too few seeds for an interval")],
)  # fmt: skip
def test_a_difference_is_read_from_its_interval_alone(low, high, reading):
    pair = {"a": "kd", "b": "ce", "mean": 0.005, "low": low, "high": high, "n": 3}
    assert [row.reading for row in tables.paired_rows({"paired": [pair]})] == [reading]


def test_choices_become_one_row_per_block_in_natural_order():
    choices = {"b10.op": "conv", "b2.op": "mbconv3", "b2.kernel": 5, "width": 1.0}
    columns, rows = tables.architecture_table({"choices": choices})
    assert columns == ["block", "op", "kernel", "width"]
    assert rows == [["b2", "mbconv3", "5", ""], ["b10", "conv", "", ""], ["network", "", "", "1.0"]]


def test_kernels_are_named_by_operator_window_and_shapes():
    kernel = Kernel(
        op="Conv",
        inputs=((1, 8, 12, 12), (16, 1, 3, 3)),
        outputs=((1, 16, 6, 6),),
        attributes=(("groups", 8), ("kernel_size", (3, 3)), ("strides", (2, 2))),
    )
    assert tables.short_kernel(kernel.signature) == "Conv 3×3 /2 in 8 groups, 1×8×12×12 → 1×16×6×6"
    assert tables.kernel_label(kernel.signature) == "Conv 3×3 /2 in 8 groups → 16×6×6"
    scalar = Kernel(op="Cast", inputs=((),), outputs=((),))
    assert tables.short_kernel(scalar.signature) == "Cast, scalar → scalar"
    assert tables.kernel_label(scalar.signature) == "Cast → 1"
    assert (
        tables.short_kernel("sm90_xmma_gemm_f16") == tables.kernel_label("sm90_xmma_gemm_f16") == "sm90_xmma_gemm_f16"
    )


def test_an_architecture_is_named_by_its_digest_however_it_is_given():
    arch = Architecture("mobile", {"resolution": 12}, {"b0.op": "conv"})
    assert tables.short_architecture(arch.as_dict()) == tables.short_architecture(arch.digest) == arch.digest


def test_rank_ceilings_need_the_points_that_were_scored():
    predictor = example_summary()["predictor"]
    assert {row.score: row.perfect for row in tables.score_rows(predictor)}["Kendall τ"][0] in "01"
    predictor["points"] = predictor["points"][:-1]
    assert {row.score: row.perfect for row in tables.score_rows(predictor)}["Kendall τ"] == "needs the scored points"
    predictor["scores"]["sigma"] = predictor["scores"]["floor_mape"] = None
    perfect = {row.score: row.perfect for row in tables.score_rows(predictor)}
    assert perfect["Kendall τ"] == perfect["Within ±5 %"] == "σ not recorded"


def test_facts_spell_nested_settings_and_keep_digits():
    facts = tables.plain_facts({"engine_options": {"threads": 1}, "cosine": 0.9999999, "names": ["a", "b"], "x": None})
    assert facts == [("engine options: threads", "1"), ("cosine", "0.9999999"), ("names", "a, b")]


def test_every_student_says_whether_its_certificate_holds() -> None:
    rows = {row.name: row.budget for row in tables.accuracy_rows(example_summary())}
    assert rows["kd"] == rows["ce"] == "certified within"
    assert rows["hand_shrunk"] == "NOT certified within"
    assert rows["teacher"] == ""


def test_whoever_was_measured_by_itself_has_a_latency_and_a_certificate_of_its_own() -> None:
    summary = example_summary()
    own = {"mean": 0.9, "spread": 0.01, "seeds": 3, "latency_s": 0.123, "within_budget": False}
    summary["accuracy"]["shallower"] = own
    rows = {row.name: row for row in tables.accuracy_rows(summary)}
    assert rows["shallower"].label == "Teacher without its last blocks, as the student"
    assert rows["shallower"].latency.startswith("123")
    assert rows["shallower"].budget == "NOT certified within"
    assert rows["kd"].budget == "certified within"


def test_a_difference_that_is_the_same_in_every_seed_has_no_interval() -> None:
    (row,) = tables.paired_rows({"paired": [{"a": "kd", "b": "ce", "mean": 0.01, "low": 0.01, "high": 0.01, "n": 2}]})
    assert row.interval == "none"
    assert "the same in every seed" in row.reading
