"""Calibration: its methods by name; samples, checked against a network and handed out one by one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.export.parity import Arrays

CALIBRATIONS = ("minmax", "entropy", "percentile")
"""Methods by which ranges are found: all that was seen, what loses least information, what all but few values keep."""

DEFAULT_PERCENTILE = 99.99
"""Of the values, which stay in range; among those compared in Wu et al. 2020, "Integer Quantization for Deep Learning
Inference"."""


def split_calibration(text: str) -> tuple[str, float | None]:
    """`"percentile:99.9"` → ("percentile", 99.9); the others have no number.

    Raises:
        UnknownNameError: another method.
        UsageError: a number that is no percentile, or one for a method that takes none.
    """
    method, colon, number = text.partition(":")
    if method not in CALIBRATIONS:
        raise UnknownNameError("calibration", method, CALIBRATIONS)
    if method != "percentile":
        if colon:
            raise UsageError(asked=f"calibration by {text}", found="a number", next=f"Write {method} alone.")
        return method, None
    try:
        percentile = float(number) if colon else DEFAULT_PERCENTILE
    except ValueError:
        percentile = float("nan")
    if not 50 < percentile <= 100:
        raise UsageError(
            asked=f"calibration by {text}",
            found=f"{number!r} for a percentile",
            next=f"Choose one above 50 and up to 100, like percentile:{DEFAULT_PERCENTILE:g}.",
        )
    return method, percentile


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
