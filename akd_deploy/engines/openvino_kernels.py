"""Turn OpenVINO's runtime model into executed kernels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from akd_deploy.engines.onnx_attributes import node_attributes
from akd_deploy.engines.original_graph import OriginalGraph, original_graph
from akd_deploy.errors import BuildError
from akd_deploy.kernel import AttributeValue, ExecutedKernel, Kernel, Shape, constant_operands

_DTYPES = {
    "f32": "float32", "f16": "float16", "bf16": "bfloat16", "f64": "float64", "i8": "int8", "u8": "uint8",
    "i16": "int16", "u16": "uint16", "i32": "int32", "u32": "uint32", "i64": "int64", "u64": "uint64",
    "boolean": "bool", "u1": "bool",
}  # fmt: skip
"""OpenVINO's element types, as its runtime model prints them → ours."""

MATRIX_LAYERS = frozenset({
    "Convolution", "Deconvolution", "FullyConnected", "MatMul", "ScaledDotProductAttention", "RNNCell", "RNNSeq",
    "LSTMCell", "LSTMSequence", "GRUCell", "GRUSequence", "QKVProjection", "LLMMLP",
})  # fmt: skip
"""Layer types that multiply matrices or convolve."""

_NEVER_FIXED = frozenset({"RandomUniform", "Multinomial"})
"""Layer types that run at every inference even if they read constants alone: what they write is another every time."""
_CONTROL_FLOW = frozenset({"If", "Loop", "TensorIterator"})
"""Layer types that hide layers of their own, and how often those run."""
_REFERENCE = "Reference"
"""The type of every layer for which there is no code of its own: what it does, the node alone says."""
_NO_TIME = ("Input", "Output", "Const")
NOTHING_MOVES = "_fake"
"""Ending of the name of a reorder that stands where a transpose was and leaves memory as it is: it is never run."""
_MAIN_OPERATORS = {
    "Convolution": ("Conv", "ConvInteger"),
    "Deconvolution": ("ConvTranspose",),
    "Pooling": ("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"),
    "Reduce": ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2",
               "GlobalAveragePool", "GlobalMaxPool"),
    "Softmax": ("Softmax", "LogSoftmax"),
    "Concatenation": ("Concat",),
    "Transpose": ("Transpose",),
    "Interpolate": ("Resize", "Upsample"),
}  # fmt: skip
"""Layer type → the ONNX operators whose settings are its own."""

_FUSES = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "Pooling", "Reduce")
"""Layer types that take in an activation."""
_NOT_AN_EPILOGUE = frozenset({
    "Conv", "ConvInteger", "ConvTranspose", "Gemm", "MatMul", "BatchNormalization", "Add", "QuantizeLinear",
    "DequantizeLinear", "Identity", "Dropout", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Cast",
})  # fmt: skip
"""Operators that a matrix layer takes in at no cost, or that are the layer itself; the others are its activation."""


@dataclass(frozen=True)
class ExecutedLayer:
    """One node of the runtime model, as OpenVINO tells it.

    `sources` are the layers (by position in execution order) that its inputs come from.
    """

    name: str
    layer_type: str
    original_names: tuple[str, ...]
    precision: str
    output_precisions: tuple[str, ...]
    layout: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    sources: tuple[int, ...]

    @property
    def moves_nothing(self) -> bool:
        """Whether it is a reorder of which the runtime knows that memory stays as it is."""
        return self.layer_type == "Reorder" and self.name.endswith(NOTHING_MOVES)

    @property
    def dtype(self) -> str:
        """What it computes in; what it writes, where it only moves values."""
        kind = self.precision if self.precision in _DTYPES else next(iter(self.output_precisions), "")
        return _DTYPES.get(kind, kind)


