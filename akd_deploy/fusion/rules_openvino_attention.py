"""Attention as OpenVINO's CPU plug-in executes it: splits, scales moved to where they are cheap, one subgraph."""

from __future__ import annotations

import math

from akd_deploy.fusion.rules_openvino_factors import constant_operand
from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph
from akd_deploy.fusion.rules_openvino_read import integers
from akd_deploy.fusion.rules_openvino_snippets import ELEMENTWISE, NO_SNIPPET

_MOVES_DATA = frozenset({"Reshape", "Transpose", "ShuffleChannels", "DepthToSpace"})
_HEADS_FIRST = (0, 2, 1, 3)
"""The order in which heads come before tokens, and back."""

_UNARY = ELEMENTWISE - {"Add", "Multiply", "Subtract", "Divide", "Maximum", "Minimum", "Power", "PRelu", "MulAdd"}


def split_slices(graph: LayerGraph) -> bool:
    """Slices that together cut a tensor into pieces along one axis are one split; those the caller asks for stay."""
    changed = False
    for name in list(dict.fromkeys(layer.inputs[0] for layer in graph.layers("Slice"))):
        readers = [reader for reader in graph.readers(name) if isinstance(reader, Layer)]
        slices = [reader for reader in readers if reader.op == "Slice"]
        if any(reader.op == "Split" for reader in readers):
            continue
        spans = [_span(graph, layer) for layer in slices]
        if len(slices) < 2 or any(span is None for span in spans):
            continue
        pieces = sorted(zip([span for span in spans if span], slices, strict=True), key=lambda piece: piece[0])
        axis, length = pieces[0][0][0], graph.shape(name)[pieces[0][0][0]]
        bounds = [0, *(end for (_, _, end), _ in pieces)]
        starts = [start for (_, start, _), _ in pieces]
        if any(span[0] != axis for span, _ in pieces) or starts != bounds[:-1] or bounds[-1] != length:
            continue
        lengths = [graph.shape(layer.output)[axis] for _, layer in pieces]
        inputs = [name, integers(graph, [axis], "axis"), integers(graph, lengths, "lengths")]
        if all(layer.output in graph.outputs for _, layer in pieces):
            continue
        outputs = []
        for _, layer in pieces:
            if layer.output in graph.outputs:
                outputs.append(graph.new_tensor(layer.output))
            else:
                outputs.append(layer.output)
                graph.remove(layer)
        graph.add(Layer("Split", inputs, outputs, f"{pieces[0][1].name}/split"))
        changed = True
    return changed


def _span(graph: LayerGraph, layer: Layer) -> tuple[int, int, int] | None:
    """Axis, first and last element of a slice along one axis without gaps."""
    axes, steps = layer.integers("axes") or (), layer.integers("steps") or ()
    if len(axes) != 1 or steps != (1,):
        return None
    length = graph.shape(layer.inputs[0])[axes[0]]
    start, end = (
        n + length if n < 0 else min(n, length) for n in ((layer.integers(k) or (0,))[0] for k in ("starts", "ends"))
    )
    return axes[0], start, end


def fuse_transposes(graph: LayerGraph) -> bool:
    """A product reads a matrix transposed where a transpose of its last two dimensions came before."""
    changed = False
    for layer in graph.layers("MatMul"):
        for i, key in ((0, "transA"), (1, "transB")):
            before = graph.layer(layer.inputs[i])
            if before is None or before.op != "Transpose" or graph.child(before) is not layer:
                continue
            perm = list(before.integers("perm") or ())
            rank = len(perm)
            if rank < 2 or perm != [*range(rank - 2), rank - 1, rank - 2]:
                continue
            layer.set(key, 1 - layer.integer(key))
            graph.set_input(layer, i, before.inputs[0])
            graph.drop_if_unread(before)
            changed = True
    return changed


def merge_transposes(graph: LayerGraph) -> bool:
    """Of two transposes in a row, of which nothing else reads the first, one remains."""
    changed = False
    for layer in graph.layers("Transpose"):
        before = graph.layer(layer.inputs[0])
        if before is None or before.op != "Transpose" or graph.child(before) is not layer:
            continue
        first = before.integers("perm") or ()
        combined = [first[i] for i in layer.integers("perm") or ()]
        graph.set_input(layer, 0, before.inputs[0])
        graph.set_input(layer, 1, integers(graph, combined, "order"))
        layer.set("perm", combined)
        graph.remove(before)
        changed = True
    return changed


