"""What lint finds in networks with seeded defects is what is wrong with them, no less and no more."""

import time

import numpy as np
import pytest
from export_graphs import saved
from lint_corpus import BAD, CLEAN, ORT, SECOND, Bad, in_float16, of_random_pairs, published, with_constant

from akd_deploy.engines import load_engine
from akd_deploy.export.lint import lint_onnx
from akd_deploy.target import Target

LINT_LIMIT_S = 5.0
"""Of CPU time, for ResNet-50 with its weights; it takes a sixth of that."""


def found(bad: Bad, tmp_path) -> set[tuple[str, str]]:
    return {(f.rule, f.node) for f in lint_onnx(saved(bad.make(), tmp_path / "m.onnx"), bad.target)}


@pytest.mark.parametrize("name", BAD)
def test_every_seeded_defect_is_found_and_nothing_else(tmp_path, name):
    assert found(BAD[name], tmp_path) == BAD[name].expected


@pytest.mark.parametrize("name", SECOND)
def test_defects_that_no_rule_was_written_for_are_found_too(tmp_path, name):
    assert found(SECOND[name], tmp_path) == SECOND[name].expected


@pytest.mark.parametrize("name", CLEAN)
def test_a_network_without_defects_has_no_finding(tmp_path, name):
    if CLEAN[name].precision == "int8":
        pytest.importorskip("onnxruntime")
    assert lint_onnx(CLEAN[name].write(tmp_path), CLEAN[name].target) == ()


def test_the_corpus_is_large_and_every_network_in_it_another():
    assert len(BAD) >= 30
    assert len(CLEAN) >= 10
    bad = {b.make().SerializeToString(deterministic=True) + f"{b.target}".encode() for b in BAD.values()}
    assert len(bad) == len(BAD)
    assert all(b.expected for b in BAD.values())


def float_convolutions(path) -> set[str]:
    """The convolutions that ONNX Runtime computes in floating point, by the names the file has for them."""
    engine = load_engine(Target("t", "cpu", ORT, "int8", engine_options={"graph_optimization": "all"}))
    kernels = engine.executed_kernels(path)
    names = {
        name for kernel in kernels for name in kernel.nodes if name.startswith(("conv", "first", "second", "third"))
    }
    integer = {name for kernel in kernels if kernel.kernel.op.startswith("QLinearConv") for name in kernel.nodes}
    return {name for name in names - integer if not name.endswith(("_wdq", "_bdq"))}


@pytest.mark.parametrize("seed", range(24))
def test_convolutions_said_to_compute_in_float_are_those_that_the_runtime_computes_in_float(tmp_path, seed):
    pytest.importorskip("onnxruntime")
    path = saved(of_random_pairs(np.random.default_rng(seed)), tmp_path / "m.onnx")
    findings = lint_onnx(path, Target("t", "cpu", ORT, "int8"))
    said = {f.node for f in findings if f.rule == "unfused-qdq" and f.node.startswith("conv")}
    assert said == float_convolutions(path)


def test_linting_resnet50_takes_less_than_five_seconds_of_cpu_time(tmp_path):
    path = saved(published("resnet50")(), tmp_path / "m.onnx")
    assert path.stat().st_size > 9e7
    began = time.process_time()
    lint_onnx(path, Target("t", "cpu", ORT))
    assert time.process_time() - began < LINT_LIMIT_S


@pytest.mark.parametrize(
    ("operators", "found"),
    [
        (("Neg", "Exp", "Add", "Reciprocal"), set()),
        (("Neg", "Exp", "Add"), {"Exp1"}),
        (("Exp", "Reciprocal"), {"Exp0"}),
    ],
)
def test_an_exponential_that_only_adds_to_a_divisor_may_overflow(tmp_path, operators, found):
    path = saved(in_float16(*operators), tmp_path / "m.onnx")
    findings = lint_onnx(path, Target("t", "rtx", "tensorrt", "fp16"))
    assert {f.node for f in findings if f.rule == "float16-overflow"} == found


@pytest.mark.parametrize(("value", "severity"), [(-3.4e38, "warning"), (-1e9, "error")])
def test_float32s_own_end_is_a_mask_that_a_cast_may_clamp(tmp_path, value, severity):
    path = saved(with_constant(value), tmp_path / "m.onnx")
    (one,) = (f for f in lint_onnx(path, Target("t", "rtx", "tensorrt", "fp16")) if f.rule == "float16-overflow")
    assert one.severity == severity
