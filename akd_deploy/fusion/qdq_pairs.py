"""Pairs of `QuantizeLinear` and `DequantizeLinear`: what stands between two of them is done on integers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx.helper import tensor_dtype_to_np_dtype

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Node, TensorType

QUANTISE, DEQUANTISE = "QuantizeLinear", "DequantizeLinear"


def separate_dequantisations(graph: Graph) -> bool:
    """Every reader gets a `DequantizeLinear` of its own, so that each operator can be seen with those around it."""
    changed = False
    for node in graph.of(DEQUANTISE):
        readers = graph.readers(node.output)
        for reader in readers if node.output in graph.outputs else readers[1:]:
            name = graph.unused_name(f"{node.output}/duplicated")
            copy = Node(node.op, node.inputs, [name], f"{node.name}/duplicated", node.domain, node.attributes)
            graph.add(copy, [graph.types[node.output]])
            graph.set_input(reader, _position(reader, node.output), name)
            changed = True
    return changed


def _position(node: Node, name: str) -> int:
    return len(node.inputs) - 1 - node.inputs[::-1].index(name)


def propagate_quantisation(graph: Graph) -> bool:
    """Around what only moves values, quantised on one side, quantise the other side as well."""
    changed = False
    nodes = graph.nodes
    for node in nodes:
        if node.op == QUANTISE and _is_constant(graph, node):
            changed |= _propagate_backward(graph, node)
    for node in nodes:
        if node.op == DEQUANTISE and _is_constant(graph, node):
            changed |= _propagate_forward(graph, node)
    return changed


_MOVERS = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Slice")


def _propagate_backward(graph: Graph, quantise: Node) -> bool:
    changed = False
    mover = graph.writer(quantise.inputs[0])
    while mover is not None and mover.is_a(*_MOVERS) and graph.uses(mover.output) == 1:
        name = mover.inputs[0]
        source = graph.writer(name)
        if source is not None and (source.op == DEQUANTISE or graph.uses(name) != 1):
            break
        insert_pair(graph, name, [(mover, 0)], quantise)
        changed = True
        mover = source
    return changed


def _propagate_forward(graph: Graph, dequantise: Node) -> bool:
    changed = False
    only = graph.only_reader(dequantise)
    movers = [] if only is None else [only]
    for mover in movers:
        if not mover.is_a(*_MOVERS):
            continue
        edges = edges_of(graph, mover.output)
        if all(reader.op != QUANTISE for reader, _ in edges) and graph.uses(mover.output):
            insert_pair(graph, mover.output, edges, dequantise)
            movers += [reader for reader, _ in edges]
            changed = True
    return changed


def _is_constant(graph: Graph, node: Node) -> bool:
    return len(node.inputs) == 3 and all(name in graph.constants and not graph.shape(name) for name in node.inputs[1:])


def edges_of(graph: Graph, name: str) -> list[tuple[Node, int]]:
    """Who reads a tensor, and as which input."""
    readers = {id(node): node for node in graph.readers(name)}
    return [(node, i) for node in readers.values() for i, read in enumerate(node.inputs) if read == name]


def insert_pair(graph: Graph, name: str, edges: Sequence[tuple[Node, int]], like: Node) -> None:
    """Quantise a tensor, and dequantise it again for each of these readers and as the network's output."""
    type_, scale = graph.types[name], like.inputs[1:]
    integer = graph.types[like.output if like.op == QUANTISE else like.inputs[0]].element
    written, quantised = name, graph.unused_name(f"{name}_q_to_dq")
    writer = graph.writer(name)
    if writer is not None:
        written = graph.unused_name(f"{name}_pre_q")
        graph.types[written] = type_
        graph.set_output(writer, writer.outputs.index(name), written)
    graph.add(Node(QUANTISE, [written, *scale], [quantised], f"{name}_q"), [TensorType(integer, type_.shape)])
    for i, (reader, position) in enumerate(edges):
        back, number = graph.unused_name(f"{name}_post_dq"), i or ""
        graph.add(Node(DEQUANTISE, [quantised, *scale], [back], f"{name}_dq{number}"), [type_])
        graph.set_input(reader, position, back)
    if writer is not None and name in graph.outputs:
        graph.add(Node(DEQUANTISE, [quantised, *scale], [name], f"{name}_dq{len(edges) or ''}"), [type_])


