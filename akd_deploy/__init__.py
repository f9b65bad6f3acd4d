"""Distil a student that provably meets a latency budget on a device, and ship it as an engine.

The names below are the public API; each is imported when it is first asked for, so that `import akd_deploy` loads no
torch and no runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from akd_deploy.architecture import Architecture, read_architecture
    from akd_deploy.certificate import Certificate, certify, ratio_interval
    from akd_deploy.configuration import RunConfiguration, read_configuration
    from akd_deploy.engines import load_engine
    from akd_deploy.errors import AkdError
    from akd_deploy.export.load import load_bundle
    from akd_deploy.export.verify import verify_bundle
    from akd_deploy.kernel import Kernel
    from akd_deploy.latency_table import LatencyTable, read_table
    from akd_deploy.measurement import Measurement
    from akd_deploy.pipeline.latency import TargetLatency, target_latency
    from akd_deploy.pipeline.run import run_pipeline
    from akd_deploy.search_space import SearchSpace, load_space
    from akd_deploy.target import Target, load_target

__version__ = "0.1.0.dev0"

_HOMES = {
    "architecture": ("Architecture", "read_architecture"),
    "certificate": ("Certificate", "certify", "ratio_interval"),
    "configuration": ("RunConfiguration", "read_configuration"),
    "engines": ("load_engine",),
    "errors": ("AkdError",),
    "export.load": ("load_bundle",),
    "export.verify": ("verify_bundle",),
    "kernel": ("Kernel",),
    "latency_table": ("LatencyTable", "read_table"),
    "measurement": ("Measurement",),
    "pipeline.latency": ("TargetLatency", "target_latency"),
    "pipeline.run": ("run_pipeline",),
    "search_space": ("SearchSpace", "load_space"),
    "target": ("Target", "load_target"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AkdError",
    "Architecture",
    "Certificate",
    "Kernel",
    "LatencyTable",
    "Measurement",
    "RunConfiguration",
    "SearchSpace",
    "Target",
    "TargetLatency",
    "__version__",
    "certify",
    "load_bundle",
    "load_engine",
    "load_space",
    "load_target",
    "ratio_interval",
    "read_architecture",
    "read_configuration",
    "read_table",
    "run_pipeline",
    "target_latency",
    "verify_bundle",
]


def __getattr__(name: str) -> object:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'akd_deploy' has no attribute {name!r}")
    return getattr(importlib.import_module(f"akd_deploy.{_HOME_OF[name]}"), name)


def __dir__() -> list[str]:
    return __all__
