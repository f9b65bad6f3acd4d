"""Rules about element types: what float16 cannot hold, and what computes in another type than the target's."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto

from akd_deploy.engines import load_engine
from akd_deploy.engines.denormals import DENORMAL_EXPONENTS, denormal_share, masks_before
from akd_deploy.export.finding import Finding
from akd_deploy.export.lint_graph import WEIGHTED, LintGraph, channels, float_values
from akd_deploy.export.lint_ranges import ANY, Interval, value_ranges
from akd_deploy.export.low_precision import LOW_PRECISIONS

TYPICAL_ACTIVATION = 10.0
"""An input this large on every channel is not unusual after ReLU; picked by eye."""
MULTIPLYING = (*WEIGHTED, "Einsum", "LSTM", "GRU", "RNN")
"""Operators in which nearly all work is: constant weights or not."""
LONG_SUMS = ("CumSum", "ReduceL1", "ReduceSum", "ReduceSumSquare")
SOFTMAX_OPSET = 13
"""Before it a Softmax is over all dimensions from its axis on, by default the second."""
_LARGEST = LOW_PRECISIONS["fp16"].largest
SMALLEST_MASK = 1e30
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
        if all(reader.op_type in ("Add", "Where") for reader in readers):
            values = np.where(values == -np.inf, 0, values)  # a mask: float16 has −inf, too
        peak = _peak(values)
        if peak > largest:  # of NaN another rule tells
            found = "infinite" if np.isinf(peak) else f"{peak:.3g}"
            message = f"{name!r} reaches {found}, float16 ends at {largest:g}"
            node = readers[0].name if readers else ""
            fix = "Rescale it, or keep its node in float32."
            # float32's own end is a mask's, which a cast may clamp.
            is_mask = not graph.has_float16 and SMALLEST_MASK < peak < np.inf
            if is_mask:
                fix = "Cast it with `akd-deploy quantize`, which clamps masks."
            yield Finding(rule, "warning" if is_mask else "error", node, message, fix)
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
    yield from _sums_in_float16(graph)


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
    if wanted in ("int8", "fp8"):  # products of two activations may stay: what is not between a Q and a DQ does
        multiplying: Iterable[onnx.NodeProto] = (node for node, _ in graph.weighted())
    else:
        multiplying = (node for node in graph.nodes if node.op_type in MULTIPLYING and len(node.input) > 1)
    found = {node.name: _precision_of(graph, node) for node in multiplying}
    allowed = {"tf32": ("fp32",)}.get(wanted, (wanted,))
    wrong = {name: precision for name, precision in found.items() if precision not in allowed}
    fix = f"Make the {wanted} variant with `akd-deploy quantize`, or choose a target of the precision it has."
    if found and len(wrong) == len(found):
        all_in = ", ".join(sorted(set(wrong.values())))
        message = f"the target says {wanted}; every node that multiplies computes in {all_in}"
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
_FLOAT8 = {
    TensorProto.FLOAT8E4M3FN,
    TensorProto.FLOAT8E4M3FNUZ,
    TensorProto.FLOAT8E5M2,
    TensorProto.FLOAT8E5M2FNUZ,
}
_INT8 = {TensorProto.INT8, TensorProto.UINT8, 0}
"""Where a type is unknown, another rule says why."""


LEAST_CAPABILITY: Mapping[str, int] = {"bf16": 80, "fp8": 89, "tf32": 80}
"""Precision → the first compute capability that has it (NVIDIA's support matrix of TensorRT)."""


def unsupported_precision(graph: LintGraph) -> Iterator[Finding]:
    """A target of GPUs that lack its precision."""
    least = LEAST_CAPABILITY.get(graph.target.precision)
    options = {**load_engine(replace(graph.target, engine_options={})).options, **graph.target.engine_options}
    named = options.get("compute_capabilities", ())
    if least is None or not isinstance(named, tuple | list):
        return
    numbers = {name: re.fullmatch(r"sm_?(\d+)[a-z]?", name) for name in map(str, named)}
    lacking = [name for name, number in numbers.items() if number is not None and int(number[1]) < least]
    if lacking:
        message = f"{', '.join(lacking)} have no {graph.target.precision}, which begins at sm{least}"
        yield Finding("unsupported-precision", "error", "", message, "Leave them out, or choose another precision.")


def unsupported_type(graph: LintGraph) -> Iterator[Finding]:
    """Texts, which no GPU computes with (tried with TensorRT-RTX 1.7)."""
    if graph.target.engine.startswith("tensorrt"):
        for value in graph.inputs:
            if value.type.tensor_type.elem_type == TensorProto.STRING:
                message = f"input {value.name!r} holds texts, of which TensorRT has no tensors"
                yield Finding("unsupported-type", "error", "", message, "Turn texts into numbers before the network.")


def nan_weight(graph: LintGraph) -> Iterator[Finding]:
    """Weights that are not numbers: whatever reads them is none either."""
    for name, tensor in graph.tensors.items():
        values = float_values(tensor)
        missing = 0 if values is None else int(np.isnan(values).sum())
        readers = [reader for reader in graph.readers.get(name, []) if reader.op_type not in ("Where", "Equal")]
        if missing and readers:  # what is selected by Where may be meant to be none
            message = f"{name!r}: {missing} of {values.size if values is not None else 0} values are NaN"
            yield Finding("nan-weight", "error", readers[0].name, message, "Export the network again from weights.")


def _sums_in_float16(graph: LintGraph) -> Iterator[Finding]:
    """Operators that overflow float16 on ordinary numbers, where they are or will be given float16."""
    ranges = value_ranges(graph)
    for node in graph.nodes:
        if not node.input or not _is_float16(graph, node.input[0]):
            continue
        low, high = ranges.get(node.input[0], ANY)
        typical = max(abs(low), abs(high)) if np.isfinite(low) and np.isfinite(high) else TYPICAL_ACTIVATION
        if node.op_type == "Exp" and high > np.log(_LARGEST) and not _is_inverted(graph, node):
            message = "overflows float16 from 11.1 on, and nothing before it keeps it below"
        elif node.op_type == "Pow" and (raised := _raised(graph, node, typical, ranges)):
            message = raised
        elif node.op_type in LONG_SUMS and (terms := _terms(graph, node)):
            each = typical**2 if node.op_type == "ReduceSumSquare" else typical
            if typical == TYPICAL_ACTIVATION and _is_square(graph, node.input[0]):
                each = TYPICAL_ACTIVATION**2
            if terms * each <= _LARGEST:
                continue
            message = f"sums {terms:,} terms, which reach {terms * each:.3g} where each is {each:g}"
        else:
            continue
        yield Finding("float16-overflow", "warning", node.name, f"{node.op_type} {message}", "Keep it in float32.")
    for node in graph.nodes:
        if node.op_type == "BatchNormalization" and len(node.input) > 4:
            scale, _, _, variance = (graph.constant(name) for name in node.input[1:5])
            if scale is None or variance is None or _stays_float32(graph, graph.tensors[node.input[1]]):
                continue
            epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
            lively = variance > epsilon  # a channel that never varied in training has no inputs of 10 either
            gains = np.abs(scale) / np.sqrt(np.maximum(variance, 0) + epsilon)
            gain = float(np.max(gains[lively], initial=0.0)) if gains.shape == lively.shape else 0.0
            if gain * TYPICAL_ACTIVATION > _LARGEST:
                message = f"BatchNormalization multiplies by {gain:.3g}: inputs of 10 leave float16"
                yield Finding("float16-overflow", "warning", node.name, message, "Keep it in float32.")


def _is_inverted(graph: LintGraph, node: onnx.NodeProto) -> bool:
    """Whether an exponential only adds to a divisor, as in a sigmoid by hand: of infinity, 0 is right."""
    sums = graph.readers.get(node.output[0], [])
    ends = [(end, one.output[0]) for one in sums for end in graph.readers.get(one.output[0], [])]
    are_sums = all(one.op_type == "Add" and any(graph.constant(name) is not None for name in one.input) for one in sums)
    divided = all(end.op_type == "Reciprocal" or (end.op_type == "Div" and end.input[1] == name) for end, name in ends)
    return bool(ends) and are_sums and divided and node.output[0] not in graph.outputs


def _is_square(graph: LintGraph, name: str) -> bool:
    maker = graph.maker.get(name)
    if maker is None or maker.op_type not in ("Mul", "Pow"):
        return False
    exponent = graph.constant(maker.input[1])
    squared = exponent is not None and exponent.size == 1 and exponent.item() == 2
    return maker.input[0] == maker.input[1] if maker.op_type == "Mul" else squared


def _raised(graph: LintGraph, node: onnx.NodeProto, typical: float, ranges: Mapping[str, Interval]) -> str | None:
    """What a power reaches that float16 does not hold, in words."""
    base, exponent = (graph.constant(name) for name in node.input)
    if exponent is not None and exponent.size == 1 and exponent.item() * np.log(max(typical, 1.0)) > np.log(_LARGEST):
        return f"to the {exponent.item():g} leaves float16 where its input is {typical:g}"
    high = ranges.get(node.input[1], ANY)[1]
    if base is not None and base.size and base.max() > 1 and high * np.log(base.max()) > np.log(_LARGEST):
        return f"of {base.max():g} leaves float16, and nothing before it keeps its exponent small"
    return None


def _is_float16(graph: LintGraph, name: str) -> bool:
    """Whether a tensor is in float16, or will be once the network is cast for its target."""
    element = graph.types.get(name, 0)
    return element == TensorProto.FLOAT16 or (element == TensorProto.FLOAT and not graph.has_float16)


def _terms(graph: LintGraph, node: onnx.NodeProto) -> int:
    """How many elements of its input each output of a reduction sums, of a Softmax along what it is over all together
    as one; 0 where shapes do not tell."""
    shape = graph.shapes.get(node.input[0])
    if shape is None:
        return 0
    attributes = {a.name: list(a.ints) or [a.i] for a in node.attribute}
    axes = attributes.get("axes")
    if len(node.input) > 1 and node.input[1]:
        held = graph.constant(node.input[1])
        if held is None:
            return 0
        axes = [int(axis) for axis in held.ravel()]
    if not axes and attributes.get("noop_with_empty_axes", [0])[0]:
        return 1
    summed = {axis % len(shape) for axis in axes} if axes else set(range(len(shape)))
    before = graph.maker.get(node.input[0])
    if before is not None and before.op_type == "Mul":  # of weights: what they weigh is averaged
        makers = [graph.maker.get(name) for name in before.input]
        before = next((maker for maker in makers if maker is not None and maker.op_type == "Softmax"), None)
    if before is not None and before.op_type == "Softmax" and node.op_type != "CumSum":
        axis = next((a.i for a in before.attribute if a.name == "axis"), -1 if graph.opset >= SOFTMAX_OPSET else 1)
        summed -= {axis % len(shape)} if graph.opset >= SOFTMAX_OPSET else set(range(axis % len(shape), len(shape)))
    sizes = [shape[axis] for axis in summed]
    return 0 if None in sizes else int(np.prod([size or 0 for size in sizes]))


def _precision_of(graph: LintGraph, node: onnx.NodeProto) -> str:
    sources = [graph.maker.get(name) for name in node.input[:2]]
    dequantised = [s for s in sources if s is not None and s.op_type == "DequantizeLinear"]
    if len(dequantised) == len(sources):
        stored = {graph.types.get(source.input[0], 0) for source in dequantised}
        if stored <= _INT8:
            return "int8"
        return "fp8" if stored <= _FLOAT8 else TensorProto.DataType.Name(max(stored - _INT8)).lower()
    # After an operator that nobody knows, types are not known; its weight's is.
    element = graph.types.get(node.input[0], 0) or graph.types.get(node.input[1], 0)
    return _FLOATS.get(element, "an unknown type")
