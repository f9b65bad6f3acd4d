"""The rules of lint: small functions from a network and its target to findings."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto

from akd_deploy.export.lint_graph import WEIGHTED, LintGraph, channels, float_values
from akd_deploy.export.low_precision import LOW_PRECISIONS
from akd_deploy.export.operators import INT8_OPERATORS, NEWEST_OPSET, operator_problem

TYPICAL_ACTIVATION = 10.0
"""An input this large on every channel is not unusual after ReLU; picked by eye."""


@dataclass(frozen=True)
class Finding:
    """One thing to mend. `severity` is error (will not run, or is not what it says), warning (slow) or info."""

    rule: str
    severity: str
    node: str
    message: str
    fix: str

    def as_dict(self) -> dict[str, str]:
        return {
            "rule": self.rule,
            "severity": self.severity,
            "node": self.node,
            "message": self.message,
            "fix": self.fix,
        }


def unsupported_operator(graph: LintGraph) -> Iterator[Finding]:
    functions = frozenset((f.domain, f.name) for f in graph.model.functions)
    for node in graph.nodes:
        problem = operator_problem(node, graph.target.engine, graph.opset, functions)
        if problem is not None:
            fix = "Export it as standard operators, or choose a target whose engine has it."
            yield Finding("unsupported-operator", "error", node.name, problem, fix)


def new_opset(graph: LintGraph) -> Iterator[Finding]:
    engine = graph.target.engine
    newest = NEWEST_OPSET.get(engine)
    if newest is not None and graph.opset > newest:
        message = f"opset {graph.opset}; {engine} loads up to {newest}"
        yield Finding("new-opset", "error", "", message, f"Export with opset {newest} or lower.")


def dynamic_dimension(graph: LintGraph) -> Iterator[Finding]:
    for value in graph.inputs:
        for i, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value"):
                continue
            name = dim.dim_param or "?"
            if i == 0:
                message = f"input {value.name!r}: batch {name!r} is dynamic; it is built as {graph.target.batch}"
                yield Finding(
                    "dynamic-dimension", "info", "", message, "Export with the target's batch to silence this."
                )
            else:
                message = f"input {value.name!r}: dimension {i} ({name!r}) is dynamic: slower kernels, more memory"
                yield Finding("dynamic-dimension", "warning", "", message, "Export with the size you deploy.")


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
    multiple = graph.channel_multiple
    for node, weight in graph.weighted():
        inside, outside = channels(node, weight)
        sides = []
        if inside % multiple and node.input[0] in graph.after_weights:
            sides.append(f"{inside} input")
        if outside % multiple and node.output[0] in graph.before_weights:
            sides.append(f"{outside} output")
        if sides:
            message = f"{node.op_type} with {' and '.join(sides)} channels, not a multiple of {multiple}"
            fix = f"Use multiples of {multiple}: the rest of a block is computed and thrown away."
            yield Finding("odd-channels", "warning", node.name, message, fix)


def unfused_qdq(graph: LintGraph) -> Iterator[Finding]:
    rule = "unfused-qdq"
    for node in graph.nodes:
        readers = graph.readers.get(node.output[0], []) if node.output else []
        is_output = bool(node.output) and node.output[0] in graph.outputs
        if node.op_type == "QuantizeLinear":
            if (not is_output and any(reader.op_type != "DequantizeLinear" for reader in readers)) or not readers:
                message = "a QuantizeLinear that no DequantizeLinear follows"
                yield Finding(rule, "warning", node.name, message, "Write Q and DQ as pairs around an operator.")
        elif node.op_type == "DequantizeLinear":
            if readers and not is_output and all(reader.op_type == "QuantizeLinear" for reader in readers):
                message = "a DequantizeLinear that feeds a QuantizeLinear with nothing computed between"
                yield Finding(rule, "warning", node.name, message, "Remove the pair, or give both sides one scale.")
        elif any(graph.maker_op(name) == "DequantizeLinear" for name in node.input):
            yield from _unfused_compute(graph, node, bool(readers), rule)


def _unfused_compute(graph: LintGraph, node: onnx.NodeProto, has_readers: bool, rule: str) -> Iterator[Finding]:
    dequantized = [graph.maker_op(name) == "DequantizeLinear" for name in node.input[:2]]
    if node.op_type in WEIGHTED and not all(dequantized):
        side = "weight" if dequantized[0] else "input"
        message = f"{node.op_type} whose {side} is not quantised, so it computes in floating point"
        yield Finding(rule, "warning", node.name, message, f"Quantise its {side} too, or leave Q/DQ away here.")
    elif node.op_type not in INT8_OPERATORS:
        quantized = has_readers and all(r.op_type == "QuantizeLinear" for r in graph.readers[node.output[0]])
        if quantized:
            message = f"Q/DQ around {node.op_type}, which has no int8 kernel: a conversion each way and nothing gained"
            yield Finding(rule, "warning", node.name, message, "Leave the Q/DQ around this node away.")


def float16_overflow(graph: LintGraph) -> Iterator[Finding]:
    if graph.target.precision != "fp16":
        return
    largest = LOW_PRECISIONS["fp16"].largest
    rule = "float16-overflow"
    for name, tensor in graph.weights.items():
        readers = graph.readers.get(name, [])
        values = float_values(tensor)
        if values is None or all(reader.op_type == "Clip" for reader in readers):  # bounds may be infinite
            continue
        peak = float(np.abs(values).max(initial=0.0))
        if not peak <= largest:
            found = "infinite or NaN" if not np.isfinite(peak) else f"{peak:.3g}"
            message = f"weight {name!r} reaches {found}, float16 ends at {largest:g}"
            node = readers[0].name if readers else ""
            yield Finding(rule, "error", node, message, "Rescale it, or keep its node in float32.")
    for node, tensor in graph.weighted():
        values = float_values(tensor)
        if values is None or not np.isfinite(values).all() or np.abs(values).max(initial=0.0) > largest:
            continue
        _, outside = channels(node, tensor)
        transposed = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
        if node.op_type == "Conv" or transposed:
            sums = np.abs(values).reshape(outside, -1).sum(1)
        else:
            sums = np.abs(values).sum(tuple(range(values.ndim - 1)))
        reach = TYPICAL_ACTIVATION * float(sums.max(initial=0.0))
        if reach > largest:
            message = f"{node.op_type} can reach {reach:.3g} on inputs of {TYPICAL_ACTIVATION:g}: beyond float16"
            fix = "Quantise with calibration samples, which finds what must stay in float32."
            yield Finding(rule, "warning", node.name, message, fix)


def precision_lie(graph: LintGraph) -> Iterator[Finding]:
    """A network whose weighted nodes compute in another type than the target's precision."""
    wanted = graph.target.precision
    if graph.target.engine == "openvino" and wanted in ("fp16", "bf16"):
        return  # there the precision is a hint to the engine, which casts the float32 network itself
    found = {node.name: _precision_of(graph, node) for node, _ in graph.weighted()}
    allowed = {"tf32": ("fp32",)}.get(wanted, (wanted,))
    wrong = {name: precision for name, precision in found.items() if precision not in allowed}
    fix = f"Make the {wanted} variant with `akd-deploy quantize`, or choose a target of the precision it has."
    if found and len(wrong) == len(found):
        message = f"the target says {wanted}; every weighted node computes in {', '.join(sorted(set(wrong.values())))}"
        yield Finding("precision-lie", "error", "", message, fix)
    elif wrong:
        for name, precision in wrong.items():
            message = f"the target says {wanted}; this node computes in {precision}"
            yield Finding("precision-lie", "warning", name, message, "Keep it so on purpose, or cast it too.")


_FLOATS = {TensorProto.FLOAT: "fp32", TensorProto.FLOAT16: "fp16", TensorProto.BFLOAT16: "bf16"}
_FLOAT8 = (
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ,
    TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E5M2FNUZ,
)


def _precision_of(graph: LintGraph, node: onnx.NodeProto) -> str:
    sources = [graph.maker.get(name) for name in node.input[:2]]
    if all(source is not None and source.op_type == "DequantizeLinear" for source in sources):
        stored = graph.types.get(sources[1].input[0], 0)  # type: ignore[union-attr]
        return "fp8" if stored in _FLOAT8 else "int8"
    return _FLOATS.get(graph.types.get(node.input[0], 0), "an unknown type")


RULES: Mapping[str, Callable[[LintGraph], Iterator[Finding]]] = {
    "unsupported-operator": unsupported_operator,
    "new-opset": new_opset,
    "dynamic-dimension": dynamic_dimension,
    "channel-mismatch": channel_mismatch,
    "odd-channels": odd_channels,
    "unfused-qdq": unfused_qdq,
    "float16-overflow": float16_overflow,
    "precision-lie": precision_lie,
}
"""Name → rule; all of them run on every network that passes ONNX's own checker (else: "corrupt-graph")."""
