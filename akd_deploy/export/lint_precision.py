"""Rules about element types: what float16 cannot hold, and what computes in another type than the target's."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import TensorProto

from akd_deploy.engines.denormals import DENORMAL_EXPONENTS, denormal_share, masks_before
from akd_deploy.export.finding import Finding
from akd_deploy.export.lint_graph import LintGraph, channels, float_values
from akd_deploy.export.low_precision import LOW_PRECISIONS

TYPICAL_ACTIVATION = 10.0
"""An input this large on every channel is not unusual after ReLU; picked by eye."""
SMALLEST_NORMAL = 2.0**-14
"""float16 keeps fewer and fewer bits of what is smaller, and none below 2⁻²⁵."""


def float16_overflow(graph: LintGraph) -> Iterator[Finding]:
    if graph.target.precision != "fp16":
        return
    largest = LOW_PRECISIONS["fp16"].largest
    rule = "float16-overflow"
    for name, tensor in graph.tensors.items():
        readers = graph.readers.get(name, [])
        if _stays_float32(graph, tensor) or all(
            reader.op_type == "Clip" for reader in readers
        ):  # infinite bounds are fine
            continue
        values = float_values(tensor)
        if values is None:
            continue
        peak = _peak(values)
        if not peak <= largest:
            found = "infinite or NaN" if not np.isfinite(peak) else f"{peak:.3g}"
            message = f"{name!r} reaches {found}, float16 ends at {largest:g}"
            node = readers[0].name if readers else ""
            yield Finding(rule, "error", node, message, "Rescale it, or keep its node in float32.")
    for node, tensor in graph.weighted():
        values = None if _stays_float32(graph, tensor) else float_values(tensor)
        if values is None or not _peak(values) <= largest:
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


def float16_underflow(graph: LintGraph) -> Iterator[Finding]:
    """Weights most of which float16 holds with a few bits or none; a scalar (an epsilon) that becomes 0."""
    if graph.target.precision != "fp16":
        return
    for name, tensor in graph.tensors.items():
        values = None if _stays_float32(graph, tensor) else float_values(tensor)
        if values is None or values.size == 0:
            continue
        sizes = np.abs(values)
        limit = SMALLEST_NORMAL if values.size > 1 else 2.0**-25
        small = int(np.count_nonzero((sizes < limit) & (sizes > 0)))
        if 2 * small > int(np.count_nonzero(sizes)):
            readers = graph.readers.get(name, [])
            share = f"{small} of {values.size} values" if values.size > 1 else f"{float(sizes.max()):.2g}"
            message = f"{name!r}: {share} below {limit:.2g}, where float16 keeps a few bits or none"
            fix = "Scale it up and its output down, or keep its node in float32."
            yield Finding("float16-underflow", "warning", readers[0].name if readers else "", message, fix)


def _peak(values: np.ndarray) -> float:
    """The largest magnitude, NaN where there is one; without a copy of the tensor."""
    return max(abs(float(values.max(initial=0.0))), abs(float(values.min(initial=0.0)))) if values.size else 0.0


def _stays_float32(graph: LintGraph, tensor: onnx.TensorProto) -> bool:
    """Whether a tensor was left in float32 on purpose: others of the network are in float16."""
    return tensor.data_type == TensorProto.FLOAT and graph.has_float16


def denormal_mask(graph: LintGraph) -> Iterator[Finding]:
    """Masks added before a Softmax whose exponentials are denormal numbers, which a CPU computes with far more
    slowly."""
    target = graph.target
    if (target.device, target.engine, target.precision) != ("cpu", "onnxruntime", "fp32"):
        return  # OpenVINO counts them as zero by itself
    if target.engine_options.get("denormal_as_zero"):
        return
    least, most = DENORMAL_EXPONENTS
    for node in graph.nodes:
        names = []
        if node.op_type == "Softmax":
            names = masks_before(node, graph.maker, lambda name: graph.constant(name) is not None)
        share = denormal_share([mask for name in names if (mask := graph.constant(name)) is not None])
        if share:
            message = (
                f"{share:.0%} of the mask before it lie between {least:g} and {most:g}: their exponentials are "
                "denormal numbers, with which products take up to 90 times as long"
            )
            fix = "Mask with −inf or −10000, or set `denormal_as_zero = true` among the target's engine_options."
            yield Finding("denormal-mask", "warning", node.name, message, fix)


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


def double_cast(graph: LintGraph) -> Iterator[Finding]:
    """Casts right after a cast, and casts to the type a tensor has: kernels and traffic for nothing, bits lost."""
    for node in graph.nodes:
        if node.op_type != "Cast":
            continue
        to = next((a.i for a in node.attribute if a.name == "to"), 0)
        read = graph.types.get(node.input[0], 0)
        before = graph.maker.get(node.input[0])
        if before is not None and before.op_type == "Cast":
            first = graph.types.get(before.input[0], 0)
            steps = " → ".join(TensorProto.DataType.Name(t).lower() for t in (first, read, to))
            message = f"casts {steps} with nothing computed between"
            yield Finding("double-cast", "warning", node.name, message, "Remove both, or cast once.")
        elif read and read == to:
            message = f"casts to {TensorProto.DataType.Name(to).lower()}, which its input is already"
            yield Finding("double-cast", "warning", node.name, message, "Remove it.")


_FLOATS = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
}
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
    # After an operator that nobody knows, types are not known; its weight's is.
    element = graph.types.get(node.input[0], 0) or graph.types.get(node.input[1], 0)
    return _FLOATS.get(element, "an unknown type")
