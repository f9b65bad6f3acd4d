from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from engines.engine_graphs import masked_attention
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from akd_deploy.engines.denormals import denormal_shares
from akd_deploy.errors import MissingFileError, UsageError
from akd_deploy.models.onnx_from_student import onnx_from_architecture
from akd_deploy.models.onnx_skeleton import skeleton
from akd_deploy.profiling.profile import ProfilePlan, profile_models
from akd_deploy.profiling.windows import (
    FUSED_INTO_PRODUCER,
    MAX_NODES,
    drawn_windows,
    file_windows,
    masked_windows,
    model_windows,
)
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

SPACE = load_space("mobile")


def network(seed: int = 0) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    return onnx_from_architecture(SPACE.sample(rng), rng)


@pytest.mark.parametrize("seed", range(4))
def test_windows_are_valid_models_that_run_and_none_is_the_whole_network(seed: int) -> None:
    model = network(seed)
    windows = model_windows(model, 40, np.random.default_rng(seed))
    assert len(windows) >= 20
    rng = np.random.default_rng(0)
    for window in windows:
        onnx.checker.check_model(window, full_check=True)
        assert len(window.graph.node) < len(model.graph.node)
        feeds = {
            info.name: rng.standard_normal([d.dim_value for d in info.type.tensor_type.shape.dim]).astype(np.float32)
            for info in window.graph.input
        }
        assert all(np.isfinite(output).all() for output in ReferenceEvaluator(window).run(None, feeds))


def test_a_window_computes_what_the_network_computes_there() -> None:
    model = network(3)
    images = np.random.default_rng(1).standard_normal((1, 1, 12, 12), dtype=np.float32)
    names = [name for node in model.graph.node for name in node.output]
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    del exposed.graph.output[:]
    exposed.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names)
    values = dict(zip(names, ReferenceEvaluator(exposed).run(None, {"input": images}), strict=True)) | {"input": images}
    for window in model_windows(model, 15, np.random.default_rng(0)):
        outputs = ReferenceEvaluator(window).run(None, {info.name: values[info.name] for info in window.graph.input})
        for info, output in zip(window.graph.output, outputs, strict=True):
            np.testing.assert_allclose(output, values[info.name], rtol=1e-4, atol=1e-5)


def test_every_distinct_node_is_in_some_window_and_no_window_starts_with_an_activation() -> None:
    model = network(5)
    windows = model_windows(model, 200, np.random.default_rng(0))
    assert {node.name for window in windows for node in window.graph.node} == {node.name for node in model.graph.node}
    for window in windows:
        assert window.graph.node[0].op_type not in FUSED_INTO_PRODUCER
        assert len(window.graph.node) <= MAX_NODES + 2  # and the activation its last node absorbs


def test_windows_cover_before_they_repeat() -> None:
    few = model_windows(network(1), 12, np.random.default_rng(0))
    assert len({(n.op_type, tuple(n.input)) for w in few for n in w.graph.node}) >= 12


def test_windows_that_would_need_whole_numbers_fed_are_left_out() -> None:
    shape = helper.make_node("Shape", ["x"], ["s"], name="shape")
    reshape = helper.make_node("Reshape", ["y", "s"], ["z"], name="reshape")
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"], name="relu"), shape, reshape, helper.make_node("Exp", ["z"], ["w"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("w", TensorProto.FLOAT, [1, 4])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for window in model_windows(model, 20, np.random.default_rng(0)):
        kinds = {info.type.tensor_type.elem_type for info in (*window.graph.input, *window.graph.output)}
        assert kinds == {TensorProto.FLOAT}


