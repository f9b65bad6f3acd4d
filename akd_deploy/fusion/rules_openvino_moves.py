"""Translate the ONNX nodes that move, cut or repeat numbers into OpenVINO's layers."""

from __future__ import annotations

import math
from collections.abc import Mapping

from akd_deploy.fusion.node import Node
from akd_deploy.fusion.rules_openvino_layers import LayerGraph, unknown
from akd_deploy.fusion.rules_openvino_read import Translation, add, integers


def _reshape(graph: LayerGraph, node: Node) -> None:
    shape = graph.shape(node.output)
    made = f"shape:{node.op}:{shape}"
    if made not in graph.constants:
        made = integers(graph, shape or [], "shape")
    layer = add(graph, node, "Reshape", [node.inputs[0], made])
    layer.attributes.clear()


def _transpose(graph: LayerGraph, node: Node) -> None:
    perm = node.integers("perm") or tuple(reversed(range(len(graph.shape(node.inputs[0])))))
    layer = add(graph, node, "Transpose", [node.inputs[0], integers(graph, perm, "order")])
    layer.set("perm", list(perm))


def _split(graph: LayerGraph, node: Node) -> None:
    """Equal parts are cut by a layer that needs only the axis, others by one that is given their lengths."""
    axis = node.integer("axis")
    sizes = [graph.shape(name)[axis] for name in node.outputs]
    inputs = [node.inputs[0], integers(graph, [axis], "axis")]
    if len(set(sizes)) > 1:
        inputs.append(integers(graph, sizes, "lengths"))
    add(graph, node, "Split", inputs)


def _slice(graph: LayerGraph, node: Node) -> None:
    settings = [graph.value(name) for name in node.inputs[1:] if name]
    if any(value is None for value in settings):
        raise unknown(node, "a slice between computed bounds")
    rank = len(graph.shape(node.inputs[0]))
    starts, ends, *rest = ([int(n) for n in value.ravel()] for value in settings if value is not None)
    axes = [axis % rank for axis in (rest[0] if rest else range(len(starts)))]
    steps = rest[1] if len(rest) > 1 else [1] * len(starts)
    given = ((starts, "starts"), (ends, "ends"), (steps, "steps"), (axes, "axes"))
    lists = [integers(graph, [0] * len(values), stem) for values, stem in given]
    layer = add(graph, node, "Slice", [node.inputs[0], *lists])
    for key, values in (("starts", starts), ("ends", ends), ("axes", axes), ("steps", steps)):
        layer.set(key, [max(min(n, 2**62), -(2**62)) for n in values])


def _resize(graph: LayerGraph, node: Node) -> None:
    rank = len(graph.shape(node.inputs[0]))
    shape = graph.shape(node.output)
    if math.prod(shape) == math.prod(graph.shape(node.inputs[0])):
        raise unknown(node, "a resize that changes no size")
    scales = graph.constant_like(f"{node.name}.scales", (rank,), node.inputs[0])
    add(graph, node, "Interpolate", [node.inputs[0], integers(graph, shape, "sizes"), scales])


def _expand(graph: LayerGraph, node: Node) -> None:
    shape = graph.shape(node.output)
    if shape == graph.shape(node.inputs[0]):
        add(graph, node, "Identity", node.inputs[:1])
        return
    target = integers(graph, shape, "target")
    mapping = integers(graph, [0], "mapping")
    add(graph, node, "Broadcast", [node.inputs[0], target, mapping])


def _gather(graph: LayerGraph, node: Node) -> None:
    axis = node.integer("axis")
    add(graph, node, "Gather", [*node.inputs[:2], integers(graph, [axis], "axis")])


def _cast(graph: LayerGraph, node: Node) -> None:
    is_same = graph.types[graph.narrowed.get(node.inputs[0], node.inputs[0])] == graph.types[node.output]
    add(graph, node, "Identity" if is_same else "Convert", node.inputs).attributes.clear()


TRANSLATIONS: Mapping[str, Translation] = {
    "Reshape": _reshape, "Flatten": _reshape, "Squeeze": _reshape, "Unsqueeze": _reshape, "Transpose": _transpose,
    "Split": _split, "Slice": _slice, "Resize": _resize, "Expand": _expand, "Gather": _gather, "Cast": _cast,
}  # fmt: skip
"""ONNX operator → how its layers are added."""
