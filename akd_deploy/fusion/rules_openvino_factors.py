"""Constant factors and shifts: joined where they follow one another, and put into weights where they can be."""

from __future__ import annotations

import math

import numpy as np

from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph


def multiply_by_inverses(graph: LayerGraph) -> bool:
    """Dividing by a constant is multiplying by its inverse."""
    changed = False
    for layer in graph.layers("Divide"):
        name = layer.inputs[1]
        if name not in graph.constants or graph.types[name].dtype != "float32":
            continue
        shape, constant = graph.shape(name), graph.constants[name]
        new = graph.constant_like("inverse", shape, name, of=lambda c=constant: 1 / c.value)  # type: ignore[misc]
        graph.set_input(layer, 1, new)
        layer.op = "Multiply"
        changed = True
    return changed


def fuse_factors(graph: LayerGraph) -> bool:
    """Constant factors and shifts in a row become one factor and one shift; a factor goes into weights before it."""
    changed = False
    for layer in graph.layers("Add", "Multiply"):
        constant = constant_operand(graph, layer)
        if not layer.alive or constant is None:
            continue
        before = graph.layer(layer.inputs[1 - layer.inputs.index(constant)])
        if before is None or graph.child(before) is not layer:
            continue
        other = constant_operand(graph, before) if before.op in ("Add", "Multiply") else None
        if other is not None and layer.op == before.op:
            changed |= _merge(graph, before, layer, other, constant)
        elif other is not None and before.op == "Add":
            changed |= _swap(graph, before, layer, other, constant)
        elif layer.op == "Multiply" and before.op in ("Convolution", "Deconvolution", "MatMul"):
            changed |= _scale_weight(graph, before, layer, constant)
    return changed


def align_ranks(graph: LayerGraph) -> bool:
    """A constant operand has as many dimensions as the other."""
    changed = False
    for layer in graph.layers("Add", "Multiply", "Subtract", "Divide", "Maximum", "Minimum", "Power"):
        rank = len(graph.shape(layer.output))
        for i, name in enumerate(list(layer.inputs)):
            shape = graph.shape(name)
            if name in graph.constants and len(shape) < rank and math.prod(shape) != 1:
                graph.set_input(layer, i, graph.reshaped(name, (1,) * (rank - len(shape)) + shape))
                changed = True
    return changed


def constant_operand(graph: LayerGraph, layer: Layer) -> str | None:
    """The constant input of a layer of two inputs, one of which is none."""
    constants = [name for name in layer.inputs if name in graph.constants]
    if len(layer.inputs) != 2 or len(constants) != 1 or graph.types[constants[0]].dtype != "float32":
        return None
    return constants[0]


def _combined(graph: LayerGraph, layer: Layer, one: str, other: str, is_sum: bool) -> str | None:
    shape = tuple(np.broadcast_shapes(graph.shape(one), graph.shape(other)))
    a, b = graph.constants[one], graph.constants[other]
    if is_sum:
        return graph.constant_like(layer.name, shape, one, other, of=lambda: np.asarray(a.value + b.value))
    return graph.constant_like(layer.name, shape, one, other, of=lambda: np.asarray(a.value * b.value))


def _merge(graph: LayerGraph, before: Layer, layer: Layer, one: str, other: str) -> bool:
    if graph.shape(before.output) != graph.shape(layer.output):
        return False
    made = _combined(graph, layer, one, other, layer.op == "Add")
    assert made is not None
    data = data_of(before, one)
    graph.set_input(layer, 0, data)
    graph.set_input(layer, 1, made)
    graph.remove(before)
    layer.origins = [*before.origins, *layer.origins]
    return True


def data_of(layer: Layer, constant: str) -> str:
    return layer.inputs[1 - layer.inputs.index(constant)]


def _swap(graph: LayerGraph, before: Layer, layer: Layer, shift: str, factor: str) -> bool:
    """(x + shift) · factor is x · factor + shift · factor."""
    if graph.shape(before.output) != graph.shape(layer.output):
        return False
    made = _combined(graph, layer, shift, factor, is_sum=False)
    assert made is not None
    data = data_of(before, shift)
    before.op, layer.op = "Multiply", "Add"
    for one, first, second in ((before, data, factor), (layer, before.output, made)):
        graph.set_input(one, 0, first)
        graph.set_input(one, 1, second)
    return True


def _scale_weight(graph: LayerGraph, before: Layer, layer: Layer, factor: str) -> bool:
    weight = before.inputs[1]
    shape = graph.shape(factor)
    channel_axis = len(graph.shape(before.output)) - 1 if before.op == "MatMul" else 1
    aligned = (1,) * (len(graph.shape(before.output)) - len(shape)) + shape
    if weight not in graph.constants or any(n != 1 for i, n in enumerate(aligned) if i != channel_axis):
        return False
    if graph.shape(before.output) != graph.shape(layer.output):
        return False
    whole = graph.shape(weight)
    if before.op == "MatMul" and math.prod(shape) > 1 and len(shape) > len(whole):
        whole = (1,) * (len(shape) - len(whole)) + whole
    graph.set_input(before, 1, graph.constant_like(layer.name, whole, weight))
    before.origins = [*before.origins, *layer.origins]
    graph.absorb(before, layer)
    return True


def scale_next_weights(graph: LayerGraph) -> bool:
    """A factor per channel that only a convolution reads goes into its weights."""
    changed = False
    for layer in graph.layers("Multiply"):
        child = graph.child(layer)
        factor = constant_operand(graph, layer)
        if factor is None or child is None or child.op != "Convolution" or child.inputs[0] != layer.output:
            continue
        data = data_of(layer, factor)
        shape = graph.shape(factor)
        aligned = (1,) * (len(graph.shape(data)) - len(shape)) + shape
        if graph.shape(data) != graph.shape(layer.output) or any(n != 1 for i, n in enumerate(aligned) if i != 1):
            continue
        weight = child.inputs[1]
        graph.set_input(child, 1, graph.constant_like(layer.name, graph.shape(weight), weight))
        graph.set_input(child, 0, data)
        graph.remove(layer)
        changed = True
    return changed
