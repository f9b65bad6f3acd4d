"""OpenVINO's own simplifications of a network, before any of its plug-ins sees it: no-ops, repetitions, shapes."""

from __future__ import annotations

import math

from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph

_SMALL = 1024
"""Elements of a constant up to which it is compared by value."""


def drop_dead(graph: LayerGraph) -> bool:
    """Remove layers that lead to no output of the network."""
    changed = False
    for layer in reversed(graph.layers()):
        if not any(graph.uses(name) for name in layer.outputs):
            graph.remove(layer)
            changed = True
    return changed


def drop_noops(graph: LayerGraph) -> bool:
    """Remove layers that change nothing."""
    changed = False
    for layer in graph.layers():
        data = graph.data(layer)
        if layer.alive and len(data) == 1 and _changes_nothing(graph, layer, data[0]):
            changed |= graph.stand_in(layer, data[0])
    return changed


def _changes_nothing(graph: LayerGraph, layer: Layer, data: str) -> bool:
    if len(layer.outputs) != 1 or graph.types[data] != graph.types[layer.output]:
        return False
    if layer.op in ("Identity", "Reshape"):
        return True
    if layer.op == "Transpose":
        return _moves_only_ones(graph, layer)
    if layer.op == "Concatenation":
        return len(layer.inputs) == 1
    if layer.op == "Slice":
        return True
    if layer.op == "Interpolate":
        return True
    position = layer.inputs.index(data)
    other = layer.inputs[1 - position] if len(layer.inputs) == 2 else ""
    if layer.op in ("Add", "Subtract"):
        return (layer.op == "Add" or position == 0) and graph.is_all(other, 0.0)
    return layer.op in ("Multiply", "Divide") and (layer.op == "Multiply" or position == 0) and graph.is_all(other, 1.0)


def _moves_only_ones(graph: LayerGraph, layer: Layer) -> bool:
    moved = [i for i in layer.integers("perm") or () if graph.shape(layer.inputs[0])[i] != 1]
    return moved == sorted(moved)


def merge_equal(graph: LayerGraph) -> bool:
    """A layer that repeats an earlier one gives way to it."""
    seen: dict[tuple[object, ...], Layer] = {}
    changed = False
    for layer in graph.layers():
        if layer.op == "MaxPool":  # it also tells where the largest were: layers of several results are never merged
            continue
        settings = tuple(sorted((n, a.SerializeToString(deterministic=True)) for n, a in layer.attributes.items()))
        inputs = tuple(_identity(graph, name) for name in layer.inputs)
        first = seen.setdefault((layer.op, inputs, len(layer.outputs), settings), layer)
        if first is layer:
            continue
        if len(layer.outputs) == 1:
            changed |= graph.stand_in(layer, first.output)
        elif not any(name in graph.outputs for name in layer.outputs):
            for mine, theirs in zip(layer.outputs, first.outputs, strict=True):
                graph.read_instead(mine, theirs)
            graph.remove(layer)
            changed = True
    return changed


def _identity(graph: LayerGraph, name: str) -> object:
    type_ = graph.types[name]
    if math.prod(type_.shape) > _SMALL:
        return name
    value = graph.value(name)
    return name if value is None else (type_, value.tobytes())


def merge_reshapes(graph: LayerGraph) -> bool:
    """Reshapes that alone follow one another become the last of them."""
    changed = False
    for layer in graph.layers("Reshape"):
        while layer.alive and (before := graph.layer(layer.inputs[0])) is not None and before.op == "Reshape":
            if graph.child(before) is not layer:
                break
            graph.set_input(layer, 0, before.inputs[0])
            graph.remove(before)
            layer.origins = [*before.origins, *layer.origins]
            changed = True
    return changed


def reshape_instead(graph: LayerGraph) -> bool:
    """A transpose that moves nothing but dimensions of 1 is a reshape."""
    changed = False
    for layer in graph.layers("Transpose"):
        if graph.shape(layer.inputs[0]) != graph.shape(layer.output) and _moves_only_ones(graph, layer):
            layer.op = "Reshape"
            layer.attributes.clear()
            changed = True
    return changed


def merge_concatenations(graph: LayerGraph) -> bool:
    """A concatenation that only another along the same axis reads goes into it."""
    changed = False
    for layer in graph.layers("Concatenation"):
        for name in list(layer.inputs):
            before = graph.layer(name)
            if before is None or before.op != "Concatenation" or graph.child(before) is not layer:
                continue
            rank = len(graph.shape(name))
            if before.integer("axis") % rank != layer.integer("axis") % rank:
                continue
            position = layer.inputs.index(name)
            inputs = [*layer.inputs[:position], *before.inputs, *layer.inputs[position + 1 :]]
            graph.remove(before)
            for i, source in enumerate(inputs):
                graph.set_input(layer, i, source)
            layer.origins = [*before.origins, *layer.origins]
            changed = True
    return changed


def reduce_before_reshaping(graph: LayerGraph) -> bool:
    """A reduction along a dimension of 1 that a reshape has just put in front of another 1 needs no reshape."""
    changed = False
    for layer in graph.layers("Reduce"):
        before = graph.layer(layer.inputs[0])
        if before is None or before.op != "Reshape" or graph.child(before) is not layer or layer.integer("keepdims", 1):
            continue
        source = graph.shape(before.inputs[0])
        axes = graph.value(layer.inputs[1])
        if source[:1] != (1,) or graph.shape(before.output) != (1, *source) or axes is None or axes.tolist() != [0]:
            continue
        graph.set_input(layer, 0, before.inputs[0])
        graph.drop_if_unread(before)
        layer.set("keepdims", 1)
        changed = True
    return changed


def keep_reduced(graph: LayerGraph) -> bool:
    """A reduction whose result alone is reshaped to have the reduced dimensions again keeps them."""
    changed = False
    for layer in graph.layers("Reduce"):
        after = graph.child(layer)
        axes = graph.value(layer.inputs[1])
        if layer.integer("keepdims", 1) or after is None or after.op != "Reshape" or axes is None:
            continue
        shape = list(graph.shape(layer.inputs[0]))
        for axis in axes.tolist():
            shape[axis] = 1
        if tuple(shape) == graph.shape(after.output):
            layer.set("keepdims", 1)
            layer.origins = [*layer.origins, *after.origins]
            graph.absorb(layer, after)
            changed = True
    return changed


# --- activations made of several layers -----------------------------------------------------------------------


def fuse_shuffles(graph: LayerGraph) -> bool:
    """Channels split in groups, transposed and joined again are channels shuffled."""
    changed = False
    for transpose in graph.layers("Transpose"):
        before, after = graph.layer(transpose.inputs[0]), graph.child(transpose)
        if before is None or before.op != "Reshape" or after is None or after.op != "Reshape":
            continue
        source, split, result = (graph.shape(n) for n in (before.inputs[0], before.output, after.output))
        perm = transpose.integers("perm") or ()
        if len(source) != 4 or result != source or graph.child(before) is not transpose or len(split) < 4:
            continue
        are_channels = split[0] == source[0] and split[1] * split[2] == source[1]
        if are_channels and perm == (0, 2, 1, *range(3, len(split))):
            after.op = "ShuffleChannels"
            after.origins = [*before.origins, *transpose.origins, *after.origins]
            graph.drop_input(after, 1)
            graph.set_input(after, 0, before.inputs[0])
            graph.remove(transpose)
            graph.remove(before)
            changed = True
    return changed
