"""Files as trtexec would write them for a network on the synthetic device, whose law is hidden from the predictor."""

from __future__ import annotations

import json
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
from synthetic_device import SyntheticDevice, executed_by

from akd_deploy.kernel import Kernel
from akd_deploy.search_space import Layer

DEVICE = SyntheticDevice()
PROFILER_S = 0.4e-6
"""What the profiler adds to every layer it times."""
_TYPES = {
    "Conv": "CaskConvolution", "Gemm": "CaskGemmMatrixMultiply", "AveragePool": "CaskPooling",
    "GlobalAveragePool": "Reduce", "Add": "ElementWise", "Mul": "ElementWise",
}  # fmt: skip


def _tensor(name: str, shape: Sequence[int]) -> dict[str, object]:
    return {"Name": name, "Location": "Device", "Dimensions": list(shape), "Format/Datatype": "Row major linear FP32"}


def layer_of(name: str, kernel: Kernel) -> dict[str, object]:
    """One layer of a 10.x layer info."""
    image, *rest = kernel.inputs
    inputs = [image] if kernel.op in ("Conv", "Gemm") else [image, *rest]
    layer: dict[str, object] = {
        "Name": name,
        "LayerType": _TYPES[kernel.op],
        "Inputs": [_tensor(f"{name}.in{i}", shape) for i, shape in enumerate(inputs)],
        "Outputs": [_tensor(f"{name}.out", shape) for shape in kernel.outputs],
        "StreamId": 0,
        "Metadata": f"[ONNX Layer: {name}]",
    }
    if kernel.op == "Conv":
        weight, told = rest[0], dict(kernel.attributes)
        layer |= {
            "Kernel": list(told["kernel_size"]), "Stride": list(told["strides"]), "Dilation": [1, 1],
            "Groups": told["groups"], "OutMaps": weight[0], "HasResidual": 0,
            "Activation": str(told.get("activation", "none")).upper(),
            "Weights": {"Type": "Float", "Count": prod(weight)}, "Bias": {"Type": "Float", "Count": weight[0]},
        }  # fmt: skip
    if kernel.op == "Gemm":
        layer |= {"Weights": {"Type": "Float", "Count": prod(rest[0])}, "Bias": {"Type": "Float", "Count": rest[0][0]}}
    return layer


def write_files(
    folder: Path, layers: tuple[Layer, ...], rng: np.random.Generator, queries: int = 60, noise: float = 0.01
) -> list[Path]:
    """Layer info, profile and times of one network; a profiled layer scatters by `noise`, relatively."""
    folder.mkdir(parents=True, exist_ok=True)
    executed = executed_by(layers)
    seconds = [DEVICE.kernel_s(e.kernel) for e in executed]
    measured = [(s + PROFILER_S) * float(np.exp(rng.normal(0, noise))) for s in seconds]
    (folder / "layers.json").write_text(json.dumps({"Layers": [layer_of(e.name, e.kernel) for e in executed]}))
    profile: list[dict[str, object]] = [{"count": 500}]
    profile += [
        {"name": e.name, "timeMs": 5e5 * s, "averageMs": 1e3 * s, "medianMs": 1e3 * s, "percentage": 1.0}
        for e, s in zip(executed, measured, strict=True)
    ]
    (folder / "profile.json").write_text(json.dumps(profile))
    whole = network_s(layers) * np.exp(rng.normal(0, noise, queries))
    (folder / "times.json").write_text(json.dumps([{"computeMs": 1e3 * s, "latencyMs": 1e3 * s + 0.01} for s in whole]))
    return [folder / f"{name}.json" for name in ("layers", "profile", "times")]


def network_s(layers: tuple[Layer, ...]) -> float:
    """What the network takes without a profiler: its kernels one after another, no call around them."""
    return sum(DEVICE.kernel_s(e.kernel) for e in executed_by(layers))
