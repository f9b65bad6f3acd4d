"""Networks of which only the weights are quantised: products that dequantise them while they compute."""

from __future__ import annotations

from collections import Counter

import onnx

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import FLOAT, MICROSOFT, Node, TensorType
from akd_deploy.fusion.qdq_pairs import DEQUANTISE
from akd_deploy.fusion.rules_basic import identity_of
from akd_deploy.fusion.rules_qdq import stays_float
from akd_deploy.fusion.rules_qdq_types import add_placeholder

_BYTE = onnx.TensorProto.UINT8
_BLOCK = 32
"""Rows of weights that get a scale of their own."""


def fuse_weights(graph: Graph) -> bool:
    """`MatMul` and `Gemm` with integer weights and a float input."""
    changed = False
    products = [node for node in graph.of("MatMul", "Gemm") if _dequantiser(graph, node.inputs[1]) is not None]
    if not products:
        return False
    uses = Counter(identity_of(graph, name) for node in graph.nodes for name in node.inputs if name in graph.constants)
    for node in products:
        weight = _dequantiser(graph, node.inputs[1])
        if weight is None or not _is_plain(graph, node) or not _is_by_column(graph, weight):
            continue
        if all(uses[identity_of(graph, name)] == 1 for name in weight.inputs):
            _fuse(graph, node, weight)
            changed = True
    return changed


def _dequantiser(graph: Graph, name: str) -> Node | None:
    writer = graph.writer(name)
    return writer if writer is not None and writer.is_a(DEQUANTISE) else None


def _is_plain(graph: Graph, node: Node) -> bool:
    """Whether a product has no settings of its own, and nothing but weights is quantised."""
    others = (node.inputs[0], *node.inputs[2:])
    if any(_dequantiser(graph, name) is not None for name in others) or stays_float(graph, node):
        return False
    if any(node.integer(name) for name in ("transA", "transB")):
        return False
    return node.number("alpha", 1.0) == 1.0 == node.number("beta", 1.0)


def _is_by_column(graph: Graph, weight: Node) -> bool:
    """Whether constant bytes have one scale for all or one for each output channel."""
    if not all(name in graph.constants for name in weight.inputs) or graph.uses(weight.output) != 1:
        return False
    type_, scale = graph.types[weight.inputs[0]], graph.shape(weight.inputs[1])
    if type_.element not in (_BYTE, onnx.TensorProto.INT8) or len(type_.shape) != 2:
        return False
    return scale == () or (scale == type_.shape[1:] and weight.integer("axis", 1) in (1, -1))


def _fuse(graph: Graph, node: Node, weight: Node) -> None:
    rows, columns = graph.shape(weight.inputs[0])
    blocks = -(-rows // _BLOCK)
    stored = [TensorType(_BYTE, (columns, blocks, _BLOCK)), TensorType(FLOAT, (columns * blocks,))]
    if len(weight.inputs) > 2 or graph.types[weight.inputs[0]].element == _BYTE:
        stored.append(TensorType(_BYTE, (columns * blocks,)))
    inputs = [node.inputs[0], *(add_placeholder(graph, type_, weight.name) for type_ in stored)]
    if len(node.inputs) > 2 and node.inputs[2]:
        inputs += [""] * (5 - len(inputs)) + node.inputs[2:]
    graph.remove(node)
    graph.remove(weight)
    graph.add(Node("MatMulNBits", inputs, node.outputs, node.name, MICROSOFT))
