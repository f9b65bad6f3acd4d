"""The 16-bit floating types, and how a float32 tensor is rounded to one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto, helper, numpy_helper


@dataclass(frozen=True)
class LowPrecision:
    """A 16-bit floating type: its ONNX element type, its name in schemas, its largest and smallest positive values."""

    name: str
    onnx_type: int
    schema_type: str
    largest: float
    smallest: float


LOW_PRECISIONS: Mapping[str, LowPrecision] = {
    "fp16": LowPrecision("float16", TensorProto.FLOAT16, "tensor(float16)", 65504.0, 2.0**-24),
    "bf16": LowPrecision("bfloat16", TensorProto.BFLOAT16, "tensor(bfloat16)", 3.3895313892515355e38, 2.0**-133),
}


def tensor_to_low(tensor: TensorProto, low: LowPrecision, name: str, clamp: bool = False) -> TensorProto:
    """A float32 tensor rounded to nearest even in the 16-bit type; `clamp` limits it to the finite range."""
    values = np.ascontiguousarray(numpy_helper.to_array(tensor))
    if clamp:
        values = np.clip(values, -low.largest, low.largest)
    if low.onnx_type == TensorProto.FLOAT16:
        with np.errstate(over="ignore"):  # infinities stay what they are; finite overflow was kept out before
            raw = values.astype("<f2").tobytes()
    else:
        bits = values.astype("<f4").view("<u4").astype(np.uint64)
        rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        raw = np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2").tobytes()
    return helper.make_tensor(name, low.onnx_type, tensor.dims, raw, raw=True)


def vanishes(tensor: TensorProto, smallest: float) -> bool:
    """Whether a float32 tensor is not zero, but all of it would be rounded to zero."""
    values = np.abs(numpy_helper.to_array(tensor))
    return bool(values.any() and (values <= smallest / 2).all())


def overflows(tensor: TensorProto, largest: float) -> bool:
    """Whether a float32 tensor holds a finite value beyond `largest`."""
    values = np.abs(numpy_helper.to_array(tensor))
    return bool((values[np.isfinite(values)] > largest).any())
