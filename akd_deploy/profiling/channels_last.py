"""Stretches whose ends lie channels last: what they are fed and give back is not reordered.

An engine that works channels last reorders a stretch's input and output, as it does once in a whole network. In a
stretch that is a large part of the time, and not the part that networks are made of. Transposes at the ends cost such
an engine nothing: it takes the tensor as it lies.
"""

from __future__ import annotations

import onnx
from onnx import helper

from akd_deploy.profiling.windows import Window

RANKS = (3, 4, 5)
"""Tensors with channels and one to three dimensions of space."""


def with_channels_last_ends(window: Window) -> Window | None:
    """The same stretch between transposes, its inputs and outputs channels last; None where it has no such ends."""
    model = onnx.ModelProto()
    model.CopyFrom(window.model)
    graph = model.graph
    before, after = [], []
    for value in graph.input:
        if (shape := _spatial(value)) is not None:
            rank, inner = len(shape), f"{value.name}_first"
            order = [0, rank - 1, *range(1, rank - 1)]
            before.append(helper.make_node("Transpose", [value.name], [inner], name=f"to_{inner}", perm=order))
            for node in graph.node:
                node.input[:] = [inner if name == value.name else name for name in node.input]
            _set_shape(value, [shape[0], *shape[2:], shape[1]])
    for value in graph.output:
        if (shape := _spatial(value)) is not None:
            inner, value.name = value.name, f"{value.name}_last"
            order = [0, *range(2, len(shape)), 1]
            after.append(helper.make_node("Transpose", [inner], [value.name], name=f"to_{value.name}", perm=order))
            _set_shape(value, [shape[0], *shape[2:], shape[1]])
    if not before and not after:
        return None
    nodes = [*before, *graph.node, *after]
    del graph.node[:]
    graph.node.extend(nodes)
    return Window(window.family, model, window.kind)


def _spatial(value: onnx.ValueInfoProto) -> list[int] | None:
    """The shape of a tensor with channels and space, both more than one element."""
    tensor = value.type.tensor_type
    shape = [int(dimension.dim_value) for dimension in tensor.shape.dim]
    if tensor.elem_type == onnx.TensorProto.INT64 or len(shape) not in RANKS:
        return None
    is_both = shape[1] > 1 and any(size > 1 for size in shape[2:])
    return shape if is_both else None


def _set_shape(value: onnx.ValueInfoProto, shape: list[int]) -> None:
    for dimension, size in zip(value.type.tensor_type.shape.dim, shape, strict=True):
        dimension.dim_value = size
