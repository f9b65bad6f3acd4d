"""A light graph to rewrite: nodes, who writes and reads each tensor, every tensor's type, the constants' values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from onnx import helper

from akd_deploy.fusion.node import Constant, Node, TensorType
from akd_deploy.kernel import Shape


class Graph:
    """Nodes in an order that can be executed, with indices that every edit keeps true."""

    def __init__(self, inputs: Mapping[str, TensorType], outputs: Iterable[str], opset: int) -> None:
        self.inputs = dict(inputs)
        self.outputs = list(outputs)
        self.opset = opset
        self.types: dict[str, TensorType] = dict(inputs)
        self.constants: dict[str, Constant] = {}
        self.given: set[str] = set()
        """The constants that the file itself has."""
        self.stored: dict[str, TensorType] = {}
        """Everything that is stored with the network: constants that no node computes, and what may be overridden."""
        self._made: list[Node] = []
        """Every node ever added, in that order."""
        self._nodes: list[Node] = []
        self._is_sorted = True
        self._writers: dict[str, Node] = {}
        self._readers: dict[str, list[Node]] = {}
        self._taken = 0

    # --- asking ---------------------------------------------------------------------------------------------

    @property
    def nodes(self) -> list[Node]:
        """A copy that may be walked while the graph is edited; nodes removed meanwhile are not `alive`."""
        if not self._is_sorted:
            self._sort()
        self._nodes = [node for node in self._nodes if node.alive]
        return list(self._nodes)

    def of(self, *ops: str, domain: str = "") -> list[Node]:
        """Nodes of these operators, in order."""
        return [node for node in self.nodes if node.op in ops and node.domain == domain]

    def writer(self, name: str) -> Node | None:
        return self._writers.get(name)

    def readers(self, name: str) -> list[Node]:
        """The nodes that read a tensor, one entry for each input it is."""
        return list(self._readers.get(name, ()))

    def uses(self, name: str) -> int:
        """How often a tensor is read, the caller's own reading of an output included."""
        return len(self._readers.get(name, ())) + (name in self.outputs)

    def only_reader(self, node: Node) -> Node | None:
        """The one node that alone reads the first output, which is no output of the network."""
        readers = self._readers.get(node.outputs[0], ())
        return readers[0] if len(readers) == 1 and node.outputs[0] not in self.outputs else None

    def constant(self, node: Node, i: int) -> Constant | None:
        """The constant behind input `i`, None where there is none."""
        return self.constants.get(node.inputs[i]) if i < len(node.inputs) else None

    def shape(self, name: str) -> Shape:
        return self.types[name].shape

    def unused_name(self, stem: str) -> str:
        """A tensor or node name that nothing has, marked as made up the way ONNX Runtime marks it."""
        self._taken += 1
        return f"{stem}_token_{self._taken}"

    # --- editing --------------------------------------------------------------------------------------------

    def add(self, node: Node, types: Iterable[TensorType] = ()) -> Node:
        """Add a node; `types` are those of its outputs, where they are new tensors."""
        self._made.append(node)
        self._nodes.append(node)
        self._is_sorted = False
        for name in node.inputs:
            if name:
                self._readers.setdefault(name, []).append(node)
        for name in node.outputs:
            if name:
                self._writers[name] = node
        self.types.update(zip(node.outputs, types, strict=False))
        return node

    def add_constant(self, value: np.ndarray, stem: str) -> str:
        name = self.unused_name(stem)
        type_ = TensorType(helper.np_dtype_to_tensor_dtype(value.dtype), tuple(value.shape))
        return self.add_unread_constant(Constant(type_, lambda: value), name)

    def add_unread_constant(self, constant: Constant, name: str) -> str:
        self.constants[name] = constant
        self.types[name] = self.stored[name] = constant.type
        return name

    def add_given(self, constant: Constant, name: str) -> None:
        """Note a constant of the file."""
        self.given.add(self.add_unread_constant(constant, name))

    def remove(self, node: Node) -> None:
        """Take a node out; what read its outputs must have been given something else."""
        node.alive = False
        self._is_sorted = False
        for name in node.inputs:
            if name:
                self._readers[name].remove(node)
        for name in node.outputs:
            if self._writers.get(name) is node:
                del self._writers[name]

    def set_input(self, node: Node, i: int, name: str) -> None:
        while len(node.inputs) <= i:
            node.inputs.append("")
        if node.inputs[i]:
            self._readers[node.inputs[i]].remove(node)
        node.inputs[i] = name
        if name:
            self._readers.setdefault(name, []).append(node)
            self._is_sorted = False

    def drop_input(self, node: Node, i: int) -> None:
        self._readers[node.inputs[i]].remove(node)
        del node.inputs[i]

    def set_output(self, node: Node, i: int, name: str) -> None:
        """Let a node write another tensor; the one it wrote has no writer any more."""
        if self._writers.get(node.outputs[i]) is node:
            del self._writers[node.outputs[i]]
        node.outputs[i] = name
        self._writers[name] = node
        self._is_sorted = False

    def read_instead(self, old: str, new: str) -> None:
        """Let whoever reads `old` read `new`."""
        for node in self.readers(old):
            self.set_input(node, node.inputs.index(old), new)

    def absorb(self, node: Node, later: Node) -> None:
        """Remove `later`, the only reader of `node`, which from now on writes what `later` wrote."""
        name = later.outputs[0]
        self.remove(later)
        self.set_output(node, 0, name)

    def bypass(self, node: Node, i: int = 0) -> bool:
        """Remove a node whose output equals its input `i`; False where the network's interface forbids it.

        An output of the network keeps its name: then what writes the input writes it instead, if nothing else
        reads that.
        """
        source, name = node.inputs[i], node.outputs[0]
        if name in self.outputs:
            writer = self._writers.get(source)
            if writer is None or self.uses(source) != 1:
                return False
            position = writer.outputs.index(source)
            self.remove(node)
            self.set_output(writer, position, name)
            return True
        self.read_instead(name, source)
        self.remove(node)
        return True

    def replace_by_equal(self, node: Node, name: str) -> None:
        """Let the tensor `name` stand for a node's output, which equals it; the network's outputs keep their names."""
        output = node.outputs[0]
        if output not in self.outputs:
            self.read_instead(output, name)
            self.remove(node)
            return
        writer = self._writers.get(name)
        if writer is None or name in self.outputs:
            for i in reversed(range(1, len(node.inputs))):
                self.drop_input(node, i)
            self.set_input(node, 0, name)
            node.op, node.name, node.attributes = "Identity", self.unused_name("Identity"), {}
            return
        self.remove(node)
        self.set_output(writer, writer.outputs.index(name), output)
        self.read_instead(name, output)

    def drop_if_unread(self, node: Node) -> None:
        if not any(self.uses(name) for name in node.outputs if name):
            self.remove(node)

    def drop_unread(self, node: Node | None) -> None:
        """Remove a node that nothing reads, and upwards what it alone read."""
        while node is not None and node.alive and not any(self.uses(name) for name in node.outputs if name):
            sources = [self._writers.get(name) for name in node.inputs]
            self.remove(node)
            for source in sources[1:]:
                self.drop_unread(source)
            node = sources[0] if sources else None

    # --- inside ---------------------------------------------------------------------------------------------

    def _sort(self) -> None:
        """Order the nodes as the runtime does: depth first from the last leaf, later inputs first."""
        nodes = [node for node in self._nodes if node.alive]
        position = {id(node): i for i, node in enumerate(self._made) if node.alive}
        stack = [(node, False) for node in self._made if node.alive and not self._feeds_any(node)]
        seen: set[int] = set()
        order: list[Node] = []
        while stack:
            node, is_done = stack.pop()
            if is_done:
                order.append(node)
                continue
            if id(node) in seen:
                continue
            seen.add(id(node))
            stack.append((node, True))
            sources = {id(w): w for name in node.inputs if (w := self._writers.get(name)) is not None}
            stack += [(w, False) for w in sorted(sources.values(), key=lambda w: position[id(w)]) if id(w) not in seen]
        assert len(order) == len(nodes), "the graph has a cycle"
        self._nodes = order
        self._is_sorted = True

    def _feeds_any(self, node: Node) -> bool:
        return any(self._readers.get(name) for name in node.outputs)
