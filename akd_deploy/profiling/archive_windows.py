"""Windows of a `torch.export` archive: runs of consecutive operators that can be measured on their own."""

from __future__ import annotations

import hashlib
import operator
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx

from akd_deploy.engines.torch_archive import read_archive
from akd_deploy.latency_table import PROBE
from akd_deploy.models.export_archive import write_archive

MAX_NODES = 16
"""Longest window. Nothing is fused here, so its length only sets how far kernels stand out from the call itself."""
MAX_INPUTS = 6
_FED = (torch.float32, torch.float16, torch.int64, torch.int32)
"""Element types that noise (or zeros, for whole numbers) is fed in."""


@dataclass(frozen=True, eq=False)
class ArchiveWindow:
    """A stretch of a given network, to be measured as a probe of the family that the network's name gives."""

    family: str
    module: fx.GraphModule
    inputs: tuple[torch.Tensor, ...]
    kind: str = PROBE

    @cached_property
    def name(self) -> str:
        """Equal for windows of equal operators, shapes and settings only; the values of weights do not count."""
        text = "\n".join(_signature(node) for node in self.module.graph.nodes if node.op == "call_function")
        return f"window-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def write(self, folder: Path) -> Path:
        """Write it as an archive, in the element types it has."""
        return write_archive(self.module, self.inputs, folder / f"{self.name}.pt2")


def archive_windows(path: Path, count: int, rng: np.random.Generator) -> list[ArchiveWindow]:
    """Windows of the network in an archive, different from each other: every distinct operator first, then at random.

    Raises:
        MissingFileError, UsageError, CorruptFileError: no such file, or no archive.
    """
    program, _ = read_archive(path)
    module = program.module()
    assert isinstance(module, fx.GraphModule)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            node.meta["val"] = operator.attrgetter(str(node.target))(module)
    batch = next(node for node in module.graph.nodes if node.op == "placeholder").meta["val"].shape[0]
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    found: dict[str, ArchiveWindow] = {}
    signatures = [_signature(node) for node in nodes]
    covered: set[str] = set()
    for start, stop in _candidates([str(node.target) for node in nodes], count, rng):
        if len(found) >= count:
            break
        if set(signatures[start:stop]) <= covered and len(covered) < len(set(signatures)) and rng.random() < 0.5:
            continue
        window = _window(path.stem, batch, nodes[start:stop])
        if window is not None:
            covered |= set(signatures[start:stop])
            found.setdefault(window.name, window)
    return list(found.values())


def _value(node: fx.Node) -> Any:
    """What the node gives: tensors without contents, except for weights."""
    return node.meta.get("val")


def _signature(node: fx.Node) -> str:
    """What a node looks like, its name left out."""

    def shown(argument: fx.Node) -> str:
        value = _value(argument)
        return f"{tuple(value.shape)} {value.dtype}" if isinstance(value, torch.Tensor) else repr(value)

    return f"{node.target} {fx.map_arg((node.args, node.kwargs), shown)}"


def _candidates(operators: Sequence[str], count: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Windows around every node, those of rare operators first and else in random order, then random ones; bounded."""
    often = Counter(operators)
    nodes = len(operators)
    for node in sorted(rng.permutation(nodes), key=lambda node: often[operators[node]]):
        length = min(int(rng.integers(MAX_NODES // 4, MAX_NODES + 1)), nodes - 1)
        start = int(np.clip(node - rng.integers(0, length), 0, nodes - length))
        yield start, start + length
    for _ in range(20 * count):
        length = min(int(rng.integers(1, MAX_NODES + 1)), nodes - 1)
        start = int(rng.integers(0, nodes - length + 1))
        yield start, start + length


def _window(family: str, batch: int, nodes: Sequence[fx.Node]) -> ArchiveWindow | None:
    """Nodes as a module of their own; None where what they read cannot be fed.

    An engine takes batches, so every input must be one.
    """
    inside = set(nodes)
    graph, copies = fx.Graph(), dict[fx.Node, Any]()
    inputs: list[torch.Tensor] = []
    # Two passes: inputs must come before everything else in a graph.
    for source in dict.fromkeys(s for node in nodes for s in node.all_input_nodes if s not in inside):
        value = _value(source)
        if source.op == "get_attr":
            continue
        if not isinstance(value, torch.Tensor):
            if not isinstance(value, int | float | bool):
                return None
            copies[source] = value
        elif value.dtype not in _FED or not value.ndim or value.shape[0] % batch:
            return None
        else:
            copies[source] = graph.placeholder(f"x{len(inputs)}")
            copies[source].meta["val"] = value
            inputs.append(torch.zeros(tuple(value.shape), dtype=value.dtype))
    if not 1 <= len(inputs) <= MAX_INPUTS:
        return None
    attributes: dict[str, Any] = {}
    for node in nodes:
        for source in node.all_input_nodes:
            if source.op == "get_attr" and source not in copies:
                name = f"weight{len(attributes)}"
                attributes[name] = _value(source)
                copies[source] = graph.get_attr(name)
                copies[source].meta["val"] = _value(source)
        copies[node] = graph.node_copy(node, lambda source: copies[source])  # with its meta, which `name` reads
    results = [n for n in nodes if any(user not in inside for user in n.users) and isinstance(_value(n), torch.Tensor)]
    if not results or any(_value(n).dtype not in (torch.float32, torch.float16) for n in results):
        return None
    graph.output(tuple(copies[n] for n in results))
    holder = torch.nn.Module()
    for name, value in attributes.items():
        holder.register_buffer(name, value.detach().clone())
    return ArchiveWindow(family, fx.GraphModule(holder, graph), tuple(inputs))
