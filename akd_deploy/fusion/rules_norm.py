"""Layer norms: written out they become one kernel, and take in the addition before them."""

from __future__ import annotations

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import MICROSOFT, Node
from akd_deploy.fusion.rules_gelu import other_input, partner

_MAX_EPSILON = 1.0


def fuse_layer_norms(graph: Graph, is_standard: bool) -> bool:
    """(x − mean) / √(mean((x − mean)²) + ε) · γ + β; ONNX itself has the operator since opset 17."""
    if is_standard and graph.opset < 17:
        return False
    changed = False
    for sub in graph.of("Sub"):
        mean = graph.writer(sub.inputs[1])
        root = sub.inputs[0]
        if mean is None or not _is_last_mean(graph, mean) or mean.inputs[0] != root or graph.uses(mean.output) != 1:
            continue
        found = _normalised(graph, sub.output)
        if found is None or graph.uses(sub.output) != 2:
            continue
        nodes, scaled, gamma = found
        last = graph.only_reader(scaled)
        if last is None or not last.is_a("Add"):
            continue
        beta = other_input(last, scaled.output)
        if beta is None or len(graph.shape(beta)) != 1:
            continue
        for node in (mean, sub, *nodes, scaled, last):
            graph.remove(node)
        name = f"{scaled.name}/LayerNormFusion/"
        graph.add(Node("LayerNormalization", [root, gamma, beta], last.outputs, name, axis=-1))
        changed = True
    return changed


def fuse_rms_norms(graph: Graph) -> bool:
    """x / √(mean(x²) + ε) · γ."""
    changed = False
    for power in graph.of("Pow"):
        root = power.inputs[0]
        found = _normalised(graph, root, power)
        if found is None:
            continue
        nodes, scaled, gamma = found
        for node in (*nodes, scaled):
            graph.remove(node)
        name = f"{scaled.name}/SimplifiedLayerNormFusion/"
        graph.add(Node("SimplifiedLayerNormalization", [root, gamma], scaled.outputs, name, axis=-1))
        changed = True
    return changed


def _is_last_mean(graph: Graph, node: Node) -> bool:
    """Whether it is a mean over the last dimension, which it keeps."""
    if not node.is_a("ReduceMean") or not node.integer("keepdims", 1):
        return False
    axes = node.integers("axes")
    if axes is None:
        constant = graph.constant(node, 1)
        if constant is None:
            return False
        axes = tuple(int(axis) for axis in constant.value.ravel())
    rank = len(graph.shape(node.inputs[0]))
    return tuple(axis % rank for axis in axes) == (rank - 1,)


def _normalised(graph: Graph, name: str, power: Node | None = None) -> tuple[list[Node], Node, str] | None:
    """The nodes that divide a tensor by the root of its mean square, the scaling after them, and its factor."""
    if power is None:
        power = next((node for node in graph.readers(name) if node.is_a("Pow")), None)
    if power is None or partner(graph, power, "Pow", (2.0,)) != name:
        return None
    mean = graph.only_reader(power)
    if mean is None or not _is_last_mean(graph, mean):
        return None
    add = graph.only_reader(mean)
    epsilon = graph.constants.get(other_input(add, mean.output) or "") if add is not None and add.is_a("Add") else None
    root = graph.only_reader(add) if add is not None else None
    if add is None or epsilon is None or epsilon.scalar is None or not 0 <= epsilon.scalar <= _MAX_EPSILON:
        return None
    div = graph.only_reader(root) if root is not None and root.is_a("Sqrt") else None
    if root is None or div is None or not div.is_a("Div") or div.inputs != [name, root.output]:
        return None
    scaled = graph.only_reader(div)
    gamma = other_input(scaled, div.output) if scaled is not None and scaled.is_a("Mul") else None
    if scaled is None or gamma is None or graph.shape(gamma) != graph.shape(name)[-1:]:
        return None
    return [power, mean, add, root, div], scaled, gamma


def fuse_skip_layer_norms(graph: Graph) -> bool:
    """An addition (and one of a bias before it) that a layer norm alone reads goes into it."""
    changed = False
    for norm in graph.of("LayerNormalization"):
        add = graph.writer(norm.inputs[0])
        if add is None or not add.is_a("Add") or graph.uses(add.output) != 1 or len(norm.outputs) > 1:
            continue
        shapes = [graph.shape(name) for name in add.inputs]
        if shapes[0] != shapes[1] or len(shapes[0]) != 3 or norm.integer("axis", -1) not in (-1, 2):
            continue
        if any(graph.shape(name) != shapes[0][-1:] for name in norm.inputs[1:] if name):
            continue
        inputs = [*add.inputs, *norm.inputs[1:]]
        biased = _biased(graph, add)
        nodes = [add, norm]
        if biased is not None:
            inner, data, bias, i = biased
            nodes.insert(0, inner)
            other = add.inputs[1 - i]
            gains = [*norm.inputs[1:], ""][:2]
            inputs = [data, other, *gains, bias]
        for node in nodes:
            graph.remove(node)
        name = graph.unused_name("SkipLayerNormalization")
        graph.add(Node("SkipLayerNormalization", inputs, norm.outputs, name, MICROSOFT))
        changed = True
    return changed


def _biased(graph: Graph, add: Node) -> tuple[Node, str, str, int] | None:
    """An addition of a bias that this one alone reads: the node, what is biased, the bias, and which input it is."""
    for i in (0, 1):
        inner = graph.writer(add.inputs[i])
        if inner is None or not inner.is_a("Add") or graph.uses(inner.output) != 1:
            continue
        for k in (1, 0):
            shape = graph.shape(add.output)
            if graph.shape(inner.inputs[k]) == shape[-1:] and graph.shape(inner.inputs[1 - k]) == shape:
                return inner, inner.inputs[1 - k], inner.inputs[k], i
    return None
