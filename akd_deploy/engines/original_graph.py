"""The ONNX graph as written, indexed for asking which executed kernel each of its nodes went into."""

from __future__ import annotations

from collections.abc import Sequence, Set
from dataclasses import dataclass, field

import onnx


@dataclass
class OriginalGraph:
    """The original graph, tensors that are equal by construction (copies, repeated nodes) made one."""

    nodes: Sequence[onnx.NodeProto]
    same_as: dict[str, str] = field(default_factory=dict)
    producer: dict[str, int] = field(default_factory=dict)
    """Tensor → the node that writes it."""
    consumers: dict[str, list[int]] = field(default_factory=dict)
    """Tensor → the nodes that read it or one that equals it."""
    index: dict[str, int] = field(default_factory=dict)
    """Node name → node."""
    twins: dict[int, list[int]] = field(default_factory=dict)
    """Node → later nodes that compute the same once more."""
    data_inputs: list[list[str]] = field(default_factory=list)
    """Per node the tensors it reads that depend on the network's input."""
    tensors: set[str] = field(default_factory=set)
    """Every tensor that a node writes or the caller feeds."""

    def tensor(self, name: str) -> str:
        """The tensor that stands for this one and all that equal it."""
        return self.same_as.get(name, name)

    def claim(self, i: int, kernel: int, owner: dict[int, int], reserved: Set[int] = frozenset()) -> bool:
        """Note that node `i`, with nodes that repeat it, went into `kernel`; False if it had an owner.

        Nodes in `reserved` are executed on their own, even if they repeat another.
        """
        if i in owner:
            return False
        owner[i] = kernel
        for twin in self.twins.get(i, []):
            if twin not in reserved:
                owner.setdefault(twin, kernel)
        return True

    def adopt_leftovers(self, owner: dict[int, int]) -> None:
        """Give nodes without an owner to the first kernel they feed, else to the last that feeds them."""
        for i in range(len(self.nodes) - 1, -1, -1):
            if i in owner:
                continue
            readers = [
                owner[j]
                for name in self.nodes[i].output
                for j in self.consumers.get(self.tensor(name), [])
                if j in owner and j > i
            ]
            if readers:
                self.claim(i, min(readers), owner)
        for i, names in enumerate(self.data_inputs):
            feeding = [owner[j] for j in map(self.producer.get, names) if j is not None and j in owner]
            if i not in owner and feeding:
                self.claim(i, max(feeding), owner)


def original_graph(graph: onnx.GraphProto) -> OriginalGraph:
    """Index `graph`, whose nodes have names of their own."""
    original = OriginalGraph(graph.node)
    constants = {initializer.name for initializer in graph.initializer}
    seen: dict[tuple[object, ...], int] = {}
    for i, node in enumerate(graph.node):
        original.index.setdefault(node.name, i)
        inputs = [original.tensor(name) for name in node.input if name]
        data = [name for name in inputs if name not in constants]
        original.data_inputs.append(data)
        if not data:
            constants.update(node.output)
        if node.op_type in ("Identity", "Dropout") and data:
            original.same_as[node.output[0]] = data[0]
        key = (node.domain, node.op_type, tuple(inputs), *(a.SerializeToString() for a in node.attribute))
        # Random operators give something new each time.
        first = i if node.op_type.startswith("Random") or not data else seen.setdefault(key, i)
        if first != i:
            original.twins.setdefault(first, []).append(i)
            for mine, theirs in zip(node.output, graph.node[first].output, strict=False):
                original.same_as.setdefault(mine, theirs)
        for name in node.output:
            if name:
                original.producer.setdefault(name, i)
                original.tensors.add(name)
    for i, node in enumerate(graph.node):
        for name in {original.tensor(name) for name in node.input if name}:
            original.consumers.setdefault(name, []).append(i)
    original.tensors.update(value.name for value in graph.input)
    return original
