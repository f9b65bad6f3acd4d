"""What `predict` says beside the latency: what the interval rests on, and what of the network nobody measured."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from command_line import TARGET, call
from onnx import TensorProto, helper

from akd_deploy.predictor.scores import scores_of


def added(path: Path, *shape: int | str, terms: int = 1) -> Path:
    """A network of so many additions."""
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    nodes = [helper.make_node("Add", ["x", "x"], [f"h{terms - 1}" if terms > 1 else "y"], "sum")]
    nodes += [
        helper.make_node("Add", [f"h{i}", "x"], [f"h{i - 1}" if i > 1 else "y"], f"sum{i}")
        for i in range(terms - 1, 0, -1)
    ]
    graph = helper.make_graph(nodes, "g", [given], [result])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path


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


def test_a_profile_too_small_to_fit_says_so_at_once(tmp_path):
    few = ("--onnx", added(tmp_path / "three.onnx", 1, 16, 6, 6, terms=3), "--blocks", 1)
    answer = call(tmp_path, "profile", "--target", TARGET, *few, "--json")
    assert answer.code == 0, answer
    again = " ".join(call(tmp_path, "profile", "--target", TARGET, *few, "--resume").stdout.split())
    assert "too few to fit a predictor to (10 stretches at least)" in again
    assert "expected error" not in again
    assert answer.data["too_few_to_fit"] is True
    refused = call(tmp_path, "fit", "--target", TARGET, "--json")
    assert (refused.code, refused.error["kind"]) == (2, "usage")


def test_networks_of_one_operator_are_profiled_and_ones_that_cannot_be_are_named(tmp_path):
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

    given, result = (
        make_tensor_value_info(n, k, [1, 8]) for n, k in (("x", TensorProto.FLOAT), ("y", TensorProto.INT64))
    )
    graph = make_graph([make_node("Cast", ["x"], ["y"], to=TensorProto.INT64)], "g", [given], [result])
    onnx.save_model(make_model(graph, opset_imports=[make_opsetid("", 17)], ir_version=8), tmp_path / "whole.onnx")
    few = ("--onnx", added(tmp_path / "one.onnx", 1, 16, 6, 6), "--onnx", tmp_path / "whole.onnx", "--blocks", 1)
    answer = call(tmp_path, "profile", "--target", TARGET, *few, "--json")
    assert answer.code == 0, answer
    assert answer.data["probes"] == 1
    assert answer.data["left_out"] == {"whole": "no stretch of it can be measured on its own"}


def test_a_predictor_that_is_no_good_warns_of_itself():
    good = scores_of(np.array([1.0, 2.1]), np.array([1.0, 2.0]))
    assert good.warnings() == []
    assert replace(good, mape=0.71).warnings() == [
        "the predictor's own mean error is 71%: too few measurements, or ones unlike each other; decide nothing by it"
    ]
