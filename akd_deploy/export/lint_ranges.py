"""Which values tensors can have, as far as a network's operators tell by themselves: intervals, without any sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, inf, isnan, log, sqrt

import numpy as np
import onnx

from akd_deploy.export.lint_graph import LintGraph, float_values
from akd_deploy.export.operators import is_onnx

Interval = tuple[float, float]
"""The smallest and the largest value, infinite where nothing is known."""
ANY: Interval = (-inf, inf)

BOOLEAN = ("And", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Not", "Or", "Xor")
FIXED: Mapping[str, Interval] = {
    **dict.fromkeys(("Sigmoid", "HardSigmoid", "Softmax", *BOOLEAN), (0.0, 1.0)),
    **dict.fromkeys(("Tanh", "Erf", "Sin", "Cos", "Softsign"), (-1.0, 1.0)),
    **dict.fromkeys(("ReduceL1", "ReduceL2", "ReduceSumSquare"), (0.0, inf)),
    "LogSoftmax": (-inf, 0.0),
}
"""Operators whose results lie there whatever they are given."""
PASSING = {
    "Cast", "DepthToSpace", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND",
    "GlobalAveragePool", "GlobalMaxPool", "Identity", "MaxPool", "ReduceMax", "ReduceMean", "ReduceMin", "Reshape",
    "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "TopK", "Transpose", "Unsqueeze",
}  # fmt: skip
"""Operators whose results lie among the values of their first input."""
LARGEST_CONSTANT = 1 << 20
"""Numbers; larger constants are weights, which nobody adds or multiplies element by element."""


def value_ranges(graph: LintGraph) -> Mapping[str, Interval]:
    """Tensor → interval, of every tensor that a node makes and every constant."""
    ranges = {name: _of_constant(graph, name) for name in graph.tensors}
    for node in graph.nodes:
        found = _of_node(graph, node, [ranges.get(name, ANY) for name in node.input])
        for i, name in enumerate(node.output):
            if name not in graph.tensors:
                ranges[name] = found if i == 0 or node.op_type == "Split" else ANY
    return ranges


def _of_constant(graph: LintGraph, name: str) -> Interval:
    tensor = graph.tensors[name]
    values = float_values(tensor) if np.prod(tensor.dims, dtype=float) <= LARGEST_CONSTANT else None
    if values is None or values.size == 0 or np.isnan(values).any():
        return ANY
    return float(values.min()), float(values.max())


def _of_node(graph: LintGraph, node: onnx.NodeProto, given: Sequence[Interval]) -> Interval:
    op = node.op_type
    if not is_onnx(node.domain):
        return ANY
    if op in FIXED:
        return FIXED[op]
    if op in PASSING and given:
        return given[0]
    if op in ("Sub", "Add") and _is_shifted_by_its_largest(graph, node):
        return -inf, 0.0
    if op in _BY_ATTRIBUTES:
        return _BY_ATTRIBUTES[op](graph, node, given)
    return _COMPUTED[op](given) if op in _COMPUTED else ANY


# --- what the largest value was taken from ----------------------------------------------------------------------------


def _is_shifted_by_its_largest(graph: LintGraph, node: onnx.NodeProto) -> bool:
    """Whether a node takes from a tensor the tensor's own largest value, as softmax does it."""
    a, b = node.input
    if node.op_type == "Sub":
        return _largest_of(graph, b) == _source(graph, a)
    for negated, other in ((a, b), (b, a)):
        maker = graph.maker.get(_source(graph, negated))
        if maker is not None and maker.op_type == "Neg":
            return _largest_of(graph, maker.input[0]) == _source(graph, other)
    return False


def _largest_of(graph: LintGraph, name: str) -> str | None:
    """The tensor whose largest values along some axes these are, of as many dimensions; None where they are not."""
    added: list[int] | None = None
    while (maker := graph.maker.get(name)) is not None and maker.op_type in ("Identity", "Cast", "Expand", "Unsqueeze"):
        if maker.op_type == "Unsqueeze":
            added = _axes(graph, maker)
        name = maker.input[0]
    if maker is None:
        return None
    attributes = {a.name: a.i for a in maker.attribute}
    if maker.op_type == "TopK" and name == maker.output[0]:
        count = graph.constant(maker.input[1]) if len(maker.input) > 1 else np.array(attributes.get("k", 0))
        is_largest = count is not None and count.size == 1 and count.item() == 1 and attributes.get("largest", 1)
        return _source(graph, maker.input[0]) if is_largest and added is None else None
    if maker.op_type not in ("ReduceMax", "ReduceLogSumExp"):
        return None
    if not attributes.get("keepdims", 1) and (added is None or added != _axes(graph, maker)):
        return None
    return _source(graph, maker.input[0])


def _axes(graph: LintGraph, node: onnx.NodeProto) -> list[int] | None:
    """Of a reduction or an Unsqueeze, where they are known."""
    found = next((list(a.ints) for a in node.attribute if a.name == "axes"), None)
    if found is None and len(node.input) > 1 and (held := graph.constant(node.input[1])) is not None:
        found = [int(axis) for axis in held.ravel()]
    return None if found is None else sorted(found)


def _source(graph: LintGraph, name: str) -> str:
    """The tensor that a tensor is, under another name or in another type."""
    while (maker := graph.maker.get(name)) is not None and maker.op_type in ("Identity", "Cast"):
        name = maker.input[0]
    return name


# --- intervals of results ---------------------------------------------------------------------------------------------


