"""Graph optimisation "extended" of ONNX Runtime on a CPU: operators that become one kernel."""

from __future__ import annotations

import numpy as np

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import FLOAT, MICROSOFT, Node, TensorType

FUSED_ACTIVATIONS = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid"})
"""What a convolution or a matrix product computes on its way out."""


_GEMM_ACTIVATIONS = frozenset({
    "Relu", "Sigmoid", "Tanh", "LeakyRelu", "Elu", "HardSigmoid", "ParametricSoftplus", "ScaledTanh", "Selu",
    "Softplus", "Softsign", "ThresholdedRelu",
})  # fmt: skip

_SPLIT_BY_TENSOR = 13


def fuse_convolution_activations(graph: Graph) -> bool:
    """An activation that alone reads a convolution is done on its way out."""
    changed = False
    for conv in graph.of("Conv"):
        changed |= graph.types[conv.output].element == FLOAT and _take_in_activation(graph, conv)
    return changed


def _take_in_activation(graph: Graph, conv: Node) -> bool:
    later = graph.only_reader(conv)
    if later is None or later.domain or later.op not in FUSED_ACTIVATIONS:
        return False
    if later.op == "Clip" and not all(name in graph.constants for name in later.inputs[1:] if name):
        return False
    conv.op, conv.domain = "FusedConv", MICROSOFT
    conv.set("activation", later.op)
    graph.absorb(conv, later)
    return True


def fuse_convolution_sums(graph: Graph) -> bool:
    """An addition behind a convolution in the plain layout, and what follows it, is done on the way out."""
    changed = False
    for add in graph.of("Add"):
        for i in (0, 1):
            conv, other = graph.writer(add.inputs[i]), add.inputs[1 - i]
            if conv is None or not conv.is_a("Conv") or graph.only_reader(conv) is not add or len(conv.inputs) != 3:
                continue
            type_ = graph.types[conv.output]
            if graph.types[other] != type_ or len(type_.shape) != 4 or type_.element != FLOAT:
                continue
            conv.op, conv.domain = "FusedConv", MICROSOFT
            graph.set_input(conv, 3, other)
            graph.absorb(conv, add)
            _take_in_activation(graph, conv)
            changed = True
            break
    return changed


def fuse_gemm_activations(graph: Graph) -> bool:
    """An activation that alone reads a `Gemm` is done on its way out."""
    changed = False
    for gemm in graph.of("Gemm"):
        later = graph.only_reader(gemm)
        if later is None or later.domain or later.op not in _GEMM_ACTIVATIONS:
            continue
        if graph.types[gemm.output].element != FLOAT:
            continue
        gemm.op, gemm.domain, gemm.name = "FusedGemm", MICROSOFT, f"fused {gemm.name}"
        gemm.set("activation", later.op)
        graph.absorb(gemm, later)
        changed = True
    return changed


def split_slices(graph: Graph) -> bool:
    """Slices and gathers that cut a tensor into all its parts along one axis become one split, of sizes given by a
    tensor: ONNX has that since opset 13."""
    if graph.opset < _SPLIT_BY_TENSOR:
        return False
    names = dict.fromkeys(node.inputs[0] for node in graph.of("Slice", "Gather") if node.inputs[0] in graph.types)
    whole = [
        name
        for name in names
        if name not in graph.constants and ((writer := graph.writer(name)) is None or len(writer.outputs) == 1)
    ]
    return any([_split(graph, name) for name in whole])


def _split(graph: Graph, name: str) -> bool:
    parts = []
    for node in graph.readers(name):
        if node.is_a("Slice", "Gather"):
            part = _part(graph, node, name)
            if part is None:
                return False
            parts.append((*part, node))
    axes = {part[0] for part in parts}
    if len(axes) != 1:
        return False
    (axis,) = axes
    shape = graph.shape(name)
    ordered = sorted(((start, end, node) for _, start, end, node in parts), key=lambda part: part[0])
    ends = [0, *(end for _, end, _ in ordered)]
    if (
        len(ordered) < 2
        or ends[-1] != shape[axis]
        or any(a != b for a, (b, _, _) in zip(ends[:-1], ordered, strict=True))
    ):
        return False
    outputs = []
    for start, end, node in ordered:
        graph.remove(node)
        if node.op == "Slice" or graph.shape(node.inputs[1]):
            outputs.append(node.output)
            continue
        piece = graph.unused_name(f"{name}_split")
        part_shape = (*shape[:axis], end - start, *shape[axis + 1 :])
        graph.types[piece] = TensorType(graph.types[name].element, part_shape)
        axis_name = graph.add_constant(np.asarray([axis], np.int64), "axes")
        graph.add(Node("Squeeze", [piece, axis_name], [node.output], graph.unused_name("Squeeze")))
        outputs.append(piece)
    sizes = graph.add_constant(np.asarray([end - start for start, end, _ in ordered], np.int64), "splits")
    split = Node("Split", [name, sizes], outputs, f"{ordered[-1][2].name}/GatherSliceToSplitFusion", axis=axis)
    graph.add(split)
    return True


def _part(graph: Graph, node: Node, name: str) -> tuple[int, int, int] | None:
    """(axis, start, end) of the part of `name` that the node takes; None for anything else."""
    shape = graph.shape(name)
    if node.inputs[0] != name or node.domain or node.inputs.count(name) != 1:
        return None
    if node.op == "Gather":
        index = graph.constant(node, 1)
        if index is None or index.type.shape not in ((), (1,)):
            return None
        axis = node.integer("axis") % len(shape)
        at = int(index.value.reshape(-1)[0]) % shape[axis]
        return axis, at, at + 1
    if node.op != "Slice" or len(node.inputs) < 4:
        return None
    settings = [graph.constant(node, i) for i in range(1, len(node.inputs))]
    if any(setting is None or setting.scalar is None for setting in settings):
        return None
    start, end, axis, *step = (int(setting.value.reshape(-1)[0]) for setting in settings if setting is not None)
    if step and step[0] != 1:
        return None
    axis %= len(shape)
    size = shape[axis]
    start, end = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
    return (axis, start, end) if start < end else None
