"""The kernels of networks in memory, listed for plans: hundreds of small models in seconds."""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import onnx

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.errors import UsageError
from akd_deploy.fusion import onnxruntime_cpu, openvino_cpu
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.models.onnx_skeleton import filled
from akd_deploy.target import Target


class Lister:
    """The kernels of a skeleton on a target: by rules where there are any, which is quick, else by the engine."""

    def __init__(self, target: Target) -> None:
        self._engine: Engine = load_engine(target)
        self._rules: Callable[[onnx.ModelProto], Sequence[ExecutedKernel]] | None = None
        if target.device == "cpu" and target.engine == "onnxruntime" and target.precision == "fp32":
            level, device = str(self._engine.option("graph_optimization")), self._engine.fingerprint()
            if onnxruntime_cpu.why_not(self._engine.version(), device) is None:
                block = onnxruntime_cpu.block_of(device)
                self._rules = partial(onnxruntime_cpu.kernels_of, level=level, nchwc_block=block)
        elif target.device == "cpu" and target.engine == "openvino" and target.precision in ("fp32", "bf16"):
            self._rules = partial(openvino_cpu.kernels_of, precision=target.precision)

    @property
    def is_quick(self) -> bool:
        """Whether rules list them (a millisecond a kernel), not the engine (up to a second a model)."""
        return self._rules is not None

    def __call__(self, model: onnx.ModelProto) -> Counter[Kernel]:
        if self._rules is not None:
            with suppress(UsageError):  # the runtime itself knows more than the rules
                return Counter(executed.kernel for executed in self._rules(model))
        with tempfile.TemporaryDirectory(prefix="akd-kernels-") as scratch:
            path = Path(scratch) / "model.onnx"
            onnx.save_model(filled(model, np.random.default_rng(0)), path)
            return Counter(executed.kernel for executed in self._engine.executed_kernels(path))
