"""Calibration samples: checked against a network, handed out one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from akd_deploy.errors import UsageError
from akd_deploy.export.parity import Arrays


def check_calibration(model: onnx.ModelProto, calibration: Sequence[Arrays]) -> None:
    """Raise UsageError unless every batch fits the network's inputs in name, type and shape."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = {value.name: value.type.tensor_type for value in model.graph.input if value.name not in weights}
    for i, feeds in enumerate(calibration):
        if set(feeds) != set(inputs):
            raise UsageError(
                asked=f"calibration batch {i} for inputs {sorted(inputs)}",
                found=f"{sorted(feeds)}",
                next="Give one array per input of the network.",
            )
        for name, tensor_type in inputs.items():
            wanted = [dim.dim_value for dim in tensor_type.shape.dim]
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor_type.elem_type)
            array = np.asarray(feeds[name])
            fits = len(wanted) == array.ndim and all(w in (0, n) for w, n in zip(wanted, array.shape, strict=True))
            if not fits or array.dtype != dtype:
                raise UsageError(
                    asked=f"calibration batch {i} of input {name!r} as {dtype} {wanted} (0: any)",
                    found=f"{array.dtype} {list(array.shape)}",
                    next="Preprocess calibration samples exactly as in deployment.",
                )


class CalibrationReader:
    """Hands out the batches in order, then None, as ONNX Runtime's calibrators ask for them."""

    def __init__(self, batches: Sequence[Arrays]) -> None:
        self.batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else dict(batch)
