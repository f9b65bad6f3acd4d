"""Say which nodes of the ONNX graph each node of ONNX Runtime's optimised graph came from.

The runtime fuses, folds, drops, duplicates and renames nodes. What survives are tensor names (mostly), node
names (partly) and the graph's structure. Going through the executed nodes in order, each one's output is
traced to the tensor of the original graph that it equals; the node covers whatever lies between that
tensor and the tensors computed before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

import onnx

from akd_deploy.engines.original_graph import OriginalGraph, original_graph

LAYOUT_OPS = frozenset({
    "ReorderInput", "ReorderOutput", "Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Cast", "Identity",
    "MemcpyToHost", "MemcpyFromHost",
})  # fmt: skip
"""Operators a runtime inserts around others; each changes only how its input's values are stored."""

_NCHWC = "com.microsoft.nchwc"
_CAST_PREFIX = "InsertedPrecisionFreeCast_"
"""What ONNX Runtime puts before a tensor that it holds in float32 instead of float16."""
_TOKEN = re.compile(r"(_new_reshape|_token_\d+)+$")
_NCHWC_NAME = re.compile(r"(_mul|_bn|_add)?_nchwc(_token_\d+)?$")
_ACTIVATIONS = frozenset({
    "Relu", "Clip", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid", "HardSwish", "Gelu", "QuickGelu", "Elu", "Selu",
    "ThresholdedRelu", "Softplus", "Mul",
})  # fmt: skip


