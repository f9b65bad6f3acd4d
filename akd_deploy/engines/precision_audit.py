"""Compare the precision a target asks for with the dtypes its layers compute in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from akd_deploy.errors import BuildError

_ACCEPTED: Mapping[str, frozenset[str]] = {
    "fp32": frozenset({"float32"}),
    "tf32": frozenset({"float32"}),
    "fp16": frozenset({"float16"}),
    "bf16": frozenset({"bfloat16"}),
    "int8": frozenset({"int8", "uint8"}),
    "fp8": frozenset({"float8e4m3", "float8e5m2"}),
}
_ARITHMETIC = frozenset({"float64", "float32", "float16", "bfloat16", "int8", "uint8", "float8e4m3", "float8e5m2"})
_NAMED_AT_MOST = 8


@dataclass(frozen=True)
class Layer:
    """One layer as built: its name, the dtype it computes in, and whether it multiplies matrices (or convolves)."""

    name: str
    dtype: str
    is_matrix: bool


def audited_precision(precision: str, layers: Iterable[Layer], asked: str) -> tuple[dict[str, int], tuple[str, ...]]:
    """Layers per dtype, and notes on those that stayed in another precision than asked.

    Judged by the layers that multiply matrices, where nearly all work is; by every layer that computes
    where there are none. Asked for fp32 or tf32, none may compute in less; asked for less, some must.

    Raises:
        BuildError: the layers compute in something else; the message names them.
    """
    layers = [layer for layer in layers if layer.dtype in _ARITHMETIC]
    counts = dict(sorted(Counter(layer.dtype for layer in layers).items()))
    judged = [layer for layer in layers if layer.is_matrix] or layers
    accepted = _ACCEPTED[precision]
    other = [layer for layer in judged if layer.dtype not in accepted]
    full = precision in ("fp32", "tf32")
    if other and (full or len(other) == len(judged)):
        raise BuildError(
            asked=asked,
            found=_listed(other),
            next="Give it a network whose tensors have that precision (`akd-deploy quantize`), "
            "or choose a target of the precision found.",
            layers=[layer.name for layer in other],
        )
    notes = (f"{len(other)} of {len(judged)} layers are not in {precision}: {_listed(other)}",) if other else ()
    return counts, notes


def _listed(layers: list[Layer]) -> str:
    by_dtype: dict[str, list[str]] = {}
    for layer in layers:
        by_dtype.setdefault(layer.dtype, []).append(layer.name)
    return "; ".join(
        f"{len(names)} computing in {dtype} ({', '.join(names[:_NAMED_AT_MOST])}"
        + (" …)" if len(names) > _NAMED_AT_MOST else ")")
        for dtype, names in by_dtype.items()
    )