def _interval(low: float, high: float) -> Interval:
    """Ends that are no number are not known."""
    return -inf if isnan(low) else low, inf if isnan(high) else high


def _add(a: Interval, b: Interval) -> Interval:
    return _interval(a[0] + b[0], a[1] + b[1])


def _negate(a: Interval) -> Interval:
    return -a[1], -a[0]


def _hull(parts: Sequence[Interval]) -> Interval:
    return min(low for low, _ in parts), max(high for _, high in parts)


def _multiply(a: Interval, b: Interval) -> Interval:
    ends = [0.0 if isnan(x * y) else x * y for x in a for y in b]  # 0 × ∞: zero times anything finite
    return min(ends), max(ends)


def _absolute(a: Interval) -> Interval:
    low, high = sorted((abs(a[0]), abs(a[1])))
    return (0.0 if a[0] <= 0 <= a[1] else low), high


def _inverse(a: Interval) -> Interval:
    """Of what is nowhere 0; nothing is known otherwise."""
    return (1 / a[1], 1 / a[0]) if a[0] > 0 or a[1] < 0 else ANY


def _power(base: Interval, exponent: float) -> Interval:
    if exponent % 2 == 0:
        base = _absolute(base)
    if exponent < 0 or base[0] < 0:
        return ANY

    def raised(x: float) -> float:
        try:
            return x**exponent
        except OverflowError:
            return inf

    return raised(base[0]), raised(base[1])


def _exponential(x: float) -> float:
    return inf if x > 700 else exp(x)


def _logarithm(x: float) -> float:
    return log(x) if 0 < x < inf else (inf if x > 0 else -inf)


def _scalar(graph: LintGraph, name: str) -> float | None:
    value = graph.constant(name) if name else None
    return float(value.item()) if value is not None and value.size == 1 else None


def _of_constant_node(graph: LintGraph, node: onnx.NodeProto, given: Sequence[Interval]) -> Interval:
    del graph, given
    attribute = node.attribute[0] if node.attribute else onnx.AttributeProto()
    numbers = [attribute.f] if attribute.name == "value_float" else list(attribute.floats)
    return (min(numbers), max(numbers)) if numbers else ANY


def _of_clip(graph: LintGraph, node: onnx.NodeProto, given: Sequence[Interval]) -> Interval:
    low, high = graph.clip_bounds(node) or ANY
    return min(max(given[0][0], low), high), min(max(given[0][1], low), high)


def _of_leaky(graph: LintGraph, node: onnx.NodeProto, given: Sequence[Interval]) -> Interval:
    del graph
    slope = next((a.f for a in node.attribute if a.name == "alpha"), 0.01)
    below = [slope * x if x < 0 else x for x in given[0]]
    return (below[0], below[1]) if slope >= 0 else ANY


def _of_pad(graph: LintGraph, node: onnx.NodeProto, given: Sequence[Interval]) -> Interval:
    if any(a.name == "mode" and a.s != b"constant" for a in node.attribute):
        return given[0]
    value: float | None = next((a.f for a in node.attribute if a.name == "value"), 0.0)
    if len(node.input) > 2 and node.input[2]:
        value = _scalar(graph, node.input[2])
    return ANY if value is None else _hull([given[0], (value, value)])


def _of_product(graph: LintGraph, node: onnx.NodeProto, given: Sequence[Interval]) -> Interval:
    a, b = (_source(graph, name) for name in node.input)
    return _power(given[0], 2.0) if a == b else _multiply(given[0], given[1])


def _of_power(graph: LintGraph, node: onnx.NodeProto, given: Sequence[Interval]) -> Interval:
    exponent = _scalar(graph, node.input[1])
    return ANY if exponent is None else _power(given[0], exponent)


_BY_ATTRIBUTES: Mapping[str, Callable[[LintGraph, onnx.NodeProto, Sequence[Interval]], Interval]] = {
    "Clip": _of_clip,
    "Constant": _of_constant_node,
    "LeakyRelu": _of_leaky,
    "Mul": _of_product,
    "Pad": _of_pad,
    "Pow": _of_power,
}
"""Operator → interval of its result, where more than the inputs' intervals tells."""
_COMPUTED: Mapping[str, Callable[[Sequence[Interval]], Interval]] = {
    "Abs": lambda g: _absolute(g[0]),
    "Add": lambda g: _add(g[0], g[1]),
    "AveragePool": lambda g: _hull([g[0], (0.0, 0.0)]),  # of padding
    "Concat": _hull,
    "Div": lambda g: _multiply(g[0], _inverse(g[1])),
    "Exp": lambda g: (_exponential(g[0][0]), _exponential(g[0][1])),
    "Log": lambda g: (_logarithm(g[0][0]), _logarithm(g[0][1])),
    "Max": lambda g: (max(low for low, _ in g), max(high for _, high in g)),
    "Min": lambda g: (min(low for low, _ in g), min(high for _, high in g)),
    "Neg": lambda g: _negate(g[0]),
    "Reciprocal": lambda g: _inverse(g[0]),
    "Relu": lambda g: (max(0.0, g[0][0]), max(0.0, g[0][1])),
    "Softplus": lambda g: (0.0, max(0.0, g[0][1]) + log(2)),
    "Sqrt": lambda g: (sqrt(max(0.0, g[0][0])), sqrt(max(0.0, g[0][1]))),
    "Sub": lambda g: _add(g[0], _negate(g[1])),
    "Where": lambda g: _hull(g[1:]),
}
"""Operator → interval of its result, from those of its inputs."""
