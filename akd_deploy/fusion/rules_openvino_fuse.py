"""What OpenVINO's CPU plug-in joins in its own graph: biases, sums in place and activations behind what computes."""

from __future__ import annotations

from akd_deploy.fusion.rules_openvino_factors import constant_operand
from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph
from akd_deploy.fusion.rules_openvino_read import integers
from akd_deploy.fusion.rules_openvino_snippets import ELEMENTWISE, SIMPLE, UNARY_EPILOGUES, is_scale_shift

_TAKES_SIMPLE = ("Convolution", "Deconvolution", "FullyConnected", "MatMul", "MVN", "Interpolate", "Reduce")
_UNARY = SIMPLE - {"PRelu"} | {"SoftPlus"}


def connect_products(graph: LayerGraph) -> None:
    """A product with a constant of two dimensions is a fully connected layer, with its bias if one follows."""
    for layer in graph.layers("MatMul"):
        weight = layer.inputs[1]
        data_rank = len(graph.shape(layer.inputs[0]))
        if weight not in graph.constants or data_rank < 2:
            continue
        layer.op = "FullyConnected"
        if layer.integer("transA"):
            _transpose_data(graph, layer)
        *leading, rows, columns = graph.shape(weight)
        if not layer.integer("transB"):
            graph.set_input(layer, 1, graph.constant_like(weight, (*leading, columns, rows), weight))
        outputs = graph.shape(layer.output)[-1]
        child = graph.child(layer)
        bias = _bias_of(graph, child, layer.output, len(graph.shape(layer.output)) - 1)
        if child is not None and bias is not None:
            graph.set_input(layer, 2, graph.reshaped(bias, (outputs,)))
            _take_in(graph, layer, child, keeps_name=True)
        else:
            graph.set_input(layer, 2, graph.constant_like("no_bias", (0,), layer.inputs[0]))


def _transpose_data(graph: LayerGraph, layer: Layer) -> None:
    """What a product read transposed is transposed before a fully connected layer, in the product's name."""
    source = layer.inputs[0]
    shape = graph.shape(source)
    rank = len(shape)
    perm = [*range(rank - 2), rank - 1, rank - 2]
    inner = graph.new_tensor(source, tuple(shape[i] for i in perm))
    order = integers(graph, perm, "order")
    made = Layer("Transpose", [source, order], [inner], f"{layer.name}/transpose_a", [layer.name], perm=perm)
    graph.add(made)
    graph.set_input(layer, 0, inner)


def _bias_of(graph: LayerGraph, child: Layer | None, data: str, axis: int) -> str | None:
    """The constant that a layer adds, if it is one number per channel that nothing else reads."""
    if child is None or child.op != "Add" or len(child.inputs) != 2 or graph.data(child) != [data]:
        return None
    name = child.inputs[1 - child.inputs.index(data)]
    shape, whole = graph.shape(name), graph.shape(data)
    aligned = (1,) * (len(whole) - len(shape)) + shape
    if graph.uses(name) != 1 or len(aligned) != len(whole) or aligned[axis] != whole[axis]:
        return None
    return name if all(n == 1 or i == axis for i, n in enumerate(aligned)) else None


def _take_in(graph: LayerGraph, layer: Layer, child: Layer, keeps_name: bool = False) -> None:
    """Let a layer do on its way out what the one after it does."""
    layer.origins = [*layer.origins, *child.origins]
    if not keeps_name:
        layer.fused.append(child)
    graph.absorb(layer, child)


def fuse_biases(graph: LayerGraph) -> None:
    """Convolutions and products take in the bias that follows them."""
    for layer in graph.layers("Convolution", "Deconvolution", "MatMul"):
        child = graph.child(layer)
        rank = len(graph.shape(layer.output))
        axis = rank - 1 if layer.op == "MatMul" else 1
        bias = _bias_of(graph, child, layer.output, axis) if rank > 1 else None
        if child is not None and bias is not None and len(layer.inputs) == 2:
            graph.set_input(layer, 2, graph.reshaped(bias, (graph.shape(layer.output)[axis],)))
            _take_in(graph, layer, child, keeps_name=True)


def fuse_products_and_sums(graph: LayerGraph) -> None:
    """A factor and the shift behind it, where neither is part of a subgraph, are one layer."""
    for layer in graph.layers("Multiply"):
        child = graph.child(layer)
        factor = constant_operand(graph, layer)
        shift = constant_operand(graph, child) if child is not None and child.op == "Add" else None
        if child is None or factor is None or shift is None:
            continue
        graph.set_input(layer, 0, layer.inputs[1 - layer.inputs.index(factor)])
        graph.set_input(layer, 1, factor)
        graph.set_input(layer, 2, shift)
        layer.op = "MulAdd"
        _take_in(graph, layer, child, keeps_name=True)


