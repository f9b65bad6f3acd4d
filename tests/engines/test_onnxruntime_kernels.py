"""Kernels that ONNX Runtime executes: what is no tensor of numbers is refused by name, what is odd is read rightly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

from akd_deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from akd_deploy.errors import BuildError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.target import Target

ENGINE = OnnxRuntimeEngine(Target("here", device="cpu", engine="onnxruntime"))


def executed(folder: Path, graph: str) -> list[Kernel]:
    """Kernels of a graph in ONNX's text format."""
    path = folder / "network.onnx"
    head = '<ir_version: 10, opset_import: ["": 21, "ai.onnx.ml": 3]> network '
    onnx.save_model(parser.parse_model(head + graph), path)
    return [e.kernel for e in ENGINE.executed_kernels(path)]


IF = "If (c) <then_branch = t () => (float[4] a) { a = Exp(x) }, else_branch = e () => (float[4] b) { b = Log(x) }>"
LOOP = (
    "Loop (n, c, x) <body = b (int64 i, bool k, float[4] v) => (bool l, float[4] w) { l = Identity(k)\n w = Exp(v) }>"
)
SCAN = "Scan <num_scan_inputs = 1, body = b (float v) => (float w) { w = Exp(v) }> (x)"


@pytest.mark.parametrize(
    ("graph", "operator", "what"),
    [
        (f"(float[4] x, bool c) => (float[4] y) {{ y = {IF} }}", "If", "control flow"),
        (f"(float[4] x, int64 n, bool c) => (float[4] y) {{ y = {LOOP} }}", "Loop", "control flow"),
        (f"(float[4] x) => (float[4] y) {{ y = {SCAN} }}", "Scan", "control flow"),
        ("(float[4] x) => (float[4] y) { s = Cast<to = 8>(x)\n y = Cast<to = 1>(s) }", "Cast", "string"),
        (
            "(float[4] x) => (float[4] y) { s = SplitToSequence<axis = 0>(x)\n y = ConcatFromSequence<axis = 0>(s) }",
            "SplitToSequence",
            "sequence",
        ),
        (
            "(float[4] x) => (float[4] y) { s = SequenceEmpty()\n t = SequenceInsert(s, x)\n n = SequenceLength(t)\n"
            " m = Cast<to = 1>(n)\n y = Mul(x, m) }",
            "SequenceEmpty",
            "sequence",
        ),
        ("(float[4] x) => (float[4] y) { o = Optional(x)\n y = OptionalGetElement(o) }", "Optional", "optional"),
        (
            "(float[4,2] x) => (float[4,2] y) { m = ai.onnx.ml.ZipMap<classlabels_int64s = [0, 1]>(x)\n y = Relu(x) }",
            "ZipMap",
            "map",
        ),
    ],
)
def test_control_flow_and_values_that_are_no_tensors_are_refused_by_node(
    tmp_path: Path, graph: str, operator: str, what: str
) -> None:
    with pytest.raises(BuildError, match=rf"{what}.*: node '\w+' \({operator}\)"):
        executed(tmp_path, graph)


@pytest.mark.parametrize(
    "graph",
    [
        "(string[4] x) => (string[4] y) { y = Identity(x) }",
        "(float[4,2] x) => (seq(float[4,1]) y) { y = SplitToSequence<axis = 1>(x) }",
        "(seq(float[4]) x) => (float[8] y) { y = ConcatFromSequence<axis = 0>(x) }",
    ],
)
def test_inputs_and_outputs_that_are_no_tensors_of_numbers_are_refused(tmp_path: Path, graph: str) -> None:
    with pytest.raises(UsageError, match=r"tensor\(string\)|seq\(|no tensor type"):
        executed(tmp_path, graph)


def test_branches_that_the_runtime_decides_at_load_are_no_control_flow(tmp_path: Path) -> None:
    graph = f"(float[4] x) => (float[4] y) {{ c = Constant<value = bool {{1}}>()\n y = {IF} }}"
    assert [kernel.op for kernel in executed(tmp_path, graph)] == ["Exp"]


@pytest.mark.parametrize(
    ("element_type", "dtype", "element_bytes"),
    [(16, "bfloat16", 2), (17, "float8e4m3", 1), (18, "float8e4m3fnuz", 1), (19, "float8e5m2", 1),
     (20, "float8e5m2fnuz", 1), (21, "uint4", 0.5), (22, "int4", 0.5)],
)  # fmt: skip
def test_small_element_types_are_known_by_name_and_size(
    tmp_path: Path, element_type: int, dtype: str, element_bytes: float
) -> None:
    graph = f"(float[4] x) => (float[4] y) {{ s = Cast<to = {element_type}>(x)\n y = Cast<to = 1>(s) }}"
    there, back = executed(tmp_path, graph)
    assert (there.dtype, there.attribute("from")) == (dtype, "float32")
    assert (back.dtype, back.attribute("from")) == ("float32", dtype)
    assert there.traffic_bytes == 8 * element_bytes


def test_a_scalar_is_fed_as_a_scalar(tmp_path: Path) -> None:
    (kernel,) = executed(tmp_path, "(float[3,4] x, float k) => (float[3,4] y) { y = Mul(x, k) }")
    assert kernel.inputs == ((3, 4), ())
    with ENGINE.load(tmp_path / "network.onnx") as session:
        feeds = {"x": np.ones((3, 4), np.float32), "k": np.array(3, np.float32)}
        assert session.run(feeds)["y"].tolist() == [[3.0] * 4] * 3
        session.bind(feeds)()


def test_the_standards_attention_is_another_operator_than_the_runtimes(tmp_path: Path) -> None:
    graph = "(float[1,2,8,4] q, float[1,2,8,4] k, float[1,2,8,4] v) => (float[1,2,8,4] y) { y = Attention(q, k, v) }"
    path = tmp_path / "network.onnx"
    onnx.save_model(parser.parse_model('<ir_version: 10, opset_import: ["": 23]> network ' + graph), path)
    assert [e.kernel.op for e in ENGINE.executed_kernels(path)] == ["ai.onnx.Attention"]


def test_a_refusal_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(BuildError) as caught:
        executed(tmp_path, "(float[4] x) => (float[4] y) { y = ai.onnx.ml.Imputer(x, x) }")
    assert str(caught.value).count("asked for") == 1
