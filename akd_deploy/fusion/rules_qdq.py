"""Quantised networks: an operator between `DequantizeLinear` and `QuantizeLinear` becomes one on integers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import MICROSOFT, Node
from akd_deploy.fusion.qdq_pairs import DEQUANTISE, QUANTISE, have_equal_scales
from akd_deploy.fusion.types_of_outputs import default_attributes

_INTEGERS: Mapping[int, tuple[int, int]] = {onnx.TensorProto.UINT8: (0, 255), onnx.TensorProto.INT8: (-128, 127)}
_EPSILON = float(np.finfo(np.float32).eps)


def drop_clipped_activations(graph: Graph) -> bool:
    """An activation that cuts off nothing but what quantising cuts off anyway."""
    changed = False
    for node in graph.of("Relu", "Clip"):
        later = graph.only_reader(node)
        if later is None or later.op != QUANTISE or len(later.inputs) < 3:
            continue
        if graph.writer(node.inputs[0]) is None and len(node.inputs) > 1:
            continue
        limits = _INTEGERS.get(_element(graph, later))
        scale, zero = (graph.constants.get(name) for name in later.inputs[1:])
        if limits is None or scale is None or zero is None or zero.scalar is None or scale.scalar is None:
            continue
        least, most = (np.float32(scale.scalar) * np.float32(limit - zero.scalar) for limit in limits)
        if node.op == "Relu":
            is_needless = zero.scalar == limits[0]
        else:
            bounds = _bounds(graph, node)
            is_needless = bounds is not None and bool(max(bounds[0] - least, most - bounds[1]) <= _EPSILON)
        if is_needless:
            graph.set_input(later, 0, node.inputs[0])
            graph.remove(node)
            changed = True
    return changed


def _bounds(graph: Graph, clip: Node) -> tuple[float, float] | None:
    """What a clip clips to, None where that is not known."""
    found = [clip.number("min", -np.inf), clip.number("max", np.inf)]
    for i, name in enumerate(clip.inputs[1:3]):
        constant = graph.constants.get(name)
        if name and (constant is None or constant.scalar is None):
            return None
        if constant is not None and constant.scalar is not None:
            found[i] = constant.scalar
    return found[0], found[1]


def fuse_quantised(graph: Graph) -> bool:
    """Go through the operators that have a variant on integers."""
    changed = False
    for node in graph.nodes:
        rule = _RULES.get(node.op)
        if node.alive and rule is not None and not node.domain:
            changed |= rule(graph, node)
    return changed


# --- what stands around an operator -----------------------------------------------------------------------------


def _before(graph: Graph, node: Node, i: int) -> Node | None:
    """The `DequantizeLinear` behind input `i`."""
    writer = graph.writer(node.inputs[i]) if i < len(node.inputs) else None
    return writer if writer is not None and writer.op == DEQUANTISE and len(writer.inputs) == 3 else None


def _behind(graph: Graph, node: Node) -> Node | None:
    """The `QuantizeLinear` that alone reads the output."""
    later = graph.only_reader(node)
    return later if later is not None and later.op == QUANTISE and len(later.inputs) == 3 else None


def stays_float(graph: Graph, node: Node) -> bool:
    """Whether a product is left alone though nothing that could be part of it quantises its output."""
    return is_clipped(graph, node) or any(reader.op == QUANTISE for reader in graph.readers(node.output))


def is_clipped(graph: Graph, node: Node) -> bool:
    """Whether an activation that might belong to the operator, and that alone is read on, alone reads it."""
    readers = graph.readers(node.output)
    if len(readers) != 1 or not readers[0].is_a("Relu", "Clip"):
        return False
    output = readers[0].output
    return output not in graph.outputs and len(graph.readers(output)) == 1


def _all_before(graph: Graph, node: Node, positions: Sequence[int]) -> list[Node] | None:
    found = [_before(graph, node, i) for i in positions]
    nodes = [node for node in found if node is not None]
    return nodes if len(nodes) == len(found) else None


def _element(graph: Graph, quantised: Node) -> int:
    """The integer type on the quantised side."""
    name = quantised.inputs[0] if quantised.op == DEQUANTISE else quantised.output
    return graph.types[name].element


def _replace(graph: Graph, node: Node, before: Sequence[Node], behind: Node | None, made: Node) -> None:
    output = (behind or node).output
    for old in (behind, node):
        if old is not None:
            graph.remove(old)
    made.outputs = [output]
    graph.add(made)
    for old in before:
        if old.alive:
            graph.drop_if_unread(old)


# --- rules ------------------------------------------------------------------------------------------------------


def _convolution(graph: Graph, node: Node) -> bool:
    before, behind = _all_with_bias(graph, node), _behind(graph, node)
    if before is None or behind is None or _element(graph, before[0]) != _element(graph, behind):
        return False
    if _element(graph, before[0]) == onnx.TensorProto.INT8:
        return False
    inputs = [*before[0].inputs, *before[1].inputs, *behind.inputs[1:], *(node.inputs[0] for node in before[2:])]
    made = Node("QLinearConv", inputs, [], node.name, "", node.attributes)
    _replace(graph, node, before, behind, made)
    return True


def _all_with_bias(graph: Graph, node: Node) -> list[Node] | None:
    """The `DequantizeLinear` behind data, weights and, if there is one, bias, which may do without a zero point."""
    before = _all_before(graph, node, (0, 1))
    if before is None or len(node.inputs) < 3 or not node.inputs[2]:
        return before
    bias = graph.writer(node.inputs[2])
    return [*before, bias] if bias is not None and bias.op == DEQUANTISE else None


def _elementwise(op: str, domain: str = MICROSOFT) -> Callable[[Graph, Node], bool]:
    """Operators that map one or two tensors to one."""

    def rule(graph: Graph, node: Node) -> bool:
        before, behind = _all_before(graph, node, range(len(node.inputs))), _behind(graph, node)
        if before is None or behind is None:
            return False
        elements = {_element(graph, quantised) for quantised in (*before, behind)}
        if len(elements) != 1:
            return False
        inputs = [name for quantised in before for name in quantised.inputs] + behind.inputs[1:]
        settings = {a.name: a for a in default_attributes(node.op, graph.opset, "")} | node.attributes
        _replace(graph, node, before, behind, Node(op, inputs, [], node.name, domain, settings))
        return True

    return rule


def _concat(graph: Graph, node: Node) -> bool:
    before, behind = _all_before(graph, node, range(len(node.inputs))), _behind(graph, node)
    if before is None or behind is None or len({_element(graph, q) for q in (*before, behind)}) != 1:
        return False
    inputs = behind.inputs[1:] + [name for quantised in before for name in quantised.inputs]
    _replace(graph, node, before, behind, Node("QLinearConcat", inputs, [], node.name, MICROSOFT, node.attributes))
    return True


def _gemm(graph: Graph, node: Node) -> bool:
    before, behind = _all_with_bias(graph, node), _behind(graph, node)
    if before is None or node.number("beta", 1.0) != 1.0 or (behind is None and stays_float(graph, node)):
        return False
    if behind is not None and _element(graph, before[0]) != _element(graph, behind):
        return False
    if _element(graph, before[0]) == onnx.TensorProto.INT8 != _element(graph, before[1]):
        return False
    inputs = [*before[0].inputs, *before[1].inputs, before[2].inputs[0] if len(before) > 2 else ""]
    if behind is not None:
        inputs += behind.inputs[1:]
    settings = {name: value for name, value in node.attributes.items() if name != "beta"}
    _replace(graph, node, before, behind, Node("QGemm", inputs, [], node.name, MICROSOFT, settings))
    return True


def _matmul(graph: Graph, node: Node) -> bool:
    before, behind = _all_before(graph, node, (0, 1)), _behind(graph, node)
    if before is None or _element(graph, before[0]) == onnx.TensorProto.INT8:
        return False
    if behind is None and stays_float(graph, node):
        return False
    if behind is not None and _element(graph, before[0]) != _element(graph, behind):
        return False
    a, b = before
    if behind is not None:
        made = Node("QLinearMatMul", [*a.inputs, *b.inputs, *behind.inputs[1:]], [], node.name)
    else:
        inputs = [a.inputs[0], b.inputs[0], a.inputs[1], b.inputs[1], a.inputs[2], b.inputs[2]]
        made = Node("MatMulIntegerToFloat", inputs, [], node.name, MICROSOFT)
    _replace(graph, node, before, behind, made)
    return True


def _rearrangement(graph: Graph, node: Node) -> bool:
    """What moves values and does not change them moves integers, where the scale stays the same."""
    before, behind = _before(graph, node, 0), _behind(graph, node)
    if before is None or behind is None or not have_equal_scales(graph, before, behind):
        return False
    graph.set_input(node, 0, before.inputs[0])
    graph.absorb(node, behind)
    graph.drop_if_unread(before)
    return True


def _extremum(graph: Graph, node: Node) -> bool:
    """Where the largest value is can be told from integers; it is no value itself."""
    before = _before(graph, node, 0)
    if before is None or is_clipped(graph, node):
        return False
    graph.set_input(node, 0, before.inputs[0])
    graph.drop_if_unread(before)
    return True


def _choice(graph: Graph, node: Node) -> bool:
    before, behind = _all_before(graph, node, (1, 2)), _behind(graph, node)
    if before is None or behind is None or len({_element(graph, q) for q in (*before, behind)}) != 1:
        return False
    inputs = [node.inputs[0], *before[0].inputs, *before[1].inputs, *behind.inputs[1:]]
    _replace(graph, node, before, behind, Node("QLinearWhere", inputs, [], node.name, MICROSOFT))
    return True


def _nearest(graph: Graph, node: Node) -> bool:
    return node.text("mode", "nearest") == "nearest" and _rearrangement(graph, node)


def _split(graph: Graph, node: Node) -> bool:
    before = _before(graph, node, 0)
    behind = [graph.readers(name) for name in node.outputs]
    if before is None or any(name in graph.outputs for name in node.outputs):
        return False
    later = [readers[0] for readers in behind if len(readers) == 1 and readers[0].op == QUANTISE]
    if len(later) != len(node.outputs) or not all(have_equal_scales(graph, before, q) for q in later):
        return False
    graph.set_input(node, 0, before.inputs[0])
    for i, quantise in enumerate(later):
        graph.remove(quantise)
        graph.set_output(node, i, quantise.output)
    graph.drop_if_unread(before)
    return True


_RULES: Mapping[str, Callable[[Graph, Node], bool]] = {
    "Conv": _convolution,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Concat": _concat,
    **{op: _elementwise(f"QLinear{op}") for op in (
        "AveragePool", "GlobalAveragePool", "LeakyRelu", "Sigmoid", "Softmax", "Add", "Mul",
    )},
    **dict.fromkeys((
        "Gather", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "MaxPool", "Expand", "Slice", "Tile",
        "GatherElements", "ReduceMax", "ReduceMin", "DepthToSpace",
    ), _rearrangement),
    "Resize": _nearest,
    "Split": _split,
    "ArgMax": _extremum,
    "Where": _choice,
}  # fmt: skip
"""Operator → what becomes of it between `DequantizeLinear` and `QuantizeLinear`."""
