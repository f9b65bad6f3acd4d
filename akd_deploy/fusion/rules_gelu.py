"""Gaussian error linear units: written out with `Erf`, `Tanh` or `Sigmoid`, they become one kernel."""

from __future__ import annotations

import math
from collections.abc import Sequence

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import MICROSOFT, Node

_SQRT_2 = (math.sqrt(2), 1.4142099618911743)
"""The second is what some exported networks have in its place."""

_SQRT_2_OVER_PI = (math.sqrt(2 / math.pi),)
_CUBIC = (0.044715,)
_TOLERANCE = 1e-5


def is_number(graph: Graph, node: Node, i: int, values: Sequence[float]) -> bool:
    """Whether input `i` is a constant of one element near one of `values`."""
    constant = graph.constant(node, i)
    scalar = None if constant is None else constant.scalar
    return scalar is not None and any(abs(scalar - value) <= _TOLERANCE * abs(value) for value in values)


def partner(graph: Graph, node: Node | None, op: str, values: Sequence[float]) -> str | None:
    """The tensor that the node, of this operator, combines with a constant near one of `values`."""
    if node is None or not node.is_a(op):
        return None
    for i in (1, 0) if op in ("Add", "Mul") else (1,):
        if is_number(graph, node, i, values):
            return node.inputs[1 - i]
    return None


def other_input(node: Node, name: str) -> str | None:
    """The second operand of a node that reads `name`; None where it does not read it."""
    if name not in node.inputs[:2]:
        return None
    return node.inputs[1 - node.inputs.index(name)]


def _alone(graph: Graph, name: str) -> Node | None:
    """What writes a tensor that is read once."""
    return graph.writer(name) if graph.uses(name) == 1 else None


def _half_of(graph: Graph, product: Node, gate: str, root: str) -> list[Node] | None:
    """Nodes from `gate`'s product with the root to the end, one of them a halving; None where there are no such."""
    other = other_input(product, gate)
    if other == root:
        parent = graph.writer(root)
        if parent is not None and parent.is_a("Mul"):
            return None  # the runtime takes it for the halving, and gives up
        last = graph.only_reader(product)
        return [product, last] if last is not None and partner(graph, last, "Mul", (0.5,)) else None
    half = _alone(graph, other) if other else None
    return [half, product] if half is not None and partner(graph, half, "Mul", (0.5,)) == root else None


def _replace(graph: Graph, nodes: Sequence[Node], made: Node) -> None:
    for node in nodes:
        graph.remove(node)
    graph.add(made)


def fuse_gelus(graph: Graph, domain: str) -> bool:
    """x · ½ · (1 + erf(x / √2)); since opset 20 ONNX itself has the operator, and the runtime's is made no more."""
    if bool(domain) == (graph.opset >= 20):
        return False
    changed = False
    for erf in graph.of("Erf"):
        div = _alone(graph, erf.inputs[0])
        root = partner(graph, div, "Div", _SQRT_2)
        add = graph.only_reader(erf)
        if root is None or div is None or add is None or partner(graph, add, "Add", (1.0,)) != erf.output:
            continue
        product = graph.only_reader(add)
        if product is None or not product.is_a("Mul"):
            continue
        rest = _half_of(graph, product, add.output, root)
        if rest is not None:
            gelu = Node("Gelu", [root], rest[-1].outputs, graph.unused_name("Gelu"), domain)
            _replace(graph, [div, erf, add, *rest], gelu)
            changed = True
    return changed


def fuse_tanh_gelus(graph: Graph) -> bool:
    """x · ½ · (1 + tanh(√(2/π) · (x + 0.044715 x³))), the cube a power or its factors drawn into the bracket."""
    changed = False
    for tanh in graph.of("Tanh"):
        inner = _cubic(graph, tanh.inputs[0])
        add = graph.only_reader(tanh)
        if inner is None or add is None or partner(graph, add, "Add", (1.0,)) != tanh.output:
            continue
        root, nodes = inner
        product = graph.only_reader(add)
        other = other_input(product, add.output) if product is not None and product.is_a("Mul") else None
        half = _alone(graph, other) if other else None
        if product is None or half is None or partner(graph, half, "Mul", (0.5,)) != root:
            continue
        gelu = Node("FastGelu", [root], product.outputs, graph.unused_name("GPT2Gelu"), MICROSOFT)
        _replace(graph, [*nodes, tanh, add, half, product], gelu)
        changed = True
    return changed


