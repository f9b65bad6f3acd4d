"""Give a node its inputs and outputs transposed, with transposes around it that undo that."""

from __future__ import annotations

import math

import numpy as np

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Constant, Node, TensorType
from akd_deploy.fusion.permutations import Permutation, compose, inverse, is_identity, permutation_of, unsqueezed
from akd_deploy.fusion.qdq_pairs import DEQUANTISE, edges_of, insert_pair


def transpose_input(graph: Graph, node: Node, i: int, perm: Permutation) -> None:
    """Let input `i` be what it was, transposed by `perm`; an inverse transpose before it goes away."""
    name = node.inputs[i]
    dequantise = dequantiser(graph, name)
    if is_constant(graph, name):
        source = name if dequantise is None else dequantise.inputs[0]
        constant = graph.constants[source]
        if math.prod(constant.type.shape) != 1:
            moved = Constant(_permuted(constant.type, perm), lambda: np.transpose(constant.value, perm))
            new = graph.add_unread_constant(moved, graph.unused_name(source))
            if dequantise is None:
                graph.set_input(node, i, new)
            else:
                _dequantise(graph, dequantise, new, perm)
        return
    before = graph.writer(name if dequantise is None else dequantise.inputs[0])
    if dequantise is not None and before is not None and before.is_a("Transpose"):
        if is_identity(compose(permutation_of(graph, before), perm)):
            _dequantise(graph, dequantise, before.inputs[0], perm)
            graph.drop_if_unread(before)
            return
    elif before is not None and before.is_a("Transpose"):
        combined = compose(permutation_of(graph, before), perm)
        source = before.inputs[0]
        graph.set_input(node, i, source if is_identity(combined) else _add_transpose(graph, source, combined))
        graph.drop_if_unread(before)
        return
    for reader in graph.readers(name):
        if reader.is_a("Transpose") and reader is not node and permutation_of(graph, reader) == perm:
            graph.set_input(node, i, reader.output)
            return
    graph.set_input(node, i, _add_transpose(graph, name, perm))
    _complete_unit(graph, dequantise, node.inputs[i])


def transpose_outputs(graph: Graph, node: Node, perm: Permutation) -> None:
    """Let the node write what it wrote before a transpose by `perm`, which now stands behind it."""
    if is_identity(perm):
        return
    for i, name in enumerate(node.outputs):
        inner = graph.unused_name(node.name)
        graph.types[inner] = _permuted(graph.types[name], inverse(perm))
        graph.set_output(node, i, inner)
        graph.add(Node("Transpose", [inner], [name], graph.unused_name("Transpose"), perm=list(perm)))


def raise_rank(graph: Graph, node: Node, i: int, rank: int) -> None:
    """Give input `i` leading dimensions of 1."""
    name = node.inputs[i]
    type_ = graph.types[name]
    missing = rank - len(type_.shape)
    if missing == 0:
        return
    dequantise = dequantiser(graph, name)
    if is_constant(graph, name):
        source = name if dequantise is None else dequantise.inputs[0]
        constant = graph.constants[source]
        raised = TensorType(constant.type.element, (1,) * missing + type_.shape)
        same = Constant(raised, lambda: constant.value.reshape(raised.shape))
        new = graph.add_unread_constant(same, graph.unused_name(source))
        if dequantise is None:
            graph.set_input(node, i, new)
        else:
            _dequantise(graph, dequantise, new, None)
        return
    new = graph.unused_name("Unsqueeze_out")
    axes = graph.add_constant(np.arange(missing), "const_transpose_optimizer")
    unsqueeze = graph.add(Node("Unsqueeze", [name, axes], [new], graph.unused_name("Unsqueeze")))
    graph.types[new] = TensorType(type_.element, (1,) * missing + type_.shape)
    graph.set_input(node, i, new)
    writer = graph.writer(name)
    if writer is not None and writer.is_a("Transpose"):
        perm = permutation_of(graph, writer)
        transpose_input(graph, unsqueeze, 0, inverse(perm))
        transpose_outputs(graph, unsqueeze, unsqueezed(perm, range(missing)))
    else:
        _complete_unit(graph, dequantise, new)


def is_constant(graph: Graph, name: str) -> bool:
    """Whether a tensor can be transposed before the network runs: a constant, or integers that are dequantised."""
    dequantise = dequantiser(graph, name)
    return name in graph.constants or (
        dequantise is not None and dequantise.inputs[0] in graph.constants and graph.uses(name) == 1
    )


def dequantiser(graph: Graph, name: str) -> Node | None:
    """The `DequantizeLinear` that writes a tensor, seen as a part of whoever reads it."""
    writer = graph.writer(name)
    return writer if writer is not None and writer.is_a(DEQUANTISE) else None


def _dequantise(graph: Graph, dequantise: Node, source: str, perm: Permutation | None) -> None:
    """Let a `DequantizeLinear` read what it read transposed by `perm`, or None: with leading dimensions of 1."""
    rank = len(graph.shape(dequantise.output))
    shape = graph.shape(source)
    if graph.shape(dequantise.inputs[1]):
        axis = dequantise.integer("axis", 1) % rank
        dequantise.set("axis", axis + len(shape) - rank if perm is None else inverse(perm)[axis])
    graph.set_input(dequantise, 0, source)
    graph.types[dequantise.output] = TensorType(graph.types[dequantise.output].element, shape)


def _complete_unit(graph: Graph, dequantise: Node | None, name: str) -> None:
    """What was put behind a `DequantizeLinear` is quantised again."""
    if dequantise is not None and graph.uses(dequantise.output) == 1:
        insert_pair(graph, name, edges_of(graph, name), dequantise)


def _permuted(type_: TensorType, perm: Permutation) -> TensorType:
    return TensorType(type_.element, tuple(type_.shape[i] for i in perm))


def _add_transpose(graph: Graph, source: str, perm: Permutation) -> str:
    name = graph.unused_name("Transpose_out")
    node = Node("Transpose", [source], [name], graph.unused_name("Transpose"), perm=list(perm))
    graph.add(node, [_permuted(graph.types[source], perm)])
    return name
