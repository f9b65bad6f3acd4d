"""Every operator that ONNX defines: the rules say of it what the runtime says, or they refuse it."""

from __future__ import annotations

from collections import Counter

import pytest
from predictor.operator_models import every_operator, models_of, older

from akd_deploy.device import cpu_fingerprint
from akd_deploy.engines.onnxruntime_engine import OnnxRuntimeEngine
from akd_deploy.errors import AkdError, UsageError
from akd_deploy.fusion.onnxruntime_cpu import block_of, kernels_of, why_not
from akd_deploy.fusion.onnxruntime_tested import OPSETS, OTHERWISE
from akd_deploy.pipeline.kernels import RULES, RUNTIME, KernelReader
from akd_deploy.target import Target

pytestmark = pytest.mark.xdist_group("operators")  # the standard's examples are collected once

HERE = cpu_fingerprint()
ENGINE = OnnxRuntimeEngine(Target("here", device="cpu", engine="onnxruntime"))

if ENGINE.why_not() is not None or why_not(ENGINE.version(), HERE) is not None:
    pytest.skip("needs the ONNX Runtime that the rules are those of, on an x86 CPU", allow_module_level=True)

EXECUTED = 0.55
"""At least this share of ONNX's own operators is one that rules can tell something of."""


def test_rules_agree_with_the_runtime_on_every_operator_that_they_do_not_refuse(tmp_path):
    reader = KernelReader(ENGINE, HERE, ENGINE.version())
    told, differ = set(), []
    for operator in every_operator():
        for one in models_of(operator):
            for model in (one, *older(one)):
                path = tmp_path / "operator.onnx"
                path.write_bytes(model.model.SerializeToString())
                try:
                    ruled = reader.read(path, RULES, remember=False)
                except AkdError:
                    continue
                try:
                    told_by_runtime = reader.read(path, RUNTIME, remember=False)
                except AkdError as error:
                    differ.append(f"{model.name}: {error.found}")
                    continue
                told.add(operator)
                if Counter(e.kernel for e in ruled.executed) != Counter(e.kernel for e in told_by_runtime.executed):
                    differ.append(model.name)
    assert differ == []
    of_onnx = {operator for operator in every_operator() if not operator[0]}
    assert len(told & of_onnx) >= EXECUTED * len(of_onnx)


def test_no_operator_is_refused_that_onnx_does_not_have():
    assert {("", name) for name in OTHERWISE} <= set(every_operator())


@pytest.mark.parametrize("opset", [OPSETS[0] - 1, OPSETS[-1] + 1])
def test_other_operator_sets_are_refused(opset):
    (one, *_) = models_of(("", "Relu"))
    one.model.opset_import[0].version = opset
    with pytest.raises(UsageError, match=f"operator set {opset}"):
        kernels_of(one.model, "all", nchwc_block=block_of(HERE))
