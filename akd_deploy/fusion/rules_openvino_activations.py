"""Activations that ONNX writes in several nodes and OpenVINO computes in one layer."""

from __future__ import annotations

import math

from akd_deploy.fusion.rules_openvino_factors import constant_operand, data_of
from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph


def fuse_swish(graph: LayerGraph) -> bool:
    """x · sigmoid(x) is one activation."""
    changed = False
    for layer in graph.layers("Multiply"):
        for gate, data in (layer.inputs, layer.inputs[::-1]):
            sigmoid = graph.layer(gate)
            if sigmoid is None or sigmoid.op != "Sigmoid" or sigmoid.inputs[0] != data:
                continue
            if graph.child(sigmoid) is not layer:
                continue
            _become(graph, layer, "Swish", data, [sigmoid])
            changed = True
            break
    return changed


def fuse_gelu(graph: LayerGraph) -> bool:
    """½ · x · (1 + erf(x / √2)), in any order, is one activation."""
    changed = False
    for erf in graph.layers("Erf"):
        scaled = graph.layer(erf.inputs[0])
        plus = graph.child(erf)
        if scaled is None or scaled.op != "Multiply" or plus is None or plus.op != "Add":
            continue
        root, one = constant_operand(graph, scaled), constant_operand(graph, plus)
        if root is None or one is None or not graph.is_all(one, 1.0) or not _is_close(graph, root, math.sqrt(0.5)):
            continue
        found = _gelu_tail(graph, plus, data_of(scaled, root))
        if found is not None:
            last, between = found
            _become(graph, last, "Gelu", data_of(scaled, root), [scaled, erf, plus, *between])
            changed = True
    return changed


def fuse_tanh_gelu(graph: LayerGraph) -> bool:
    """½ · x · (1 + tanh(√(2/π) · (x + 0.044715 x³))) is one activation."""
    changed = False
    for tanh in graph.layers("Tanh"):
        scaled, plus = graph.layer(tanh.inputs[0]), graph.child(tanh)
        if scaled is None or scaled.op != "Multiply" or plus is None or plus.op != "Add":
            continue
        root, one = constant_operand(graph, scaled), constant_operand(graph, plus)
        if root is None or one is None or not graph.is_all(one, 1.0):
            continue
        total = graph.layer(data_of(scaled, root))
        if total is None or total.op != "Add" or len(graph.data(total)) != 2:
            continue
        for data, cubic in (total.inputs, total.inputs[::-1]):
            factor = graph.layer(cubic)
            constant = constant_operand(graph, factor) if factor is not None and factor.op == "Multiply" else None
            power = graph.layer(data_of(factor, constant)) if factor is not None and constant is not None else None
            if power is None or factor is None or power.op != "Power" or power.inputs[0] != data:
                continue
            found = _gelu_tail(graph, plus, data)
            if found is not None:
                last, between = found
                _become(graph, last, "Gelu", data, [power, factor, total, scaled, tanh, plus, *between])
                changed = True
                break
    return changed


def _gelu_tail(graph: LayerGraph, plus: Layer, data: str) -> tuple[Layer, list[Layer]] | None:
    """The product of ½, x and `plus`: the last of its two layers, then the layers before it."""
    product = graph.child(plus)
    if product is None or product.op != "Multiply":
        return None
    other = data_of(product, plus.output)
    if other == data:
        last = graph.child(product)
        half = constant_operand(graph, last) if last is not None and last.op == "Multiply" else None
        return (last, [product]) if last is not None and half and _is_close(graph, half, 0.5) else None
    halved = graph.layer(other)
    if halved is not None and halved.op == "Multiply" and data in halved.inputs:
        half = constant_operand(graph, halved)
        return (product, [halved]) if half and _is_close(graph, half, 0.5) else None
    if other in graph.constants and _is_close(graph, other, 0.5):
        last = graph.child(product)
        return (last, [product]) if last is not None and last.op == "Multiply" and data in last.inputs else None
    return None


def _is_close(graph: LayerGraph, name: str, value: float) -> bool:
    values = graph.value(name)
    return values is not None and values.size == 1 and abs(float(values.ravel()[0]) - value) < 1e-3


def _become(graph: LayerGraph, last: Layer, op: str, data: str, parts: list[Layer]) -> None:
    """Let `last` be one layer that does what `parts` and itself did; parts that others read stay."""
    last.op = op
    last.attributes.clear()
    last.origins = [*(name for part in parts for name in part.origins), *last.origins]
    for i in reversed(range(1, len(last.inputs))):
        graph.drop_input(last, i)
    graph.set_input(last, 0, data)
    for part in reversed(parts):
        if part.alive:
            graph.drop_if_unread(part)
