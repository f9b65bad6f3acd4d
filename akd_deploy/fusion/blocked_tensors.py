"""Tensors whose channels are stored in blocks: what stands for what, and when it is reordered."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import FLOAT, Constant, Node, TensorType
from akd_deploy.fusion.permutations import permutation_of
from akd_deploy.kernel import Shape

NCHWC = "com.microsoft.nchwc"
_TO_CHANNELS_FIRST = (0, 3, 1, 2)


@dataclass
class Blocked:
    """A tensor in blocks, standing for one that the graph names otherwise."""

    name: str
    writer: Node
    uses: int
    """How often the plain tensor was read before anything read it in blocks."""
    channels: int
    """Without the padding of the last block."""
    remaining: int = field(init=False)

    def __post_init__(self) -> None:
        self.remaining = self.uses

    @property
    def is_open_convolution(self) -> bool:
        """Whether it comes from a convolution that may take in what alone reads it: it has no activation yet."""
        return self.writer.is_a("Conv", domain=NCHWC) and self.uses == 1 and "activation" not in self.writer.attributes


class BlockedTensors:
    """The blocked tensors of a graph that is being rewritten."""

    def __init__(self, graph: Graph, block: int) -> None:
        self.graph = graph
        self.block = block
        self._blocked: dict[str, Blocked] = {}
        self._reordered: dict[str, str] = {}

    def __bool__(self) -> bool:
        return bool(self._blocked)

    def padded(self, channels: int) -> int:
        """The channels that are stored: whole blocks."""
        return -(-channels // self.block) * self.block

    def of(self, name: str) -> Blocked | None:
        """What stands for a plain tensor."""
        return self._blocked.get(name)

    def write(self, node: Node, channels: int) -> None:
        """Let a node write blocks where it wrote a plain tensor."""
        plain = node.output
        type_ = self.graph.types[plain]
        name = self.graph.unused_name("reorder")
        self.graph.types[name] = TensorType(type_.element, (type_.shape[0], self.padded(channels), *type_.shape[2:]))
        self._blocked[plain] = Blocked(name, node, self.graph.uses(plain), channels)
        self.graph.set_output(node, 0, name)

    def fuse(self, node: Node, source: Blocked) -> None:
        """Remove a node that went into what writes `source`, which from now on stands for the node's output."""
        plain = node.output
        self._blocked[plain] = Blocked(source.name, source.writer, self.graph.uses(plain), source.channels)
        self.graph.remove(node)

    def read(self, node: Node, i: int) -> Blocked:
        """Let a node read what stands for its input `i`."""
        source = self._blocked[node.inputs[i]]
        self.graph.set_input(node, i, source.name)
        source.remaining -= 1
        return source

    def read_reordered(self, node: Node) -> None:
        """Let a node read its first input in blocks, reordered where nothing stands for it."""
        plain = node.inputs[0]
        if plain in self._blocked:
            self.read(node, 0)
            return
        if plain not in self._reordered:
            self._reordered[plain] = self._reorder(plain)
        self.graph.set_input(node, 0, self._reordered[plain])

    def _reorder(self, plain: str) -> str:
        graph = self.graph
        type_ = graph.types[plain]
        name = graph.unused_name("reorder")
        node = Node("ReorderInput", [plain], [name], graph.unused_name("ReorderInput"), NCHWC)
        writer = graph.writer(plain)
        is_alone = writer is not None and writer.is_a("Transpose") and graph.uses(plain) == 1
        if writer is not None and is_alone and permutation_of(graph, writer) == _TO_CHANNELS_FIRST:
            node.inputs = [writer.inputs[0]]
            node.set("channels_last", 1)
        shape = (type_.shape[0], self.padded(type_.shape[1]), *type_.shape[2:])
        graph.add(node, [TensorType(type_.element, shape)])
        return name

    def weight(self, name: str, shape: Shape) -> str:
        """A constant rearranged, and padded with zeros, to this shape."""
        if self.graph.shape(name) == shape:
            return name
        source = self.graph.constants[name]

        def rearranged() -> np.ndarray:
            values = np.zeros(math.prod(shape), source.value.dtype)
            values[: source.value.size] = source.value.ravel()
            return values.reshape(shape)

        constant = Constant(TensorType(source.type.element, shape), rearranged)
        return self.graph.add_unread_constant(constant, self.graph.unused_name("reorder"))

    def split_channels(self, source: Blocked) -> str:
        """A view of a blocked tensor with the blocks as a dimension of its own."""
        graph = self.graph
        batch, channels, *sizes = graph.shape(source.name)
        shape = (batch, channels // self.block, *sizes, self.block)
        name = graph.unused_name("reshape")
        to = graph.add_constant(np.asarray([0, channels // self.block, 0, 0, self.block]), "Reshape")
        graph.add(Node("Reshape", [source.name, to], [name], graph.unused_name("Reshape")), [TensorType(FLOAT, shape)])
        return name

    def finish(self) -> None:
        """Reorder what is still read in the plain layout; drop transposes that reordering does on its way."""
        graph = self.graph
        for plain, blocked in self._blocked.items():
            if blocked.remaining > 0:
                order = Node("ReorderOutput", [blocked.name], [plain], graph.unused_name("ReorderOutput"), NCHWC)
                order.set("channels", blocked.channels)
                graph.add(order)
        for plain in self._reordered:
            writer = graph.writer(plain)
            if writer is not None and writer.is_a("Transpose"):
                graph.drop_if_unread(writer)
