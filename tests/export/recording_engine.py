"""An engine that keeps what it is given: the bytes it loads, the network it builds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines.base import BuiltEngine, Engine, Session, TensorSpec
from akd_deploy.target import Target


class NoSession(Session):
    inputs = (TensorSpec("x", (1,), "float32"),)
    outputs = (TensorSpec("y", (1,), "float32"),)
    closed = False

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"y": feeds["x"]}

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        return lambda: None

    def close(self) -> None:
        self.closed = True


class RecordingEngine(Engine):
    """`device` and `runtime_version` are what it says of this machine; `before_load` is called before it reads."""

    name = "recording"
    options: Mapping = {"version_compatible": False, "threads": 1}
    extra = ""
    suffix = ".engine"

    def __init__(self, target: Target, device: Mapping[str, str], runtime_version: str) -> None:
        super().__init__(target)
        self.device, self.runtime_version = device, runtime_version
        self.loaded: list[bytes] = []
        self.places: list[Path] = []
        self.built: list[bytes] = []
        self.before_load: Callable[[], object] = lambda: None
        self.reason: str | None = None

    def why_not(self) -> str | None:
        return self.reason

    def version(self) -> str:
        return self.runtime_version

    def fingerprint(self) -> DeviceFingerprint:
        return DeviceFingerprint(self.device)

    def build(self, model_path: Path, out_dir: Path) -> BuiltEngine:
        self.built.append(model_path.read_bytes())
        path = out_dir / "built.engine"
        path.write_bytes(b"built here from " + self.built[-1][:8])
        return BuiltEngine(path, (path,), 0.0, 1, {"float32": 1}, self.version())

    def load(self, engine_path: Path) -> Session:
        self.before_load()
        self.places.append(engine_path)
        self.loaded.append(engine_path.read_bytes())
        return NoSession()

    def executed_kernels(self, model_path: Path):
        raise NotImplementedError
