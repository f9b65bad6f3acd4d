"""Graph optimisation "basic" of ONNX Runtime: constants, repeated nodes, nodes that do nothing, reshapes."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx.helper import tensor_dtype_to_np_dtype

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Constant, Node
from akd_deploy.fusion.qdq_pairs import DEQUANTISE, QUANTISE

_INT64_MAX = np.iinfo(np.int64).max
_RANDOM = frozenset({
    "RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Multinomial", "Bernoulli", "Dropout",
})  # fmt: skip
NEVER_THE_SAME = _RANDOM | {DEQUANTISE}
"""Random numbers, and what every reader has for itself."""

_SHARED_ELEMENTS = 8
"""Constants of no more elements are one where they are equal."""

_SHARED_TYPES = frozenset({onnx.TensorProto.FLOAT, onnx.TensorProto.INT32, onnx.TensorProto.INT64})


def fold_constants(graph: Graph) -> bool:
    """Remove nodes whose outputs are known before the network runs."""
    changed = False
    for node in graph.nodes:
        is_known = all(name in graph.constants and name not in graph.outputs for name in node.outputs if name)
        if node.alive and is_known:
            source = graph.writer(node.inputs[0]) if node.inputs else None
            graph.remove(node)
            graph.stored.update((name, graph.types[name]) for name in node.outputs if name)
            graph.drop_unread(source)
            changed = True
        elif node.alive and node.is_a(DEQUANTISE):
            changed |= _fold_unit(graph, node)
    return changed


def _fold_unit(graph: Graph, dequantise: Node) -> bool:
    """Integers that one operator of one input reads between a pair are integers known beforehand again."""
    node = graph.only_reader(dequantise)
    if node is None or len(node.inputs) != 1 or len(node.outputs) != 1 or node.op in _RANDOM:
        return False
    quantise = graph.only_reader(node)
    if quantise is None or quantise.op != QUANTISE or quantise.output in graph.outputs:
        return False
    if not all(name in graph.constants for name in (*dequantise.inputs, *quantise.inputs[1:])):
        return False
    type_ = graph.types[quantise.output]
    values = np.zeros(type_.shape, tensor_dtype_to_np_dtype(type_.element))
    graph.add_unread_constant(Constant(type_, lambda: values), quantise.output)  # what they are is of no importance
    for old in (quantise, node, dequantise):
        graph.remove(old)
    return True


def merge_equal_nodes(graph: Graph) -> bool:
    """Common subexpressions: a node that repeats an earlier one gives way to it."""
    seen: dict[tuple[object, ...], Node] = {}
    changed = False
    for node in graph.nodes:
        if node.op in NEVER_THE_SAME:
            continue
        inputs = (identity_of(graph, name) for name in node.inputs)
        first = seen.setdefault((node.domain, node.op, *inputs, len(node.outputs), _settings(node)), node)
        if first is not node and not any(name in graph.outputs for name in node.outputs):
            for mine, theirs in zip(node.outputs, first.outputs, strict=True):
                graph.read_instead(mine, theirs)
            graph.remove(node)
            changed = True
    return changed


def _settings(node: Node) -> tuple[tuple[str, bytes], ...]:
    return tuple(sorted((name, a.SerializeToString(deterministic=True)) for name, a in node.attributes.items()))


def identity_of(graph: Graph, name: str) -> object:
    """Equal for tensors that are the same: the file's small constants are shared by value."""
    constant = graph.constants.get(name)
    if constant is None or name not in graph.given or constant.type.element not in _SHARED_TYPES:
        return name
    return (constant.type, constant.value.tobytes()) if math.prod(constant.type.shape) <= _SHARED_ELEMENTS else name


def drop_noops(graph: Graph) -> bool:
    """Copies, casts to the same type, full slices, additions of 0, products with 1."""
    changed = False
    for node in graph.nodes:
        test = _NOOPS.get(node.op)
        if test is None or node.domain or not node.alive or not test(graph, node):
            continue
        if node.output not in graph.outputs or (node.op == "Identity" and graph.uses(node.output) == 1):
            changed |= graph.bypass(node, _data_input(graph, node))
    return changed


def _data_input(graph: Graph, node: Node) -> int:
    return 1 if node.op in ("Add", "Mul") and node.inputs[0] in graph.constants else 0


def _is_unmasked(graph: Graph, node: Node) -> bool:
    return all(graph.uses(name) == 0 for name in node.outputs[1:] if name)


def _is_same_type(graph: Graph, node: Node) -> bool:
    return graph.types[node.inputs[0]].element == graph.types[node.output].element


def _is_full_slice(graph: Graph, node: Node) -> bool:
    """Whether it says, in the one way that is looked for, that nothing is cut off."""
    settings = [graph.constant(node, i) for i in range(1, len(node.inputs))]
    if any(setting is None for setting in settings) or len(settings) < 2:
        return False
    starts, ends, *rest = (setting.value for setting in settings if setting is not None)
    steps = rest[1] if len(rest) > 1 else np.ones(1)
    return not starts.any() and bool((ends == _INT64_MAX).all()) and bool((steps == 1).all())


def _keeps_shape(graph: Graph, node: Node) -> bool:
    return graph.shape(node.inputs[0]) == graph.shape(node.output)


def _adds_nothing(graph: Graph, node: Node) -> bool:
    neutral = 0.0 if node.op in ("Add", "Sub") else 1.0
    positions = (0, 1) if node.op in ("Add", "Mul") else (1,)
    for i in positions:
        constant = graph.constant(node, i)
        if constant is not None and graph.shape(node.inputs[1 - i]) == graph.shape(node.output):
            return constant.scalar == neutral
    return False


_NOOPS = {
    "Identity": _is_unmasked, "Dropout": _is_unmasked, "Cast": _is_same_type, "Slice": _is_full_slice,
    "Expand": _keeps_shape, "Add": _adds_nothing, "Sub": _adds_nothing, "Mul": _adds_nothing, "Div": _adds_nothing,
}  # fmt: skip


def merge_reshapes(graph: Graph) -> bool:
    """Reshapes that alone follow one another become one."""
    changed = False
    for first in graph.of("Reshape"):
        if not first.alive or first.integer("allowzero"):
            continue
        last, followers = first, []
        while (later := graph.only_reader(last)) is not None and later.is_a("Reshape", "Squeeze", "Unsqueeze"):
            if later.integer("allowzero") or later.inputs[0] != last.output:
                break
            last = later
            followers.append(later)
        if not followers:
            continue
        graph.remove(first)
        for node in followers:
            graph.remove(node)
        shape = graph.add_constant(np.asarray(graph.shape(last.output), np.int64), f"{first.name}_new_shape")
        graph.add(Node("Reshape", [first.inputs[0], shape], [last.output], f"{first.name}_new_reshape"))
        changed = True
    return changed
