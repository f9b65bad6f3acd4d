"""Latency predictions as NNI's own model spaces ask for them: an `nni.nas` profiler of samples."""

from __future__ import annotations

import json
import math
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from akd_deploy.errors import MissingRuntimeError, UsageError

# Without it nni.nas asks for PyTorch-Lightning when it is imported.
os.environ.setdefault("NNI_FRAMEWORK", "none")

if TYPE_CHECKING:
    from nni.nas.profiler import Profiler
else:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NNI of 2023 about torch of today
            from nni.nas.profiler import Profiler
    except ImportError as error:  # no wheel of NNI for this machine
        raise MissingRuntimeError(
            asked="a latency profiler for NNI's model spaces",
            found=f"NNI cannot be imported here ({error})",
            next="Install akd-deploy with the extra nni, on x86_64; `predict --onnx` works everywhere.",
        ) from error


class Predicted(Protocol):
    """What is known of one network, in seconds."""

    @property
    def latency_s(self) -> float: ...

    @property
    def upper_s(self) -> float: ...


class LatencyProfiler(Profiler):
    """Predicts the latency of a model space's samples, in seconds; samples asked for again cost nothing.

    Args:
        model_space: an `nni.nas.nn.pytorch.ModelSpace`.
        predict: a network, as the space freezes it → its prediction.
        upper: give the upper end of the prediction's interval, for those who must keep a limit.
    """

    def __init__(self, model_space: Any, predict: Callable[[Any], Predicted], *, upper: bool = False) -> None:
        super().__init__(model_space)
        self.model_space = model_space
        self.upper = upper
        self._predict = predict
        self._seen: dict[str, Predicted] = {}

    def prediction(self, sample: Mapping[str, Any]) -> Predicted:
        """Of a sample's network; raises what `predict` does."""
        key = json.dumps(sample, sort_keys=True, default=repr)
        if key not in self._seen:
            self._seen[key] = self._predict(self.model_space.freeze(sample))
        return self._seen[key]

    def profile(self, sample: Mapping[str, Any]) -> float:
        """Seconds of a sample; see the class."""
        found = self.prediction(sample)
        return found.upper_s if self.upper else found.latency_s


def within_latency(profiler: LatencyProfiler, budget_s: float) -> Callable[[Any], bool]:
    """A filter for NNI's strategies that lets through what is predicted to stay within `budget_s` seconds.

    `Chain(RegularizedEvolution(…), Filter(within_latency(profiler, 2e-3)))` searches under a latency limit.

    Raises:
        UsageError: a budget that is no positive number.
    """
    if not (math.isfinite(budget_s) and budget_s > 0):
        raise UsageError(asked="a budget above 0 seconds", found=repr(budget_s), next="Give seconds.")
    return lambda model: profiler.profile(model.sample) <= budget_s
