"""Strides of 1×1 convolutions move up to whatever computes what they skip, as OpenVINO moves them."""

from __future__ import annotations

import math

from akd_deploy.fusion.node import TensorType
from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph
from akd_deploy.fusion.rules_openvino_snippets import ELEMENTWISE
from akd_deploy.kernel import Shape

_Strides = tuple[int, ...]


def move_strides(graph: LayerGraph) -> None:
    """Walk from the outputs: a convolution of one point gives its strides to its input, element-wise layers pass
    them on, a convolution takes them, and before anything else what is skipped is dropped by a pooling."""
    wanted: dict[int, _Strides] = {}
    for layer in reversed(graph.layers()):
        name = layer.output
        rank = len(graph.shape(name)) - 2
        if layer.op == "Convolution" and not _is_grouped(graph, layer):
            strides = _agreed(graph, name, wanted, rank)
            if strides is None:
                _settle(graph, name, wanted)
                strides = (1,) * rank
            elif math.prod(strides) > 1:
                _shrink(graph, name, strides)
            own = layer.integers("strides") or (1,) * rank
            total = tuple(a * b for a, b in zip(own, strides, strict=True))
            can_give = math.prod(graph.shape(layer.inputs[1])[2:]) == 1 and not any(layer.integers("pads") or ())
            wanted[id(layer)] = total if can_give else (1,) * rank
        elif layer.op in ELEMENTWISE and rank > 0:
            strides = _agreed(graph, name, wanted, rank)
            if strides is None:
                _settle(graph, name, wanted)
            elif math.prod(strides) > 1:
                _shrink(graph, name, strides)
                wanted[id(layer)] = strides
        else:
            for written in layer.outputs:
                _settle(graph, written, wanted)
    for name in graph.inputs:
        _settle(graph, name, wanted)


def _is_grouped(graph: LayerGraph, layer: Layer) -> bool:
    return len(graph.shape(layer.inputs[1])) > len(graph.shape(layer.inputs[0]))


def _agreed(graph: LayerGraph, name: str, wanted: dict[int, _Strides], rank: int) -> _Strides | None:
    """The strides at which whoever reads a tensor does; None where they differ or somebody needs all of it."""
    readers = graph.readers(name)
    found = {wanted.get(id(reader), (1,) * rank) for reader in readers}
    return found.pop() if len(found) == 1 and name not in graph.outputs else None


def _settle(graph: LayerGraph, name: str, wanted: dict[int, _Strides]) -> None:
    """Convolutions keep their strides where their input cannot take them; others read what a pooling leaves."""
    for reader in graph.readers(name):
        strides = wanted.get(id(reader), ())
        if math.prod(strides) == 1 or not isinstance(reader, Layer) or reader.op == "Convolution":
            continue
        pooled = graph.new_tensor(name)
        graph.add(Layer("MaxPool", [name], [pooled], f"{reader.name}/strided"))
        _shrink(graph, pooled, strides)
        graph.set_input(reader, reader.inputs.index(name), pooled)


def _shrink(graph: LayerGraph, name: str, strides: _Strides) -> None:
    type_ = graph.types[name]
    spatial: Shape = tuple(-(-n // stride) for n, stride in zip(type_.shape[2:], strides, strict=True))
    graph.types[name] = TensorType(type_.element, (*type_.shape[:2], *spatial))
