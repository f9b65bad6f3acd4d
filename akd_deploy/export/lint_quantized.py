"""Rules about QuantizeLinear and DequantizeLinear: pairs that an engine refuses, or does not turn into int8 kernels.

What each engine does was tried on small graphs with ONNX Runtime 1.31's CPU provider, OpenVINO 2026.4 and TensorRT-RTX
1.7 (whose parser is TensorRT 11's); what an engine was seen to fuse is no finding for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import TensorProto

from akd_deploy.export.finding import Finding
from akd_deploy.export.lint_graph import WEIGHTED, LintGraph
from akd_deploy.export.operators import FLOAT_ALONE, INT8_OPERATORS

TENSORRT = ("tensorrt", "tensorrt-rtx")
JOINS = ("Add", "Mul", "Concat")
"""Operators with int8 kernels that read two tensors or more, each with a scale of its own."""
BIAS_SCALE_TOLERANCE = 1e-3
"""A bias' scale may differ so much, relatively, from the product of the scales of input and weight."""

_RANGES: Mapping[int, tuple[int, int]] = {
    TensorProto.UINT8: (0, 255),
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT16: (0, 65535),
    TensorProto.INT16: (-32768, 32767),
}


_FOUR_BITS = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)


def refused_qdq(graph: LintGraph) -> Iterator[Finding]:
    """Pairs that the engine will not build, or that compute nothing sensible."""
    for node in graph.nodes:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.op_type == "DequantizeLinear" and graph.maker_op(node.input[0]) == "QuantizeLinear":
            told = _other_scale(graph, node) or _refused_dequantize(graph, node)
        else:
            told = _bad_scale(graph, node) or _refused_in_tensorrt(graph, node)
        if told is not None:
            yield Finding("refused-qdq", "error", node.name, *told)


def _bad_scale(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, str] | None:
    scale = graph.constant(node.input[1])
    if scale is None or scale.size == 0 or bool((np.isfinite(scale) & (scale > 0)).all()):
        return None
    wrong = scale.ravel()[~(np.isfinite(scale) & (scale > 0)).ravel()][0]
    return f"a scale of {wrong:g}: scales are positive and finite", "Calibrate again, on samples that are not constant."


def _other_scale(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, str] | None:
    """A pair whose halves disagree multiplies what goes through it."""
    made, read = _scale_key(graph, graph.maker[node.input[0]]), _scale_key(graph, node)
    if made is None or read is None or made == read:
        return None
    return "another scale or zero point than its QuantizeLinear: it changes what goes through", "Give both one scale."


def _refused_in_tensorrt(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, str] | None:
    if graph.target.engine not in TENSORRT:
        return None
    if node.op_type == "DequantizeLinear" and graph.types.get(node.input[0]) == TensorProto.INT32:
        fix = "Leave the bias in floating point."
        return f"a DequantizeLinear of int32: {graph.target.engine} dequantises int8 and float8 only", fix
    zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if zero is not None and zero.any():
        message = (
            f"zero point {zero.ravel()[np.flatnonzero(zero)[0]]:g}: {graph.target.engine} takes symmetric scales only"
        )
        return message, "Quantise symmetrically (`akd-deploy quantize` does for this target)."
    return None


