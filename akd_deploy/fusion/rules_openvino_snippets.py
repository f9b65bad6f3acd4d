"""Which element-wise layers OpenVINO compiles into subgraphs: what its CPU plug-in leaves over, joined greedily."""

from __future__ import annotations

import math

from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph

UNARY_EPILOGUES = frozenset({"Relu", "Elu", "Sigmoid", "Clamp", "Swish", "HSwish", "Mish"})
"""Activations that a convolution computes on its way out, even behind a sum."""

SIMPLE = UNARY_EPILOGUES | {"Tanh", "Gelu", "Abs", "Sqrt", "PRelu"}
ARITHMETIC = frozenset({"Add", "Multiply", "Subtract", "Divide"})

ELEMENTWISE = frozenset({
    "Relu", "Elu", "Sigmoid", "Clamp", "Swish", "HSwish", "Mish", "Tanh", "Gelu", "Abs", "Sqrt", "PRelu", "Add",
    "Multiply", "Subtract", "Divide", "Erf", "Exp", "Log", "SoftPlus", "Negative", "Maximum", "Minimum", "Power",
    "MulAdd",
})  # fmt: skip
"""Layers that work element by element."""

NO_SNIPPET = frozenset({"Mish", "SoftPlus", "Log"})
"""Element-wise layers that no subgraph takes in."""

_MOST_POINTERS = 11
"""Registers that address a subgraph's inputs and outputs."""

_Positions = dict[int | str, int]
"""Where layers (by identity) and outputs of the network (by name) are in the model's order."""

_CONVOLUTION, _SUM, _REDUCE, _MISC, _PRODUCT, _END = range(6)


def is_scale_shift(graph: LayerGraph, layer: Layer, data: str, axis: int) -> bool:
    """Whether a layer scales or shifts by one number, or by one per channel, that nothing else reads."""
    if layer.op not in ARITHMETIC or len(layer.inputs) != 2 or graph.data(layer) != [data]:
        return False
    name = layer.inputs[1 - layer.inputs.index(data)]
    if graph.uses(name) != 1 and math.prod(graph.shape(name)) != 1:
        return False
    return _is_per_channel(graph.shape(data), graph.shape(name), axis)


def _is_per_channel(data: tuple[int, ...], shape: tuple[int, ...], axis: int) -> bool:
    if len(shape) > len(data):
        return False
    aligned = (1,) * (len(data) - len(shape)) + shape
    return all(n == 1 or (i == axis and n == data[i]) for i, n in enumerate(aligned))


def is_simple(graph: LayerGraph, layer: Layer, data: str, axis: int) -> bool:
    """Whether a convolution can compute the layer on its way out."""
    return layer.op in SIMPLE or is_scale_shift(graph, layer, data, axis)


def mark_skipped(graph: LayerGraph) -> None:
    """Note what the plug-in means to fuse into its convolutions, products and reductions: no subgraph may have it."""
    kinds: dict[int, int] = {}
    axis = 1
    for layer in graph.layers():
        alone = len(layer.outputs) == 1 and graph.uses(layer.output) == 1
        rank = len(graph.shape(layer.output))
        kind: int | None = None
        if layer.op == "Convolution" and alone:
            kind, axis = _CONVOLUTION, 1
        elif layer.op == "Reduce" and alone:
            kind, axis = _REDUCE, _axis_after(graph, layer)
        elif alone and layer.op in ("MVN", "Interpolate", "Deconvolution", "AvgPool"):
            kind, axis = _MISC, 1
        elif layer.op == "MatMul" and alone:
            kind, axis = _PRODUCT, rank - 1
        else:
            kind = _continued(graph, layer, kinds, axis)
            if kind is not None and not alone:
                kind = _END
        if kind is not None:
            kinds[id(layer)] = kind
            layer.skipped = True


def _axis_after(graph: LayerGraph, layer: Layer) -> int:
    """Where channels are once dimensions are reduced away."""
    axes = [int(n) % len(graph.shape(layer.inputs[0])) for n in graph.constants[layer.inputs[1]].value]
    if layer.integer("keepdims", 1):
        return 1
    for axis in sorted(axes):
        if axis == 1:
            return -1
    return 0 if 0 in axes else 1


def _continued(graph: LayerGraph, layer: Layer, kinds: dict[int, int], axis: int) -> int | None:
    """The kind of chain that a layer carries on."""
    found: int | None = None
    for name in layer.inputs:
        before = graph.layer(name)
        kind = kinds.get(id(before)) if before is not None else None
        if kind is None or kind == _END or before is None:
            continue
        simple = len(graph.data(layer)) == 1 and is_simple(graph, layer, name, axis)
        if simple:
            found = kind
        elif kind == _CONVOLUTION:
            if layer.op == "Add" and len(graph.data(layer)) == 2 and _has_convolution(graph, layer, kinds):
                found = _SUM
            elif layer.op == "MaxPool":
                found = kind
        elif kind == _SUM and layer.op in UNARY_EPILOGUES:
            found = _CONVOLUTION
        elif kind == _PRODUCT and _fits_product(graph, layer, name):
            found = kind
    return found


