"""Where ONNX nodes run in two engines: what was one kernel and is now three, and which conversions came or went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from akd_deploy.export.tensor_types import KernelTypes, traffic_bytes, unknown_types
from akd_deploy.kernel import ExecutedKernel, Kernel

CONVERSIONS = (
    "Cast", "Convert", "CopyNode", "DequantizeLinear", "FakeQuantize", "QuantizeLinear", "Quantize", "Reformat",
    "Reorder", "ReorderInput", "ReorderOutput", "Transpose",
)  # fmt: skip
"""Operators, as engines call them (ONNX Runtime's with their domain before a point), that compute nothing: they change
types or layouts."""


@dataclass(frozen=True)
class Moved:
    """ONNX nodes that kernels of both engines share, and the kernels they run in."""

    nodes: tuple[str, ...]
    kernels_a: tuple[ExecutedKernel, ...]
    kernels_b: tuple[ExecutedKernel, ...]
    traffic_bytes_a: float
    traffic_bytes_b: float

    @property
    def text(self) -> str:
        """Such as "was one kernel Conv, now three: Conv, Relu, Add"."""
        before, after = (_told(kernels) for kernels in (self.kernels_a, self.kernels_b))
        return f"was {before}, now {after}"

    def as_dict(self) -> dict[str, object]:
        def rows(kernels: Sequence[ExecutedKernel]) -> list[dict[str, object]]:
            return [{"name": k.name, "op": k.kernel.op, "dtype": k.kernel.dtype} for k in kernels]

        return {
            "nodes": list(self.nodes),
            "kernels_a": rows(self.kernels_a),
            "kernels_b": rows(self.kernels_b),
            "traffic_bytes_a": self.traffic_bytes_a,
            "traffic_bytes_b": self.traffic_bytes_b,
            "text": self.text,
        }


_NUMBERS = ("no kernel", "one kernel", "two", "three", "four", "five", "six")


def _told(kernels: Sequence[ExecutedKernel]) -> str:
    count = len(kernels)
    number = _NUMBERS[count] if count < len(_NUMBERS) else str(count)
    if not kernels:
        return number
    dtypes = {k.kernel.dtype for k in kernels}
    of = " in " + next(iter(dtypes)) if len(dtypes) == 1 else ""
    names = (f"{k.kernel.op} in {k.kernel.dtype}" if not of else k.kernel.op for k in kernels)
    return f"{number}{':' if count > 1 else ''} {', '.join(names)}{of}"


def moved_nodes(
    a: Sequence[ExecutedKernel],
    b: Sequence[ExecutedKernel],
    types_a: Sequence[KernelTypes] | None = None,
    types_b: Sequence[KernelTypes] | None = None,
) -> tuple[Moved, ...]:
    """Groups of nodes that run in other kernels than before, or in another type; the largest change of traffic first.

    Kernels belong to one group where they share a node. Kernels of no node are in none; `conversions` counts them.
    """
    traffic = [
        [
            traffic_bytes(k.kernel, t)
            for k, t in zip(kernels, types or [unknown_types(k.kernel) for k in kernels], strict=True)
        ]
        for kernels, types in ((a, types_a), (b, types_b))
    ]
    group: dict[str, str] = {}

    def root(node: str) -> str:
        while group.setdefault(node, node) != node:
            group[node] = group[group[node]]
            node = group[node]
        return node

    for executed in (*a, *b):
        for node in executed.nodes[1:]:
            group[root(node)] = root(executed.nodes[0])
    members: dict[str, tuple[list[int], list[int]]] = {}
    for side, kernels in enumerate((a, b)):
        for i, executed in enumerate(kernels):
            if executed.nodes:
                members.setdefault(root(executed.nodes[0]), ([], []))[side].append(i)
    found = []
    for in_a, in_b in members.values():
        before, after = tuple(a[i] for i in in_a), tuple(b[i] for i in in_b)
        if _places(before) == _places(after):
            continue
        nodes = tuple(dict.fromkeys(node for k in (*before, *after) for node in k.nodes))
        found.append(Moved(nodes, before, after, sum(traffic[0][i] for i in in_a), sum(traffic[1][i] for i in in_b)))
    return tuple(sorted(found, key=lambda m: -abs(m.traffic_bytes_b - m.traffic_bytes_a)))


def _places(kernels: Sequence[ExecutedKernel]) -> Counter[tuple[Kernel, frozenset[str]]]:
    """Which kernels there are and which nodes each runs; their order is not compared."""
    return Counter((k.kernel, frozenset(k.nodes)) for k in kernels)


def conversions(a: Sequence[ExecutedKernel], b: Sequence[ExecutedKernel]) -> dict[str, tuple[int, int]]:
    """Operators that change types or layouts alone → how many of them each engine runs, where those differ."""
    counts = [
        Counter(k.kernel.op for k in kernels if k.kernel.op.rpartition(".")[2] in CONVERSIONS) for kernels in (a, b)
    ]
    return {
        op: (counts[0][op], counts[1][op]) for op in sorted(counts[0] | counts[1]) if counts[0][op] != counts[1][op]
    }
