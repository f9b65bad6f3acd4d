"""Write what an engine runs as trtexec does: `--exportLayerInfo` and `--exportProfile`, for the tools that read those.

The layers are written as TensorRT 11 writes them (`Datatype`, one `[ONNX Layer: …]` for each node). A kernel's weights
are among its inputs, in its own order: engines other than TensorRT do not say which of them are constants.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from akd_deploy.errors import UsageError
from akd_deploy.export.tensor_types import KernelTypes
from akd_deploy.kernel import ExecutedKernel, Shape
from akd_deploy.storage import write_atomically

SEPARATOR = "\x1f"
"""What TensorRT 11 writes between the nodes of a layer."""

_DATATYPES: Mapping[str, str] = {
    "float32": "Float", "float16": "Half", "bfloat16": "BFloat16", "float8e4m3": "FP8",
    "int8": "Int8", "uint8": "UInt8", "int32": "Int32", "int64": "Int64", "bool": "Bool",
}  # fmt: skip


def layers_json(kernels: Sequence[ExecutedKernel], types: Sequence[KernelTypes]) -> dict[str, Any]:
    """As `--exportLayerInfo` with detailed verbosity; tensors of unknown type have the type their kernel computes in.

    Raises:
        UsageError: a type that TensorRT has no name for.
    """
    return {
        "Layers": [_layer(executed, known) for executed, known in zip(kernels, types, strict=True)],
        "I/O Tensors": [],
    }


def profile_json(kernels: Sequence[ExecutedKernel], times_s: Sequence[float], count: int = 1) -> list[dict[str, Any]]:
    """As `--exportProfile`: one time for each kernel, measured or predicted by whoever hands them in.

    Args:
        count: of the runs that a time is the median of; 1 for predictions.
    """
    total = sum(times_s)
    return [
        {"count": count},
        *(
            {
                "name": executed.name,
                "timeMs": 1e3 * seconds * count,
                "averageMs": 1e3 * seconds,
                "medianMs": 1e3 * seconds,
                "percentage": 100 * seconds / total if total else 0.0,
            }
            for executed, seconds in zip(kernels, times_s, strict=True)
        ),
    ]


def write_trtexec(
    folder: Path,
    stem: str,
    kernels: Sequence[ExecutedKernel],
    types: Sequence[KernelTypes],
    times_s: Sequence[float] | None = None,
) -> tuple[Path, ...]:
    """Write `layers_<stem>.json`, and `profile_<stem>.json` where there are times; returns what was written."""
    contents: dict[str, Any] = {f"layers_{stem}.json": layers_json(kernels, types)}
    if times_s is not None:
        contents[f"profile_{stem}.json"] = profile_json(kernels, times_s)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_atomically(folder / name, json.dumps(content, indent=1).encode())
    return tuple(folder / name for name in contents)


def _layer(executed: ExecutedKernel, types: KernelTypes) -> dict[str, Any]:
    kernel = executed.kernel
    layer: dict[str, Any] = {
        "Name": executed.name,
        "LayerType": kernel.op,
        "Inputs": [
            _tensor(f"{executed.name}_in{i}", shape, dtype or kernel.dtype)
            for i, (shape, dtype) in enumerate(zip(kernel.inputs, types.inputs, strict=True))
        ],
        "Outputs": [
            _tensor(f"{executed.name}_out{i}", shape, dtype or kernel.dtype)
            for i, (shape, dtype) in enumerate(zip(kernel.outputs, types.outputs, strict=True))
        ],
        "Metadata": SEPARATOR.join(f"[ONNX Layer: {node}]" for node in executed.nodes),
    }
    attributes = dict(kernel.attributes)
    for ours, theirs in (("kernel_size", "Kernel"), ("strides", "Stride"), ("dilations", "Dilation")):
        value = attributes.get(ours)
        if isinstance(value, tuple):
            layer[theirs] = list(value)
    if "Kernel" in layer:
        layer["Groups"] = attributes.get("groups", 1)
        layer["Activation"] = str(attributes.get("activation", "NONE")).upper()
        layer["HasResidual"] = int(bool(attributes.get("residual")))
    return layer


def _tensor(name: str, shape: Shape, dtype: str) -> dict[str, Any]:
    if dtype not in _DATATYPES:
        raise UsageError(
            asked=f"the type of {name} as trtexec writes it",
            found=dtype,
            next=f"TensorRT has names for {', '.join(_DATATYPES)}.",
        )
    return {"Name": name, "Dimensions": list(shape), "Datatype": _DATATYPES[dtype], "Format": "Row major linear format"}
