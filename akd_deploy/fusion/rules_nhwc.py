"""Graph optimisation "all" of ONNX Runtime: integer convolutions, and what surrounds them, with channels last."""

from __future__ import annotations

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import MICROSOFT
from akd_deploy.fusion.transposed_tensors import transpose_input, transpose_outputs
from akd_deploy.fusion.transposes import push_transposes_on_cpu


def channels_last(graph: Graph) -> bool:
    """Give every integer convolution channels last, and push the transposes around it where they cancel."""
    changed = False
    for node in graph.nodes:
        if node.op != "QLinearConv" or node.domain not in ("", MICROSOFT) or node.integer("channels_last"):
            continue
        rank = len(graph.shape(node.inputs[0]))
        to_last = (0, *range(2, rank), 1)
        to_first = (0, rank - 1, *range(1, rank - 1))
        node.domain = MICROSOFT
        node.set("channels_last", 1)
        transpose_input(graph, node, 0, to_last)
        transpose_outputs(graph, node, to_first)
        changed = True
    return changed and (push_transposes_on_cpu(graph) or True)
