"""What the rules of ONNX Runtime's CPU fusion were tested on: a network with anything else in it is refused.

The runtime knows kernels and fusions that are no rules here, and refuses networks that rules could read.
"""

from __future__ import annotations

import onnx

from akd_deploy.errors import UsageError
from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import DTYPES

OPSETS = range(7, 26)
"""ONNX's operator sets: the runtime has few kernels for older ones, and newer ones are not known to it as a whole."""

_TYPES = onnx.TensorProto
TYPES = frozenset({_TYPES.FLOAT, _TYPES.INT8, _TYPES.UINT8, _TYPES.INT32, _TYPES.INT64, _TYPES.BOOL})
"""Element types of what nodes read and write while the network runs."""

OTHERWISE = frozenset({
    "Bernoulli", "CastLike", "ConvInteger", "GridSample", "NegativeLogLikelihoodLoss", "RoiAlign", "STFT",
    "SoftmaxCrossEntropyLoss", "Swish",
})  # fmt: skip
"""ONNX's operators that the runtime executes as others, or not at all, or with other shapes than ONNX infers."""


def refuse_untested(graph: Graph) -> None:
    """Look for what the rules were not tested on.

    Raises:
        UsageError: there is something; the message names the node or the output.
    """
    if graph.opset not in OPSETS:
        raise _refusal(f"operator set {graph.opset}")
    known = next((name for name in graph.outputs if name in graph.constants), None)
    if known is not None:
        raise _refusal(f"an output {known!r} that is known before the network runs")
    for node in graph.nodes:
        if all(name in graph.constants for name in node.outputs if name):
            continue
        if node.domain or node.op in OTHERWISE:
            raise _refusal(f"node {node}")
        for name in (*node.inputs, *node.outputs):
            if name and graph.types[name].element not in TYPES:
                raise _refusal(f"{DTYPES.get(graph.types[name].element, 'other')} numbers: node {node}")


def doubtful(model: onnx.ModelProto) -> str | None:
    """Why the runtime had better be asked where it is at hand; None where rules and runtime never differed.

    Of 2,500 random networks of quantised operators with transposes in between, they differed on two; on none of 2,300
    without transposes, and on none of the published networks, quantised or not.
    """
    operators = {node.op_type for node in model.graph.node}
    return "transposes of quantised tensors" if {"QuantizeLinear", "Transpose"} <= operators else None


def _refusal(found: str) -> UsageError:
    return UsageError(
        asked="the kernels of a network by fusion rules",
        found=f"what they were not tested on: {found}",
        next="Read the kernels off the runtime.",
    )