def test_names_are_equal_for_equal_windows_only_and_weights_in_other_files_come_along(tmp_path: Path) -> None:
    model = network(2)
    onnx.save_model(model, tmp_path / "plain.onnx")
    onnx.save_model(
        model, tmp_path / "split.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    plain = file_windows(tmp_path / "plain.onnx", 1, 15, np.random.default_rng(0))
    split = file_windows(tmp_path / "split.onnx", 1, 15, np.random.default_rng(0))
    assert len({window.name for window in plain}) == len(plain)
    assert [window.family for window in split] == ["split"] * len(split)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    for window in split:
        onnx.checker.check_model(onnx.load(window.write(folder)), full_check=True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.onnx"):
        file_windows(tmp_path / "nowhere.onnx", 1, 5, np.random.default_rng(0))


def test_onnx_for_the_torch_engine_is_refused_with_the_reason(tmp_path: Path) -> None:
    target = Target("t", device="cpu", engine="torch")
    with pytest.raises(UsageError, match="torch cannot run"):
        profile_models(target, [tmp_path / "m.onnx"], ProfilePlan(probes=20, networks=0), tmp_path / "table")


def test_equal_stretches_of_two_networks_are_one_window_whatever_their_names_and_weights() -> None:
    first, second = network(1), network(1)
    for value in second.graph.initializer:
        if value.data_type == TensorProto.FLOAT and len(value.raw_data) > 4096:
            value.raw_data = np.frombuffer(value.raw_data, np.float32)[::-1].tobytes()
    for node in second.graph.node:
        node.name += "_again"
    names = [
        {window.name for window in drawn_windows("f", skeleton(model), np.random.default_rng(0))}
        for model in (first, second)
    ]
    assert names[0] == names[1]
    assert len(names[0]) > 20


def test_drawn_windows_hold_every_node_and_come_once_each(tmp_path: Path) -> None:
    model = skeleton(network(5))
    windows = list(drawn_windows("f", model, np.random.default_rng(0)))
    held = {node.op_type for window in windows for node in window.model.graph.node}
    assert held == {node.op_type for node in model.graph.node}
    assert max(len(window.model.graph.node) for window in windows) > 3
    assert all(window.family == "f" for window in windows)
    written = windows[0].write(tmp_path)
    again = onnx.load(written)
    onnx.checker.check_model(again, full_check=True)
    assert onnx.load(windows[0].write(tmp_path)) == again  # weights are drawn anew, and the same


def test_tokens_that_a_caller_gives_are_fed_and_positions_that_the_network_computes_are_not() -> None:
    tokens = helper.make_tensor_value_info("tokens", TensorProto.INT64, [1, 4])
    table = helper.make_tensor("table", TensorProto.FLOAT, [8, 2], np.arange(16.0))
    nodes = [
        helper.make_node("Gather", ["table", "tokens"], ["rows"]),
        helper.make_node("ArgMax", ["rows"], ["best"], axis=2, keepdims=0),
        helper.make_node("Gather", ["table", "best"], ["again"]),
        helper.make_node("Relu", ["again"], ["out"]),
    ]
    out = helper.make_tensor_value_info("out", TensorProto.FLOAT, [1, 4, 2])
    model = helper.make_model(
        helper.make_graph(nodes, "g", [tokens], [out], [table]), opset_imports=[helper.make_opsetid("", 18)]
    )
    found = [
        [node.op_type for node in window.model.graph.node]
        for window in drawn_windows("f", model, np.random.default_rng(0))
    ]
    assert ["Gather"] in found  # the first one
    assert not any(operators[0] == "Gather" and "Relu" in operators and len(operators) == 2 for operators in found)


def test_what_is_made_of_constants_alone_comes_along_and_is_let_out_by_no_window() -> None:
    table = onnx.numpy_helper.from_array(np.arange(24, dtype=np.float32).reshape(3, 4, 2), "table")
    rows = onnx.numpy_helper.from_array(np.array([2, 0], np.int64), "rows")
    nodes = [
        helper.make_node("Gather", ["table", "rows"], ["positions"]),
        helper.make_node("Neg", ["positions"], ["folded"]),
        helper.make_node("MatMul", ["x", "folded"], ["y"]),
        helper.make_node("Add", ["y", "folded"], ["z"]),
        helper.make_node("Abs", ["z"], ["out"]),
    ]
    x, out = (helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", [2, 4, 4]), ("out", [2, 4, 2])))
    graph = helper.make_graph(nodes, "g", [x], [out], [table, rows])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    windows = model_windows(model, 20, np.random.default_rng(0))
    operators = [[node.op_type for node in window.graph.node] for window in windows]
    assert ["Gather", "Neg", "MatMul"] in operators
    assert ["Gather", "Neg", "Add"] in operators
    for window in windows:
        assert {value.name for value in window.graph.input} <= {"x", "y", "z"}
        assert "folded" not in {value.name for value in window.graph.output}


@pytest.mark.parametrize("images", [0, 2])
def test_what_a_mask_slows_down_has_a_window_from_the_mask_to_the_product(images: int) -> None:
    mask = np.zeros((4, 16, 16))
    mask[0, :, 8:] = -100
    (window,) = masked_windows("swin", skeleton(masked_attention(mask, images=images)))
    operators = [node.op_type for node in window.model.graph.node]
    assert operators[0] == "Add"
    assert operators[-1] == "MatMul"
    assert operators.count("MatMul") == operators.count("Softmax") == 1
    assert sorted(denormal_shares(window.model.graph).values()) == [0.12, 0.12]
    assert masked_windows("swin", skeleton(masked_attention(np.zeros((4, 16, 16)), images=images))) == []
