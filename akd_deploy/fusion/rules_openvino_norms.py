"""Layer norms as OpenVINO's CPU plug-in computes them: as a normalisation with factor and shift, or as RMS norms."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from akd_deploy.fusion.node import Node
from akd_deploy.fusion.rules_openvino_factors import constant_operand
from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph, unknown
from akd_deploy.fusion.rules_openvino_read import Translation, add, integers


def _layer_norm(graph: LayerGraph, node: Node) -> None:
    """A layer norm over the last dimension.

    Where the plug-in has a normalisation over just these dimensions, that and a factor and a shift; elsewhere the
    mean is subtracted and the rest is an RMS norm.
    """
    data, scale, *shift = node.inputs
    rank = len(graph.shape(data))
    if node.integer("axis", -1) % rank != rank - 1 or len([name for name in node.outputs if name]) > 1:
        raise unknown(node, "a layer norm over several dimensions, or one that also writes mean or deviation")
    factor = graph.reshaped(scale, (1,) * (rank - 1) + graph.shape(scale))
    has_shift = bool(shift) and bool(shift[0]) and not graph.is_all(shift[0], 0.0)
    scaled = graph.new_tensor(data) if has_shift else node.output
    axes = integers(graph, [rank - 1], "axes")
    if rank <= 3:
        normal = graph.new_tensor(data)
        _unnamed(graph, "MVN", [data, axes], normal, f"{node.name}/mvn")
        _unnamed(graph, "Multiply", [normal, factor], scaled, f"{node.name}/factor")
    else:
        mean = graph.new_tensor(data, (*graph.shape(data)[:-1], 1))
        centred = graph.new_tensor(data)
        _unnamed(graph, "Reduce", [data, axes], mean, f"{node.name}/mean").set("keepdims", 1)
        _unnamed(graph, "Subtract", [data, mean], centred, f"{node.name}/centred")
        _unnamed(graph, "RMS", [centred, factor], scaled, f"{node.name}/rms")
    if has_shift:
        offset = graph.reshaped(shift[0], (1,) * (rank - 1) + graph.shape(shift[0]))
        add(graph, node, "Add", [scaled, offset]).attributes.clear()
    else:
        writer = graph.layer(scaled)
        assert writer is not None, node
        writer.origins = [node.name]


def _instance_norm(graph: LayerGraph, node: Node) -> None:
    """A norm over each channel's own values: a normalisation, a factor and a shift."""
    data, scale, shift = node.inputs
    rank = len(graph.shape(data))
    shape = (1, graph.shape(scale)[0], *(1 for _ in range(rank - 2)))
    normal, scaled = graph.new_tensor(data), graph.new_tensor(data)
    axes = integers(graph, list(range(2, rank)), "axes")
    _unnamed(graph, "MVN", [data, axes], normal, f"{node.name}/mvn")
    _unnamed(graph, "Multiply", [normal, graph.reshaped(scale, shape)], scaled, f"{node.name}/factor")
    add(graph, node, "Add", [scaled, graph.reshaped(shift, shape)]).attributes.clear()


def _unnamed(graph: LayerGraph, op: str, inputs: list[str], output: str, name: str) -> Layer:
    """A layer that the runtime gives a name of its own."""
    layer = Layer(op, inputs, [output], name)
    graph.add(layer)
    return layer


def fuse_rms_norms(graph: LayerGraph) -> bool:
    """x / √(mean(x²) + ε) times a constant is one layer."""
    changed = False
    for last in graph.layers("Multiply"):
        factor = constant_operand(graph, last)
        if factor is None or not last.alive:
            continue
        normal = graph.layer(last.inputs[1 - last.inputs.index(factor)])
        if normal is None or normal.op != "Multiply" or graph.child(normal) is not last:
            continue
        for data, inverse in (normal.inputs, normal.inputs[::-1]):
            if _is_inverse_root(graph, inverse, data):
                graph.set_input(last, 0, data)
                graph.set_input(last, 1, factor)
                last.op = "RMS"
                last.attributes.clear()
                graph.drop_unread(normal)
                changed = True
                break
    return changed


def _is_inverse_root(graph: LayerGraph, name: str, data: str) -> bool:
    """Whether a tensor is 1 / √(mean of squares + ε) of another."""
    inverse = graph.layer(name)
    if inverse is None or inverse.op not in ("Reciprocal", "Power"):
        return False
    root = graph.layer(inverse.inputs[0])
    if root is None or root.op != "Sqrt":
        return False
    total = graph.layer(root.inputs[0])
    if total is None or total.op != "Add" or constant_operand(graph, total) is None:
        return False
    mean = graph.layer(total.inputs[1 - total.inputs.index(constant_operand(graph, total) or "")])
    if mean is None or mean.op != "Reduce":
        return False
    square = graph.layer(mean.inputs[0])
    if square is None or square.op != "Power" or square.inputs[0] != data:
        return False
    exponent = graph.value(square.inputs[1])
    return exponent is not None and bool(np.all(exponent == 2))


TRANSLATIONS: Mapping[str, Translation] = {
    "LayerNormalization": _layer_norm,
    "InstanceNormalization": _instance_norm,
}
"""ONNX operator → how its layers are added."""
