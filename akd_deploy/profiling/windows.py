"""Windows of a given ONNX network: runs of consecutive nodes that can be measured on their own."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from akd_deploy.engines.denormals import PASSING, RESHAPING, denormal_shares
from akd_deploy.engines.onnx_file import node_names, read_onnx
from akd_deploy.latency_table import PROBE
from akd_deploy.models.onnx_skeleton import filled, skeleton

MAX_NODES = 10
"""Longest window; fused kernels rarely span more than five nodes."""
MAX_INPUTS = 6
FUSED_INTO_PRODUCER = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Gelu", "Softplus", "Elu", "Mish",
     "BatchNormalization", "PRelu"}
)  # fmt: skip
"""No window starts with one of these: their producer absorbs them, so alone they would be kernels no network has."""
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)


@dataclass(frozen=True, eq=False)
class Window:
    """A stretch of a given network, to be measured as a probe of the family that the network's name gives."""

    family: str
    model: onnx.ModelProto
    kind: str = PROBE

    @cached_property
    def name(self) -> str:
        """Equal for windows of equal operators, shapes and settings only, whatever network they are of; the values of
        weights do not count."""
        plain = onnx.ModelProto()
        plain.CopyFrom(self.model)
        for tensor in plain.graph.initializer:
            tensor.doc_string = ""
        return f"window-{hashlib.sha256(plain.SerializeToString(deterministic=True)).hexdigest()[:12]}"

    def write(self, folder: Path) -> Path:
        """Write it as ONNX, with weights drawn anew: the same ones for the same window."""
        path = folder / f"{self.name}.onnx"
        onnx.save_model(filled(self.model, np.random.default_rng(int(self.name.rpartition("-")[2], 16))), path)
        return path


def file_windows(path: Path, batch: int, count: int, rng: np.random.Generator) -> list[Window]:
    """Windows of the network in a file, different from each other, its batch resolved; of its weights they keep
    shapes and distributions.

    Raises:
        MissingFileError, CorruptFileError: no such file, or no ONNX network.
    """
    model = read_onnx(path, batch)
    onnx.load_external_data_for_model(model, str(path.parent))
    return network_windows(path.stem, skeleton(model), count, rng)


def network_windows(family: str, network: onnx.ModelProto, count: int, rng: np.random.Generator) -> list[Window]:
    """Windows of a network's skeleton, different from each other."""
    windows = [Window(family, _renamed(window)) for window in model_windows(network, count, rng)]
    return list({window.name: window for window in windows}.values())


@dataclass(frozen=True)
class _Graph:
    """A network taken apart: nodes in order, the shape and type of every tensor, constants by name.

    `folded` are the nodes that compute with constants alone, by the tensors they put out: engines run them beforehand.
    """

    model: onnx.ModelProto
    nodes: tuple[onnx.NodeProto, ...]
    folded: dict[str, int]
    tensors: dict[str, onnx.ValueInfoProto]
    constants: dict[str, onnx.TensorProto]
    uses: dict[str, list[int]]
    inputs: frozenset[str]
    outputs: frozenset[str]


def _take_apart(model: onnx.ModelProto) -> _Graph:
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True)
    graph = inferred.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if node.op_type == "Constant" and a.name == "value"), None)
        if value is not None:
            tensor = onnx.TensorProto()
            tensor.CopyFrom(value)
            tensor.name = node.output[0]
            constants[tensor.name] = tensor
        else:
            nodes.append(node)
    uses: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for name in node.input:
            uses.setdefault(name, []).append(index)
    folded: dict[str, int] = {}
    for index, node in enumerate(nodes):
        known = all(not name or name in constants or name in folded for name in node.input)
        if known and node.input and not node.op_type.startswith("Random"):
            folded |= dict.fromkeys(filter(None, node.output), index)
    tensors = {info.name: info for info in (*graph.input, *graph.value_info, *graph.output)}
    outputs = frozenset(info.name for info in graph.output)
    inputs = frozenset(info.name for info in graph.input)
    return _Graph(inferred, tuple(nodes), folded, tensors, constants, uses, inputs, outputs)


