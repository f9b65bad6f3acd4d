"""Features inside any network: what named layers put out, beside the network's own output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.models.part import Part
from akd_deploy.models.student import Chain

MOST_POINTS = 4
"""Places that are tapped where none are named: the last of each resolution, the deepest ones first."""


def _graph_of(network: nn.Module) -> fx.GraphModule | None:
    """The graph that a network is, or is nothing but: a part of a teacher. What only holds one may do more."""
    inner = network.network if isinstance(network, Part) else network
    return inner if isinstance(inner, fx.GraphModule) else None


class _Tapped(fx.Interpreter):
    """Runs a graph and keeps what some of its nodes put out; of any of them its shape."""

    def __init__(self, graph: fx.GraphModule, points: Sequence[str] = ()) -> None:
        super().__init__(graph)
        self.points = frozenset(points)
        self.found: dict[str, Any] = {}
        self.shapes: list[tuple[str, tuple[int, ...]]] = []

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(result, Tensor) and n.op not in ("placeholder", "get_attr", "output"):
            self.shapes.append((n.name, tuple(result.shape)))
        if n.name in self.points:
            # What comes after may work in place on what it is given.
            self.found[n.name] = result.clone() if isinstance(result, Tensor) else result
        return result


def points_of(network: nn.Module) -> list[str]:
    """The names that can be tapped: of a student's operations, of a traced graph's nodes (sums and functions have no
    module), of another network's submodules."""
    if isinstance(network, Chain):
        return [step.name for step in network.operations]
    graph = _graph_of(network)
    if graph is not None:
        return [node.name for node in graph.graph.nodes if node.op.startswith("call_")]
    return [name for name, _ in network.named_modules() if name]


def tapped(network: nn.Module, images: Tensor, points: Sequence[str]) -> tuple[Tensor, list[Tensor]]:
    """The network's output and the features at `points`, in that order.

    Args:
        points: names of `points_of`; a submodule that runs several times gives what it put out last.

    Raises:
        UnknownNameError: no such point.
        UsageError: a point that did not run, or gave no tensor.
    """
    if isinstance(network, Chain):
        known = points_of(network)
        for point in points:
            if point not in known:
                raise UnknownNameError("point", point, known, where=type(network).__name__)
        tensors = network.every(images)
        return tensors[network.operations[-1].name], [tensors[point] for point in points]
    graph, found = _graph_of(network), dict[str, Any]()
    if graph is not None:
        known = points_of(network)
        for point in points:
            if point not in known:
                raise UnknownNameError("point", point, known, where=type(network).__name__)
        interpreter = _Tapped(graph, points)
        output = interpreter.run(images)
        return output, _tensors(network, interpreter.found, points)
    modules = dict(network.named_modules())
    handles = []
    try:
        for point in points:
            if point not in modules or not point:
                raise UnknownNameError("point", point, [name for name in modules if name], where=type(network).__name__)

            def keep(_module: nn.Module, _inputs: object, output: object, point: str = point) -> None:
                # What comes after may work in place on what it is given.
                found[point] = output.clone() if isinstance(output, Tensor) else output

            handles.append(modules[point].register_forward_hook(keep))
        output = network(images)
    finally:
        for handle in handles:
            handle.remove()
    return output, _tensors(network, found, points)


def _tensors(network: nn.Module, found: Mapping[str, Any], points: Sequence[str]) -> list[Tensor]:
    """What was found at points, one tensor each."""
    for point in points:
        if not isinstance(found.get(point), Tensor):
            raise UsageError(
                asked=f"features at {point} of {type(network).__name__}",
                found="nothing: it did not run" if point not in found else f"a {type(found[point]).__name__}",
                next="Tap a submodule that puts out one tensor.",
            )
    return [found[point] for point in points]


def map_shapes(network: nn.Module, example: Tensor, points: Sequence[str], who: str) -> list[tuple[int, int, int]]:
    """(channels, height, width) of the features at each point.

    Args:
        example: one batch of images.
        who: the network, in an error.

    Raises:
        UnknownNameError: no such point.
        UsageError: a point that puts out something else.
    """
    training = network.training
    network.eval()
    with torch.no_grad():
        _, features = tapped(network, example, points)
    network.train(training)
    shapes = []
    for point, feature in zip(points, features, strict=True):
        if feature.ndim != 4:
            raise UsageError(
                asked=f"maps of features at {point} of the {who}",
                found=f"a tensor of shape {tuple(feature.shape)}",
                next="Tap a layer that puts out (batch, channels, height, width).",
            )
        channels, height, width = feature.shape[1:]
        shapes.append((channels, height, width))
    return shapes


def feature_points(network: nn.Module, input_shape: Sequence[int]) -> list[str]:
    """Where to tap a network: after the last layer of each resolution, from the input on, at most `MOST_POINTS`.

    Raises:
        UsageError: nothing in the network puts out maps (batch, channels, height, width).
    """
    images = torch.zeros(2, *input_shape)
    last: dict[tuple[int, ...], str] = {}
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            for name, shape in _shapes(network, images):
                if len(shape) == 4 and shape[0] == 2 and _are_maps(shape[2:], images.shape[2:]):
                    last[tuple(shape[2:])] = name
    finally:
        network.train(training)
    if not last:
        raise UsageError(
            asked=f"feature maps of {type(network).__name__}",
            found="none of (batch, channels, height, width) with more than one position",
            next="Name the layers to tap.",
        )
    return list(last.values())[-MOST_POINTS:]


def _are_maps(size: Sequence[int], image: Sequence[int]) -> bool:
    """Whether two dimensions are an image's height and width, made smaller: as high for their width, to a rounding."""
    return min(size) > 1 and abs(size[0] * image[1] - size[1] * image[0]) <= max(image)


def _shapes(network: nn.Module, images: Tensor) -> list[tuple[str, tuple[int, ...]]]:
    """(name, shape) of everything that can be tapped, in the order of running."""
    if isinstance(network, Chain):
        return [
            (name, tuple(tensor.shape)) for name, tensor in network.every(images).items() if name in points_of(network)
        ]
    graph = _graph_of(network)
    if graph is not None:
        interpreter = _Tapped(graph)
        interpreter.run(images)
        return interpreter.shapes
    found: list[tuple[str, tuple[int, ...]]] = []
    handles = []
    try:
        for name, module in network.named_modules():
            if name:

                def note(_module: nn.Module, _inputs: object, output: object, name: str = name) -> None:
                    if isinstance(output, Tensor):
                        found.append((name, tuple(output.shape)))

                handles.append(module.register_forward_hook(note))
        network(images)
    finally:
        for handle in handles:
            handle.remove()
    return found
