"""Reorders besides those of layouts: copies of what cannot be in two places, transposes that leave memory as it is."""

from __future__ import annotations

import math

from akd_deploy.engines.openvino_kernels import NOTHING_MOVES
from akd_deploy.fusion.node import Node
from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph
from akd_deploy.fusion.rules_openvino_layouts import LETTERS, Forms, channels_last, planar


def forms_of(graph: LayerGraph, low: str, block: int) -> Forms:
    """Add the reorders a graph needs; arguments as those of `Forms`."""
    forms = Forms(graph, low, block)
    forms.assign()
    copy_shared(forms)
    merge_transposes(forms)
    return forms


def copy_shared(forms: Forms) -> None:
    """Copy what would have to lie in two places at once, and what somebody else still reads unchanged."""
    graph = forms.graph
    for name in list(forms.of):
        writer = graph.layer(name)
        takers = [layer for layer in graph.readers(name) if _is_in_place(forms, layer, "Concatenation")]
        is_part = writer is not None and _is_in_place(forms, writer, "Split")
        for layer in takers if is_part else takers[:-1]:
            _copy(forms, name, layer)
    for layer in graph.layers("MVN"):
        first, name = layer, layer.inputs[0]
        while (before := graph.layer(name)) is not None and before.op == "Reshape" and graph.uses(name) == 1:
            first, name = before, before.inputs[0]
        if first is not layer and graph.uses(name) > 1:
            _copy(forms, name, first)


def _copy(forms: Forms, name: str, layer: Node) -> None:
    """Let a layer read a copy of a tensor."""
    copy = forms.add_reorder(name, forms.graph.new_tensor(name), forms.of[name])
    forms.graph.set_input(layer, layer.inputs.index(name), copy)


def _is_in_place(forms: Forms, layer: Node, op: str) -> bool:
    """Whether the parts that a layer joins, or cuts, lie one after the other in the whole."""
    if layer.op != op:
        return False
    whole = layer.output if op == "Concatenation" else layer.inputs[0]
    shape = forms.graph.shape(whole)
    if op == "Concatenation":
        axis = layer.integer("axis") % len(shape)
    else:
        axis = int(forms.graph.constants[layer.inputs[1]].value[0]) % len(shape)
    return forms.of[whole].layout == planar(len(shape)) and math.prod(shape[:axis]) == 1


def merge_transposes(forms: Forms) -> None:
    """A transpose and a reorder that together leave memory as it is become one reorder that does nothing."""
    for layer in forms.graph.layers("Transpose"):
        if not _merge_with_reorder_after(forms, layer):
            _merge_with_reorder_before(forms, layer)


def _merge_with_reorder_after(forms: Forms, layer: Layer) -> bool:
    after = forms.graph.child(layer)
    if after is None or after.op != "Reorder":
        return False
    source = forms.of[layer.inputs[0]].layout
    if _lies_as(layer, source) != forms.of[after.output].layout:
        return False
    after.name += NOTHING_MOVES
    forms.graph.set_input(after, 0, layer.inputs[0])
    forms.graph.remove(layer)
    forms.computed[id(after)] = forms.of[after.inputs[0]].dtype
    return True


def _lies_as(layer: Layer, layout: str) -> str:
    """The layout of a transpose's output if memory stayed as the input's is."""
    perm = layer.integers("perm") or ()
    return "".join(LETTERS[perm.index(LETTERS.index(letter))] for letter in layout)


def _merge_with_reorder_before(forms: Forms, layer: Layer) -> bool:
    graph = forms.graph
    before = graph.layer(layer.inputs[0])
    if graph.only_reader(layer) is None:
        return False
    reshape = None
    if before is not None and before.op == "Reshape" and graph.child(before) is layer:
        reshape, before = before, graph.layer(before.inputs[0])
    if before is None or before.op != "Reorder" or graph.only_reader(before) is not (reshape or layer):
        return False
    source = graph.shape(before.inputs[0])
    split = graph.shape(layer.inputs[0])
    if forms.of[before.inputs[0]].layout != channels_last(len(source)) or forms.of[layer.output].layout != planar(
        len(split)
    ):
        return False
    if reshape is not None and (split[:2] != source[:2] or len(split) != 3):
        return False
    if _lies_as(layer, channels_last(len(split))) != planar(len(split)):
        return False
    layer.op = "Reorder"
    layer.name += NOTHING_MOVES
    layer.origins = []
    graph.drop_input(layer, 1)
    graph.set_input(layer, 0, before.inputs[0])
    forms.computed[id(layer)] = forms.of[before.inputs[0]].dtype
    for gone in (reshape, before):
        if gone is not None:
            graph.drop_if_unread(gone)
    return True
