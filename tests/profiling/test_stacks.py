"""Stacks of windows: many copies, one input, weights of their own."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from akd_deploy.engines import load_engine
from akd_deploy.latency_table import STACK
from akd_deploy.models.onnx_skeleton import skeleton
from akd_deploy.profiling.stacks import Stack
from akd_deploy.profiling.windows import Window
from akd_deploy.target import load_target


def window() -> Window:
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.standard_normal((32, 32), dtype=np.float32), "w"),
        numpy_helper.from_array(rng.standard_normal(32).astype(np.float32), "b"),
    ]
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"]), helper.make_node("Erf", ["y"], ["z"])]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, [4, 32])], [value("z", TensorProto.FLOAT, [4, 32])], weights
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Window("f", skeleton(model))


def test_copies_compute_side_by_side_with_weights_of_their_own(tmp_path: Path) -> None:
    stack = Stack(window(), 3)
    model = onnx.load(stack.write(tmp_path))
    onnx.checker.check_model(model, full_check=True)
    outputs = ReferenceEvaluator(model).run(None, {"x": np.full((4, 32), 0.01, np.float32)})
    assert [output.shape for output in outputs] == [(1, 1)] * 3
    assert len({float(output.item()) for output in outputs}) == 3


def test_a_stack_executes_its_windows_kernels_as_often_as_it_has_copies(tmp_path: Path) -> None:
    engine = load_engine(load_target("cpu_onnxruntime_fp32"))
    one = Counter(e.kernel for e in engine.executed_kernels(window().write(tmp_path)))
    several = Counter(e.kernel for e in engine.executed_kernels(Stack(window(), 5).write(tmp_path)))
    ends = {kernel: count for kernel, count in several.items() if kernel.op == "Slice"}
    assert [(kernel.outputs, count) for kernel, count in ends.items()] == [(((1, 1),), 5)]
    assert several - Counter(ends) == {kernel: 5 * count for kernel, count in one.items()}


@pytest.mark.parametrize("opset", [9, 13])
def test_what_leaves_a_stack_is_the_first_element_of_what_each_copy_makes(tmp_path: Path, opset: int) -> None:
    two = window()
    two.model.graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, [4, 32]))
    two.model.opset_import[0].version = opset
    stack = Stack(two, 2)
    model = onnx.load(stack.write(tmp_path))
    onnx.checker.check_model(model, full_check=True)
    for name in ("c0_z", "c0_y", "c1_z", "c1_y"):
        model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 32]))
    values = ReferenceEvaluator(model).run(None, {"x": np.ones((4, 32), np.float32)})
    assert len(values) == 8
    np.testing.assert_array_equal(np.array(values[:4])[:, 0, 0], [value[0, 0] for value in values[4:]])


def test_a_stack_is_known_by_its_window_and_copies_and_equal_ones_are_equal_files(tmp_path: Path) -> None:
    stack = Stack(window(), 2)
    assert (stack.kind, stack.family, stack.name) == (STACK, "f", f"{window().name}-x2")
    first = stack.write(tmp_path).read_bytes()
    assert Stack(window(), 2).write(tmp_path).read_bytes() == first