class _Attribution:
    def __init__(self, original: OriginalGraph, executed: Sequence[onnx.NodeProto]) -> None:
        self.original = original
        self.executed = executed
        self.owner: dict[int, int] = {}
        self.anchors = [self._anchor(node) for node in executed]
        self.anchored = {anchor for anchor in self.anchors if anchor is not None}
        self.value: dict[str, str] = {}
        """Executed tensor → the original tensor it equals."""
        self.hints = self._hints()
        self.readers: dict[str, list[int]] = {}
        for e, node in enumerate(executed):
            for name in node.input:
                self.readers.setdefault(name, []).append(e)
        self.attached: dict[int, tuple[int, ...]] = {}

    # --- what the names say ---------------------------------------------------------------------------------

    def _exact_output(self, node: onnx.NodeProto) -> str | None:
        """The original tensor that the node writes under its own name."""
        return next((name for name in node.output if name in self.original.producer), None)

    def _anchor(self, node: onnx.NodeProto) -> int | None:
        """The original node that the names point to: the last it covers, or one of those."""
        original = self.original
        output = self._exact_output(node)
        if output is not None:
            return original.producer[output]
        if node.domain == _NCHWC or node.name.endswith("_nchwc"):
            for name in (_TOKEN.sub("", node.name).removesuffix("_nchwc"), _NCHWC_NAME.sub("", node.name)):
                if name in original.producer:
                    return original.producer[name]
        for name in (node.name, _TOKEN.sub("", node.name), node.name.split("/")[0], *_prefixes(node.name)):
            if name in original.index:
                return original.index[name]
        return None

    def _is_layout(self, e: int) -> bool:
        """Whether the runtime inserted the node to change a layout, rather than found it in the graph."""
        node, anchor = self.executed[e], self.anchors[e]
        if node.op_type not in LAYOUT_OPS:
            return False
        named = self.original.index.get(node.name)
        if named is not None and self.original.nodes[named].op_type == node.op_type:
            return False
        return anchor is None or self.original.nodes[anchor].op_type not in LAYOUT_OPS

    def _hints(self) -> dict[str, str]:
        """Executed tensor → original tensor, where only a layout change lies between them."""
        hints: dict[str, str] = {}
        for e in range(len(self.executed) - 1, -1, -1):
            node = self.executed[e]
            if self._is_layout(e) and node.input and node.input[0] not in self.original.tensors:
                exact = self._exact_output(node) or hints.get(node.output[0])
                if exact is not None:
                    hints.setdefault(node.input[0], exact)
        return hints

    # --- covering -------------------------------------------------------------------------------------------

    def _claim(self, i: int, e: int) -> bool:
        return self.original.claim(i, e, self.owner, self.anchored)

    def _cover_backwards(self, tensors: Iterable[str], e: int, inputs: set[str]) -> None:
        """Claim everything between `tensors` and what was computed before."""
        stack = list(tensors)
        while stack:
            name = stack.pop()
            i = self.original.producer.get(name)
            if i is None or (name in inputs and name in self.original.tensors) or not self._claim(i, e):
                continue
            stack.extend(self.original.tensor(name) for name in self.original.nodes[i].input if name)
            # A copy lies between a tensor and the one it equals.
            stack.extend(name for name in self.original.nodes[i].input if name in self.original.same_as)

    def _free_consumers(self, tensor: str) -> list[int]:
        free = (i for i in self.original.consumers.get(tensor, []) if i not in self.owner and i not in self.anchored)
        return [i for i in free if self.original.nodes[i].op_type != "DequantizeLinear"]

    def _step(self, tensor: str, e: int, accepted: frozenset[str] | None) -> str:
        """Follow one absorbed operator forwards; the tensor it ends in (the same one if there is none)."""
        free = self._free_consumers(tensor)
        if accepted is not None:
            free = [i for i in free if self.original.nodes[i].op_type in accepted]
        if not free:
            return tensor
        if len(free) == 2:
            # x · f(x), written as two nodes: the product comes last and reads the other's output.
            first, last = free
            if self.original.nodes[first].output[0] in self.original.nodes[last].input:
                self._claim(first, e)
                free = [last]
        self._claim(free[0], e)
        return self.original.tensor(self.original.nodes[free[0]].output[0])

    def _extend_forwards(self, tensor: str, node: onnx.NodeProto, anchor: int, e: int) -> str:
        """The tensor that the node really ends in, where its name only tells how its work begins."""
        began = self.original.nodes[anchor].op_type
        # Its own name may already point to the addition or the activation that was fused first.
        if _reads_residual(node) and began not in ("Add", "Sum"):
            tensor = self._step(tensor, e, frozenset({"Add", "Sum"}))
        if "activation" in {a.name for a in node.attribute} and began not in _ACTIVATIONS:
            tensor = self._step(tensor, e, _ACTIVATIONS)
        if node.op_type in ("Gemm", "FusedGemm") and began == "MatMul":
            tensor = self._step(tensor, e, frozenset({"Add"}))
        if node.op_type.startswith("QLinear") or node.op_type.startswith("QGemm"):
            while began != "QuantizeLinear":
                after = self._step(tensor, e, None)
                if after == tensor:
                    break
                began = self.original.nodes[self.original.producer[after]].op_type
                tensor = after
        return tensor

    def _grow(self, e: int, inputs: set[str]) -> str | None:
        """For a node that no name explains: the free nodes that only need its inputs."""
        known, last, progress = set(inputs), None, True
        while progress:
            progress = False
            for tensor in list(known):
                for i in self._free_consumers(tensor):
                    if set(self.original.data_inputs[i]) <= known and self._claim(i, e):
                        last = self.original.tensor(self.original.nodes[i].output[0])
                        known.add(last)
                        progress = True
        return last

    def _compute_node(self, e: int) -> None:
        node, original = self.executed[e], self.original
        inputs = {original.tensor(self.value[name]) for name in node.input if name in self.value}
        inputs |= {original.tensor(name) for name in node.input if name in original.tensors}
        outputs = [name for name in node.output if name in original.producer]
        hinted = next((self.hints[name] for name in node.output if name in self.hints), None)
        anchor = self.anchors[e]
        if outputs:
            ends = [original.tensor(name) for name in outputs] + outputs
        elif hinted is not None:
            ends = [original.tensor(hinted), hinted]
        elif anchor is not None:
            begins = original.tensor(original.nodes[anchor].output[0])
            self._cover_backwards([begins], e, inputs)
            ends = [self._extend_forwards(begins, node, anchor, e)]
        else:
            grown = self._grow(e, inputs)
            if grown is None:
                return
            ends = [grown]
        self._cover_backwards(ends, e, inputs)
        if anchor is not None:
            self._claim(anchor, e)
        for name, end in zip(node.output, ends, strict=False):
            self.value.setdefault(name, original.tensor(end))

    def _layout_node(self, e: int) -> None:
        node = self.executed[e]
        source = node.input[0] if node.input else ""
        value = self.value.get(source) or (source if source in self.original.tensors else self.hints.get(source))
        exact = self._exact_output(node)
        if value is None:
            value = exact
        if value is not None:
            self.value.setdefault(node.output[0], self.original.tensor(value))

    # --- layout changes -------------------------------------------------------------------------------------

    def _neighbour(self, e: int, covered: Sequence[tuple[int, ...]], forwards: bool) -> tuple[int, ...]:
        """The node of the nearest kernel up- or downstream whose input or output this one prepares."""
        seen = {e}
        frontier = [e]
        while frontier:
            following = []
            for f in frontier:
                if forwards:
                    near = [r for name in self.executed[f].output for r in self.readers.get(name, [])]
                else:
                    near = [self._writer[name] for name in self.executed[f].input if name in self._writer]
                for r in near:
                    if r in seen:
                        continue
                    seen.add(r)
                    if covered[r]:
                        return (self._touching(f, covered[r], forwards),)
                    following.append(r)
            frontier = following
        return ()

    def _touching(self, f: int, nodes: tuple[int, ...], forwards: bool) -> int:
        """Among a kernel's nodes the one that reads (or wrote) what executed node `f` passes on."""
        passed = {self.value.get(name, name) for name in (*self.executed[f].output, *self.executed[f].input)}
        if not forwards:
            produced = (i for i in nodes if passed & {self.original.tensor(n) for n in self.original.nodes[i].output})
            return next(produced, nodes[-1])
        for i in nodes:
            if passed & set(self.original.data_inputs[i]):
                return i
        return nodes[0]

    def run(self) -> list[tuple[str, ...]]:
        self._writer = {name: e for e, node in enumerate(self.executed) for name in node.output if name}
        layout = [self._is_layout(e) for e in range(len(self.executed))]
        for e in range(len(self.executed)):
            if layout[e]:
                self._layout_node(e)
            else:
                self._compute_node(e)
        self.original.adopt_leftovers(self.owner)
        lists: list[list[int]] = [[] for _ in self.executed]
        for i, e in sorted(self.owner.items()):
            lists[e].append(i)
        covered = [tuple(items) for items in lists]
        answer = []
        for e, nodes in enumerate(covered):
            anchor = self.anchors[e]
            if not nodes and anchor is not None and not layout[e]:
                nodes = (anchor,)  # the runtime executes one node several times
            if not nodes:
                # A layout change after a kernel belongs to it, one before a kernel to that one.
                after = layout[e] and (
                    self.executed[e].op_type == "ReorderOutput" or self._exact_output(self.executed[e]) is not None
                )
                nodes = self._neighbour(e, covered, not after) or self._neighbour(e, covered, after)
            answer.append(tuple(self.original.nodes[i].name for i in nodes))
        return answer


