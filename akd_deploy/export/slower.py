"""Why a quantised network is slower than its source, read off the kernels that an engine runs for both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from akd_deploy.kernel import ExecutedKernel
from akd_deploy.units import format_bytes

NAMES_TOLD = 4
"""Of nodes in a sentence; the others are counted."""

_CONVERSIONS = ("QuantizeLinear", "DequantizeLinear", "FakeQuantize", "Reorder", "Transpose", "Cast", "Convert")
_WEIGHTED = ("Conv", "Gemm", "MatMul", "FullyConnected")
_FLOATS = ("float32", "float64", "float16", "bfloat16")
_ACTIVATIONS = (
    "Relu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Sigmoid", "Silu",
    "Softplus", "Swish", "Tanh",
)  # fmt: skip


def explain_slower(before: Sequence[ExecutedKernel], after: Sequence[ExecutedKernel]) -> str:
    """What the quantised network's kernels do that the float network's do not, as one line without a full stop.

    Looked for: more kernels that only convert (Q, DQ, reorders, transpositions, casts); convolutions and matrix
    products that still compute in floating point, by another kernel perhaps, as where a layout is lost; activations
    that were a part of another kernel and now stand alone; the bytes that all kernels move. It tells what differs,
    which is not what each of them costs.

    Args:
        before, after: kernels of the float and of the quantised network, in order; nodes are named alike in both.
    """
    told = [*_more_conversions(before, after), *_still_float(before, after), *_lost_activations(before, after)]
    moved = [sum(k.kernel.traffic_bytes for k in kernels) for kernels in (before, after)]
    if moved[1] > moved[0]:
        told.append(f"{format_bytes(moved[0])} moved become {format_bytes(moved[1])}")
    if not told:
        return (
            f"no conversion was added and no product is left in float ({len(before)} kernels become {len(after)}): "
            "the integer kernels themselves take longer on this engine"
        )
    if moved[1] <= moved[0]:
        told.append(f"though {format_bytes(moved[0])} moved become {format_bytes(moved[1])}")
    return "; ".join(told)


def _form(executed: ExecutedKernel) -> str | None:
    """Which conversion a kernel is, or None; by its nodes where the engine has its own word for it."""
    op = executed.kernel.op.rpartition(".")[2]
    for word in _CONVERSIONS:
        if op.startswith(word):
            return word
    kinds = {next((word for word in _CONVERSIONS[:2] if node.endswith(word)), None) for node in executed.nodes}
    if None in kinds or not kinds or _is_weighted(executed):
        return None
    return max(kinds, key=str)  # "QuantizeLinear" where it does both


def _is_weighted(executed: ExecutedKernel) -> bool:
    return any(word in executed.kernel.op for word in _WEIGHTED)


def _names(nodes: Sequence[str]) -> str:
    shown = ", ".join(nodes[:NAMES_TOLD])
    return shown + (f" and {len(nodes) - NAMES_TOLD} more" if len(nodes) > NAMES_TOLD else "")


def _more_conversions(before: Sequence[ExecutedKernel], after: Sequence[ExecutedKernel]) -> list[str]:
    counts = [Counter(form for k in kernels if (form := _form(k)) is not None) for kernels in (before, after)]
    more = {form: counts[1][form] - counts[0][form] for form in sorted(counts[1]) if counts[1][form] > counts[0][form]}
    if not more:
        return []
    listed = ", ".join(f"{count} {form}" for form, count in more.items())
    beside = [k.nodes[0] for k in after if _form(k) in more and k.nodes]
    return [
        f"{sum(more.values())} more kernels that only convert: {listed}" + (f" (at {_names(beside)})" * bool(beside))
    ]


def _still_float(before: Sequence[ExecutedKernel], after: Sequence[ExecutedKernel]) -> list[str]:
    weighted = [k for k in after if _is_weighted(k)]
    left = [k for k in weighted if k.kernel.dtype in _FLOATS]
    if not left:
        return []
    told = [f"{len(left)} of {len(weighted)} products still in float: {_names([_node(k) for k in left])}"]
    ran = {node: k.kernel.op for k in before if _is_weighted(k) for node in k.nodes}
    others = Counter((ran[_node(k)], k.kernel.op) for k in left if ran.get(_node(k), k.kernel.op) != k.kernel.op)
    told += [f"{count} of them by {new} instead of {old}" for (old, new), count in sorted(others.items())]
    return told


def _node(executed: ExecutedKernel) -> str:
    """The first node of a kernel that is its own: what only converts comes along."""
    return next((n for n in executed.nodes if not n.endswith((*_CONVERSIONS, "__cast"))), executed.name)


def _lost_activations(before: Sequence[ExecutedKernel], after: Sequence[ExecutedKernel]) -> list[str]:
    fused = {node for k in before if len(k.nodes) > 1 for node in k.nodes}
    alone = [k for k in after if k.kernel.op.rpartition(".")[2].removeprefix("QLinear") in _ACTIVATIONS]
    lost = [node for k in alone for node in k.nodes if node in fused]
    return [f"{len(lost)} activations no longer fused: {_names(lost)}"] if lost else []
