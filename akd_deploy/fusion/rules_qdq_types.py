"""Quantised networks: what must be there, and of which type, before operators on integers can be seen."""

from __future__ import annotations

import numpy as np
import onnx

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import FLOAT, Constant, Node, TensorType
from akd_deploy.fusion.qdq_pairs import DEQUANTISE, QUANTISE


def quantise_weights(graph: Graph) -> bool:
    """Weights and biases beside a quantised input become integers as well."""
    changed = False
    for node in graph.of("Conv", "ConvTranspose", "Gemm"):
        source, weight = graph.writer(node.inputs[0]), graph.writer(node.inputs[1])
        if source is None or source.op != DEQUANTISE or graph.shape(source.inputs[1]) or not _is_quantised(graph, node):
            continue
        has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
        is_open = weight is None or weight.op != DEQUANTISE
        if is_open and not _is_stored_float(graph, node.inputs[1]):
            continue
        if has_bias and not (_is_stored_float(graph, node.inputs[2]) and len(graph.shape(node.inputs[2])) == 1):
            continue
        scale = () if is_open or weight is None else graph.shape(weight.inputs[1])
        if not (is_open or has_bias) or (scale and not _is_per_output(graph, node, weight, has_bias)):
            continue
        if is_open:
            _dequantise(graph, node, 1, onnx.TensorProto.INT8, ())
        if has_bias:
            _dequantise(graph, node, 2, onnx.TensorProto.INT32, scale)
        changed = True
    return changed


def _is_quantised(graph: Graph, node: Node) -> bool:
    """Whether one node alone reads the output and quantises it; the caller may read it too."""
    readers = graph.readers(node.output)
    if len(readers) == 1 and readers[0].is_a("Relu", "Clip"):
        readers = graph.readers(readers[0].output)
    return len(readers) == 1 and readers[0].op == QUANTISE


def _is_stored_float(graph: Graph, name: str) -> bool:
    return name in graph.constants and graph.types[name].element == FLOAT and graph.writer(name) is None


def _is_per_output(graph: Graph, node: Node, weight: Node | None, has_bias: bool) -> bool:
    """Whether weights have one scale for each output channel."""
    if weight is None or not has_bias or graph.shape(weight.inputs[1]) != graph.shape(node.inputs[2]):
        return False
    return weight.integer("axis", 1) == (1 if node.op == "Gemm" and not node.integer("transB") else 0)


def _dequantise(graph: Graph, node: Node, i: int, element: int, scale: tuple[int, ...]) -> None:
    """Let input `i` come from integers; what they are depends on the weights' values, what is executed does not."""
    kind = ("weight", "bias")[i - 1]
    type_ = graph.types[node.inputs[i]]
    integers = add_placeholder(graph, TensorType(element, type_.shape), f"{node.name}_{kind}_q")
    inputs = [integers, add_placeholder(graph, TensorType(FLOAT, scale), f"{node.name}_{kind}_scale")]
    if kind == "weight":
        inputs.append(add_placeholder(graph, TensorType(element, ()), f"{node.name}_{kind}_zp"))
    output = graph.unused_name(f"{node.name}_{kind}_dq")
    made = graph.add(Node(DEQUANTISE, inputs, [output], f"{node.name}_{kind}_dq"), [type_])
    if scale:
        made.set("axis", 0)
    graph.set_input(node, i, output)


def add_placeholder(graph: Graph, type_: TensorType, stem: str) -> str:
    """A constant whose values are of no importance."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(type_.element)
    return graph.add_unread_constant(Constant(type_, lambda: np.zeros(type_.shape, dtype)), graph.unused_name(stem))


def make_unsigned(graph: Graph) -> bool:
    """A pair of signed integers becomes one of unsigned integers, which the kernels are faster on."""
    changed = False
    for quantise in graph.of(QUANTISE):
        dequantise = graph.only_reader(quantise)
        if dequantise is None or dequantise.op != DEQUANTISE or len(quantise.inputs) < 3:
            continue
        zeros = [
            graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None for node in (quantise, dequantise)
        ]
        first, second = (None if zero is None else zero.scalar for zero in zeros)
        type_ = graph.types[quantise.output]
        if type_.element != onnx.TensorProto.INT8 or first is None or (second or 0) != first:
            continue
        for node in (quantise, dequantise):
            graph.set_input(
                node, 2, graph.add_constant(np.asarray(first + 128, np.uint8), "qdq_s8_to_u8_zp_conversion")
            )
        name = graph.unused_name("qdq_s8_to_u8_quant")
        graph.types[name] = TensorType(onnx.TensorProto.UINT8, type_.shape)
        graph.set_output(quantise, 0, name)
        graph.set_input(dequantise, 0, name)
        changed = True
    return changed
