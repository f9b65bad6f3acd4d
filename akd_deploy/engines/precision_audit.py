"""Compare the precision a target asks for with the dtypes its layers compute in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from akd_deploy.engines.declared_float32 import KEY
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
_HALF = ("fp16", "bf16")
_NAMED_AT_MOST = 8


@dataclass(frozen=True)
class Layer:
    """One layer as built: its name, the dtype it computes in, and whether it multiplies matrices (or convolves).

    `nodes` are the ONNX nodes in it, where they are not its name.
    """

    name: str
    dtype: str
    is_matrix: bool
    nodes: tuple[str, ...] = ()


def audited_precision(
    precision: str, layers: Iterable[Layer], asked: str, allowed: Collection[str] | None = ()
) -> tuple[dict[str, int], tuple[str, ...]]:
    """Layers per dtype, and notes on those that stayed in another precision than asked.

    Judged by the layers that multiply matrices, where nearly all work is; by every layer that computes
    where there are none. Asked for fp32 or tf32, none may compute in less. Asked for fp16 or bf16, all must, but for
    those that may stay in float32. Asked for 8 bits, some must: what is not between a Q and a DQ stays as it is.

    Args:
        allowed: ONNX nodes that may compute in float32 beside others in fp16 or bf16; None: any may.

    Raises:
        BuildError: the layers compute in something else; the message names them.
    """
    layers = [layer for layer in layers if layer.dtype in _ARITHMETIC]
    counts = dict(sorted(Counter(layer.dtype for layer in layers).items()))
    judged = [layer for layer in layers if layer.is_matrix] or layers
    accepted = _ACCEPTED[precision]
    other = [layer for layer in judged if layer.dtype not in accepted]
    wrong = other
    if precision in ("int8", "fp8") or (allowed is None and precision in _HALF):
        wrong = other if len(other) == len(judged) else []
    elif precision in _HALF and allowed and len(other) < len(judged):
        wrong = [layer for layer in other if not _may_stay(layer, allowed)]
    if wrong:
        raise BuildError(
            asked=asked,
            found=_listed(wrong),
            next="Give it a network whose tensors have that precision (`akd-deploy quantize`), "
            "or choose a target of the precision found."
            + (
                f" Nodes meant to stay in float32 are declared in the network's metadata, {KEY}."
                if precision in _HALF
                else ""
            ),
            layers=[layer.name for layer in wrong],
        )
    notes = (f"{len(other)} of {len(judged)} layers are not in {precision}: {_listed(other)}",) if other else ()
    return counts, notes


def _may_stay(layer: Layer, allowed: Collection[str]) -> bool:
    return layer.dtype == "float32" and not set(allowed).isdisjoint(layer.nodes or (layer.name,))


def _listed(layers: list[Layer]) -> str:
    by_dtype: dict[str, list[str]] = {}
    for layer in layers:
        by_dtype.setdefault(layer.dtype, []).append(layer.name)
    return "; ".join(
        f"{len(names)} computing in {dtype} ({', '.join(names[:_NAMED_AT_MOST])}"
        + (" …)" if len(names) > _NAMED_AT_MOST else ")")
        for dtype, names in by_dtype.items()
    )
