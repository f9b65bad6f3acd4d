"""ONNX Runtime's transpose optimiser: push transposes towards others that they cancel, where dimensions are saved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Node
from akd_deploy.fusion.permutations import Permutation, inverse, permutation_of
from akd_deploy.fusion.qdq_pairs import repair_units
from akd_deploy.fusion.transpose_passes import passable_inputs, passage
from akd_deploy.fusion.transposed_tensors import dequantiser, is_constant


def push_transposes(graph: Graph) -> bool:
    """Walk the nodes once; a transpose before a node goes behind it where that saves dimensions to move."""
    return _walk(graph, stays=frozenset({"Resize"}))


def push_transposes_on_cpu(graph: Graph) -> bool:
    """The same once the nodes are assigned to the CPU, whose `Resize` works in any layout."""
    return _walk(graph, stays=frozenset())


def _walk(graph: Graph, stays: frozenset[str]) -> bool:
    if not graph.of("Transpose"):
        return repair_units(graph)
    nodes = graph.nodes
    ahead = _look_ahead(graph, nodes)
    changed = False
    for node in nodes:
        if not node.alive or node.op in stays:
            continue
        for i, name in enumerate(list(node.inputs)):
            transpose = graph.writer(name)
            if transpose is not None and transpose.is_a("Transpose") and _push(graph, transpose, node, i, ahead):
                changed = True
                break
    return repair_units(graph) or changed


@dataclass
class _Ahead:
    """What tensors lead to, through operators that a transpose can pass."""

    transposes: set[str]
    """Tensors that lead to some transpose."""
    cancelling: dict[str, set[Permutation]]
    """Tensor → the permutations that a transpose it leads to undoes, through operators that keep the rank
    and write no output of the network."""


def _look_ahead(graph: Graph, nodes: Sequence[Node]) -> _Ahead:
    ahead = _Ahead(set(), {})
    for node in reversed(nodes):
        if node.is_a("Transpose"):
            ahead.transposes.add(node.inputs[0])
            ahead.cancelling.setdefault(node.inputs[0], set()).add(inverse(permutation_of(graph, node)))
        elif any(name in ahead.transposes for name in node.outputs):
            way = passage(node)
            if way is None or not way.transposes_outputs:
                continue
            inner = (name for name in node.outputs if name not in graph.outputs)
            undone = set().union(*(ahead.cancelling.get(name, set()) for name in inner))
            for name in (node.inputs[i] for i in passable_inputs(graph, node)):
                ahead.transposes.add(name)
                if len(graph.shape(name)) == len(graph.shape(node.output)):
                    ahead.cancelling.setdefault(name, set()).update(undone)
    return ahead


def _push(graph: Graph, transpose: Node, node: Node, i: int, ahead: _Ahead) -> bool:
    """Push the transpose at input `i` through the node, if that can be done and pays."""
    way = passage(node)
    inputs = passable_inputs(graph, node)
    if way is None or i not in inputs:
        return False
    perm = permutation_of(graph, transpose)
    if not node.is_a("Transpose", "MaxPool"):
        cost = sum(_input_cost(graph, node.inputs[j], perm) for j in inputs)
        leads = any(_leads_on(graph, name, perm, ahead) for name in node.outputs)
        if cost < 0 and way.transposes_outputs and not leads:
            cost += max(_moved_dimensions(graph, name) for name in node.outputs)
        if cost >= 0:
            return False
    return way.push(graph, node, perm)


def _leads_on(graph: Graph, name: str, perm: Permutation, ahead: _Ahead) -> bool:
    """Whether a transpose at this output is expected to meet another, and to undo it where the output is shared."""
    if name not in ahead.transposes or name in graph.outputs:
        return False
    is_shared = len({id(node) for node in graph.readers(name)}) > 1
    return not is_shared or perm in ahead.cancelling.get(name, set())


def _input_cost(graph: Graph, name: str, perm: Permutation) -> int:
    """Dimensions moved more (or less) by undoing `perm` at this tensor."""
    if is_constant(graph, name):
        return 0
    dequantise = dequantiser(graph, name)
    writer = graph.writer(name if dequantise is None else dequantise.inputs[0])
    if writer is not None and writer.is_a("Transpose"):
        cancels = permutation_of(graph, writer) == perm
        return -_moved_dimensions(graph, name) if cancels and _may_go(graph, writer) else 0
    return _moved_dimensions(graph, name)


def _may_go(graph: Graph, transpose: Node) -> bool:
    name = transpose.output
    return name not in graph.outputs and all(passage(node) is not None for node in graph.readers(name))


def _moved_dimensions(graph: Graph, name: str) -> int:
    return sum(n != 1 for n in graph.shape(name))
