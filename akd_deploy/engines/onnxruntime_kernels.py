"""Turn the graph ONNX Runtime optimised, with one profiled run of it, into executed kernels."""

from __future__ import annotations

import heapq
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from akd_deploy.engines.onnx_attributes import node_attributes
from akd_deploy.engines.onnxruntime_attribution import LAYOUT_OPS, attribute_nodes
from akd_deploy.errors import BuildError
from akd_deploy.kernel import BYTES_PER_ELEMENT, ExecutedKernel, Kernel, Shape, constant_operands

_DTYPES = {"float": "float32", "double": "float64", "float8e4m3fn": "float8e4m3"}
"""ONNX Runtime's element types, as profiles print them in lower case → ours, where they differ in name."""

_DOMAINS = {"com.microsoft.nchwc": "nchwc.", "com.ms.internal.nhwc": "nhwc."}
"""Domains whose operators are other kernels than the plain ones of the same name."""
_NAMESAKES = {"Attention": "ai.onnx.Attention"}
"""ONNX's own operators that do other work than the runtime's of the same name (which multiplies by weights first)."""

_TOKEN = re.compile(r"_token_\d+")
_PACKED = re.compile(r"x\d$")
_OPTIONALS = frozenset({"Optional", "OptionalGetElement", "OptionalHasElement"})
"""Profiles show an optional value as the tensor that it may hold."""
MATRIX_OPS = frozenset({
    "Conv", "nchwc.Conv", "nhwc.Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "ConvTranspose",
    "NhwcConv", "nhwc.ConvTranspose", "QLinearConvTranspose",
    "Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "FusedMatMulActivation", "TransposeMatMul", "QLinearMatMul",
    "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "MatMulNBits", "GemmFloat8", "Einsum",
    "Attention", "ai.onnx.Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention", "LSTM", "GRU", "RNN",
    "DynamicQuantizeLSTM", "nchwc.ConvTranspose",
})  # fmt: skip
"""Operators, as kernels call them, that multiply matrices or convolve."""


@dataclass(frozen=True)
class ProfileEvent:
    """One executed node in a profile: shapes and dtypes as they were at run time."""

    name: str
    op_type: str
    provider: str
    inputs: tuple[tuple[str, Shape], ...]
    outputs: tuple[tuple[str, Shape], ...]


def read_profile(path: Path) -> list[ProfileEvent]:
    """The node events of the first run in a profile, in execution order."""
    events = []
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            arguments = event["args"]
            events.append(
                ProfileEvent(
                    name=event["name"].removesuffix("_kernel_time"),
                    op_type=arguments["op_name"],
                    provider=arguments.get("provider", ""),
                    inputs=_typed_shapes(arguments.get("input_type_shape", [])),
                    outputs=_typed_shapes(arguments.get("output_type_shape", [])),
                )
            )
    return events


def _typed_shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> tuple[tuple[str, Shape], ...]:
    return tuple((_dtype(kind), tuple(shape)) for entry in entries for kind, shape in entry.items())


def _dtype(name: str) -> str:
    """Our name of an element type; packed ones ("Int4x2") are told by what is packed."""
    name = _PACKED.sub("", name.lower())
    return _DTYPES.get(name, name)


def kernels_from_profile(
    original: onnx.GraphProto, optimised: onnx.GraphProto, events: Sequence[ProfileEvent], feeds: Mapping[str, Shape]
) -> tuple[ExecutedKernel, ...]:
    """One kernel for each node of `optimised`, in an order that respects what needs what.

    `original` is the graph before optimisation (node names unique), `feeds` the shapes the profiled run
    was fed. Where ONNX Runtime is free to choose, its order and the numbers in its names differ from
    session to session; here the order is that of the original nodes, and names have no numbers.

    Raises:
        BuildError: the profile and the graph do not tell the same story, or a node, which is named, has branches or
            loops, or reads or writes what is no tensor of numbers.
    """
    asked = f"the kernels executed for {original.name or 'this network'}"
    for node in optimised.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise BuildError(
                asked=asked,
                found=f"control flow: node {node.name!r} ({node.op_type})",
                next="Its latency depends on the data: export the network without branches and loops.",
                operators=[node.op_type],
            )
    constants = {tensor.name: tensor for tensor in optimised.initializer}
    tensors = {name: ("", shape) for name, shape in feeds.items()}
    for value in optimised.input:
        if value.name in tensors:
            tensors[value.name] = (_onnx_dtype(value.type.tensor_type.elem_type), tensors[value.name][1])
    tensors.update({name: (_onnx_dtype(t.data_type), tuple(t.dims)) for name, t in constants.items()})
    pending = _Pending(optimised, events)
    for node in optimised.node:
        event = pending.take(node, tensors)
        written = [name for name in node.output if name]
        foreign = sorted({dtype for dtype, _ in (*event.inputs, *event.outputs)} - BYTES_PER_ELEMENT.keys())
        if node.op_type in _OPTIONALS or len(event.outputs) != len(written):
            foreign = ["optional, sequence or map"]
        if foreign:
            raise BuildError(
                asked=asked,
                found=f"values that are no tensors of numbers ({', '.join(foreign)}): node {node.name or written[0]!r} "
                f"({node.op_type})",
                next="Take what prepares such values out of the network, and feed it tensors of numbers.",
            )
        tensors.update(zip(written, event.outputs, strict=True))
    kernels = [_kernel(node, tensors, constants) for node in optimised.node]
    keys = [(_TOKEN.sub("", node.name), k.signature) for node, k in zip(optimised.node, kernels, strict=True)]
    order = _topological_order(optimised.node, keys)
    nodes, kernels = [optimised.node[i] for i in order], [kernels[i] for i in order]
    covered = attribute_nodes(original, nodes)
    index = {node.name: i for i, node in enumerate(original.node)}
    order = _topological_order(nodes, [(max((index[n] for n in names), default=-1), "") for names in covered])
    told: Counter[str] = Counter()
    executed = []
    for i in order:
        name = _stable_name(nodes[i], covered[i], index)
        told[name] += 1
        executed.append(ExecutedKernel(kernels[i], name if told[name] == 1 else f"{name}#{told[name]}", covered[i]))
    return tuple(executed)


