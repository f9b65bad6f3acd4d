"""Engines: one third-party runtime per file behind one small contract."""

from __future__ import annotations

import importlib

from akd_deploy.engines.base import Engine
from akd_deploy.errors import UnknownNameError
from akd_deploy.target import Target

ENGINES = {
    "onnxruntime": ("akd_deploy.engines.onnxruntime_engine", "OnnxRuntimeEngine"),
    "openvino": ("akd_deploy.engines.openvino_engine", "OpenVinoEngine"),
    "torch": ("akd_deploy.engines.torch_engine", "TorchEngine"),
    "tensorrt": ("akd_deploy.engines.tensorrt_engine", "TensorRtEngine"),
    "tensorrt-rtx": ("akd_deploy.engines.tensorrt_engine", "TensorRtRtxEngine"),
}
"""Engine name as targets write it → its module and class. Modules import their runtime on first use."""


def load_engine(target: Target) -> Engine:
    """The engine of a target, its options checked.

    Raises:
        UnknownNameError: the target names an engine or option nobody knows.
    """
    if target.engine not in ENGINES:
        raise UnknownNameError("engine", target.engine, ENGINES, where=f"target {target.name}")
    module, name = ENGINES[target.engine]
    engine: Engine = getattr(importlib.import_module(module), name)(target)
    return engine
