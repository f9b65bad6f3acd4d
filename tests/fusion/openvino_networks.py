"""What OpenVINO executes for networks that its fusion rules are tested on."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from fusion.fusion_networks import GOLDEN, skeleton

from akd_deploy.kernel import ExecutedKernel
from akd_deploy.models.onnx_skeleton import filled
from akd_deploy.target import Target

PRECISIONS = ("fp32", "bf16")


def with_values(model: onnx.ModelProto, seed: int = 0) -> onnx.ModelProto:
    """The model with numbers where values are missing: zeros would be left out of what is executed."""
    return filled(model, np.random.default_rng(seed))


def of_openvino(model: onnx.ModelProto, precision: str, folder: Path) -> tuple[ExecutedKernel, ...]:
    """What OpenVINO executes for the model on this machine's CPU."""
    from akd_deploy.engines.openvino_engine import OpenVinoEngine

    path = folder / "network.onnx"
    path.write_bytes(model.SerializeToString())
    options = {"threads": 1, "pinning": False}
    target = Target("t", device="cpu", engine="openvino", precision=precision, batch=1, engine_options=options)
    return OpenVinoEngine(target).executed_kernels(path)


def golden_path(name: str) -> Path:
    return GOLDEN / "fusion" / f"openvino_{name}.jsonl.gz"


def golden_names() -> list[str]:
    paths = (GOLDEN / "fusion").glob("openvino_*.jsonl.gz")
    return sorted(path.name.removeprefix("openvino_").removesuffix(".jsonl.gz") for path in paths)


def read_golden(name: str) -> dict[str, list[str]]:
    """Precision → the signatures of the kernels executed, in order."""
    _, *lines = gzip.decompress(golden_path(name).read_bytes()).decode().splitlines()
    return {entry["precision"]: entry["kernels"] for entry in map(json.loads, lines)}


def write_golden(names: Iterable[str], folder: Path) -> None:
    """Note what the runtime on this machine makes of networks; its CPU must have AVX-512 and bfloat16, but no AMX.

    From the repository's root: `PYTHONPATH=tests:. python -c "from fusion.openvino_networks import *;
    write_golden(['resnet50'], Path('/tmp'))"`.
    """
    import openvino

    for name in names:
        model = with_values(skeleton(name))
        lines = [json.dumps({"runtime": openvino.__version__.partition("-")[0]})]
        for precision in PRECISIONS:
            kernels = [kernel.kernel.signature for kernel in of_openvino(model, precision, folder)]
            lines.append(json.dumps({"precision": precision, "kernels": kernels}))
        golden_path(name).write_bytes(gzip.compress("\n".join(lines).encode(), mtime=0))
