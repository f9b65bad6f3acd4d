"""How a transpose gets from before an operator to behind it, operator by operator."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import MICROSOFT, Node
from akd_deploy.fusion.permutations import (
    Permutation,
    as_permutation,
    compose,
    inverse,
    is_identity,
    permutation_of,
    refinement,
    squeezed,
    unsqueezed,
)
from akd_deploy.fusion.transposed_tensors import raise_rank, transpose_input, transpose_outputs

Push = Callable[[Graph, Node, Permutation], bool]
"""Push a transpose by this permutation through a node; False where that is impossible, and nothing was changed."""


@dataclass(frozen=True)
class Passage:
    """`inputs` says at which inputs a transpose may stand: "first", "all", those that are "not scalar", or the data
    among the scales and zero points of a "quantised pair" or a "quantised list"."""

    inputs: str
    push: Push
    transposes_outputs: bool = True


def passage(node: Node) -> Passage | None:
    """How a transpose passes this node, None where it cannot."""
    return _PASSAGES.get(node.op if not node.domain else f"{node.domain}.{node.op}")


def passable_inputs(graph: Graph, node: Node) -> Sequence[int]:
    """The inputs at which a transpose can pass the node."""
    way = passage(node)
    if way is None:
        return ()
    if way.inputs == "first":
        return (0,)
    if way.inputs == "all":
        return range(len(node.inputs))
    if way.inputs == "quantised pair":
        return (0, 3)
    if way.inputs == "quantised list":
        return range(2, len(node.inputs), 3)
    return [i for i, name in enumerate(node.inputs) if name and graph.shape(name)]


def _move(graph: Graph, node: Node, perm: Permutation, behind: Permutation | None = None) -> bool:
    """Undo `perm` at the first input and do it, or `behind`, at the outputs."""
    transpose_input(graph, node, 0, inverse(perm))
    transpose_outputs(graph, node, perm if behind is None else behind)
    return True


def _constant(graph: Graph, values: Iterable[int]) -> str:
    return graph.add_constant(np.asarray([int(n) for n in values], np.int64), "const_transpose_optimizer")


# --- operators that work on every element alike -----------------------------------------------------------------


def _push_simple(graph: Graph, node: Node, perm: Permutation) -> bool:
    for i in passable_inputs(graph, node):
        transpose_input(graph, node, i, inverse(perm))
    transpose_outputs(graph, node, perm)
    return True


def _push_broadcast(graph: Graph, node: Node, perm: Permutation) -> bool:
    inputs = passable_inputs(graph, node)
    if any(len(graph.shape(node.inputs[i])) > len(perm) for i in inputs):
        return False
    for i in inputs:
        raise_rank(graph, node, i, len(perm))
    return _push_simple(graph, node, perm)


# --- operators with an axis -------------------------------------------------------------------------------------


def _push_softmax(graph: Graph, node: Node, perm: Permutation) -> bool:
    if graph.opset >= 13:
        return _push_with_axis(graph, node, perm, -1)
    axis = node.integer("axis", 1) % len(perm)
    if any((i < axis) != (source < axis) for i, source in enumerate(perm)):
        return False  # the input is seen as a matrix: dimensions may not change sides
    return _push_simple(graph, node, perm)


def _push_with_axis(graph: Graph, node: Node, perm: Permutation, default: int = 0) -> bool:
    axis = node.integer("axis", default) % len(perm)
    _push_simple(graph, node, perm)
    node.set("axis", perm[axis])
    return True


def _push_gather(graph: Graph, node: Node, perm: Permutation) -> bool:
    if graph.shape(node.inputs[1]) != ():
        return False
    axis = perm[node.integer("axis", 0) % len(perm)]
    node.set("axis", axis)
    return _move(graph, node, perm, squeezed(perm, [axis]))


def _push_extremum(graph: Graph, node: Node, perm: Permutation) -> bool:
    axis = perm[node.integer("axis", 0) % len(perm)]
    node.set("axis", axis)
    return _move(graph, node, perm, perm if node.integer("keepdims", 1) else squeezed(perm, [axis]))


def _axes(graph: Graph, node: Node, rank: int) -> list[int] | None:
    """Axes given as an attribute or as a constant input, counted from the front; None where they are neither."""
    if "axes" in node.attributes:
        found = list(node.integers("axes") or ())
    elif (constant := graph.constant(node, 1)) is not None:
        found = [int(axis) for axis in constant.value.ravel()]
    else:
        return None
    return [axis % rank for axis in found]


def _set_axes(graph: Graph, node: Node, axes: Sequence[int], i: int = 1) -> None:
    if "axes" in node.attributes:
        node.set("axes", list(axes))
    else:
        graph.set_input(node, i, _constant(graph, axes))


def _push_reduction(graph: Graph, node: Node, perm: Permutation) -> bool:
    axes = _axes(graph, node, len(perm))
    if axes is None:
        if len(node.inputs) > 1 and node.inputs[1]:
            return False
        moved = [] if node.integer("noop_with_empty_axes") else list(range(len(perm)))
    else:
        moved = sorted(perm[axis] for axis in axes)
        _set_axes(graph, node, moved)
    return _move(graph, node, perm, perm if node.integer("keepdims", 1) else squeezed(perm, moved))


def _push_squeeze(graph: Graph, node: Node, perm: Permutation) -> bool:
    axes = _axes(graph, node, len(perm))
    if axes is None:
        return False
    moved = sorted(perm[axis] for axis in axes)
    _set_axes(graph, node, moved)
    return _move(graph, node, perm, squeezed(perm, moved))


def _push_unsqueeze(graph: Graph, node: Node, perm: Permutation) -> bool:
    axes = _axes(graph, node, len(graph.shape(node.output)))
    return axes is not None and _move(graph, node, perm, unsqueezed(perm, axes))


def _push_slice(graph: Graph, node: Node, perm: Permutation) -> bool:
    if "starts" in node.attributes:
        starts = node.integers("starts") or ()
        axes = node.integers("axes") or tuple(range(len(starts)))
        node.set("axes", [perm[axis % len(perm)] for axis in axes])
        return _move(graph, node, perm)
    given = graph.constant(node, 3)
    if given is not None:
        axes = tuple(int(axis) % len(perm) for axis in given.value.ravel())
    elif len(node.inputs) > 3 and node.inputs[3]:
        return False
    else:
        axes = tuple(range(graph.shape(node.inputs[1])[0]))
    _set_axes(graph, node, [perm[axis] for axis in axes], 3)
    return _move(graph, node, perm)


# --- operators with a setting for every dimension ---------------------------------------------------------------


def _twice(perm: Permutation) -> list[int]:
    """The order of settings that come once for the begin and once for the end of every dimension."""
    return [*perm, *(axis + len(perm) for axis in perm)]


def _push_pad(graph: Graph, node: Node, perm: Permutation) -> bool:
    order = _twice(inverse(perm))
    pads = graph.constant(node, 1)
    if "pads" in node.attributes:
        given = node.integers("pads") or ()
        node.set("pads", [given[i] for i in order])
    elif pads is not None and pads.value.size == len(order):
        graph.set_input(node, 1, _constant(graph, pads.value[order]))
    else:
        return False
    return _move(graph, node, perm)


def _push_tile(graph: Graph, node: Node, perm: Permutation) -> bool:
    repeats = graph.constant(node, 1)
    if repeats is None:
        return False
    graph.set_input(node, 1, _constant(graph, repeats.value[list(inverse(perm))]))
    return _move(graph, node, perm)


def _push_resize(graph: Graph, node: Node, perm: Permutation) -> bool:
    if perm not in ((0, 2, 3, 1), (0, 3, 1, 2)):
        return False
    for i, name in enumerate(node.inputs[1:], 1):
        constant = graph.constants.get(name)
        if constant is None or constant.value.size == 0:
            continue
        is_region = i == 1 and graph.opset >= 11
        order = _twice(inverse(perm)) if is_region else list(inverse(perm))
        graph.set_input(node, i, graph.add_constant(constant.value[order], "const_transpose_optimizer"))
    return _move(graph, node, perm)


# --- transposes and reshapes ------------------------------------------------------------------------------------


def _merge(graph: Graph, node: Node, perm: Permutation) -> bool:
    """A transpose of a transpose is one, or none."""
    return _merge_with(graph, node, perm, permutation_of(graph, node))


def _merge_with(graph: Graph, node: Node, perm: Permutation, own: Permutation) -> bool:
    transpose = graph.writer(node.inputs[0])
    assert transpose is not None, node
    combined = compose(perm, own)
    source = transpose.inputs[0]
    if is_identity(combined):
        graph.replace_by_equal(node, source)
    else:
        for i in reversed(range(1, len(node.inputs))):
            graph.drop_input(node, i)
        node.op, node.attributes = "Transpose", {}
        node.set("perm", list(combined))
        graph.set_input(node, 0, source)
    graph.drop_if_unread(transpose)
    return True


def _push_reshape(graph: Graph, node: Node, perm: Permutation) -> bool:
    """A reshape that only moves dimensions of 1 is a transpose; one that only splits dimensions goes before it."""
    before, after = graph.shape(node.inputs[0]), graph.shape(node.output)
    if node.inputs[1] not in graph.constants:
        return False
    own = as_permutation(before, after)
    if own is not None:
        return _merge_with(graph, node, perm, own)
    parts = refinement(before, after)
    if parts is None:
        return False
    back = inverse(perm)
    graph.set_input(node, 1, _constant(graph, [n for axis in back for n in parts[axis]]))
    starts = np.cumsum([0, *(len(parts[axis]) for axis in back)])
    behind = tuple(int(starts[perm[i]]) + k for i, part in enumerate(parts) for k in range(len(part)))
    transpose = graph.writer(node.inputs[0])
    assert transpose is not None, node
    graph.set_input(node, 0, transpose.inputs[0])
    graph.drop_if_unread(transpose)
    transpose_outputs(graph, node, behind)
    return True


def _push_quantisation(graph: Graph, node: Node, perm: Permutation) -> bool:
    if graph.shape(node.inputs[1]) != ():
        node.set("axis", perm[node.integer("axis", 1) % len(perm)])
    return _move(graph, node, perm)


def _push_quantised_pool(graph: Graph, node: Node, perm: Permutation) -> bool:
    """A pool knows both layouts: what was behind it with channels first is before it with channels last."""
    last = node.integer("channels_last")
    to_first = (0, len(perm) - 1, *range(1, len(perm) - 1))
    if (inverse(perm) if last else perm) != to_first:
        return False
    node.set("channels_last", 1 - last)
    return _move(graph, node, perm)


def _push_max_pool(graph: Graph, node: Node, perm: Permutation) -> bool:
    """On integers there is a kernel with channels last, on float32 there is none."""
    integers = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)
    is_to_first = perm == (0, len(perm) - 1, *range(1, len(perm) - 1))
    if graph.types[node.output].element not in integers or len(node.outputs) > 1 or not is_to_first:
        return False
    node.op, node.domain = "NhwcMaxPool", MICROSOFT
    node.attributes.pop("storage_order", None)
    return _move(graph, node, perm)


_ELEMENTWISE = (
    "Cast", "Exp", "Gelu", "Identity", "LeakyRelu", "Log", "Reciprocal", "Relu", "Sigmoid", "Sqrt", "Tanh", "Abs",
    "Not", "Ceil", "Floor", "Neg", "Erf", "HardSigmoid", "Round", "IsInf", "IsNaN", "Selu", "Shrink", "Sign",
    "Softplus", "Softsign", "ThresholdedRelu", "Celu", "HardSwish", "Sin", "Cos", "Tan", "Sinh", "Cosh", "Asin",
    "Acos", "Atan", "Asinh", "Acosh", "Atanh", "Clip", "CastLike", "Elu",
)  # fmt: skip
_BROADCASTING = (
    "Add", "Max", "Min", "Mul", "Sub", "Div", "And", "Or", "Xor", "Mod", "PRelu", "BitShift", "Equal", "Greater",
    "Less", "GreaterOrEqual", "LessOrEqual", "Mean", "Sum", "Pow", "Where",
)  # fmt: skip
_REDUCTIONS = (
    "ReduceLogSum", "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum",
    "ReduceSumSquare", "ReduceL1", "ReduceL2",
)  # fmt: skip

_PASSAGES: Mapping[str, Passage] = {
    **dict.fromkeys(_ELEMENTWISE, Passage("first", _push_simple)),
    **dict.fromkeys(_BROADCASTING, Passage("not scalar", _push_broadcast)),
    **dict.fromkeys(_REDUCTIONS, Passage("first", _push_reduction)),
    **dict.fromkeys(("Softmax", "Hardmax", "LogSoftmax"), Passage("first", _push_softmax)),
    **dict.fromkeys(("ArgMin", "ArgMax"), Passage("first", _push_extremum)),
    "Concat": Passage("all", _push_with_axis),
    "Split": Passage("first", _push_with_axis),
    "Gather": Passage("first", _push_gather),
    "MaxPool": Passage("first", _push_max_pool),
    "QuantizeLinear": Passage("first", _push_quantisation),
    "DequantizeLinear": Passage("first", _push_quantisation),
    f"{MICROSOFT}.QLinearAdd": Passage("quantised pair", _push_broadcast),
    f"{MICROSOFT}.QLinearMul": Passage("quantised pair", _push_broadcast),
    f"{MICROSOFT}.QLinearConcat": Passage("quantised list", _push_with_axis),
    f"{MICROSOFT}.QLinearAveragePool": Passage("first", _push_quantised_pool),
    f"{MICROSOFT}.QLinearGlobalAveragePool": Passage("first", _push_quantised_pool),
    f"{MICROSOFT}.QLinearLeakyRelu": Passage("first", _push_simple),
    f"{MICROSOFT}.QLinearSigmoid": Passage("first", _push_simple),
    f"{MICROSOFT}.QLinearSoftmax": Passage("first", _push_softmax),
    "Pad": Passage("first", _push_pad),
    "Resize": Passage("first", _push_resize),
    "Slice": Passage("first", _push_slice),
    "Squeeze": Passage("first", _push_squeeze),
    "Unsqueeze": Passage("first", _push_unsqueeze),
    "Tile": Passage("first", _push_tile),
    "Transpose": Passage("first", _merge, transposes_outputs=False),
    "Reshape": Passage("first", _push_reshape, transposes_outputs=False),
}
