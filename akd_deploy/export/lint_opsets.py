"""Rules that need no valid network: operator sets, versions, element types. ONNX's own checker words them poorly."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import onnx
from onnx import TensorProto, defs

from akd_deploy.export.finding import Finding
from akd_deploy.export.lint_graph import LintGraph
from akd_deploy.export.operators import NEWEST_IR, NEWEST_OPSET, is_onnx, operator_problem, type_problem

PER_CHANNEL_OPSET = 13
"""The first opset whose QuantizeLinear takes a scale for each channel."""

_CHECKED_TYPES = frozenset(
    {
        TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE,
        TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E4M3FNUZ, TensorProto.FLOAT8E5M2, TensorProto.FLOAT8E5M2FNUZ,
        TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16,
    }
)  # fmt: skip
"""Types that operators learnt over time."""


def unsupported_operator(graph: LintGraph) -> Iterator[Finding]:
    functions = frozenset((f.domain, f.name) for f in graph.model.functions)
    missing = set(graph.missing_domains)
    for node in graph.nodes:
        domain = "" if is_onnx(node.domain) else node.domain
        problem = operator_problem(node, graph.target.engine, graph.opset, functions)
        if problem is None and domain not in missing and (node.domain, node.op_type) not in functions:
            problem = type_problem(node, graph.read_types(node), graph.target)
        elif domain in missing and not domain:
            problem = None  # without an opset nobody can tell
        if problem is None:
            inner = (operator_problem(n, graph.target.engine, graph.opset, functions) for n in graph.nodes_within(node))
            problem = next((f"inside it: {found}" for found in inner if found is not None and graph.opset), None)
        if problem is not None:
            fix = "Export it as standard operators, or choose a target whose engine has it."
            yield Finding("unsupported-operator", "error", node.name, problem, fix)


def missing_opset(graph: LintGraph) -> Iterator[Finding]:
    for domain in graph.missing_domains:
        named = domain or "ai.onnx"
        message = f"operators of {named} are used, and the file does not say in which version of its operator set"
        yield Finding("missing-opset", "error", "", message, f"Add an opset_import of {named} with its version.")


def new_opset(graph: LintGraph) -> Iterator[Finding]:
    engine = graph.target.engine
    newest = NEWEST_OPSET.get(engine)
    if newest is not None and graph.opset > newest:
        message = f"opset {graph.opset}; {engine} loads up to {newest}"
        yield Finding("new-opset", "error", "", message, f"Export with opset {newest} or lower.")


def new_ir_version(graph: LintGraph) -> Iterator[Finding]:
    engine = graph.target.engine
    newest, found = NEWEST_IR.get(engine), graph.model.ir_version
    if newest is not None and found > newest:
        message = f"ONNX file format (IR) {found}; {engine} loads up to {newest}"
        fix = f"Save it with ir_version = {newest}: nothing else need change unless newer features are used."
        yield Finding("new-ir-version", "error", "", message, fix)


def old_opset(graph: LintGraph) -> Iterator[Finding]:
    """Operators with attributes, types or scales that they do not have in this opset, and do in a later one."""
    for node in graph.nodes:
        if not is_onnx(node.domain) or not graph.opset or not defs.has(node.op_type, _known(graph.opset), ""):
            continue
        problem = _attribute_problem(graph, node) or _type_problem(graph, node) or _per_channel_problem(graph, node)
        if problem is not None:
            what, since = problem
            message = f"{node.op_type} of opset {graph.opset} has no {what}; that of opset {since} does"
            yield Finding("old-opset", "error", node.name, message, f"Export with opset {since} or later.")


def mixed_types(graph: LintGraph) -> Iterator[Finding]:
    """Operators that read tensors of different types where they take one: a cast that forgot some of the weights."""
    for node in graph.nodes:
        if not is_onnx(node.domain) or not graph.opset or not defs.has(node.op_type, _known(graph.opset), ""):
            continue
        schema = defs.get_schema(node.op_type, _known(graph.opset), "")
        bound: dict[str, dict[str, str]] = {}
        for name, parameter in _parameters(schema, node.input):
            element = graph.types.get(name, 0)
            if (
                element
                and parameter.is_homogeneous
                and parameter.type_str in {t.type_param_str for t in schema.type_constraints}
            ):
                bound.setdefault(parameter.type_str, {})[name] = _type_name(element)
        for types in bound.values():
            if len(set(types.values())) > 1:
                told = ", ".join(f"{name!r} in {kind}" for name, kind in types.items())
                message = f"{node.op_type} reads {told}: it takes one type for these"
                yield Finding("mixed-types", "error", node.name, message, "Cast the weights together with the network.")


def _known(opset: int) -> int:
    return min(opset, defs.onnx_opset_version())


def _versions_after(node: onnx.NodeProto, opset: int) -> Iterator[defs.OpSchema]:
    """The operator's later versions, the oldest first."""
    version = opset
    for candidate in range(version + 1, defs.onnx_opset_version() + 1):
        schema = defs.get_schema(node.op_type, candidate, "")
        if schema.since_version == candidate:
            yield schema


def _attribute_problem(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, int] | None:
    schema = defs.get_schema(node.op_type, _known(graph.opset), "")
    for attribute in node.attribute:
        if attribute.name not in schema.attributes:
            for later in _versions_after(node, graph.opset):
                if attribute.name in later.attributes:
                    return f"attribute {attribute.name!r}", later.since_version
    return None


def _type_problem(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, int] | None:
    schema = defs.get_schema(node.op_type, _known(graph.opset), "")
    for i, name in enumerate(node.input):
        element = graph.types.get(name, 0)
        if element not in _CHECKED_TYPES or _takes(schema, i, element):
            continue
        for later in _versions_after(node, graph.opset):
            if _takes(later, i, element):
                return f"{_type_name(element)} input", later.since_version
    return None


def _per_channel_problem(graph: LintGraph, node: onnx.NodeProto) -> tuple[str, int] | None:
    if node.op_type in ("QuantizeLinear", "DequantizeLinear") and graph.opset < PER_CHANNEL_OPSET:
        scale = graph.weights.get(node.input[1])
        if scale is not None and scale.dims and scale.dims[0] > 1:
            return "scale for each channel", PER_CHANNEL_OPSET
    return None


def _parameters(schema: defs.OpSchema, names: Sequence[str]) -> Iterator[tuple[str, defs.OpSchema.FormalParameter]]:
    """Each name that is given beside the parameter it is given for; the last one may take many."""
    for i, name in enumerate(names):
        if name and schema.inputs:
            yield name, schema.inputs[min(i, len(schema.inputs) - 1)]


def _takes(schema: defs.OpSchema, position: int, element: int) -> bool:
    """Whether an operator takes this element type there; more inputs than it has are another rule's."""
    if not schema.inputs:
        return True
    parameter = schema.inputs[min(position, len(schema.inputs) - 1)]
    allowed = {t.type_param_str: t.allowed_type_strs for t in schema.type_constraints}
    return f"tensor({_type_name(element)})" in allowed.get(parameter.type_str, [parameter.type_str])


def _type_name(element: int) -> str:
    """As schemas write it: "float16"."""
    return TensorProto.DataType.Name(element).lower()


FILE_RULES: Mapping[str, Callable[[LintGraph], Iterator[Finding]]] = {
    "unsupported-operator": unsupported_operator,
    "missing-opset": missing_opset,
    "new-opset": new_opset,
    "new-ir-version": new_ir_version,
    "old-opset": old_opset,
    "mixed-types": mixed_types,
}
"""Name → rule; these run on every file that can be parsed. A network that they find wrong is looked at no further
where ONNX's own checker agrees."""
