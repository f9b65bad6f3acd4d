"""Cast an ONNX network to float16 or bfloat16: typed weights and tensors, float32 at its inputs and outputs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import onnx
import onnx.version_converter
from onnx import TensorProto, helper, inliner, shape_inference

from akd_deploy.engines.declared_float32 import declare_float32
from akd_deploy.errors import BuildError, UnknownNameError, UsageError
from akd_deploy.export.low_precision import LOW_PRECISIONS, LowPrecision, overflows, tensor_to_low, vanishes
from akd_deploy.export.onnx_file import name_nodes

_LONG_SUM = "adds many terms, which overflows above 65504 or loses the small ones"
_EXPONENT = "raises to a power, which overflows from ordinary values"
_DTYPE_ATTRIBUTE = "takes its type from an attribute, not from its inputs"
KEEP_FLOAT32: Mapping[str, str] = {
    **dict.fromkeys(
        ("ReduceSum", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp", "CumSum", "LpPool"),
        _LONG_SUM,
    ),
    **dict.fromkeys(
        ("LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "LpNormalization"),
        "squares and sums its input",
    ),
    **dict.fromkeys(("Softmax", "LogSoftmax"), "sums exponentials"),
    **dict.fromkeys(("Exp", "Pow"), _EXPONENT),
    **dict.fromkeys(("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike"), _DTYPE_ATTRIBUTE),
    **dict.fromkeys(("EyeLike", "Bernoulli", "Multinomial", "Range"), _DTYPE_ATTRIBUTE),
}
"""Operators that stay in float32 → why. Everything else is cast where its schema allows the type."""

BFLOAT16_OPSET = 22
"""The first opset whose Conv, pools and activations allow bfloat16; older networks are converted to it."""

BFLOAT16_IR_VERSION = 10
"""The format version that goes with that opset (the ONNX specification's table of versions)."""


@dataclass(frozen=True)
class CastModel:
    """A cast network, and the nodes left in float32 with the reason of each."""

    model: onnx.ModelProto
    kept_float32: Mapping[str, str]


def cast_model(model: onnx.ModelProto, mode: str, keep_float32: Mapping[str, str] | None = None) -> CastModel:
    """Cast every float32 tensor inside a network; names of tensors and nodes stay, inputs and outputs stay float32.

    A node stays in float32 where `KEEP_FLOAT32`, its schema, or a weight beyond the type's range says so,
    or where `keep_float32` (node name → reason) names it. A constant that the type would round to 0, like the
    1e-12 that keeps a variance from it, keeps its node and those that read the result. Casts are put where the
    two meet, once per tensor. The network's metadata declare the nodes kept (`declared_float32`), so that a build
    knows them from others.

    Raises:
        UnknownNameError: a mode other than fp16 and bf16, or a node to keep that is not there.
        UsageError: the network is quantised or cast already, or has control flow.
        BuildError: its types cannot be inferred, or the cast network is not valid.
    """
    if mode not in LOW_PRECISIONS:
        raise UnknownNameError("cast", mode, LOW_PRECISIONS)
    low = LOW_PRECISIONS[mode]
    prepared = _prepared(model, low)
    nodes = [node.name for node in prepared.graph.node]
    for name in keep_float32 or {}:
        if name not in nodes:
            raise UnknownNameError("node", name, nodes, where=prepared.graph.name or "the network")
    caster = _Caster(prepared, low, keep_float32 or {})
    result = caster.cast()
    declare_float32(result, caster.kept)
    try:
        onnx.checker.check_model(result, full_check=True)
    except (onnx.checker.ValidationError, shape_inference.InferenceError) as error:
        raise BuildError(
            asked=f"the network in {low.name}", found=str(error), next="Report the network; keep it in float32 so far."
        ) from error
    return CastModel(result, caster.kept)


_CASTS = ("float32", *(low.name for low in LOW_PRECISIONS.values()))
"""What the outputs of our casts end with."""


def _prepared(model: onnx.ModelProto, low: LowPrecision) -> onnx.ModelProto:
    """A copy with functions inlined, constants as initialisers, nodes named and every tensor's type known."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    if copy.functions:
        copy = inliner.inline_local_functions(copy)
    for node in copy.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            raise UsageError(
                asked=f"a quantised network in {low.name}",
                found=f"{node.op_type} {node.name!r}",
                next="Cast the float32 network it was quantised from.",
            )
        if node.op_type == "Cast" and node.output[0].endswith(tuple(f"__{name}" for name in _CASTS)):
            raise UsageError(
                asked=f"the network in {low.name}",
                found=f"one that was cast before: {node.op_type} {node.name!r}",
                next="Use it as it is, or cast the float32 network that it was made of.",
            )
        if any(a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS) for a in node.attribute):
            raise UsageError(
                asked=f"the network in {low.name}",
                found=f"control flow: {node.op_type} {node.name!r}",
                next="Export it without If, Loop and Scan.",
            )
    try:
        opset = next(o.version for o in copy.opset_import if o.domain in ("", "ai.onnx"))
        if low.onnx_type == TensorProto.BFLOAT16 and opset < BFLOAT16_OPSET:
            copy = onnx.version_converter.convert_version(copy, BFLOAT16_OPSET)
            copy.ir_version = max(copy.ir_version, BFLOAT16_IR_VERSION)
        name_nodes(copy)
        _constants_to_initializers(copy.graph)
        return shape_inference.infer_shapes(copy, check_type=True, strict_mode=True, data_prop=True)
    except (
        onnx.version_converter.ConvertError,
        shape_inference.InferenceError,
        onnx.checker.ValidationError,
        RuntimeError,  # what the converter's C++ side raises for an operator without an adapter
    ) as error:
        raise BuildError(
            asked=f"the types of a network's tensors, to cast it to {low.name}",
            found=str(error),
            next="Correct the network; `akd-deploy lint` says where it is wrong.",
        ) from error


def _constants_to_initializers(graph: onnx.GraphProto) -> None:
    kept = []
    for node in graph.node:
        tensors = [a.t for a in node.attribute if a.name == "value"]
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and tensors:
            tensor = TensorProto()
            tensor.CopyFrom(tensors[0])
            tensor.name = node.output[0]
            graph.initializer.append(tensor)
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)


class _Caster:
    """The walk over one graph: which tensors are 16-bit so far, and what each consumer is given."""

    def __init__(self, model: onnx.ModelProto, low: LowPrecision, keep: Mapping[str, str]) -> None:
        graph = model.graph
        self.model, self.graph, self.low, self.asked_to_keep = model, graph, low, keep
        self.weights = {t.name: t for t in graph.initializer}
        self.float_tensors = {name for name, tensor in self.weights.items() if tensor.data_type == TensorProto.FLOAT}
        for value in (*graph.input, *graph.value_info, *graph.output):
            if value.type.tensor_type.elem_type == TensorProto.FLOAT:
                self.float_tensors.add(value.name)
        self.outputs = {value.name for value in graph.output}
        self.opsets = {o.domain: o.version for o in model.opset_import}
        self.low_tensors: set[str] = set()
        self.nodes: list[onnx.NodeProto] = []
        self.low_weights: dict[str, TensorProto] = {}
        self.casts: dict[str, str] = {}
        self.kept: dict[str, str] = {}
        self.guarded: dict[str, str] = {}
        """Tensors that a constant too small for the type keeps from 0 → that constant."""

    def cast(self) -> onnx.ModelProto:
        for node in self.graph.node:
            self._rewrite(node)
        used = {name for node in self.nodes for name in node.input} | self.outputs
        initializers = [t for name, t in self.weights.items() if name in used]
        graph = helper.make_graph(
            self.nodes,
            self.graph.name,
            [v for v in self.graph.input if v.name not in self.weights],
            self.graph.output,
            initializer=[*initializers, *self.low_weights.values()],
            doc_string=self.graph.doc_string,
        )
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        result.graph.CopyFrom(graph)
        return result

    def _rewrite(self, node: onnx.NodeProto) -> None:
        inputs = dict(self._castable(node, node.input, "inputs"))
        outputs = set(dict(self._castable(node, node.output, "outputs")).values())
        touches_float = self.float_tensors.intersection((*node.input, *node.output))
        reason = self._reason_to_keep(node, set(inputs.values()) | outputs) if touches_float else None
        if reason is not None:
            self.kept[node.name] = reason
            inputs, outputs = {}, set()
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for i, name in enumerate(node.input):
            if name in self.float_tensors:
                copy.input[i] = self._given(name, i in inputs, clamp=node.op_type == "Clip")
        for i, name in enumerate(node.output):
            if name in outputs:
                self.low_tensors.add(name)
                copy.output[i] = self._stored(name)
        if outputs:
            self._retype_attributes(copy)
        self.nodes.append(copy)
        for name in sorted(outputs & self.outputs):
            self.nodes.append(self._cast_node(self._stored(name), name, TensorProto.FLOAT))

    def _castable(self, node: onnx.NodeProto, names: Collection[str], side: str) -> Iterator[tuple[int, str]]:
        """Place and name of each float32 argument whose schema allows the 16-bit type."""
        try:
            schema = onnx.defs.get_schema(node.op_type, self.opsets[node.domain], node.domain)
        except (onnx.defs.SchemaError, KeyError):
            return
        formal = getattr(schema, side)
        allowed = {c.type_param_str: c.allowed_type_strs for c in schema.type_constraints}
        for i, name in enumerate(names):
            if name in self.float_tensors and formal:
                type_name = formal[min(i, len(formal) - 1)].type_str
                if self.low.schema_type in allowed.get(type_name, ()):
                    yield i, name

    def _reason_to_keep(self, node: onnx.NodeProto, castable: set[str]) -> str | None:
        if node.name in self.asked_to_keep:
            return self.asked_to_keep[node.name]
        if node.op_type in KEEP_FLOAT32 and node.domain in ("", "ai.onnx"):
            return f"{node.op_type} {KEEP_FLOAT32[node.op_type]}"
        if not castable:
            return f"{node.op_type} is not defined for {self.low.name} in this opset"
        if node.op_type != "Clip":  # its bounds are clamped instead: beyond the range they bound nothing
            for name in sorted(castable & self.weights.keys()):
                if overflows(self.weights[name], self.low.largest):
                    return f"weight {name!r} exceeds ±{self.low.largest:g}"
            for name in sorted(castable & self.weights.keys()):
                if vanishes(self.weights[name], self.low.smallest):
                    self.guarded |= dict.fromkeys(node.output, name)
                    return f"weight {name!r} would be 0 in {self.low.name}"
        for name in node.input:
            if name in self.guarded:
                return f"reads {name!r}, which weight {self.guarded[name]!r} keeps from 0"
        return None

    def _given(self, name: str, low: bool, clamp: bool) -> str:
        """The tensor's name in the wanted type; casts it where it has the other one."""
        if name in self.weights:
            if not low:
                return name
            low_name = f"{name}__{self.low.name}" + ("_clamped" if clamp else "")
            if low_name not in self.low_weights:
                self.low_weights[low_name] = tensor_to_low(self.weights[name], self.low, low_name, clamp)
            return low_name
        is_low = name in self.low_tensors
        if is_low == low:
            return self._stored(name) if low else name
        if is_low and name in self.outputs:
            return name  # the network's float32 output is that cast already
        if name not in self.casts:
            self.casts[name] = f"{name}__float32" if is_low else f"{name}__{self.low.name}"
            to = TensorProto.FLOAT if is_low else self.low.onnx_type
            self.nodes.append(self._cast_node(name, self.casts[name], to))
        return self.casts[name]

    def _stored(self, name: str) -> str:
        """Where a 16-bit tensor lives: under its own name, unless that is a float32 output of the network."""
        return f"{name}__{self.low.name}" if name in self.outputs else name

    def _cast_node(self, source: str, to_name: str, to: int) -> onnx.NodeProto:
        return helper.make_node("Cast", [source], [to_name], name=f"{to_name}__cast", to=to)

    def _retype_attributes(self, node: onnx.NodeProto) -> None:
        if node.op_type == "ConstantOfShape":
            value = [a.t for a in node.attribute if a.name == "value"]
            zero = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
            node.ClearField("attribute")
            tensor = tensor_to_low(value[0] if value else zero, self.low, "value")
            node.attribute.append(helper.make_attribute("value", tensor))
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.FLOAT:
                attribute.i = self.low.onnx_type
