"""What lint rules ask of a network: types, weights, who makes and reads a tensor, where computing begins and ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from akd_deploy.export.granularity import Granularity
from akd_deploy.export.lint_costs import LintCosts
from akd_deploy.export.operators import is_onnx
from akd_deploy.target import Target

WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that nearly all the time of a network goes into."""

ACTIVATIONS = ("Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Sigmoid", "Tanh")
"""Operators that work on each value alone."""


@dataclass(frozen=True)
class LintGraph:
    """A checked, shape-inferred network beside the target it is meant for."""

    model: onnx.ModelProto
    target: Target
    granularity: Granularity
    costs: LintCosts = field(default_factory=LintCosts)

    @property
    def nodes(self) -> list[onnx.NodeProto]:
        return list(self.model.graph.node)

    @property
    def opset(self) -> int:
        """Of ONNX's own operators, 0 where the network uses none."""
        return next((o.version for o in self.model.opset_import if is_onnx(o.domain)), 0)

    @cached_property
    def missing_domains(self) -> list[str]:
        """Domains of operators that the file uses and does not import, ONNX's own as ""."""
        imported = {"" if is_onnx(o.domain) else o.domain for o in self.model.opset_import}
        used = {"" if is_onnx(node.domain) else node.domain for node in self.nodes}
        return sorted(used - imported)

    @cached_property
    def weights(self) -> Mapping[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.model.graph.initializer}

    @cached_property
    def read_inside(self) -> set[str]:
        """Tensors of the graph that the bodies of its loops and branches may read."""
        bodies = [body for node in self.nodes for body in _bodies(node)]
        return {value.name for body in bodies for value in body.output} | {
            name for body in bodies for node in body.node for name in node.input
        }

    def nodes_within(self, node: onnx.NodeProto) -> Iterator[onnx.NodeProto]:
        """The nodes in a node's branches and loops, and in the function of the file that it calls; not itself."""
        inner = [n for body in _bodies(node) for n in body.node]
        called = [f for f in self.model.functions if (f.domain, f.name) == (node.domain, node.op_type)]
        inner += [n for f in called for n in f.node]
        for one in inner:
            yield one
            if called:
                yield from self.nodes_within(one)

    @cached_property
    def has_float16(self) -> bool:
        """Whether any weight or constant is stored in float16."""
        return any(tensor.data_type == TensorProto.FLOAT16 for tensor in self.tensors.values())

    @cached_property
    def inputs(self) -> list[onnx.ValueInfoProto]:
        return [value for value in self.model.graph.input if value.name not in self.weights]

    @cached_property
    def outputs(self) -> set[str]:
        return {value.name for value in self.model.graph.output}

    @cached_property
    def maker(self) -> Mapping[str, onnx.NodeProto]:
        return {name: node for node in self.nodes for name in node.output if name}

    @cached_property
    def readers(self) -> Mapping[str, list[onnx.NodeProto]]:
        found: dict[str, list[onnx.NodeProto]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.input):
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def types(self) -> Mapping[str, int]:
        """Tensor → ONNX element type, 0 where inference could not tell."""
        graph = self.model.graph
        types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
        return types | {name: tensor.data_type for name, tensor in self.weights.items()}

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int | None, ...]]:
        """Tensor → shape, None for a dimension that is not known; tensors of unknown rank are left out."""
        graph = self.model.graph
        return {
            v.name: tuple(dim.dim_value if dim.HasField("dim_value") else None for dim in v.type.tensor_type.shape.dim)
            for v in (*graph.input, *graph.value_info, *graph.output)
            if v.type.tensor_type.HasField("shape")
        }

    def read_types(self, node: onnx.NodeProto) -> list[int]:
        """Element types of what a node reads, in order; 0 where inference could not tell."""
        return [self.types.get(name, 0) for name in node.input if name]

    def maker_op(self, name: str) -> str | None:
        """The operator that makes a tensor, None for inputs and weights."""
        node = self.maker.get(name)
        return None if node is None else node.op_type

    @cached_property
    def tensors(self) -> Mapping[str, onnx.TensorProto]:
        """Weights, and what Constant nodes hold as tensors."""
        held = {
            node.output[0]: a.t
            for node in self.nodes
            if node.op_type == "Constant"
            for a in node.attribute
            if a.name == "value"
        }
        return held | dict(self.weights)

    def constant(self, name: str) -> np.ndarray | None:
        """The values of a weight or of a Constant; None for what is computed."""
        tensor = self.tensors.get(name)
        return None if tensor is None else np.asarray(numpy_helper.to_array(tensor)).astype(np.float64)

    def clip_bounds(self, node: onnx.NodeProto) -> tuple[float, float] | None:
        """What a Clip lets through; None where it is computed."""
        attributes = {a.name: a.f for a in node.attribute}
        bounds = [attributes.get("min", -np.inf), attributes.get("max", np.inf)]
        for i, name in enumerate(node.input[1:3]):
            value = self.constant(name) if name else np.array(bounds[i])
            if value is None or value.size != 1:
                return None
            bounds[i] = float(value.item())
        return bounds[0], bounds[1]

    def leads_to(self, node: onnx.NodeProto, op: str) -> bool:
        """Whether all that a node makes goes into `op`, directly or through activations that nobody else reads."""
        name = node.output[0]
        while name not in self.outputs:
            readers = self.readers.get(name, [])
            if readers and all(reader.op_type == op for reader in readers):
                return True
            if len(readers) != 1 or readers[0].op_type not in ACTIVATIONS:
                return False
            name = readers[0].output[0]
        return False

    def weight_of(self, node: onnx.NodeProto) -> onnx.TensorProto | None:
        """The constant weight of a weighted node, looked for behind a DequantizeLinear or Cast; None without one."""
        name = node.input[1]
        while name in self.maker and self.maker[name].op_type in ("DequantizeLinear", "QuantizeLinear", "Cast"):
            name = self.maker[name].input[0]
        return self.tensors.get(name)

    def weighted(self) -> Iterator[tuple[onnx.NodeProto, onnx.TensorProto]]:
        """Every weighted node that has a constant weight."""
        for node in self.nodes:
            if node.op_type in WEIGHTED and len(node.input) > 1:
                tensor = self.weight_of(node)
                if tensor is not None:
                    yield node, tensor

    @cached_property
    def after_weights(self) -> set[str]:
        """Tensors that some weighted node has gone into."""
        found: set[str] = set()
        for node in self.nodes:
            if node.op_type in WEIGHTED or found.intersection(node.input):
                found.update(node.output)
        return found

    @cached_property
    def before_weights(self) -> set[str]:
        """Tensors that go into some weighted node, directly or not."""
        found: set[str] = set()
        for node in reversed(self.nodes):
            if node.op_type in WEIGHTED or found.intersection(node.output):
                found.update(node.input)
        return found


