"""A target's latency table for people with a model space of NNI's own."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from akd_deploy.errors import UsageError
from akd_deploy.models.onnx_from_module import quick_onnx
from akd_deploy.pipeline.latency import TargetLatency, target_latency
from akd_deploy.predictor.predictor import Prediction
from akd_deploy.target import load_target

if TYPE_CHECKING:
    from torch import nn

    from akd_deploy.search.nas_profiler import LatencyProfiler


def latency_profiler(
    model_space: Any, target: str | TargetLatency, input_shape: Sequence[int], *, upper: bool = False
) -> LatencyProfiler:
    """A profiler for `nni.nas` that predicts a model space's samples on a target, without running them.

    A sample's network is exported to ONNX and its kernels are costed from the target's latency table.

    Args:
        model_space: an `nni.nas.nn.pytorch.ModelSpace`.
        target: a target's name, or its table and predictor.
        input_shape: (channels, height, width) of one image; the batch is the target's.
        upper: predict the upper end of the interval, for those who must keep a limit.

    Raises:
        UsageError: the target's engine reads no ONNX.
        MissingRuntimeError: NNI cannot be imported here.
        MissingFileError, MismatchError: what `target_latency` raises.
    """
    from akd_deploy.search.nas_profiler import LatencyProfiler

    latency = target_latency(load_target(target)) if isinstance(target, str) else target
    if latency.target.engine == "torch":
        raise UsageError(
            asked=f"a latency profiler of target {latency.target.name}",
            found="engine torch, which reads no ONNX",
            next="Choose a target of another engine.",
        )

    def predict(network: nn.Module) -> Prediction:
        with tempfile.TemporaryDirectory(prefix="akd-nas-") as scratch:
            path = quick_onnx(network, (latency.target.batch, *input_shape), Path(scratch) / "sample.onnx")
            return latency.predict_model(path, remember=False)

    return LatencyProfiler(model_space, predict, upper=upper)
