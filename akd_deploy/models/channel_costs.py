"""What a network of labelled channels costs, whole or with some of them: operations and parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import fx, nn

from akd_deploy.models.channel_graph import Branch, ChannelGraph
from akd_deploy.models.traced_network import shape_of

Kept = Callable[[np.ndarray], np.ndarray]
"""(n,) labels → (n,) booleans."""


def multiply_accumulates(graph: ChannelGraph, is_kept: Kept | None = None, dropped: Sequence[Branch] = ()) -> int:
    """Of one image, of convolutions and linear layers; with `is_kept` of the channels that are kept alone, and without
    what is in `dropped` branches."""
    return sum(_counted(graph, node, is_kept)[0] for node in live_consumers(graph, dropped))


def parameter_count(graph: ChannelGraph, is_kept: Kept | None = None, dropped: Sequence[Branch] = ()) -> int:
    """Weights and biases of convolutions and linear layers, in the same way."""
    return sum(_counted(graph, node, is_kept)[1] for node in live_consumers(graph, dropped))


def live_consumers(graph: ChannelGraph, dropped: Sequence[Branch] = ()) -> list[fx.Node]:
    """Those that the output depends on when sums forget these branches."""
    alive = live_nodes(graph, dropped)
    return [node for node in graph.consumers() if node.name in alive]


def live_nodes(graph: ChannelGraph, dropped: Sequence[Branch] = ()) -> set[str]:
    """Names of all nodes that the output depends on when sums forget these branches."""
    around = {branch.node: branch.skip for branch in dropped}
    nodes = {node.name: node for node in graph.module.graph.nodes}
    (output,) = (node for node in graph.module.graph.nodes if node.op == "output")
    alive: set[str] = set()
    waiting = [output.name]
    while waiting:
        name = waiting.pop()
        if name in alive:
            continue
        alive.add(name)
        sources = [around[name]] if name in around else [source.name for source in nodes[name].all_input_nodes]
        waiting += sources
    return alive


def _counted(graph: ChannelGraph, node: fx.Node, is_kept: Kept | None) -> tuple[int, int]:
    """Multiply-accumulates and parameters of one convolution or linear layer."""
    module, shape = graph.module.get_submodule(str(node.target)), shape_of(node) or ()
    known = all(one.name in graph.of for one in (node.all_input_nodes[0], node)) and graph.is_of_channels(node)

    def width(name: str, whole: int) -> int:
        labelled = graph.of.get(name) if known else None
        return whole if is_kept is None or labelled is None else int(is_kept(labelled.labels).sum())

    if isinstance(module, nn.Linear):
        inside = width(node.all_input_nodes[0].name, module.in_features)
        outside = width(node.name, module.out_features)
        rows = int(np.prod(shape[1:-1], dtype=int))
        return rows * inside * outside, inside * outside + (outside if module.bias is not None else 0)
    assert isinstance(module, nn.Conv2d | nn.ConvTranspose2d)
    inside = width(node.all_input_nodes[0].name, module.in_channels)
    outside = width(node.name, module.out_channels)
    groups = inside if module.groups == module.in_channels and module.groups > 1 else module.groups
    window = int(np.prod(module.kernel_size))
    weights = outside * (inside // max(1, groups)) * window
    positions = int(np.prod(shape[2:]))
    if isinstance(module, nn.ConvTranspose2d):
        positions = int(np.prod((shape_of(node.all_input_nodes[0]) or ())[2:]))
    return weights * positions, weights + (outside if module.bias is not None else 0)