def executed_layers(layers: Sequence[ExecutedLayer]) -> list[int]:
    """Positions of the layers that run at every inference: not constants, nor what is computed from them alone, nor
    reorders that move nothing."""
    constant: set[int] = set()
    running = []
    for position, layer in enumerate(layers):
        is_fixed = layer.layer_type == "Const" or (
            layer.layer_type not in ("Input", *_NEVER_FIXED) and bool(layer.sources) and set(layer.sources) <= constant
        )
        if is_fixed:
            constant.add(position)
        elif layer.layer_type not in _NO_TIME and not layer.moves_nothing:
            running.append(position)
    return running


def kernels_from_layers(graph: onnx.GraphProto, layers: Sequence[ExecutedLayer]) -> tuple[ExecutedKernel, ...]:
    """One kernel for each layer that runs, in execution order; `graph` is the ONNX graph it was read from.

    Kernels are named by layer type. Where settings decide the cost they come from the ONNX node; `layout`
    is the memory layout written ("acdb" is channels last), and layers made of several small operators list
    them under `operators`.

    Raises:
        BuildError: a layer, whose node is named, has branches or loops.
    """
    original = original_graph(graph)
    constants = {tensor.name: tensor for tensor in graph.initializer}
    running = executed_layers(layers)
    fixed = set(range(len(layers))) - set(running) - {i for i, x in enumerate(layers) if x.layer_type == "Input"}
    covered = _attribute(original, layers, running)
    names = _stable_names(original, [layers[e] for e in running], covered)
    for e, nodes in zip(running, covered, strict=True):
        if layers[e].layer_type in _CONTROL_FLOW:
            told = [f"{original.nodes[i].name!r} ({original.nodes[i].op_type})" for i in nodes[:1]]
            raise BuildError(
                asked=f"the kernels executed for {graph.name or 'this network'}",
                found=f"control flow: node {told[0] if told else f'{layers[e].name!r} ({layers[e].layer_type})'}",
                next="Its latency depends on the data: export the network without branches and loops.",
                operators=[original.nodes[i].op_type for i in nodes[:1]] or [layers[e].layer_type],
            )
    return tuple(
        ExecutedKernel(
            kernel=Kernel(
                op=_operator(layers[e], _computing(original, nodes)),
                inputs=layers[e].inputs,
                outputs=layers[e].outputs,
                dtype=layers[e].dtype,
                attributes=tuple(_attributes(layers, e, _computing(original, nodes), constants, fixed).items()),
            ),
            name=name,
            nodes=tuple(original.nodes[i].name for i in nodes),
        )
        for e, nodes, name in zip(running, covered, names, strict=True)
    )


def _operator(layer: ExecutedLayer, nodes: Sequence[onnx.NodeProto]) -> str:
    """What a kernel is named by, so that no two operators without code of their own pass for one."""
    if layer.layer_type != _REFERENCE:
        return layer.layer_type
    return f"{_REFERENCE}({'+'.join(node.op_type for node in nodes) or layer.name})"


def _stable_names(
    original: OriginalGraph, layers: Sequence[ExecutedLayer], covered: Sequence[tuple[int, ...]]
) -> list[str]:
    """OpenVINO's names where they come from the network; the others have numbers that differ every time."""
    told: Counter[str] = Counter()
    names = []
    for layer, nodes in zip(layers, covered, strict=True):
        name = layer.name
        if not layer.original_names or _original_node(original, name) is None:
            name = f"{layer.layer_type}/{original.nodes[nodes[0]].name}" if nodes else layer.layer_type
        told[name] += 1
        names.append(name if told[name] == 1 else f"{name}#{told[name]}")
    return names


def _computing(original: OriginalGraph, nodes: Sequence[int]) -> list[onnx.NodeProto]:
    """The nodes that do something at every inference: not those of weights alone."""
    return [original.nodes[i] for i in nodes if original.data_inputs[i]]


