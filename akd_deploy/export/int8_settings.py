"""How int8 is done for an engine: signs, ranges, what stays in floating point."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from akd_deploy.errors import UnknownNameError
from akd_deploy.export.calibration import split_calibration
from akd_deploy.export.operators import FLOAT_ALONE


@dataclass(frozen=True)
class Int8Settings:
    """How activations and weights become int8. Weights are always signed and symmetric.

    `activation` is "uint8" or "int8"; `reduce_range` gives weights 7 bits; `exclude` names nodes that stay in
    floating point, `float_operators` operators that do; `calibration` is how ranges of activations are found:
    "minmax", "entropy" or "percentile:99.99".
    """

    activation: str = "uint8"
    symmetric_activations: bool = False
    per_channel: bool = True
    reduce_range: bool = False
    quantize_bias: bool = True
    exclude: tuple[str, ...] = ()
    float_operators: frozenset[str] = frozenset()
    calibration: str = "minmax"

    def __post_init__(self) -> None:
        if self.activation not in ("uint8", "int8"):
            raise UnknownNameError("activation type", self.activation, ("uint8", "int8"))
        split_calibration(self.calibration)


def int8_settings(engine: str, isa: Collection[str]) -> Int8Settings:
    """What an engine's int8 kernels expect.

    Operators that it computes in floating point all the same are left there: Q/DQ around them only cost time.
    TensorRT takes signed, symmetric activations and floating biases only. CPUs take unsigned activations with
    signed weights; x86 without VNNI adds products in 16 bits, which saturate unless weights have 7 bits.

    Args:
        engine: as targets write it.
        isa: the device's instruction sets, as its fingerprint lists them.
    """
    float_operators = FLOAT_ALONE.get(engine, frozenset())
    if engine in ("tensorrt", "tensorrt-rtx"):
        return Int8Settings(
            activation="int8", symmetric_activations=True, quantize_bias=False, float_operators=float_operators
        )
    on_arm = "asimd" in isa
    narrow = not on_arm and not {"avx512_vnni", "avx_vnni", "amx_int8"} & set(isa)
    return Int8Settings(reduce_range=narrow, float_operators=float_operators)
