"""The kernels of networks in memory, listed for plans: hundreds of small models in seconds."""

from __future__ import annotations

import tempfile
from collections import Counter
from contextlib import suppress
from pathlib import Path

import numpy as np
import onnx

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.errors import UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.models.onnx_skeleton import filled
from akd_deploy.pipeline.fusion_rules import Rules, is_ruled, rules_of, why_no_rules
from akd_deploy.target import Target


class Lister:
    """The kernels of a skeleton on a target: by rules where there are any for this CPU, which is quick, else by the
    engine."""

    def __init__(self, target: Target) -> None:
        self._engine: Engine = load_engine(target)
        self._rules: Rules | None = None
        if is_ruled(self._engine):
            device = self._engine.fingerprint()
            if why_no_rules(self._engine, device, self._engine.version()) is None:
                self._rules = rules_of(self._engine, device)

    @property
    def is_quick(self) -> bool:
        """Whether rules list them (a millisecond a kernel), not the engine (up to a second a model)."""
        return self._rules is not None

    def __call__(self, model: onnx.ModelProto) -> Counter[Kernel]:
        if self._rules is not None and self._rules.doubtful(model) is None:
            with suppress(UsageError):  # the runtime itself knows more than the rules
                return Counter(executed.kernel for executed in self._rules.kernels_of(model))
        with tempfile.TemporaryDirectory(prefix="akd-kernels-") as scratch:
            path = Path(scratch) / "model.onnx"
            onnx.save_model(filled(model, np.random.default_rng(0)), path)
            return Counter(executed.kernel for executed in self._engine.executed_kernels(path))