def _is_measurable(info: onnx.ValueInfoProto | None, is_given: bool = False) -> bool:
    """Whether values can be made up for it: a tensor of known shape, of floats unless a caller gives it (tokens): zeros
    are whole numbers that some caller could give, but no shapes or positions that the network computes."""
    if info is None or not info.type.HasField("tensor_type"):
        return False
    tensor = info.type.tensor_type
    known = tensor.HasField("shape") and all(d.HasField("dim_value") and d.dim_value > 0 for d in tensor.shape.dim)
    return known and (is_given or tensor.elem_type in _FLOATS)


def _window(graph: _Graph, start: int, stop: int) -> onnx.ModelProto | None:
    """Nodes start to stop − 1 as a model of their own; None where its inputs or outputs cannot be fed or read."""
    chosen = set(range(start, stop))
    wanted = [name for i in chosen for name in graph.nodes[i].input]
    while wanted:
        maker = graph.folded.get(wanted.pop())
        if maker is not None and maker not in chosen:
            chosen.add(maker)  # what it makes is a constant in the network, too
            wanted += graph.nodes[maker].input
    nodes = [graph.nodes[i] for i in sorted(chosen)]
    if any(attribute.HasField("g") or attribute.graphs for node in nodes for attribute in node.attribute):
        return None
    produced = {name for node in nodes for name in node.output if name}
    consumed = dict.fromkeys(name for node in nodes for name in node.input if name and name not in produced)
    inputs = [name for name in consumed if name not in graph.constants]
    outputs = [
        name
        for name in dict.fromkeys(name for node in nodes for name in node.output if name)
        if name in graph.outputs
        or (name not in graph.folded and any(user not in chosen for user in graph.uses.get(name, [])))
    ]
    if not inputs or not outputs or len(inputs) > MAX_INPUTS:
        return None
    if not all(_is_measurable(graph.tensors.get(name), name in graph.inputs) for name in inputs):
        return None
    if not all(_is_measurable(graph.tensors.get(name)) for name in outputs):
        return None
    made = helper.make_graph(
        nodes,
        "window",
        [graph.tensors[name] for name in inputs],
        [graph.tensors[name] for name in outputs],
        [graph.constants[name] for name in consumed if name in graph.constants],
    )
    return helper.make_model(
        made,
        opset_imports=list(graph.model.opset_import),
        ir_version=graph.model.ir_version,
        functions=list(graph.model.functions),
        producer_name="akd-deploy",
    )


def _renamed(model: onnx.ModelProto) -> onnx.ModelProto:
    """Names by position, so that equal windows of two networks are equal files. No node here has a body of its own."""
    graph = model.graph
    names: dict[str, str] = {"": ""}
    for value in (*graph.input, *graph.initializer):
        names.setdefault(value.name, f"v{len(names)}")
    for node in graph.node:
        for name in node.output:
            names.setdefault(name, f"v{len(names)}")
    for index, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{index}"
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
    for value in (*graph.input, *graph.output, *graph.initializer):
        value.name = names[value.name]
    return model


def _signature(graph: _Graph, node: onnx.NodeProto) -> str:
    """What a node looks like, its name left out."""

    def shape(name: str) -> object:
        if name in graph.constants:
            return tuple(graph.constants[name].dims)
        info = graph.tensors.get(name)
        return tuple(d.dim_value for d in info.type.tensor_type.shape.dim) if info is not None else None

    attributes = sorted(helper.printable_attribute(a) for a in node.attribute)
    return f"{node.domain}.{node.op_type}{[shape(name) for name in node.input]}{attributes}"


def model_windows(model: onnx.ModelProto, count: int, rng: np.random.Generator) -> list[onnx.ModelProto]:
    """Windows of 1 to `MAX_NODES` nodes of a network with static shapes, chosen to cover its distinct nodes.

    Random windows are drawn until every node that can be measured is covered, and on until there are `count` of them;
    fewer where the network has no more. A whole network of several nodes is never one of them.
    """
    graph = _take_apart(model)
    signatures = [_signature(graph, node) for node in graph.nodes]
    chosen: dict[tuple[int, int], onnx.ModelProto] = {}
    covered: set[str] = set()
    for start, stop in _candidates(graph.nodes, count, rng):
        if len(chosen) >= count:
            break
        fresh = set(signatures[start:stop]) - covered
        if (start, stop) in chosen or (not fresh and len(covered) < len(set(signatures)) and rng.random() < 0.5):
            continue
        window = _window(graph, start, stop)
        if window is not None:
            chosen[start, stop] = window
            covered |= set(signatures[start:stop])
    return list(chosen.values())


