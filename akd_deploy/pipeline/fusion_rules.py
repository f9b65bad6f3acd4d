"""The fusion rules that stand for a target's runtime on a device, where there are any that were tested for both."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import onnx

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines.base import Engine
from akd_deploy.engines.denormals import with_denormals
from akd_deploy.kernel import ExecutedKernel

ONNXRUNTIME, OPENVINO = "onnxruntime", "openvino"
_PRECISIONS = {ONNXRUNTIME: ("fp32", "int8"), OPENVINO: ("fp32", "bf16")}


@dataclass(frozen=True)
class Rules:
    """The rules of one runtime.

    `doubtful` says of a network why the runtime had better be asked where it is at hand, None where it need not be.
    `prepare` does now what the first network would otherwise wait for. With `by_values` what is executed depends on
    whether a constant is the same number everywhere, without it on structure alone.
    """

    kernels_of: Callable[[onnx.ModelProto], tuple[ExecutedKernel, ...]]
    doubtful: Callable[[onnx.ModelProto], str | None]
    prepare: Callable[[], None]
    by_values: bool


def is_cpu_onnxruntime(engine: Engine) -> bool:
    """Whether structure alone decides what a target executes, whoever is asked."""
    return engine.target.engine == ONNXRUNTIME and engine.option("provider") == "cpu"


def is_ruled(engine: Engine) -> bool:
    """Whether there are rules of a target's runtime, tested for its version and device or not."""
    return is_cpu_onnxruntime(engine) or engine.target.engine == OPENVINO


def why_no_rules(engine: Engine, device: DeviceFingerprint, engine_version: str) -> str | None:
    """Why no rules stand for the runtime of that version on a device, whatever the network; None where they do."""
    target = engine.target
    if not is_ruled(engine):
        return f"there are rules for ONNX Runtime and OpenVINO on a CPU, not for target {target.name}"
    known = _PRECISIONS[target.engine]
    if target.precision not in known:
        return f"there are rules for {' and '.join(known)}, not for {target.precision}"
    if target.engine == OPENVINO:
        from akd_deploy.fusion import openvino_cpu

        threads = int(engine.option("threads"))  # type: ignore[arg-type]
        return openvino_cpu.why_not(engine_version, device) or openvino_cpu.why_not_threads(threads)
    from akd_deploy.fusion import onnxruntime_cpu

    return onnxruntime_cpu.why_not(engine_version, device)


def rules_of(engine: Engine, device: DeviceFingerprint) -> Rules:
    """The rules for a target's runtime on a device for which `why_no_rules` finds nothing to say."""
    from akd_deploy.fusion import onnxruntime_cpu, onnxruntime_tested, openvino_cpu

    target = engine.target
    if target.engine == OPENVINO:
        isa = device.facts["isa"].split()
        kernels_of = partial(openvino_cpu.kernels_of, precision=target.precision, isa=isa)
        return Rules(kernels_of, lambda model: openvino_cpu.doubtful(isa), onnxruntime_cpu.prepare, by_values=True)
    level, block = str(engine.option("graph_optimization")), onnxruntime_cpu.block_of(device)
    kernels_of = partial(onnxruntime_cpu.kernels_of, level=level, nchwc_block=block)
    return Rules(
        kernels_of if engine.option("denormal_as_zero") else partial(_with_denormals, kernels_of),
        onnxruntime_tested.doubtful,
        onnxruntime_cpu.prepare,
        by_values=False,
    )


def _with_denormals(
    kernels_of: Callable[[onnx.ModelProto], tuple[ExecutedKernel, ...]], model: onnx.ModelProto
) -> tuple[ExecutedKernel, ...]:
    return with_denormals(kernels_of(model), model.graph)