def fuse_through_max_pools(graph: LayerGraph) -> None:
    """An activation behind a max pooling is computed before it, by the convolution."""
    for layer in graph.layers("Convolution"):
        pool = graph.child(layer)
        child = graph.child(pool) if pool is not None and pool.op == "MaxPool" else None
        while pool is not None and child is not None and child.op in _UNARY and len(graph.data(child)) == 1:
            layer.origins = [*layer.origins, *child.origins]
            layer.fused.append(child)
            graph.absorb(pool, child)
            child = graph.child(pool)


def fuse_simple(graph: LayerGraph, *ops: str) -> None:
    """Layers take in activations, scales and shifts that alone read them."""
    for layer in graph.layers(*(ops or _TAKES_SIMPLE)):
        while (child := graph.child(layer)) is not None and _can_fuse(graph, layer, child):
            _take_in(graph, layer, child)


def _can_fuse(graph: LayerGraph, layer: Layer, child: Layer) -> bool:
    data = layer.output
    if child.op not in ELEMENTWISE or len(graph.data(child)) != 1 or graph.shape(child.output) != graph.shape(data):
        return False
    if layer.op == "MVN" and len(graph.shape(data)) < 3:
        return child.op in _UNARY
    return child.op in _UNARY | {"PRelu"} or _is_shift(graph, layer, child, data)


def _is_shift(graph: LayerGraph, layer: Layer, child: Layer, data: str) -> bool:
    rank = len(graph.shape(data))
    axis = rank - 1 if layer.op in ("FullyConnected", "MatMul") else 1
    return is_scale_shift(graph, child, data, axis)


def fuse_sums(graph: LayerGraph) -> None:
    """A convolution adds to what another branch computed, in that one's place, and goes on with the activation."""
    for total in graph.layers("Add"):
        if not total.alive or len(total.inputs) != 2 or len(graph.data(total)) != 2:
            continue
        one, other = total.inputs
        if graph.shape(one) != graph.shape(other):
            continue
        parents = [graph.layer(one), graph.layer(other)]
        suits = [p is not None and p.op == "Convolution" and not p.fused for p in parents]
        if not any(suits):
            continue
        i = 0 if suits[0] else 1
        if all(suits) and graph.uses(total.inputs[0]) != 1:
            i = 1
        merged, peer = parents[i], total.inputs[1 - i]
        assert merged is not None
        if graph.uses(merged.output) != 1 or peer in merged.inputs or not _is_last_reader(graph, peer, total):
            continue
        child = graph.child(total)
        is_followed = child is not None and child.op in _UNARY and len(graph.data(child)) == 1
        graph.set_input(merged, len(merged.inputs), peer)
        _take_in(graph, merged, total)
        if is_followed and child is not None:
            _take_in(graph, merged, child)


def _is_last_reader(graph: LayerGraph, name: str, total: Layer) -> bool:
    """Whether whoever else reads a tensor comes before the sum, so that the sum may overwrite it."""
    return name not in graph.outputs and all(
        reader is total or _leads_to(graph, reader, total) for reader in graph.readers(name)
    )


def _leads_to(graph: LayerGraph, start: object, end: Layer) -> bool:
    stack, seen = [end], {id(end)}
    while stack:
        node = stack.pop()
        for name in node.inputs:
            writer = graph.layer(name)
            if writer is start:
                return True
            if writer is not None and id(writer) not in seen:
                seen.add(id(writer))
                stack.append(writer)
    return False


def fuse_elementwise(graph: LayerGraph) -> None:
    """What element-wise layers are left join those behind them."""
    for layer in graph.layers(*ELEMENTWISE):
        while layer.alive and (child := graph.child(layer)) is not None:
            writers = {id(graph.layer(name)) for name in graph.data(layer)}
            others = [name for name in graph.data(child) if name != layer.output]
            if child.op not in ELEMENTWISE or any(id(graph.layer(name)) in writers for name in others):
                break
            if child.op not in UNARY_EPILOGUES and not is_scale_shift(graph, child, layer.output, 1):
                break
            for name in child.inputs:
                if name != layer.output:
                    graph.set_input(layer, len(layer.inputs), name)
            _take_in(graph, layer, child)