def drawn_windows(family: str, network: onnx.ModelProto, rng: np.random.Generator) -> Iterator[Window]:
    """Windows of a network's skeleton in random order, each node's own and a longer one from there by turns: every
    stretch at most once, and an end to them when hardly any new ones are drawn."""
    graph = _take_apart(network)
    starts = _starts(graph.nodes)
    seen: set[tuple[int, int]] = set()
    for turn in range(MAX_NODES):
        for start in rng.permutation(np.array(starts, int)).tolist():
            longer = int(rng.integers(2, MAX_NODES + 1))
            for length in (1, longer) if turn == 0 else (longer,):
                stretch = _until_fused(graph.nodes, start, min(start + length, len(graph.nodes)))
                model = None if stretch in seen else _window(graph, *stretch)
                seen.add(stretch)
                if model is not None:
                    yield Window(family, _renamed(model))


def masked_windows(family: str, network: onnx.ModelProto) -> list[Window]:
    """From where a mask is added to a softmax's input to the last product that reads its output, of each softmax whose
    mask makes denormal numbers: stretches drawn at random seldom hold it all."""
    graph = _take_apart(network)
    named = zip(network.graph.node, node_names(network.graph), strict=True)
    shares = denormal_shares(network.graph)
    slow = {name for node, label in named if label in shares for name in node.output if name}
    maker = {name: i for i, node in enumerate(graph.nodes) for name in node.output if name}
    windows: dict[str, Window] = {}
    for i, node in enumerate(graph.nodes):
        if node.op_type != "Softmax" or not slow & set(node.output):
            continue
        start, name = i, node.input[0]
        while (before := maker.get(name)) is not None and graph.nodes[before].op_type in ("Add", *RESHAPING):
            start = min(start, before)
            computed = [n for n in graph.nodes[before].input if n not in graph.constants and n not in graph.folded]
            name = computed[0] if computed else ""
        reached, stop = list(node.output), i + 1
        while reached:
            for user in graph.uses.get(reached.pop(), []):
                if slow & set(graph.nodes[user].output):
                    stop = max(stop, user + 1)
                elif graph.nodes[user].op_type in PASSING:
                    reached += graph.nodes[user].output
        model = _window(graph, start, stop)
        if model is not None:
            window = Window(family, _renamed(model))
            windows.setdefault(window.name, window)
    return list(windows.values())


def _starts(nodes: Sequence[onnx.NodeProto]) -> list[int]:
    """Where windows may start."""
    return [i for i, node in enumerate(nodes) if len(nodes) == 1 or node.op_type not in FUSED_INTO_PRODUCER]


def _candidates(nodes: Sequence[onnx.NodeProto], count: int, rng: np.random.Generator) -> Iterator[tuple[int, int]]:
    """Every node's own window first, in random order, then random ones; bounded."""
    starts = _starts(nodes)
    if not starts:
        return
    for start in rng.permutation(starts):
        yield _until_fused(nodes, int(start), int(start) + 1)
    for _ in range(20 * count):
        start = int(rng.choice(starts))
        yield _until_fused(nodes, start, min(start + int(rng.integers(2, MAX_NODES + 1)), len(nodes)))


def _until_fused(nodes: Sequence[onnx.NodeProto], start: int, stop: int) -> tuple[int, int]:
    """The window, longer by the nodes that its last one absorbs; all nodes only where there is one."""
    while (
        stop < len(nodes)
        and nodes[stop].op_type in FUSED_INTO_PRODUCER
        and nodes[stop].input[0] in nodes[stop - 1].output
    ):
        stop += 1
    return start, (stop if stop - start < len(nodes) or len(nodes) == 1 else len(nodes) - 1)
