"""Untrained networks in the precision a target ships: what is profiled and predicted is what will run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx

from akd_deploy.engines import load_engine
from akd_deploy.errors import MissingRuntimeError
from akd_deploy.export.quantize import int8_settings, quantize_onnx
from akd_deploy.target import Target

CALIBRATION_BATCHES = 4
"""Noise calibrates: latency does not depend on the scales that come out of it."""

ARCHIVE = "pt2"
"""Mode of a `torch.export` archive in float32; those of other precisions end in its name."""


def is_archive(mode: str) -> bool:
    """Whether a variant is a `torch.export` archive rather than ONNX."""
    return mode.startswith(ARCHIVE)


def mode_for(target: Target) -> str:
    """The typed variant a target reads; OpenVINO takes bf16, and TensorRT tf32, as a hint on the float32 network."""
    if target.engine == "torch":
        return ARCHIVE if target.precision in ("fp32", "tf32") else f"{ARCHIVE}-{target.precision}"
    if target.precision == "tf32" or (target.precision == "bf16" and target.engine == "openvino"):
        return "fp32"
    return target.precision


def isa_of(target: Target) -> list[str]:
    """The instruction sets of the CPU a target computes on; none for a GPU, which need not be here for this."""
    try:
        return load_engine(target).fingerprint().facts.get("isa", "").split()
    except MissingRuntimeError:
        return []


def typed_network(path: Path, target: Target, seed: int = 0) -> Path:
    """A float32 network with random weights, as the target's precision would ship it; the file itself where that is it.

    Raises:
        BuildError: nothing in the network has such a variant.
    """
    mode = mode_for(target)
    if mode == "fp32" or is_archive(mode):
        return path
    rng = np.random.default_rng(seed)
    inputs = onnx.load(path, format="protobuf", load_external_data=False).graph.input
    shapes = {info.name: [d.dim_value for d in info.type.tensor_type.shape.dim] for info in inputs}
    feeds = [
        {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}
        for _ in range(CALIBRATION_BATCHES)
    ]
    settings = int8_settings(target.engine, isa_of(target)) if mode == "int8" else None
    return quantize_onnx(path, mode, feeds, path.with_name(f"{path.stem}.{mode}.onnx"), settings).path
