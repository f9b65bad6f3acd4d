"""Look over an ONNX file for a target, with no runtime: what will not run, be slow, or not be what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import onnx
from onnx.shape_inference import InferenceError, infer_shapes

from akd_deploy.errors import CorruptFileError, UnknownNameError, UsageError
from akd_deploy.export.finding import SEVERITIES, Finding
from akd_deploy.export.granularity import Granularity, documented_granularity
from akd_deploy.export.lint_costs import LintCosts
from akd_deploy.export.lint_graph import LintGraph
from akd_deploy.export.lint_opsets import FILE_RULES
from akd_deploy.export.lint_rules import NETWORK_RULES
from akd_deploy.export.onnx_file import name_nodes, parse_onnx
from akd_deploy.export.operators import UNSUPPORTED
from akd_deploy.target import Target

Rule = Callable[[LintGraph], Iterable[Finding]]

LARGE_BYTES = 1024
"""Weights larger than this have no part in shapes and types; inference copies what it is given, several times."""


def lint_onnx(
    path: Path,
    target: Target,
    *,
    multiple: int | None = None,
    granularity: Granularity | None = None,
    costs: LintCosts | None = None,
) -> tuple[Finding, ...]:
    """Every finding, errors first.

    Args:
        multiple: channels per block, said by the caller; 1 switches the rule off.
        granularity: the same with its source, where the latency table of the target has taught it; by default
            what the engine documents.
        costs: predictions to put beside findings; none by default.

    Raises:
        MissingFileError: no such file.
        UsageError, UnknownNameError: an engine that reads no ONNX files, or that nobody knows; a multiple below 1.
    """
    if target.engine == "torch":
        raise UsageError(
            asked=f"lint for target {target.name}",
            found="the torch engine, which reads no ONNX files",
            next="Choose a target of another engine.",
        )
    if target.engine not in UNSUPPORTED:
        raise UnknownNameError("engine", target.engine, UNSUPPORTED, where=f"target {target.name}")
    if multiple is not None and multiple < 1:
        raise UsageError(asked="channels per block", found=f"{multiple}", next="Write a whole number ≥ 1.")
    if multiple is not None:
        granularity = Granularity(multiple, "as asked")
    granularity, costs = granularity or documented_granularity(target), costs or LintCosts()
    try:
        model = parse_onnx(path)
    except CorruptFileError as error:
        return (_corrupt_graph(error.found),)
    name_nodes(model)
    typed = _loosely_inferred(model)
    before = _findings(FILE_RULES, LintGraph(typed, target, granularity, costs))
    try:
        onnx.checker.check_model(model)
        inferred = _with_weights(
            infer_shapes(_without_weights(model), check_type=True, strict_mode=True, data_prop=True), model
        )
    except (onnx.checker.ValidationError, InferenceError) as error:
        # What the rules found fails the checker as well; they say it better.
        return _sorted(before) or (_corrupt_graph(str(error)),)
    except ValueError as error:  # a type of tensor, or a name, that is none
        return _sorted([*before, _corrupt_graph(str(error))])
    return _sorted([*before, *_findings(NETWORK_RULES, LintGraph(inferred, target, granularity, costs))])


def _findings(rules: Mapping[str, Rule], graph: LintGraph) -> list[Finding]:
    """What every rule finds; a network that a rule cannot even read, though the file is an ONNX file, is corrupt."""
    found: list[Finding] = []
    for name, rule in rules.items():
        try:
            found += rule(graph)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
            found.append(_corrupt_graph(f"rule {name} cannot read it ({type(error).__name__}: {error})"))
    return found


def _sorted(findings: list[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def _loosely_inferred(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the types that can be told of a network that may be wrong; as it is where none can."""
    try:
        return _with_weights(infer_shapes(_without_weights(model)), model)
    except (InferenceError, ValueError, RuntimeError):
        return model


def _without_weights(model: onnx.ModelProto) -> onnx.ModelProto:
    """The network with its large weights as inputs."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.initializer[:]
    given = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.ByteSize() <= LARGE_BYTES:
            bare.graph.initializer.add().CopyFrom(tensor)
        elif tensor.name not in given:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            bare.graph.input.append(info)
    return bare


def _with_weights(inferred: onnx.ModelProto, model: onnx.ModelProto) -> onnx.ModelProto:
    """What was inferred, with the weights and inputs that the network has."""
    for field in ("initializer", "input"):
        inferred.graph.ClearField(field)
        getattr(inferred.graph, field).extend(getattr(model.graph, field))
    return inferred


def _corrupt_graph(found: str) -> Finding:
    return Finding("corrupt-graph", "error", "", found, "Export it again.")
