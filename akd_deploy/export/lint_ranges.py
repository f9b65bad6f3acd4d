"""Which values tensors can have, as far as a network's operators tell by themselves: intervals, without any sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, inf, isnan, log

import numpy as np
import onnx

from akd_deploy.export.lint_graph import LintGraph, float_values

Interval = tuple[float, float]
"""The smallest and the largest value, infinite where nothing is known."""
ANY: Interval = (-inf, inf)

FIXED: Mapping[str, Interval] = {
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax"), (0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Erf", "Sin", "Cos", "Softsign"), (-1.0, 1.0)),
    "LogSoftmax": (-inf, 0.0),
}
"""Operators whose results lie there whatever they are given."""
PASSING = {
    "Cast", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators whose results lie among the values of their first input."""
RENAMING = {"Identity", "Reshape", "Squeeze", "Unsqueeze", "Cast", "Expand"}
"""Operators that leave the values of a tensor as they are."""


def value_ranges(graph: LintGraph) -> Mapping[str, Interval]:
    """Tensor → interval, of every tensor that a node makes and every constant."""
    ranges = {name: _of_constant(graph, name) for name in graph.tensors}
    for node in graph.nodes:
        if node.op_type != "Constant":
            found = _of_node(graph, node, [ranges.get(name, ANY) for name in node.input])
            ranges.update(dict.fromkeys(node.output, found))
    return ranges


def _of_constant(graph: LintGraph, name: str) -> Interval:
    values = float_values(graph.tensors[name])
    if values is None or values.size == 0 or np.isnan(values).any():
        return ANY
    return float(values.min()), float(values.max())


def _of_node(graph: LintGraph, node: onnx.NodeProto, given: Sequence[Interval]) -> Interval:
    op = node.op_type
    if op in FIXED:
        return FIXED[op]
    if op in PASSING and given:
        return given[0]
    if op == "Clip":
        low, high = graph.clip_bounds(node) or ANY
        return min(max(given[0][0], low), high), min(max(given[0][1], low), high)
    if op in ("Sub", "Add") and _is_shifted_by_its_largest(graph, node):
        return -inf, 0.0
    if op in ("Concat", "Where"):
        parts = given if op == "Concat" else given[1:]
        return min(low for low, _ in parts), max(high for _, high in parts)
    return _COMPUTED[op](given) if op in _COMPUTED else ANY


def _is_shifted_by_its_largest(graph: LintGraph, node: onnx.NodeProto) -> bool:
    """Whether a node takes from a tensor the tensor's own largest value, as softmax does it."""
    a, b = (_source(graph, name) for name in node.input)
    if node.op_type == "Sub":
        return _is_largest_of(graph, b, a)
    for negated, other in ((a, b), (b, a)):
        maker = graph.maker.get(negated)
        if maker is not None and maker.op_type == "Neg":
            return _is_largest_of(graph, _source(graph, maker.input[0]), other)
    return False


def _is_largest_of(graph: LintGraph, name: str, of: str) -> bool:
    maker = graph.maker.get(name)
    return maker is not None and maker.op_type == "ReduceMax" and _source(graph, maker.input[0]) == of


def _source(graph: LintGraph, name: str) -> str:
    """The tensor whose values a tensor has, under another name or in another shape."""
    while (maker := graph.maker.get(name)) is not None and maker.op_type in RENAMING:
        name = maker.input[0]
    return name


def _add(a: Interval, b: Interval) -> Interval:
    return a[0] + b[0], a[1] + b[1]  # lower ends are never +∞, upper ones never −∞


def _negate(a: Interval) -> Interval:
    return -a[1], -a[0]


def _multiply(a: Interval, b: Interval) -> Interval:
    ends = [0.0 if isnan(x * y) else x * y for x in a for y in b]  # 0 × ∞: zero times anything finite
    return min(ends), max(ends)


def _absolute(a: Interval) -> Interval:
    low, high = sorted((abs(a[0]), abs(a[1])))
    return (0.0 if a[0] <= 0 <= a[1] else low), high


def _exponential(x: float) -> float:
    return inf if x > 700 else exp(x)


_COMPUTED: Mapping[str, Callable[[Sequence[Interval]], Interval]] = {
    "Relu": lambda g: (max(0.0, g[0][0]), max(0.0, g[0][1])),
    "Softplus": lambda g: (0.0, max(0.0, g[0][1]) + log(2)),
    "Neg": lambda g: _negate(g[0]),
    "Abs": lambda g: _absolute(g[0]),
    "Exp": lambda g: (_exponential(g[0][0]), _exponential(g[0][1])),
    "Add": lambda g: _add(g[0], g[1]),
    "Sub": lambda g: _add(g[0], _negate(g[1])),
    "Mul": lambda g: _multiply(g[0], g[1]),
    "Min": lambda g: (min(low for low, _ in g), min(high for _, high in g)),
    "Max": lambda g: (max(low for low, _ in g), max(high for _, high in g)),
}
"""Operator → interval of its result, from those of its inputs."""
