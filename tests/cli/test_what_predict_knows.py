"""What `predict` says beside the latency: what the interval rests on, and what of the network nobody measured."""

from __future__ import annotations

import pytest
from additions import added
from command_line import TARGET


@pytest.fixture
def huge(tmp_path):
    return added(tmp_path / "huge.onnx", 1, 512, 64, 64)


def test_kernels_outside_the_profiled_range_are_named_with_the_range(workshop, huge):
    told = workshop.call("predict", "--target", TARGET, "--onnx", huge, "--json").data
    assert told["in_domain"] is False
    (layer,) = told["layers"]
    moved = next(one for one in layer["outside"] if one["dimension"] == "elements moved")
    low, high = moved["measured"]
    assert low <= high < moved["value"] / 2**0.5
    text = workshop.call("predict", "--target", TARGET, "--onnx", huge).stdout
    assert "outside the profiled range: 1 of 1 kernels, " in text
    assert f"elements moved {moved['value']:,.0f} (measured: {low:,.0f} to {high:,.0f})" in text


def test_a_network_within_the_range_has_nothing_outside(workshop, twin):
    answer = workshop.call("predict", "--target", TARGET, "--onnx", twin.onnx, "--json").data
    outside = [layer for layer in answer["layers"] if layer["outside"]]
    assert answer["in_domain"] == (not outside)


def test_it_says_what_the_interval_was_calibrated_on(workshop, huge):
    told = workshop.call("predict", "--target", TARGET, "--onnx", huge, "--json").data
    fitted = workshop.call("fit", "--target", TARGET, "--json").data
    assert told["calibrated_on"] == fitted["calibrated_on"] == "networks"
    text = " ".join(workshop.call("predict", "--target", TARGET, "--onnx", huge).stdout.split())
    assert "calibrated on networks" in text
    assert told["table"] == str(workshop.table)


def test_layers_say_in_what_they_are_outside(workshop, huge):
    text = " ".join(workshop.call("predict", "--target", TARGET, "--onnx", huge, "--layers").stdout.split())
    assert "outside the profiled range in" in text


def test_a_folder_of_tables_is_told_from_a_table(workshop, huge):
    place = workshop.table.parent
    refused = workshop.call("predict", "--target", TARGET, "--onnx", huge, "--table", place, "--json")
    assert (refused.code, refused.error["kind"]) == (2, "missing_file")
    assert refused.error["next"] == f"Name a table below it: {workshop.table}."


@pytest.mark.parametrize(("batch", "noted"), [(8, True), (1, False), ("batch", False)])
def test_a_model_of_another_batch_is_predicted_as_it_is_and_that_is_said(workshop, tmp_path, batch, noted):
    path = added(tmp_path / "batched.onnx", batch, 16, 6, 6)
    told = workshop.call("predict", "--target", TARGET, "--onnx", path, "--json").data
    notes = [note for note in told["notes"] if "batch" in note]
    assert notes == (["the model's own batch is 8, the target's 1: predicted as the model is"] if noted else [])