def _prefixes(name: str) -> list[str]:
    """`a/b/MatMulAddFusion` → `a/b`, `a`: fusions append their own name to the node's."""
    parts = name.rstrip("/").split("/")
    return ["/".join(parts[:end]) for end in range(len(parts) - 1, 0, -1)]


def _reads_residual(node: onnx.NodeProto) -> bool:
    return node.op_type in ("Conv", "FusedConv") and len(node.input) > 3 and bool(node.input[3])


def attribute_nodes(original: onnx.GraphProto, executed: Sequence[onnx.NodeProto]) -> list[tuple[str, ...]]:
    """For every executed node, in execution order, the names of the original nodes it covers.

    Original nodes must have names of their own. Each one is covered by one executed node; besides, a
    layout change names the node whose input or output it reorders. Nodes that nothing reads belong to
    what feeds them.
    """
    return _Attribution(original_graph(original), _without_cast_prefix(executed)).run()


def _without_cast_prefix(executed: Sequence[onnx.NodeProto]) -> Sequence[onnx.NodeProto]:
    """The nodes with tensors under their own names again, where the runtime computes in float32 what the network has in
    float16; where both are there, each under its own."""
    taken = {name for node in executed for name in (*node.input, *node.output)}
    prefixed = {name for name in taken if name.startswith(_CAST_PREFIX)}
    if not prefixed:
        return executed
    renamed = {name: name.removeprefix(_CAST_PREFIX) for name in prefixed}
    renamed = {name: plain for name, plain in renamed.items() if plain not in taken}
    result = []
    for node in executed:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = node.name.removeprefix(_CAST_PREFIX)
        copy.input[:] = [renamed.get(name, name) for name in node.input]
        copy.output[:] = [renamed.get(name, name) for name in node.output]
        result.append(copy)
    return result
