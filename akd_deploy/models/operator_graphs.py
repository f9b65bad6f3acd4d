"""Small networks around one operator each: what strangers' networks may hold and no published one carried here does.

An operator stands between neighbours that it has in real networks, because runtimes fuse them and lay tensors out for
them, and comes in several sizes.
"""

from __future__ import annotations

import onnx

from akd_deploy.models.graph_builder import Graph
from akd_deploy.models.operators_on_images import IMAGE_OPERATORS
from akd_deploy.models.operators_on_maps import MAP_OPERATORS
from akd_deploy.models.operators_on_sequences import SEQUENCE_OPERATORS

FAMILY = "operators"
"""What rows of them are called."""
MAPS = ((16, 96), (96, 14))
"""Channels, and rows and columns, of feature maps."""
SEQUENCES = ((64, 48), (320, 256))
"""Width and tokens of sequences."""
IMAGES = ((16, 28), (48, 192))
"""Channels of what is made of or becomes an image, and its rows and columns."""
OPERATOR_GRAPHS = (
    len(MAPS) * len(MAP_OPERATORS) + len(SEQUENCES) * len(SEQUENCE_OPERATORS) + len(IMAGES) * len(IMAGE_OPERATORS)
)
"""How many networks there are."""


def operator_graphs(batch: int) -> dict[str, onnx.ModelProto]:
    """Name, like `GroupNormalization 16x96`, → the network's skeleton (`onnx_skeleton`)."""
    graphs = {}
    for name, recipe in MAP_OPERATORS.items():
        for channels, size in MAPS:
            graph = Graph(batch, channels, size)
            image = graph.given(channels // 2, size, size)
            graph.x = graph("Relu", graph.conv(image, channels // 2, channels))
            graphs[f"{name} {channels}x{size}"] = graph.model(recipe(graph))
    for name, recipe in SEQUENCE_OPERATORS.items():
        for width, tokens in SEQUENCES:
            graph = Graph(batch, width, tokens)
            graph.x = graph.dense(graph.given(tokens, width // 2), width // 2, width)
            graphs[f"{name} {width}x{tokens}"] = graph.model(recipe(graph))
    for name, recipe in IMAGE_OPERATORS.items():
        for channels, size in IMAGES:
            graph = Graph(batch, channels, size)
            graphs[f"{name} {channels}x{size}"] = graph.model(recipe(graph))
    return graphs