def _attributes(
    layers: Sequence[ExecutedLayer],
    e: int,
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, onnx.TensorProto],
    fixed: set[int],
) -> dict[str, AttributeValue]:
    layer = layers[e]
    values: dict[str, AttributeValue] = {}
    main = next((n for n in nodes if n.op_type in _MAIN_OPERATORS.get(layer.layer_type, ())), None)
    if main is not None:
        shapes = [tuple(constants[name].dims) if name in constants else () for name in main.input if name]
        if len(layer.inputs) > 1 and layer.layer_type == "Convolution":
            # Grouped weights come as (groups, out, in, kernel …): the kernel is what is left of the data's rank.
            shapes[1:2] = [(0, 0, *layer.inputs[1][-(len(layer.inputs[0]) - 2) :])]
        values.update(node_attributes(main, shapes, constants))
    if layer.layer_type == "Reorder":
        source = layers[layer.sources[0]]
        values["from_layout"] = source.layout
        values["from"] = _dtype_of_output(source)
        values["to"] = _dtype_of_output(layer)
    elif layer.layer_type in _FUSES:
        epilogue = [n.op_type for n in nodes if n is not main and n.op_type not in _NOT_AN_EPILOGUE]
        if epilogue:
            values["activation"] = "+".join(epilogue)
        # What is read besides data, weights and constants was added in place.
        data = [s for s, shape in zip(layer.sources, layer.inputs, strict=False) if s not in fixed and shape]
        if layer.layer_type in ("Convolution", "Deconvolution", "FullyConnected") and len(data) > 1:
            values["residual"] = 1
    elif main is None and layer.layer_type not in ("Reshape", "Transpose"):
        values["operators"] = "+".join(n.op_type for n in nodes)
    constant = [i for i, source in enumerate(layer.sources) if source in fixed]
    is_convolution = layer.layer_type in ("Convolution", "Deconvolution")
    if weights := constant_operands(layer.inputs, constant, is_convolution=is_convolution):
        values["constants"] = weights
    values["layout"] = layer.layout
    return values


def _dtype_of_output(layer: ExecutedLayer) -> str:
    kind = next(iter(layer.output_precisions), layer.precision)
    return _DTYPES.get(kind, kind)


def _attribute(
    original: OriginalGraph, layers: Sequence[ExecutedLayer], running: Sequence[int]
) -> list[tuple[int, ...]]:
    """The original nodes of each running layer: those it names, then those that nobody names."""
    owner: dict[int, int] = {}
    named = [(e, _original_node(original, name)) for e in running for name in layers[e].original_names]
    reserved = {i for _, i in named if i is not None}
    for e, i in named:
        if i is not None:
            original.claim(i, e, owner, reserved)
    original.adopt_leftovers(owner)
    lists: dict[int, list[int]] = {e: [] for e in running}
    for i, e in sorted(owner.items()):
        lists[e].append(i)
    readers: dict[int, list[int]] = {}
    for e in running:
        for source in layers[e].sources:
            readers.setdefault(source, []).append(e)
    working = {e: [i for i in nodes if original.data_inputs[i]] or nodes for e, nodes in lists.items()}
    return [tuple(lists[e]) or _neighbour(e, working, readers, layers) for e in running]


def _original_node(original: OriginalGraph, name: str) -> int | None:
    """OpenVINO names a layer after its node, after the tensor it writes, or adds `/…` for a part of one."""
    if name in original.index:
        return original.index[name]
    if name in original.producer:
        return original.producer[name]
    whole = name
    while "/" in whole:
        whole = whole.rpartition("/")[0]
        if whole in original.index:
            return original.index[whole]
    return None


def _neighbour(
    e: int, lists: Mapping[int, list[int]], readers: Mapping[int, list[int]], layers: Sequence[ExecutedLayer]
) -> tuple[int, ...]:
    """The node that a layer without one (a change of layout) works for: of the next layer, else the previous."""
    for forwards in (True, False):
        seen, frontier = {e}, [e]
        while frontier:
            near = [r for f in frontier for r in (readers.get(f, ()) if forwards else layers[f].sources)]
            frontier = [r for r in dict.fromkeys(near) if r not in seen]
            for r in frontier:
                if lists.get(r):
                    return (lists[r][0],) if forwards else (lists[r][-1],)
            seen.update(frontier)
    return ()