def scale_second_operands(graph: LayerGraph) -> bool:
    """A factor behind a product of two computed matrices goes to the second of them."""
    changed = False
    for layer in graph.layers("Multiply"):
        factor = constant_operand(graph, layer)
        before = graph.layer(layer.inputs[1 - layer.inputs.index(factor)]) if factor is not None else None
        if factor is None or before is None or before.op != "MatMul" or graph.child(before) is not layer:
            continue
        if before.inputs[1] in graph.constants or math.prod(graph.shape(factor)) != 1:
            continue
        second = before.inputs[1]
        scaled = graph.new_tensor(second)
        graph.add(Layer("Multiply", [second, factor], [scaled], f"{layer.name}/scale"))
        graph.set_input(before, 1, scaled)
        before.origins = list(layer.origins)
        graph.absorb(before, layer)
        changed = True
    return changed


def move_up(graph: LayerGraph) -> bool:
    """What works on one number at a time goes before layers that only move numbers."""
    changed = False
    for layer in graph.layers(*_UNARY, "Multiply", "Add", "Divide", "Subtract"):
        data = graph.data(layer)
        if not layer.alive or len(data) != 1 or graph.uses(layer.output) != 1:
            continue
        others = [name for name in layer.inputs if name != data[0]]
        if any(math.prod(graph.shape(name)) != 1 for name in others):
            continue
        if layer.op not in _UNARY and layer.inputs[0] != data[0]:
            continue
        first = before = graph.layer(data[0])
        while before is not None and before.op in _MOVES_DATA and graph.uses(before.output) == 1:
            first, before = before, graph.layer(before.inputs[0])
        if first is None or first.op not in _MOVES_DATA or graph.uses(first.output) != 1:
            continue
        if graph.shape(data[0]) != graph.shape(layer.output):
            continue
        _put_before(graph, layer, first)
        changed = True
    return changed


def _put_before(graph: LayerGraph, layer: Layer, first: Layer) -> None:
    source = first.inputs[0]
    last = graph.layer(layer.inputs[0])
    assert last is not None, layer
    moved = graph.new_tensor(source)
    name = layer.output
    inputs = [source, *layer.inputs[1:]]
    graph.remove(layer)
    graph.set_output(last, 0, name)
    graph.set_input(first, 0, moved)
    graph.add(Layer(layer.op, inputs, [moved], f"{layer.name}/moved"))


def tokenise_attention(graph: LayerGraph, writes_transposed: bool) -> None:
    """Two products with a softmax between them are one subgraph, with the transposes of heads around them."""
    for first in graph.layers("MatMul"):
        if first.alive and first.inputs[1] not in graph.constants and not first.integer("transA"):
            steps = _steps(graph, first)
            if steps is not None:
                _join(graph, steps, writes_transposed)


def _steps(graph: LayerGraph, first: Layer) -> list[Layer] | None:
    """From the first product to the second, if a softmax is all that is between, besides element-wise layers."""
    steps, has_softmax = [first], False
    while (child := graph.child(steps[-1])) is not None:
        data = steps[-1].output
        if child.op == "Softmax":
            rank = len(graph.shape(data))
            if has_softmax or child.integer("axis", -1) % rank != rank - 1:
                return None
            has_softmax = True
        elif child.op == "MatMul":
            is_second = has_softmax and child.inputs[0] == data and child.inputs[1] not in graph.constants
            return [*steps, child] if is_second and not child.integer("transA") else None
        elif child.op not in ELEMENTWISE or child.op in NO_SNIPPET or child.inputs.count(data) != 1:
            return None
        steps.append(child)
    return None


def _join(graph: LayerGraph, steps: list[Layer], writes_transposed: bool) -> None:
    first, last = steps[0], steps[-1]
    parts: list[Layer] = []
    for step in steps:
        for name in step.inputs if step in (first, last) else ():
            before = graph.layer(name)
            if before is not None and _swaps_heads(before) and graph.child(before) is step:
                parts.append(before)
        parts.append(step)
    after = graph.child(last)
    if writes_transposed and after is not None and _swaps_heads(after):
        parts.append(after)
    written = {name for part in parts for name in part.outputs}
    inputs: list[str] = []
    for part in parts:
        for name in part.inputs[:1] if part.op == "Transpose" else part.inputs:
            is_number = name in graph.constants and math.prod(graph.shape(name)) == 1
            if name not in written and not is_number:
                inputs.append(name)
    made = Layer("Subgraph", inputs, parts[-1].outputs, parts[-1].name, [n for part in parts for n in part.origins])
    made.skipped = True
    for part in parts:
        graph.remove(part)
    graph.add(made)


def _swaps_heads(layer: Layer) -> bool:
    return layer.op == "Transpose" and layer.integers("perm") == _HEADS_FIRST
