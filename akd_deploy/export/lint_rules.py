"""The rules of lint: small functions from a network and its target to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from math import ceil

from akd_deploy.export.finding import Finding
from akd_deploy.export.lint_graph import LintGraph, channels
from akd_deploy.export.lint_opsets import FILE_RULES
from akd_deploy.export.lint_precision import (
    denormal_mask,
    double_cast,
    float16_overflow,
    float16_underflow,
    nan_weight,
    precision_lie,
    unsupported_precision,
    unsupported_type,
)
from akd_deploy.export.lint_quantized import refused_qdq, unfused_qdq
from akd_deploy.units import format_bytes, format_seconds

__all__ = ["NETWORK_RULES", "RULES", "Finding"]

UNUSED_BYTES = 1024
"""Unused weights smaller than this are not worth a word."""


def dynamic_dimension(graph: LintGraph) -> Iterator[Finding]:
    for value in graph.inputs:
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            name = dim.dim_param or "?"
            if i == 0:
                message = f"input {value.name!r}: batch {name!r} is dynamic; it is built as {graph.target.batch}"
                fix = "Export with the target's batch to silence this."
                yield Finding("dynamic-dimension", "info", "", message, fix)
            else:
                message = f"input {value.name!r}: dimension {i} ({name!r}) is dynamic: slower kernels, more memory"
                message += f"; {_cost_of_sizes(graph, name)}"
                yield Finding("dynamic-dimension", "warning", "", message, "Export with the size you deploy.")


def _cost_of_sizes(graph: LintGraph, name: str) -> str:
    sizes, predict = graph.costs.dimensions.get(name), graph.costs.sizes_s
    if sizes is None or predict is None:
        return "what that costs is not known" + (" without its sizes" if sizes is None else " without a latency table")
    usual = {other: told[1] for other, told in graph.costs.dimensions.items()}
    seconds = [predict(usual | {name: size}) for size in sizes]
    if any(cost is None for cost in seconds):
        return "what that costs is not known: the latency table does not cover it"
    told = ", ".join(f"{format_seconds(cost or 0.0)} at {size}" for cost, size in zip(seconds, sizes, strict=True))
    return f"predicted of static exports: {told}; a dynamic one is no faster than these"


def channel_mismatch(graph: LintGraph) -> Iterator[Finding]:
    """Convolutions whose weight has other input channels than the input: ONNX's own checker lets them pass."""
    for node, weight in graph.weighted():
        shape = graph.shapes.get(node.input[0], ())
        found = shape[1] if len(shape) > 1 else None
        wanted, _ = channels(node, weight)
        if node.op_type.startswith("Conv") and found is not None and found != wanted:
            message = f"{node.op_type} reads {found} channels; its weight is for {wanted}"
            yield Finding("channel-mismatch", "error", node.name, message, "Export it again.")


def odd_channels(graph: LintGraph) -> Iterator[Finding]:
    """Channels that fill a vector or tensor core only partly. Image channels and classes cannot be helped."""
    multiple = graph.granularity.multiple
    for node, weight in graph.weighted():
        inside, outside = channels(node, weight)
        sides: dict[str, int] = {}
        if inside % multiple and node.input[0] in graph.after_weights:
            sides["input"] = inside
        if outside % multiple and node.output[0] in graph.before_weights:
            sides["output"] = outside
        if sides:
            told = " and ".join(f"{count} {side}" for side, count in sides.items())
            message = f"{node.op_type} with {told} channels, not a multiple of {multiple} ({graph.granularity.source})"
            padded = {side: multiple * ceil(count / multiple) for side, count in sides.items()}
            predict = graph.costs.padding_s
            cost = predict(node.name, padded.get("input"), padded.get("output")) if predict else None
            if cost is not None:
                wider = " and ".join(map(str, padded.values()))
                message += f"; predicted {format_seconds(cost[0])}, with {wider} {format_seconds(cost[1])}"
            fix = f"Use multiples of {multiple}: the rest of a block is computed and thrown away."
            yield Finding("odd-channels", "warning", node.name, message, fix)


def unused_weight(graph: LintGraph) -> Iterator[Finding]:
    used = {name for node in graph.nodes for name in node.input} | graph.outputs | graph.read_inside
    for name, tensor in graph.weights.items():
        size = tensor.ByteSize()
        if name not in used and size >= UNUSED_BYTES:
            message = f"weight {name!r} ({format_bytes(size)}) is read by nothing"
            yield Finding("unused-weight", "info", "", message, "Remove it: it is shipped and loaded all the same.")


NETWORK_RULES: Mapping[str, Callable[[LintGraph], Iterator[Finding]]] = {
    "dynamic-dimension": dynamic_dimension,
    "channel-mismatch": channel_mismatch,
    "odd-channels": odd_channels,
    "refused-qdq": refused_qdq,
    "unfused-qdq": unfused_qdq,
    "float16-overflow": float16_overflow,
    "float16-underflow": float16_underflow,
    "denormal-mask": denormal_mask,
    "precision-lie": precision_lie,
    "unsupported-precision": unsupported_precision,
    "unsupported-type": unsupported_type,
    "nan-weight": nan_weight,
    "double-cast": double_cast,
    "unused-weight": unused_weight,
}
"""Name → rule; these run on every network that passes ONNX's own checker (else, and without a finding of
`FILE_RULES`: "corrupt-graph")."""

RULES: Mapping[str, Callable[[LintGraph], Iterator[Finding]]] = {**FILE_RULES, **NETWORK_RULES}
"""All of them."""
