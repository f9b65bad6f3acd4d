"""Graph optimisation "all" of ONNX Runtime on x86: convolutions and what surrounds them in a channel-blocked layout."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from akd_deploy.fusion.blocked_tensors import NCHWC, Blocked, BlockedTensors
from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import FLOAT, MICROSOFT, Node

_CHANNEL_MULTIPLE = 4
"""Reordering to and from blocks wants channels in fours; the last block is padded."""

_HARD_SWISH = (1 / 6, 0.5)
_NEAREST = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
_RESIZES = {
    "nearest": {("asymmetric", "floor")},
    "linear": {(c, nearest) for c in ("asymmetric", "half_pixel", "align_corners") for nearest in _NEAREST},
}
"""Mode → the coordinates and the rounding that there is a blocked enlargement for."""

_FUSED = frozenset({"Relu", "Sigmoid", "Tanh", "HardSigmoid"})
"""Activations that a convolution does after an addition was fused into it."""


def block_channels(graph: Graph, block: int) -> bool:
    """Rewrite convolutions, pools and what lies between them to work on `block` channels at a time."""
    tensors = BlockedTensors(graph, block)
    for node in graph.nodes:
        rule = _RULES.get(node.op)
        if node.alive and rule is not None and node.domain in ("", MICROSOFT):
            rule(tensors, node)
    tensors.finish()
    return bool(tensors)


def _as_nchwc(node: Node) -> None:
    node.domain = NCHWC
    node.name = f"{node.output}_nchwc"


def _convolution(tensors: BlockedTensors, node: Node) -> None:
    graph, block = tensors.graph, tensors.block
    weight = graph.constant(node, 1)
    if weight is None or len(weight.type.shape) != 4 or weight.type.element != FLOAT or len(node.inputs) > 3:
        return
    has_bias = len(node.inputs) > 2 and bool(node.inputs[2])
    if has_bias and node.inputs[2] not in graph.constants:
        return
    out_channels, in_channels, *window = weight.type.shape
    groups = node.integer("group", 1)
    reads_plain = groups == 1 and in_channels < block
    filter_channels = in_channels
    if groups > 1:
        if in_channels == 1 and out_channels == groups:
            if out_channels % _CHANNEL_MULTIPLE:
                return
            node.set("group", tensors.padded(groups))
        elif out_channels % block or in_channels % block or (out_channels // groups) % block:
            return
    elif not reads_plain:
        if in_channels % _CHANNEL_MULTIPLE:
            return
        filter_channels = tensors.padded(in_channels)
    shape = (tensors.padded(out_channels), filter_channels, *window)
    graph.set_input(node, 1, tensors.weight(node.inputs[1], shape))
    if has_bias:
        graph.set_input(node, 2, tensors.weight(node.inputs[2], shape[:1]))
    node.op = "Conv"
    _as_nchwc(node)
    if not reads_plain:
        tensors.read_reordered(node)
    tensors.write(node, out_channels)


def _pool(tensors: BlockedTensors, node: Node) -> None:
    type_ = tensors.graph.types[node.inputs[0]]
    if len(node.outputs) > 1 or len(type_.shape) != 4 or type_.element != FLOAT or type_.shape[1] % tensors.block:
        return
    _as_nchwc(node)
    tensors.read_reordered(node)
    tensors.write(node, type_.shape[1])


def _global_pool(tensors: BlockedTensors, node: Node) -> None:
    if tensors.of(node.inputs[0]) is not None or node.inputs[0] in tensors.graph.inputs:
        _pool(tensors, node)


def _sum(tensors: BlockedTensors, node: Node) -> None:
    """An addition goes into a convolution that it alone reads; what is broadcast is added block by block."""
    graph = tensors.graph
    sources = _all_blocked(tensors, node)
    if sources is None or len({source.channels for source in sources}) != 1:
        return
    if len({graph.shape(name) for name in node.inputs}) == 1:
        found = [tensors.read(node, i) for i in range(len(node.inputs))]
        for i, source in enumerate(found):
            conv = source.writer
            if len(found) == 2 and source.is_open_convolution and len(conv.inputs) < 4:
                graph.set_input(conv, 3, found[1 - i].name)
                tensors.fuse(node, source)
                return
        tensors.write(node, found[0].channels)
        return
    channels = sources[0].channels
    for i, source in enumerate(sources):
        source.remaining -= 1
        graph.set_input(node, i, tensors.split_channels(source))
    _join_channels(tensors, node, channels)


def _join_channels(tensors: BlockedTensors, node: Node, channels: int) -> None:
    graph = tensors.graph
    plain, inner = node.output, graph.unused_name("reshape")
    type_ = graph.types[plain]
    batch, _, *sizes = type_.shape
    blocks = tensors.padded(channels) // tensors.block
    graph.types[inner] = type(type_)(type_.element, (batch, blocks, *sizes, tensors.block))
    graph.set_output(node, 0, inner)
    to = graph.add_constant(np.asarray([0, tensors.padded(channels), 0, 0]), "Reshape")
    join = graph.add(Node("Reshape", [inner, to], [plain], graph.unused_name("Reshape")))
    tensors.write(join, channels)


def _all_blocked(tensors: BlockedTensors, node: Node) -> list[Blocked] | None:
    found = [tensors.of(name) for name in node.inputs]
    blocked = [source for source in found if source is not None]
    return blocked if len(blocked) == len(found) else None


def _product(tensors: BlockedTensors, node: Node) -> None:
    """One constant factor per channel is a depthwise convolution with windows of one element."""
    graph = tensors.graph
    for i in (0, 1):
        source, factor = tensors.of(node.inputs[i]), graph.constant(node, 1 - i)
        if source is None or factor is None:
            continue
        shape = (source.channels, 1, 1)
        if factor.type.shape in (shape, (1, *shape)):
            weight = tensors.weight(node.inputs[1 - i], (tensors.padded(source.channels), 1, 1, 1))
            _replace_by_depthwise(tensors, node, source, [weight], "mul")
        return
    sources = _all_blocked(tensors, node)
    if sources is not None and len({graph.shape(name) for name in node.inputs}) == 1:
        channels = [tensors.read(node, i).channels for i in range(len(node.inputs))]
        tensors.write(node, channels[0])


def _concat(tensors: BlockedTensors, node: Node) -> None:
    sources = _all_blocked(tensors, node)
    if sources is None or node.integer("axis") != 1 or any(source.channels % tensors.block for source in sources):
        return
    tensors.write(node, sum(tensors.read(node, i).channels for i in range(len(node.inputs))))


def _activation(tensors: BlockedTensors, node: Node) -> None:
    if tensors.of(node.inputs[0]) is None:
        return
    source = tensors.read(node, 0)
    if node.op in _FUSED and source.is_open_convolution:
        source.writer.set("activation", node.op)
        tensors.fuse(node, source)
    else:
        tensors.write(node, source.channels)


def _hard_sigmoid(tensors: BlockedTensors, node: Node) -> None:
    if not _fuse_hard_swish(tensors, node):
        _activation(tensors, node)


def _fuse_hard_swish(tensors: BlockedTensors, node: Node) -> bool:
    """x · hard_sigmoid(x) behind a convolution is done on its way out."""
    graph = tensors.graph
    plain = node.inputs[0]
    source, product = tensors.of(plain), graph.only_reader(node)
    parameters = (node.number("alpha", 0.2), node.number("beta", 0.5))
    if (
        source is None
        or source.uses != 2
        or not source.writer.is_a("Conv", domain=NCHWC)
        or "activation" in source.writer.attributes
        or product is None
        or not product.is_a("Mul")
        or set(product.inputs) != {plain, node.output}
        or product.output in graph.outputs
        or any(abs(a - b) > 1e-6 for a, b in zip(parameters, _HARD_SWISH, strict=True))
    ):
        return False
    source.writer.set("activation", "HardSwish")
    source.remaining -= 2
    graph.remove(node)
    tensors.fuse(product, source)
    return True


def _batch_norm(tensors: BlockedTensors, node: Node) -> None:
    source = tensors.of(node.inputs[0])
    if source is None or len(node.outputs) > 1 or not all(n in tensors.graph.constants for n in node.inputs[1:]):
        return
    channels = tensors.padded(source.channels)
    weight = tensors.weight(node.inputs[1], (channels, 1, 1, 1))
    _replace_by_depthwise(tensors, node, source, [weight, tensors.weight(node.inputs[2], (channels,))], "bn")


def _replace_by_depthwise(
    tensors: BlockedTensors, node: Node, source: Blocked, weights: list[str], suffix: str
) -> None:
    source.remaining -= 1
    tensors.graph.remove(node)
    conv = Node("Conv", [source.name, *weights], [node.output], f"{node.output}_{suffix}_nchwc", NCHWC)
    conv.set("group", tensors.padded(source.channels))
    tensors.write(tensors.graph.add(conv), source.channels)


def _transpose(tensors: BlockedTensors, node: Node) -> None:
    """Blocks may be reordered to channels last at once."""
    graph = tensors.graph
    source = tensors.of(node.inputs[0])
    if source is None or node.integers("perm") != (0, 2, 3, 1):
        return
    source.remaining -= 1
    graph.remove(node)
    order = Node("ReorderOutput", [source.name], [node.output], graph.unused_name("ReorderOutput"), NCHWC)
    order.set("channels", source.channels)
    order.set("channels_last", 1)
    graph.add(order)


def _resize(tensors: BlockedTensors, node: Node) -> None:
    """Enlarging height and width by whole factors."""
    graph = tensors.graph
    source = tensors.of(node.inputs[0])
    before, after = graph.shape(node.inputs[0]), graph.shape(node.output)
    mode = node.text("mode", "nearest")
    coordinates = node.text("coordinate_transformation_mode", "half_pixel" if graph.opset >= 11 else "asymmetric")
    nearest = node.text("nearest_mode", "round_prefer_floor" if graph.opset >= 11 else "floor")
    is_enlarged = before[:2] == after[:2] and not any(n % m for n, m in zip(after, before, strict=True))
    if source is None or len(before) != 4 or not is_enlarged or (coordinates, nearest) not in _RESIZES.get(mode, ()):
        return
    source.remaining -= 1
    graph.remove(node)
    made = Node("Upsample", [source.name], [node.output], f"{node.output}_nchwc", NCHWC, mode=mode)
    tensors.write(graph.add(made), source.channels)


_RULES: Mapping[str, Callable[[BlockedTensors, Node], None]] = {
    "Conv": _convolution, "FusedConv": _convolution, "MaxPool": _pool, "AveragePool": _pool,
    "GlobalMaxPool": _global_pool, "GlobalAveragePool": _global_pool, "Add": _sum, "Sum": _sum, "Mul": _product,
    "Concat": _concat, "Relu": _activation, "Sigmoid": _activation, "Tanh": _activation, "Gelu": _activation,
    "QuickGelu": _activation, "HardSigmoid": _hard_sigmoid, "BatchNormalization": _batch_norm,
    "Transpose": _transpose, "Resize": _resize, "Upsample": _resize,
}  # fmt: skip
