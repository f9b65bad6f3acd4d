"""Look over an ONNX file for a target, with no runtime: what will not run, be slow, or not be what it says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx.shape_inference import InferenceError, infer_shapes

from akd_deploy.errors import CorruptFileError, UnknownNameError, UsageError
from akd_deploy.export.lint_graph import LintGraph
from akd_deploy.export.lint_rules import RULES, Finding, unsupported_operator
from akd_deploy.export.onnx_file import name_nodes, parse_onnx
from akd_deploy.export.operators import UNSUPPORTED
from akd_deploy.target import Target

SEVERITIES = ("error", "warning", "info")

CPU_BLOCK = 8
"""CPU engines lay channels out in blocks of 8 (AVX2) or 16 (AVX-512); what 8 does not divide fits neither."""

TENSOR_CORE_MULTIPLES: Mapping[str, int] = {"fp32": 1, "tf32": 4, "fp16": 8, "bf16": 8, "int8": 16, "fp8": 16}
"""Channels that fill the 16 bytes a tensor core is fed at once; plain float32 cores take any number."""


def channel_multiple(target: Target) -> int:
    """The number of channels that a target's kernels compute at once."""
    return TENSOR_CORE_MULTIPLES[target.precision] if target.engine.startswith("tensorrt") else CPU_BLOCK


def lint_onnx(path: Path, target: Target, *, multiple: int | None = None) -> tuple[Finding, ...]:
    """Every finding, errors first.

    Args:
        multiple: channels per block, where the latency table of the target has taught another than
            `channel_multiple`; 1 switches the rule off.

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
    multiple = channel_multiple(target) if multiple is None else multiple
    try:
        model = parse_onnx(path)
    except CorruptFileError as error:
        return (_corrupt_graph(error.found),)
    name_nodes(model)
    unknown = tuple(unsupported_operator(LintGraph(model, target, multiple)))
    try:
        onnx.checker.check_model(model)
        inferred = infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
    except (onnx.checker.ValidationError, InferenceError) as error:
        # An operator that does not exist fails the checker as well; the rule says it better.
        return unknown or (_corrupt_graph(str(error)),)
    graph = LintGraph(inferred, target, multiple)
    findings = [finding for rule in RULES.values() for finding in rule(graph)]
    return tuple(sorted(findings, key=lambda f: SEVERITIES.index(f.severity)))


def _corrupt_graph(found: str) -> Finding:
    return Finding("corrupt-graph", "error", "", found, "Export it again.")