def _topological_order(nodes: Sequence[onnx.NodeProto], keys: Sequence[tuple[object, ...]]) -> list[int]:
    """Positions of `nodes`, each after those it reads from, the smallest key first where several may come."""
    writer = {name: i for i, node in enumerate(nodes) for name in node.output if name}
    needs = [{writer[name] for name in node.input if name in writer} for node in nodes]
    readers: dict[int, list[int]] = defaultdict(list)
    for i, sources in enumerate(needs):
        for source in sources:
            readers[source].append(i)
    waiting = [len(sources) for sources in needs]
    ready = [(keys[i], i) for i, count in enumerate(waiting) if count == 0]
    heapq.heapify(ready)
    order = []
    while ready:
        _, i = heapq.heappop(ready)
        order.append(i)
        for reader in readers[i]:
            waiting[reader] -= 1
            if waiting[reader] == 0:
                heapq.heappush(ready, (keys[reader], reader))
    return order


def _stable_name(node: onnx.NodeProto, covered: Sequence[str], original: Mapping[str, int]) -> str:
    """The node's name without the numbers that differ from session to session."""
    name = node.name or next((n for n in node.output if n), node.op_type)
    if name in original:
        return name
    name = _TOKEN.sub("", name)
    is_inserted = node.op_type in LAYOUT_OPS and bool(covered)
    return f"{name}/{covered[0]}" if is_inserted else name


def _onnx_dtype(element_type: int) -> str:
    return _dtype(onnx.TensorProto.DataType.Name(element_type))


class _Pending:
    """Events not yet matched to a node: by name where it has one, by operator where it has none."""

    def __init__(self, graph: onnx.GraphProto, events: Sequence[ProfileEvent]) -> None:
        names = {node.name for node in graph.node if node.name}
        self._events: dict[tuple[str, str], list[ProfileEvent]] = defaultdict(list)
        for event in events:
            # An unnamed node is profiled as its operator and number.
            name = event.name if event.name in names else ""
            self._events[event.op_type, name].append(event)

    def take(self, node: onnx.NodeProto, tensors: Mapping[str, tuple[str, Shape]]) -> ProfileEvent:
        """The first event of this node's name and operator that was fed the shapes the node is fed."""
        shapes = [tensors[name][1] if name in tensors else None for name in node.input if name]
        candidates = self._events[node.op_type, node.name]
        for i, event in enumerate(candidates):
            if _is_subsequence([shape for _, shape in event.inputs], shapes):
                return candidates.pop(i)
        raise BuildError(
            asked=f"the executed shapes of node {node.name or node.output[0]!r} ({node.op_type})",
            found="no such event in ONNX Runtime's profile",
            next="Report this network: the optimised graph and its profile disagree.",
        )


def _is_subsequence(run: Sequence[Shape], known: Sequence[Shape | None]) -> bool:
    """Whether the shapes of a run are the known ones, of which some (packed weights) may be missing."""
    remaining: Iterator[Shape | None] = iter(known)
    return all(any(candidate is None or candidate == shape for candidate in remaining) for shape in run)


# --- one node ---------------------------------------------------------------------------------------------------


def _kernel(
    node: onnx.NodeProto, tensors: Mapping[str, tuple[str, Shape]], constants: Mapping[str, onnx.TensorProto]
) -> Kernel:
    inputs = [tensors[name] for name in node.input if name]
    outputs = [tensors[name] for name in node.output if name in tensors]
    attributes = node_attributes(node, [shape for _, shape in inputs], constants)
    if node.op_type == "Cast":
        attributes["from"] = inputs[0][0]
    shapes, read = [shape for _, shape in inputs], [name for name in node.input if name]
    fixed = [i for i, name in enumerate(read) if name in constants]
    if weights := constant_operands(shapes, fixed, is_convolution="kernel_size" in attributes):
        attributes["constants"] = weights
    return Kernel(
        op=_operator(node),
        inputs=tuple(shape for _, shape in inputs),
        outputs=tuple(shape for _, shape in outputs),
        dtype=_compute_dtype(node, [dtype for dtype, _ in inputs], [dtype for dtype, _ in outputs]),
        attributes=tuple(attributes.items()),
    )


def _operator(node: onnx.NodeProto) -> str:
    """The operator as kernels call it."""
    if node.domain in ("", "ai.onnx"):
        return _NAMESAKES.get(node.op_type, node.op_type)
    return _DOMAINS.get(node.domain, "") + node.op_type


def _compute_dtype(node: onnx.NodeProto, inputs: Sequence[str], outputs: Sequence[str]) -> str:
    """What the node computes in: the activations' type for integer arithmetic, else that of its result."""
    op = node.op_type
    if op in ("QuantizeLinear", "DynamicQuantizeLinear"):
        return inputs[0]
    if op == "DequantizeLinear":
        return outputs[0]
    if op.startswith(("QLinear", "QGemm", "QMoE", "QAttention", "QEmbed", "DynamicQuantize")) or "Integer" in op:
        return "int8" if op.startswith("Dynamic") else inputs[0]
    return inputs[0] if inputs and (not outputs or outputs[0] == "bool") else outputs[0]