def _has_convolution(graph: LayerGraph, layer: Layer, kinds: dict[int, int]) -> bool:
    """Whether a sum reads a convolution, with its bias or without, that nothing else does."""
    for name in layer.inputs:
        writer = graph.layer(name)
        if writer is None or graph.uses(name) != 1:
            continue
        if writer.op == "Convolution":
            return True
        is_bias = writer.op == "Add" and kinds.get(id(writer)) == _CONVOLUTION
        source = graph.layer(writer.inputs[0]) if is_bias else None
        if source is not None and source.op == "Convolution" and writer.inputs[1] in graph.constants:
            return True
    return False


def _fits_product(graph: LayerGraph, layer: Layer, name: str) -> bool:
    """Whether a product's bias, or what may follow it, is what the layer computes."""
    if layer.op == "Add":
        other = layer.inputs[1 - layer.inputs.index(name)] if len(layer.inputs) == 2 else ""
        if other in graph.constants and graph.uses(other) == 1:
            shape = graph.shape(other)
            return shape[-1:] == graph.shape(name)[-1:] and all(n == 1 for n in shape[:-1])
    return False


# --- subgraphs ------------------------------------------------------------------------------------------------


def tokenise(graph: LayerGraph) -> None:
    """Join element-wise layers that are left over into subgraphs."""
    position = {x if isinstance(x, str) else id(x): i for i, x in enumerate(graph.in_model_order())}
    for layer in graph.layers():
        if layer.alive and _fits_subgraph(graph, layer):
            _collapse(graph, layer, position)


def _fits_subgraph(graph: LayerGraph, layer: Layer) -> bool:
    if layer.op not in ELEMENTWISE or layer.op in NO_SNIPPET or layer.skipped or not graph.data(layer):
        return False
    if layer.op == "PRelu" and layer.inputs[1] not in graph.constants:
        return False
    names = [*layer.inputs, *layer.outputs]
    return all(len(graph.shape(n)) <= 6 and graph.types[n].dtype in ("float32", "bfloat16") for n in names)


def _collapse(graph: LayerGraph, layer: Layer, position: _Positions) -> None:
    """Make the layer a subgraph, with the subgraphs it reads where that closes no circle and needs no more pointers.

    That none is closed is seen from positions in the model's order: what is joined must not read anything that comes
    after something that reads it. A subgraph that writes an output of the network is complete, and none is joined
    to one whose own input it would have to read once more.
    """
    parts: list[Layer] = []
    bounds = _bounds(graph, layer, layer, position, (-1, len(position)))
    for name in layer.inputs:
        before = graph.layer(name)
        if before is None or before.op != "Subgraph" or before.skipped or before in parts:
            continue
        if any(output in graph.outputs for output in before.outputs):
            continue
        narrower = _bounds(graph, before, layer, position, bounds)
        if narrower[0] < narrower[1]:
            bounds = narrower
            parts.append(before)
        elif any(name in part.inputs for part in parts):
            parts = []
            break
    while True:
        inputs, outputs = _interface(graph, parts, layer)
        if len(inputs) + len(outputs) <= _MOST_POINTERS or not parts:
            break
        parts.pop()
    origins = [name for part in parts for name in part.origins] + layer.origins
    made = Layer("Subgraph", inputs, outputs, layer.name, origins)
    made.fused = [*(step for part in parts for step in part.fused), layer]
    for part in (*parts, layer):
        graph.remove(part)
    graph.add(made)
    position[id(made)] = position[id(layer)]


def _bounds(
    graph: LayerGraph, layer: Layer, joining: Layer, position: _Positions, bounds: tuple[int, int]
) -> tuple[int, int]:
    """The last layer that is read before, and the first that reads after, what is joined with `layer`."""
    first, last = bounds
    for name in layer.inputs:
        writer = graph.layer(name)
        first = first if writer is None else max(first, position[id(writer)])
    for name in layer.outputs:
        for reader in graph.readers(name):
            last = last if reader is joining else min(last, position[id(reader)])
        last = min(last, position.get(name, last))
    return first, last


def _interface(graph: LayerGraph, parts: list[Layer], layer: Layer) -> tuple[list[str], list[str]]:
    """What the joined layers read, numbers that are part of the code aside, and what others read of them."""
    inside = [*parts, layer]
    inputs: list[str] = []
    for name in layer.inputs:
        part = next((part for part in parts if name in part.outputs), None)
        if part is None and not _is_scalar(graph, name):
            inputs.append(name)
        elif part is not None:
            for source in part.inputs:
                if source not in inputs:
                    inputs.append(source)
    outputs = [
        name
        for part in inside
        for name in part.outputs
        if name in graph.outputs or any(reader not in inside for reader in graph.readers(name))
    ]
    return inputs, outputs


def _is_scalar(graph: LayerGraph, name: str) -> bool:
    return name in graph.constants and all(n == 1 for n in graph.shape(name))
