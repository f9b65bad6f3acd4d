"""Intervals hold what the reference evaluator computes, whatever the operators and the numbers."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from akd_deploy.export.granularity import Granularity
from akd_deploy.export.lint_graph import LintGraph
from akd_deploy.export.lint_ranges import ANY, BOOLEAN, FIXED, value_ranges
from akd_deploy.target import Target

ONE = (
    *(op for op in FIXED if op not in BOOLEAN), "Abs", "Clip", "Cube", "Exp", "Identity", "LeakyRelu",
    "Log", "Neg", "Reciprocal", "ReduceMax", "ReduceMean", "Relu", "Softplus", "Split", "Sqrt", "Square", "Transpose",
)  # fmt: skip
TWO = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Concat", "Where", "Greater")
SIDE = 3


def graph_of(nodes: list[onnx.NodeProto], output: str, constants: dict[str, np.ndarray]) -> LintGraph:
    model = helper.make_model(
        helper.make_graph(
            nodes,
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, [SIDE, SIDE])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            [numpy_helper.from_array(value, name) for name, value in constants.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
    )
    return LintGraph(model, Target("t", "cpu", "onnxruntime"), Granularity(1, "as asked"))


@settings(max_examples=200)
@given(st.data())
def test_every_value_lies_in_its_interval(data):
    numbers = st.floats(-20, 20, width=32)
    values = st.lists(numbers, min_size=SIDE * SIDE, max_size=SIDE * SIDE).map(
        lambda v: np.array(v, np.float32).reshape(SIDE, SIDE)
    )
    constants = {
        "c": data.draw(values),
        "low": np.float32(data.draw(numbers)),
        "which": np.eye(SIDE, dtype=bool),
        "last": np.array([1]),
        "Square": np.float32(2),
        "Cube": np.float32(3),
    }
    constants["high"] = np.float32(constants["low"] + abs(data.draw(numbers)))
    nodes, tensors = [], ["x", "c"]
    for i in range(data.draw(st.integers(1, 5))):
        op = data.draw(st.sampled_from(ONE + TWO))
        inputs = data.draw(st.lists(st.sampled_from(tensors), min_size=2, max_size=2))[: 1 if op in ONE else 2]
        if op == "Clip":
            inputs += ["low", "high"]
        if op == "Where":
            inputs.insert(0, "which")
        attributes = {"Concat": {"axis": 0}, "Split": {"num_outputs": 1}, "Softmax": {"axis": 0}}.get(op, {})
        if op.startswith("Reduce"):  # without keepdims it broadcasts along another axis
            inputs.append("last")
            attributes = {"keepdims": data.draw(st.integers(0, 1))}
        if op in ("Square", "Cube"):
            inputs.append(op)
            op = "Pow"
        name = f"t{i}"
        nodes.append(helper.make_node(op, inputs, [name], name, **attributes))
        if op == "Greater":
            nodes.append(helper.make_node("Cast", [name], [f"{name}s"], f"{name}s", to=TensorProto.FLOAT))
            name += "s"
        if op == "Concat":  # the first rows again, so that shapes go on fitting
            nodes.append(helper.make_node("Slice", [name, "from", "to"], [f"{name}s"], f"{name}s"))
            constants |= {"from": np.array([0, 0]), "to": np.array([SIDE, SIDE])}
            name += "s"
        if op.startswith("Reduce"):
            nodes.append(helper.make_node("Expand", [name, "to"], [f"{name}s"], f"{name}s"))
            constants["to"] = np.array([SIDE, SIDE])
            name += "s"
        tensors.append(name)
    graph = graph_of(nodes, tensors[-1], constants)
    ranges = value_ranges(graph)
    with np.errstate(all="ignore"):
        (found,) = ReferenceEvaluator(graph.model).run(None, {"x": data.draw(values)})
    low, high = ranges.get(tensors[-1], ANY)
    assert low <= high
    found = found[~np.isnan(found)].astype(float)
    slack = 1e-5 * (1 + np.abs(found[np.isfinite(found)]).max(initial=0.0))
    assert (found >= low - slack).all()
    assert (found <= high + slack).all()


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("Tanh", ["x"])], (-1.0, 1.0)),
        ([("ReduceMax", ["x"]), ("Sub", ["x", "t0"])], (-np.inf, 0.0)),
        ([("ReduceMax", ["x"]), ("Identity", ["t0"]), ("Sub", ["x", "t1"])], (-np.inf, 0.0)),
        ([("ReduceMax", ["x"]), ("Neg", ["t0"]), ("Add", ["t1", "x"])], (-np.inf, 0.0)),
        ([("Neg", ["x"]), ("ReduceMax", ["t0"]), ("Sub", ["x", "t1"])], ANY),  # another's largest
        ([("ReduceMin", ["x"]), ("Sub", ["x", "t0"])], ANY),
        ([("ReduceMax", ["x"]), ("Sub", ["t0", "x"])], ANY),  # the other way round: ≥ 0, which nobody asks for
        ([("Softplus", ["x"]), ("Neg", ["t0"])], (-np.inf, 0.0)),
        ([("Relu", ["x"]), ("Clip", ["t0", "", "six"])], (0.0, 6.0)),
        ([("Sigmoid", ["x"]), ("Mul", ["t0", "six"])], (0.0, 6.0)),
        ([("Sigmoid", ["x"]), ("Mul", ["t0", "x"])], ANY),
        ([("Erf", ["x"]), ("Exp", ["t0"])], (np.exp(-1), np.exp(1))),
        ([("Unheard", ["x"])], ANY),
        ([("Mul", ["x", "x"]), ("Neg", ["t0"])], (-np.inf, 0.0)),
        ([("Identity", ["x"]), ("Mul", ["t0", "x"])], (0.0, np.inf)),
        ([("Pow", ["x", "six"])], (0.0, np.inf)),
        ([("ReduceMax", ["x"]), ("Sub", ["x", "t0"]), ("Div", ["t1", "six"])], (-np.inf, 0.0)),
        ([("ReduceLogSumExp", ["x"]), ("Sub", ["x", "t0"])], (-np.inf, 0.0)),
        ([("TopK", ["x", "one"]), ("Sub", ["x", "t0"])], (-np.inf, 0.0)),
        ([("TopK", ["x", "many"]), ("Sub", ["x", "t0"])], ANY),
        ([("Greater", ["x", "six"]), ("Cast", ["t0"])], (0.0, 1.0)),
        ([("Sigmoid", ["x"]), ("Log", ["t0"])], (-np.inf, 0.0)),
        ([("Sigmoid", ["x"]), ("Sqrt", ["t0"]), ("AveragePool", ["t1"])], (0.0, 1.0)),
        ([("Sigmoid", ["x"]), ("Pad", ["t0"])], (0.0, 1.0)),
        ([("Relu", ["x"]), ("Reciprocal", ["t0"])], ANY),
        ([("Relu", ["x"]), ("Add", ["t0", "six"]), ("Reciprocal", ["t1"])], (0.0, 1 / 6)),
    ],
)
def test_intervals_known_by_hand(nodes, expected):
    made = [helper.make_node(op, inputs, [f"t{i}"], f"t{i}") for i, (op, inputs) in enumerate(nodes)]
    graph = graph_of(made, f"t{len(nodes) - 1}", {"six": np.float32(6.0), "one": np.array([1]), "many": np.array([2])})
    assert value_ranges(graph)[f"t{len(nodes) - 1}"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("keepdims", "unsqueezed", "known"), [(1, [], True), (0, [1], True), (0, [0], False), (0, [], False)]
)
def test_a_largest_value_must_stand_where_its_row_does(keepdims, unsqueezed, known):
    """Without its dimension it is broadcast along the other one."""
    nodes = [helper.make_node("ReduceMax", ["x", "last"], ["m"], "m", keepdims=keepdims)]
    if unsqueezed:
        nodes.append(helper.make_node("Unsqueeze", ["m", "at"], ["u"], "u"))
    nodes.append(helper.make_node("Sub", ["x", nodes[-1].output[0]], ["y"], "y"))
    graph = graph_of(nodes, "y", {"last": np.array([1]), "at": np.array(unsqueezed or [0])})
    assert value_ranges(graph)["y"] == ((-np.inf, 0.0) if known else ANY)


def test_of_a_node_with_several_results_the_first_alone_has_its_values():
    nodes = [
        helper.make_node("Tanh", ["x"], ["t"], "t"),
        helper.make_node("TopK", ["t", "two"], ["values", "indices"], "k"),
    ]
    ranges = value_ranges(graph_of(nodes, "values", {"two": np.array([2])}))
    assert (ranges["values"], ranges["indices"]) == ((-1.0, 1.0), ANY)