def _cubic(graph: Graph, name: str) -> tuple[str, list[Node]] | None:
    """x and the nodes that compute √(2/π) · (x + 0.044715 x³) from it."""
    outer = _alone(graph, name)
    if outer is None or not outer.is_a("Mul"):
        return None
    bracket = partner(graph, outer, "Mul", _SQRT_2_OVER_PI)
    return _by_power(graph, outer, bracket) if bracket is not None else _by_factors(graph, outer)


def _by_power(graph: Graph, outer: Node, bracket: str) -> tuple[str, list[Node]] | None:
    """x + 0.044715 · x³, the cube a power."""
    total = _alone(graph, bracket)
    if total is None or not total.is_a("Add"):
        return None
    for i in (0, 1):
        scaled = _alone(graph, total.inputs[i])
        cube = partner(graph, scaled, "Mul", _CUBIC)
        power = _alone(graph, cube) if cube else None
        root = partner(graph, power, "Pow", (3.0,))
        if scaled is not None and power is not None and root is not None and total.inputs[1 - i] == root:
            return root, [power, scaled, total, outer]
    return None


def _by_factors(graph: Graph, outer: Node) -> tuple[str, list[Node]] | None:
    """(√(2/π) · x) · (1 + (0.044715 · x) · x)."""
    for i in (0, 1):
        linear, total = _alone(graph, outer.inputs[i]), _alone(graph, outer.inputs[1 - i])
        root = partner(graph, linear, "Mul", _SQRT_2_OVER_PI)
        square = partner(graph, total, "Add", (1.0,))
        product = _alone(graph, square) if square else None
        if root is None or linear is None or total is None or product is None or not product.is_a("Mul"):
            continue
        scaled_name = other_input(product, root)
        scaled = _alone(graph, scaled_name) if scaled_name else None
        if scaled is not None and partner(graph, scaled, "Mul", _CUBIC) == root:
            return root, [scaled, product, total, linear, outer]
    return None


def fuse_bias_gelus(graph: Graph) -> bool:
    """A bias along the last dimension goes into the unit that alone reads the sum."""
    changed = False
    for gelu in graph.nodes:
        if gelu.op not in ("Gelu", "FastGelu") or gelu.domain not in ("", MICROSOFT) or len(gelu.inputs) > 1:
            continue
        add = _alone(graph, gelu.inputs[0])
        if add is None or not add.is_a("Add") or gelu.text("approximate", "none") != "none":
            continue
        for i in (1, 0):
            bias, data = graph.shape(add.inputs[i]), graph.shape(add.inputs[1 - i])
            if len(bias) == 1 and data and bias[0] == data[-1]:
                op = "BiasGelu" if gelu.op == "Gelu" else "FastGelu"
                inputs = [add.inputs[1 - i], add.inputs[i]]
                made = Node(op, inputs, gelu.outputs, graph.unused_name(op), MICROSOFT)
                _replace(graph, [add, gelu], made)
                changed = True
                break
    return changed


def fuse_quick_gelus(graph: Graph) -> bool:
    """x · sigmoid(αx), the product with α left out where it is 1."""
    changed = False
    for sigmoid in graph.of("Sigmoid"):
        product = graph.only_reader(sigmoid)
        if product is None or not product.is_a("Mul") or graph.types[sigmoid.inputs[0]].element not in (1, 10, 16):
            continue
        gate = sigmoid.inputs[0]
        nodes = [sigmoid, product]
        other = other_input(product, sigmoid.output)
        if other != gate:
            scale = _alone(graph, gate)
            if scale is None or not scale.is_a("Mul") or other not in scale.inputs:
                continue
            constant = graph.constants.get(other_input(scale, other) or "")
            if constant is None or constant.scalar is None:
                continue
            nodes.insert(0, scale)
        assert other is not None
        _replace(
            graph, nodes, Node("QuickGelu", [other], product.outputs, f"{product.name}/QuickGeluFusion/", MICROSOFT)
        )
        changed = True
    return changed
