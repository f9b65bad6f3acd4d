"""Graph optimisation "basic" of ONNX Runtime: nodes that go into their neighbours' weights or settings."""

from __future__ import annotations

import numpy as np

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Constant, Node, TensorType

_WINDOWED = frozenset({"Conv", "MaxPool", "AveragePool"})


def fold_into_convolutions(graph: Graph) -> bool:
    """A batch norm, or a constant factor or addition per channel, behind a convolution becomes part of its weights."""
    changed = False
    for node in graph.of("Conv"):
        if node.alive and node.inputs[1] in graph.constants:
            while _fold_next(graph, node):
                changed = True
    return changed


def _fold_next(graph: Graph, conv: Node) -> bool:
    later = graph.only_reader(conv)
    if later is None or later.domain or (len(conv.inputs) > 2 and conv.inputs[2] not in graph.constants):
        return False
    weight = graph.types[conv.inputs[1]]
    channels = weight.shape[0]
    bias = TensorType(weight.element, (channels,))
    if later.op == "BatchNormalization":
        if len(later.outputs) > 1 or later.integer("training_mode") or not _are_constant(graph, later.inputs[1:]):
            return False
        _new_weight(graph, conv, 1, weight)
        _new_weight(graph, conv, 2, bias)
    elif later.op in ("Mul", "Add") and (factor := _channel_constant(graph, conv, later)) is not None:
        if later.op == "Mul":
            _new_weight(graph, conv, 1, weight)
            if len(conv.inputs) > 2:
                _new_weight(graph, conv, 2, bias)
        elif factor.type.shape and len(factor.type.shape) > 1:
            _new_weight(graph, conv, 2, bias)
        else:
            return False
    else:
        return False
    graph.absorb(conv, later)
    return True


def _are_constant(graph: Graph, names: list[str]) -> bool:
    return all(name in graph.constants for name in names if name)


def _channel_constant(graph: Graph, conv: Node, later: Node) -> Constant | None:
    """The other operand of a product or sum, if it is one number per output channel of the convolution."""
    if later.inputs[0] != conv.output:  # only the second operand is looked at
        return None
    constant = graph.constant(later, 1)
    if constant is None or constant.type.element != graph.types[conv.inputs[1]].element:
        return None
    channels = graph.types[conv.inputs[1]].shape[0]
    rank = len(graph.shape(conv.output))
    shape = constant.type.shape
    if later.op == "Mul" and shape == ():
        return constant
    per_channel = (channels, *(1 for _ in range(rank - 2)))
    return constant if shape in (per_channel, (1, *per_channel)) else None


def _new_weight(graph: Graph, conv: Node, i: int, type_: TensorType) -> None:
    """Another weight of the same shape: its values do not matter to anything here."""
    constant = Constant(type_, lambda: np.ones(type_.shape, np.float32))
    graph.set_input(conv, i, graph.add_unread_constant(constant, graph.unused_name("folded")))


def fuse_pads(graph: Graph) -> bool:
    """Zero padding of the spatial dimensions goes into the window operator that alone reads it."""
    changed = False
    for pad in graph.of("Pad"):
        later = graph.only_reader(pad)
        if later is None or later.domain or later.op not in _WINDOWED or later.inputs[0] != pad.output:
            continue
        pads = graph.constant(pad, 1)
        amounts = pads.value.tolist() if pads is not None else list(pad.integers("pads") or ())
        rank = len(graph.shape(pad.output))
        value = graph.constant(pad, 2)
        fill = value.scalar if value is not None else pad.number("value", 0.0)
        if (
            len(amounts) != 2 * rank
            or pad.text("mode", "constant") != "constant"
            or fill != 0.0
            or (later.op == "AveragePool" and not _counts_padding(later))
            or len([name for name in pad.inputs if name]) > 3
            or any(amounts[axis] or amounts[rank + axis] for axis in (0, 1))
            or min(amounts) < 0
            or later.text("auto_pad", "NOTSET") != "NOTSET"
        ):
            continue
        spatial = rank - 2
        own = list(later.integers("pads") or [0] * (2 * spatial))
        more = amounts[2:rank] + amounts[rank + 2 :]
        later.set("pads", [a + b for a, b in zip(own, more, strict=True)])
        if later.op == "AveragePool":
            later.set("count_include_pad", 1)
        graph.set_input(later, 0, pad.inputs[0])
        graph.remove(pad)
        changed = True
    return changed


def _counts_padding(pool: Node) -> bool:
    """Whether an average counts the zeros around its input, or has none of its own."""
    return bool(pool.integer("count_include_pad")) or not any(pool.integers("pads") or ())


def fuse_relu_clips(graph: Graph) -> bool:
    """A clip that alone reads a rectifier does the rectifier's work too."""
    changed = False
    for relu in graph.of("Relu"):
        clip = graph.only_reader(relu)
        if clip is None or not clip.is_a("Clip"):
            continue
        least = graph.constant(clip, 1)
        if len(clip.inputs) > 1 and clip.inputs[1] and (least is None or least.scalar is None):
            continue
        if least is None or least.scalar is None or least.scalar < 0:
            zero = graph.add_constant(np.zeros((), np.float32), "FuseReluClip_min_zero_constant")
            graph.set_input(clip, 1, zero)
        graph.set_input(clip, 0, relu.inputs[0])
        graph.remove(relu)
        changed = True
    return changed


def swap_negated_choices(graph: Graph) -> bool:
    """`Where` with a negated condition takes the condition, and its branches the other way round."""
    changed = False
    for negation in graph.of("Not"):
        where = graph.only_reader(negation)
        if where is not None and where.is_a("Where") and where.inputs[0] == negation.output:
            yes, no = where.inputs[1:3]
            for i, name in enumerate((negation.inputs[0], no, yes)):
                graph.set_input(where, i, name)
            graph.remove(negation)
            changed = True
    return changed


def fuse_divisions(graph: Graph) -> bool:
    """1 / x · y is y / x."""
    changed = False
    for div in graph.of("Div"):
        product = graph.only_reader(div)
        constant = graph.constant(div, 0)
        if product is None or not product.is_a("Mul") or constant is None or constant.scalar != 1.0:
            continue
        if product.inputs[0] == product.inputs[1] or len(constant.type.shape) > len(graph.shape(div.inputs[1])):
            continue
        other = product.inputs[1 - product.inputs.index(div.output)]
        graph.set_input(div, 0, other)
        graph.absorb(div, product)
        changed = True
    return changed