def merge_pairs(graph: Graph) -> bool:
    """Two pairs in a row are one, for the numbers that both can tell."""
    changed = False
    for inner in graph.of(DEQUANTISE):
        first, last = graph.writer(inner.inputs[0]), graph.only_reader(inner)
        if first is None or first.op != QUANTISE or graph.uses(first.output) != 1:
            continue
        if last is None or last.op != QUANTISE or graph.types[first.output] != graph.types[last.output]:
            continue
        behind = graph.readers(last.output)
        if last.output in graph.outputs or any(node.op != DEQUANTISE for node in behind):
            continue
        if behind and _is_constant(graph, first) and _is_constant(graph, last):
            if not have_equal_scales(graph, first, last):
                _narrow(graph, [first, *behind], first, last)
            graph.remove(inner)
            graph.read_instead(last.output, first.output)
            graph.remove(last)
            changed = True
    return changed


def _narrow(graph: Graph, nodes: Sequence[Node], first: Node, second: Node) -> None:
    """Let these nodes' scale and zero point span what two nodes' have in common."""
    limits = np.iinfo(tensor_dtype_to_np_dtype(graph.types[first.output].element))
    spans = []
    for node in (first, second):
        scale, zero = (graph.constants[name].value.reshape(()) for name in node.inputs[1:])
        spans.append([np.float32(limit - int(zero)) * scale for limit in (limits.min, limits.max)])
    least, most = max(span[0] for span in spans), min(span[1] for span in spans)
    scale = np.asarray((most - least) / np.float32(limits.max - limits.min), np.float32)
    zero = np.clip(np.round(limits.min - least / scale), limits.min, limits.max).astype(limits.dtype)
    for node in nodes:
        for i, (value, stem) in enumerate(((scale, "scale"), (np.asarray(zero), "zero_point")), 1):
            graph.set_input(node, i, graph.add_constant(value, stem))


def repair_units(graph: Graph) -> bool:
    """After transposes were pushed: a pair with nothing in between goes, a transpose in a half of a pair gets both."""
    changed = False
    if not graph.of(DEQUANTISE):
        return changed
    for node in graph.nodes:
        if node.alive and node.is_a(QUANTISE):
            changed |= _drop_empty_pair(graph, node)
        elif node.alive and node.is_a("Transpose"):
            changed |= _quantise_behind(graph, node) or _quantise_before(graph, node)
    return changed


def _distinct_readers(graph: Graph, name: str) -> list[Node]:
    return list({id(node): node for node in graph.readers(name)}.values())


def _drop_empty_pair(graph: Graph, quantise: Node) -> bool:
    dequantise = graph.writer(quantise.inputs[0])
    if dequantise is None or dequantise.op != DEQUANTISE or graph.uses(dequantise.output) != 1:
        return False
    source, output = dequantise.inputs[0], quantise.output
    if graph.types[source].element != graph.types[output].element or not have_equal_scales(graph, dequantise, quantise):
        return False
    if output in graph.outputs:
        writer = graph.writer(source)
        if graph.readers(output) or writer is None or graph.uses(source) != 1:
            return False
        graph.remove(quantise)
        graph.remove(dequantise)
        graph.set_output(writer, writer.outputs.index(source), output)
        return True
    if len(_distinct_readers(graph, output)) != 1:
        return False
    graph.read_instead(output, source)
    graph.remove(quantise)
    graph.remove(dequantise)
    return True


def _quantise_behind(graph: Graph, transpose: Node) -> bool:
    dequantise = graph.writer(transpose.inputs[0])
    readers = _distinct_readers(graph, transpose.output)
    if dequantise is None or dequantise.op != DEQUANTISE or len(readers) > 1:
        return False
    if graph.uses(dequantise.output) != 1 or any(reader.op == QUANTISE for reader in readers):
        return False
    insert_pair(graph, transpose.output, edges_of(graph, transpose.output), dequantise)
    return True


def _quantise_before(graph: Graph, transpose: Node) -> bool:
    name = transpose.inputs[0]
    source, later = graph.writer(name), graph.only_reader(transpose)
    if source is None or source.op == DEQUANTISE or later is None or later.op != QUANTISE:
        return False
    if len(_distinct_readers(graph, name)) != 1:
        return False
    insert_pair(graph, name, [(transpose, 0)], later)
    return True


def have_equal_scales(graph: Graph, first: Node, second: Node) -> bool:
    """Whether two nodes quantise and dequantise in the same way."""
    if len(first.inputs) != len(second.inputs):
        return False
    for a, b in zip(first.inputs[1:], second.inputs[1:], strict=True):
        one, other = graph.constants.get(a), graph.constants.get(b)
        if a != b and (one is None or other is None or one.type != other.type or (one.value != other.value).any()):
            return False
    return True