def _bodies(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    """The graphs inside a node, and inside theirs."""
    found: list[onnx.GraphProto] = []
    for attribute in node.attribute:
        for body in ([attribute.g] if attribute.HasField("g") else []) + list(attribute.graphs):
            found += [body, *(deeper for inner in body.node for deeper in _bodies(inner))]
    return found


def channels(node: onnx.NodeProto, weight: onnx.TensorProto) -> tuple[int, int]:
    """Input and output channels of a weighted node, from its weight's shape."""
    dims = tuple(weight.dims)
    attributes = {a.name: a.i for a in node.attribute}
    if node.op_type == "Conv":
        return dims[1] * attributes.get("group", 1), dims[0]
    if node.op_type == "ConvTranspose":
        return dims[0], dims[1] * attributes.get("group", 1)
    if node.op_type == "Gemm" and attributes.get("transB", 0):
        return dims[1], dims[0]
    return (dims[-2], dims[-1]) if len(dims) > 1 else (dims[0], 1)


def float_values(tensor: onnx.TensorProto) -> np.ndarray | None:
    """The values of a floating tensor, as float32 where they are of 16 bits; None for other types."""
    if tensor.data_type in (TensorProto.FLOAT, TensorProto.DOUBLE):
        return np.asarray(numpy_helper.to_array(tensor))
    if tensor.data_type in (TensorProto.FLOAT16, TensorProto.BFLOAT16):
        return np.asarray(numpy_helper.to_array(tensor)).astype(np.float32)
    return None