def _refused_dequantize(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, str] | None:
    """OpenVINO compiles no convolution of signed activations whose zero point is not 0."""
    zero = graph.constant(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if graph.target.engine != "openvino" or zero is None or not zero.any():
        return None
    signed = graph.types.get(node.input[0]) == TensorProto.INT8
    convolved = [
        r for r in graph.readers.get(node.output[0], []) if r.op_type == "Conv" and all(_dequantized(graph, r))
    ]
    if signed and convolved:
        message = (
            f"signed activations with zero point {zero.ravel()[0]:g} into {convolved[0].name}: OpenVINO refuses it"
        )
        return message, "Quantise activations unsigned, or symmetrically."
    return None


def unfused_qdq(graph: LintGraph) -> Iterator[Finding]:
    for node in graph.nodes:
        readers = graph.readers.get(node.output[0], []) if node.output else []
        is_output = bool(node.output) and node.output[0] in graph.outputs
        told: tuple[str, str] | None = None
        severity = "warning"
        if node.op_type == "QuantizeLinear":
            if (not is_output and any(reader.op_type != "DequantizeLinear" for reader in readers)) or not readers:
                told = (
                    "a QuantizeLinear that no DequantizeLinear follows",
                    "Write Q and DQ as pairs around an operator.",
                )
        elif node.op_type == "DequantizeLinear":
            if readers and not is_output and all(reader.op_type == "QuantizeLinear" for reader in readers):
                message = "a DequantizeLinear that feeds a QuantizeLinear with nothing computed between"
                told = message, "Remove the pair, or give both sides one scale."
        elif any(graph.maker_op(name) == "DequantizeLinear" for name in node.input):
            if node.op_type in WEIGHTED and graph.weight_of(node) is not None:
                severity, told = _weighted(graph, node)
            else:
                severity, told = _other(graph, node)
        if told is not None:
            yield Finding("unfused-qdq", severity, node.name, *told)


def _dequantized(graph: LintGraph, node: onnx.NodeProto) -> list[bool]:
    return [graph.maker_op(name) == "DequantizeLinear" for name in node.input[:2]]


def _weighted(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, tuple[str, str] | None]:
    engine, op = graph.target.engine, node.op_type
    dequantized = _dequantized(graph, node)
    if not any(dequantized):
        return "warning", None  # a quantised bias alone
    if not all(dequantized):
        if not dequantized[0] and graph.types.get(graph.maker[node.input[1]].input[0]) in _FOUR_BITS:
            return "warning", None  # weights alone are meant to be small, not to compute in 4 bits
        if dequantized[0] and engine == "onnxruntime" and op in ("Conv", "Gemm"):
            message = (
                f"{op} whose weight is not quantised: the runtime quantises it while loading, other versions do not"
            )
            return "info", (message, "Quantise its weight too.")
        side = "weight" if dequantized[0] else "input"
        message = f"{op} whose {side} is not quantised, so it computes in floating point"
        return "warning", (message, f"Quantise its {side} too, or leave Q/DQ away here.")
    if op in FLOAT_ALONE.get(engine, ()):
        return "warning", _no_kernel(engine, op)
    return "warning", _scales(graph, node) or (_unquantised_output(graph, node) if engine == "onnxruntime" else None)


def _scales(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, str] | None:
    """Scales for each channel where a kernel needs one, a weight's zero point, a bias of another scale."""
    engine, op = graph.target.engine, node.op_type
    activation, weight = (graph.maker[name] for name in node.input[:2])
    scale = graph.constant(weight.input[1])
    if scale is not None and scale.size > 1 and _axis(weight, graph) != _output_axis(node, graph):
        message = f"{op} whose weight has scales along axis {_axis(weight, graph)}, over which it sums"
        return message, f"Give the weight scales along axis {_output_axis(node, graph)}, or one for all of it."
    scale = graph.constant(activation.input[1])
    if scale is not None and scale.size > 1 and engine != "openvino":
        message = f"{op} whose input has a scale for each channel, so it computes in floating point"
        return message, "Give activations one scale; only weights take one for each channel."
    zero = graph.constant(weight.input[2]) if len(weight.input) > 2 and weight.input[2] else None
    if engine == "openvino" and op == "Conv" and zero is not None and _is_signed_offset(graph, weight, zero):
        message = "Conv whose weight has a zero point, so it computes in floating point"
        return message, "Quantise weights symmetrically."
    return _bias(graph, node, activation, weight) if engine == "onnxruntime" else None


def _is_signed_offset(graph: LintGraph, weight: onnx.NodeProto, zero: np.ndarray) -> bool:
    return graph.types.get(weight.input[0]) == TensorProto.INT8 and bool(zero.any())


def _axis(dequantize: onnx.NodeProto, graph: LintGraph) -> int:
    axis = next((a.i for a in dequantize.attribute if a.name == "axis"), 1)
    tensor = graph.weights.get(dequantize.input[0])
    return axis + len(tensor.dims) if axis < 0 and tensor is not None else axis


def _output_axis(node: onnx.NodeProto, graph: LintGraph) -> int:
    """The axis of a weight along which its output channels lie."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute):
        return 0
    tensor = graph.weight_of(node)
    return len(tensor.dims) - 1 if tensor is not None else 1


def _bias(
    graph: LintGraph, node: onnx.NodeProto, activation: onnx.NodeProto, weight: onnx.NodeProto
) -> tuple[str, str] | None:
    """ONNX Runtime adds an int32 bias to its sums, whose scale is the product of the two."""
    maker = graph.maker.get(node.input[2]) if len(node.input) > 2 else None
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    found, one, other = (graph.constant(n.input[1]) for n in (maker, activation, weight))
    if found is None or one is None or other is None:
        return None
    wanted = one * other
    if np.allclose(found, wanted, rtol=BIAS_SCALE_TOLERANCE, atol=0.0):
        return None
    message = f"{node.op_type} whose bias has not the scale of input × weight, so it computes in floating point"
    return message, "Leave the bias in floating point: the runtime quantises it."


def _unquantised_output(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, str] | None:
    """ONNX Runtime's int8 convolutions have int8 outputs; an activation between must be one that Q does itself."""
    if node.op_type != "Conv":
        return None
    readers, name = graph.readers.get(node.output[0], []), node.output[0]
    if len(readers) == 1 and readers[0].op_type in ("Relu", "Clip") and name not in graph.outputs:
        activation, name = readers[0], readers[0].output[0]
        readers = graph.readers.get(name, [])
        if _all_quantize(readers) and name not in graph.outputs and not _done_by_q(graph, activation, readers[0]):
            message = (
                f"Conv with {activation.op_type} before its QuantizeLinear, whose range is wider: it computes in float"
            )
            return (
                message,
                "Choose scale and zero point from what the activation lets through (unsigned: zero point 0).",
            )
    elif len(readers) == 1 and not _all_quantize(readers) and graph.leads_to(readers[0], "QuantizeLinear"):
        message = f"Conv with {readers[0].op_type} before its QuantizeLinear: it computes in floating point"
        return message, "Quantise the tensor between the two as well, or leave Q/DQ away here."
    if _all_quantize(readers) and name not in graph.outputs:
        return None
    return "Conv whose output is not quantised, so it computes in floating point", "Quantise its output too."


def _all_quantize(readers: list[onnx.NodeProto]) -> bool:
    return bool(readers) and all(reader.op_type == "QuantizeLinear" for reader in readers)


def _done_by_q(graph: LintGraph, activation: onnx.NodeProto, quantize: onnx.NodeProto) -> bool:
    """Whether everything that Q can write lies within what Relu or Clip lets through, as float32 has it."""
    scale = graph.constant(quantize.input[1])
    zero = graph.constant(quantize.input[2]) if len(quantize.input) > 2 and quantize.input[2] else np.zeros(())
    span = _RANGES.get(graph.types.get(quantize.output[0], 0))
    if scale is None or zero is None or span is None or scale.size != 1 or zero.size != 1:
        return False
    step = np.float32(scale.item())
    lowest, highest = (step * np.float32(end - zero.item()) for end in span)
    if activation.op_type == "Relu":
        return bool(lowest >= 0)
    bounds = graph.clip_bounds(activation)
    return bounds is not None and bool(lowest >= np.float32(bounds[0]) and highest <= np.float32(bounds[1]))


def _other(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, tuple[str, str] | None]:
    engine, op = graph.target.engine, node.op_type
    readers = graph.readers.get(node.output[0], [])
    if op not in INT8_OPERATORS or op in FLOAT_ALONE.get(engine, ()):
        return "warning", _no_kernel(engine, op) if _all_quantize(readers) else None
    if op in JOINS and graph.leads_to(node, "QuantizeLinear"):
        return _join(graph, node)
    return "warning", None


def _no_kernel(engine: str, op: str) -> tuple[str, str]:
    where = f" on {engine}" if op in INT8_OPERATORS else ""
    message = f"Q/DQ around {op}, which has no int8 kernel{where}: a conversion each way and nothing gained"
    return message, "Leave the Q/DQ around this node away."


def _join(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, tuple[str, str] | None]:
    tensors = [name for name in node.input if graph.weights.get(name) is None and graph.maker_op(name) != "Constant"]
    floating = [name for name in tensors if graph.maker_op(name) != "DequantizeLinear"]
    engine = graph.target.engine
    if floating and len(floating) < len(tensors):
        if engine == "onnxruntime" or any(not _from_int8(graph, name) for name in floating):
            message = f"{node.op_type} of which only one side is quantised: {floating[0]!r} comes in floating point"
            return "warning", (message, f"Quantise {floating[0]!r} too.")
        return "warning", None
    signed = any(graph.types.get(graph.maker[n].input[0]) == TensorProto.INT8 for n in tensors if n not in floating)
    if engine == "onnxruntime" and node.op_type in ("Add", "Mul") and signed:
        message = (
            f"{node.op_type} of signed activations: on x86 it, and convolutions that share a side, compute in float"
        )
        return "warning", (message, "Quantise activations unsigned (`akd-deploy quantize` does for this target).")
    scales = {_scale_key(graph, graph.maker[name]) for name in tensors if graph.maker_op(name) == "DequantizeLinear"}
    if node.op_type == "Concat" and len(scales - {None}) > 1 and engine != "openvino":
        message = f"Concat of {len(tensors)} branches with {len(scales)} scales: requantised rather than copied"
        return "info", (message, "Give its inputs and output one scale.")
    return "warning", None


def _from_int8(graph: LintGraph, name: str) -> bool:
    """Whether a tensor comes out of an int8 kernel that takes the join along: nobody else reads it."""
    node = graph.maker.get(name)
    while node is not None and node.op_type in ("Relu", "Clip") and len(graph.readers.get(name, [])) == 1:
        name = node.input[0]
        node = graph.maker.get(name)
    return (
        node is not None
        and node.op_type in WEIGHTED
        and all(_dequantized(graph, node))
        and len(graph.readers[name]) == 1
    )


def _scale_key(graph: LintGraph, dequantize: onnx.NodeProto) -> tuple[bytes, bytes] | None:
    scale = graph.constant(dequantize.input[1])
    zero = graph.constant(dequantize.input[2]) if len(dequantize.input) > 2 and dequantize.input[2] else np.zeros(())
    return None if scale is None or zero is None else (scale.tobytes(), zero.astype(np.float64).tobytes())
