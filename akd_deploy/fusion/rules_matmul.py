"""What ONNX Runtime makes of matrix products: `Gemm` with its bias, scales and transposes inside the product."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import FLOAT, MICROSOFT, Node, TensorType
from akd_deploy.fusion.permutations import permutation_of

_FLOATS = (1, 10, 16)
"""ONNX's numbers of float, float16 and bfloat16."""


def gemms_from_matmuls(graph: Graph, keep_attention: bool) -> bool:
    """MatMul and the addition of a bias become `Gemm`, between reshapes where the input has more dimensions."""
    changed = False
    kept: set[int] = set()
    for matmul in graph.of("MatMul"):
        add = graph.only_reader(matmul)
        if add is None or not add.is_a("Add") or not matmul.alive:
            continue
        a, b = (graph.shape(name) for name in matmul.inputs)
        if len(b) != 2 or not a or graph.types[matmul.inputs[0]].element not in _FLOATS:
            continue
        bias = add.inputs[1] if add.inputs[0] == matmul.output else add.inputs[0]
        needs_reshape = len(a) != 2
        if needs_reshape and _is_attention(graph, matmul, add, kept) and keep_attention:
            continue
        shape = graph.shape(bias)
        fits = shape == (b[1],) or (not needs_reshape and shape in ((1, b[1]), (a[0], 1), (a[0], b[1])))
        if fits:
            _replace_by_gemm(graph, matmul, add, bias, a, b)
            changed = True
    return changed


def _is_attention(graph: Graph, matmul: Node, add: Node, kept: set[int]) -> bool:
    """Whether it is one of the four projections of an attention block after a layer norm."""
    norm = graph.writer(matmul.inputs[0])
    if id(norm) in kept or id(add) in kept:
        return True
    if norm is None or not norm.is_a("LayerNormalization"):
        return False
    readers = graph.readers(norm.output)
    adds = [node for node in readers if node.op == "Add"]
    if len(adds) != 1 or len(readers) != 4 or sum(node.op == "MatMul" for node in readers) != 3:
        return False
    other = adds[0].inputs[1] if adds[0].inputs[0] == norm.output else adds[0].inputs[0]
    projection = graph.writer(other)
    if projection is None or not projection.is_a("Add"):
        return False
    kept |= {id(norm), id(projection)}
    return True


def _replace_by_gemm(graph: Graph, matmul: Node, add: Node, bias: str, a: tuple[int, ...], b: tuple[int, ...]) -> None:
    element = graph.types[matmul.inputs[0]].element
    graph.remove(add)
    graph.remove(matmul)
    source, result = matmul.inputs[0], add.output
    gemm_in, gemm_out = source, result
    if len(a) != 2:
        rows = math.prod(a[:-1])
        gemm_in, gemm_out = graph.unused_name("gemm_input_reshape_arg"), graph.unused_name("gemm_output_reshape_arg")
        shape = graph.add_constant(np.asarray([rows, b[0]], np.int64), "gemm_input_shape")
        reshape = Node("Reshape", [source, shape], [gemm_in], graph.unused_name("gemm_input_reshape"))
        graph.add(reshape, [TensorType(element, (rows, b[0]))])
        graph.types[gemm_out] = TensorType(element, (rows, b[1]))
        back = graph.add_constant(np.asarray([*a[:-1], b[1]], np.int64), "gemm_output_shape")
        graph.add(Node("Reshape", [gemm_out, back], [result], graph.unused_name("gemm_output_reshape")))
    name = f"{matmul.name}/MatMulAddFusion"
    graph.add(Node("Gemm", [gemm_in, matmul.inputs[1], bias], [gemm_out], name))


def fuse_gemm_transposes(graph: Graph) -> bool:
    """A transpose of a matrix before a `Gemm` is one of its settings, and so is one behind a `Gemm` without bias."""
    changed = False
    for gemm in graph.of("Gemm"):
        if len(graph.readers(gemm.output)) > 1:
            continue
        found = any([_take_in_transpose(graph, gemm, i, setting) for i, setting in ((0, "transA"), (1, "transB"))])
        later = graph.only_reader(gemm)
        if len(gemm.inputs) < 3 and later is not None and later.is_a("Transpose"):
            # (A·B)ᵀ is Bᵀ·Aᵀ
            a, b = gemm.inputs
            flags = gemm.integer("transA"), gemm.integer("transB")
            graph.set_input(gemm, 0, b)
            graph.set_input(gemm, 1, a)
            gemm.set("transA", 1 - flags[1])
            gemm.set("transB", 1 - flags[0])
            graph.absorb(gemm, later)
            found = True
        if found:
            gemm.name = f"{gemm.name}/GemmTransposeFusion/"
            changed = True
    return changed


def _take_in_transpose(graph: Graph, gemm: Node, i: int, setting: str) -> bool:
    transpose = graph.writer(gemm.inputs[i])
    if transpose is None or not transpose.is_a("Transpose") or transpose.output in graph.outputs:
        return False
    if permutation_of(graph, transpose) != (1, 0):
        return False
    if not all(reader.is_a("Gemm") for reader in graph.readers(transpose.output)):
        return False
    graph.set_input(gemm, i, transpose.inputs[0])
    gemm.set(setting, 1 - gemm.integer(setting))
    graph.drop_if_unread(transpose)
    return True


def fuse_gemm_sums(graph: Graph) -> bool:
    """The other operand of a sum that alone reads a `Gemm` without bias becomes its bias."""
    changed = False
    for gemm in graph.of("Gemm"):
        later = graph.only_reader(gemm)
        if later is None or not later.is_a("Sum") or len(later.inputs) != 2 or len(gemm.inputs) > 2:
            continue
        bias = later.inputs[1 - later.inputs.index(gemm.output)]
        shape, rows = graph.shape(bias), graph.shape(gemm.output)
        if len(shape) <= 2 and all(a in (1, b) for a, b in zip(reversed(shape), reversed(rows), strict=False)):
            graph.set_input(gemm, 2, bias)
            graph.absorb(gemm, later)
            gemm.name = f"{gemm.name}/GemmSumFusion/"
            changed = True
    return changed


def fold_norms_into_matmuls(graph: Graph) -> bool:
    """A batch norm behind a product with constant weights becomes part of the weights and a bias."""
    changed = False
    for matmul in graph.of("MatMul"):
        weight = graph.constant(matmul, 1)
        later = graph.only_reader(matmul)
        last = matmul
        while later is not None and later.is_a("Reshape", "Transpose"):
            last, later = later, graph.only_reader(later)
        if later is None or not later.is_a("BatchNormalization") or weight is None or len(later.outputs) > 1:
            continue
        channels = weight.type.shape[-1:]
        if len(weight.type.shape) != 2 or len(graph.shape(matmul.inputs[0])) != 2:
            continue
        if any(name not in graph.constants or graph.shape(name) != channels for name in later.inputs[1:]):
            continue
        matmul.op, matmul.name = "Gemm", graph.unused_name("MatMulBnFusion_Gemm")
        graph.set_input(matmul, 2, later.inputs[2])
        graph.absorb(last, later)
        changed = True
    return changed


def _matmuls(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.is_a("MatMul") or node.is_a("FusedMatMul", domain=MICROSOFT)]


def _fused(matmul: Node, rule: str) -> Node:
    if matmul.op == "MatMul":
        matmul.op, matmul.domain = "FusedMatMul", MICROSOFT
        matmul.name = f"{matmul.name}/{rule}/"
        matmul.set("alpha", 1.0)
    return matmul


def fuse_matmul_transposes(graph: Graph) -> bool:
    """A transpose of the last two dimensions before a matrix product is one of its settings.

    So is one that brings the first dimension to the rows or to the columns, where both operands have as many.
    """
    changed = False
    for matmul in _matmuls(graph):
        if graph.types[matmul.inputs[0]].element != FLOAT:
            continue
        found = [
            _as_settings(graph, name) if not matmul.integer(f"transBatch{side}") else None
            for side, name in zip("AB", matmul.inputs, strict=False)
        ]
        if len({len(graph.shape(name)) for name in matmul.inputs[:2]}) > 1:
            found = [None if way is not None and way.is_batch else way for way in found]
        for i, (side, way) in enumerate(zip("AB", found, strict=True)):
            if way is None:
                continue
            fused = _fused(matmul, "MatmulTransposeFusion")
            if way.swaps:
                fused.set(f"trans{side}", 1 - matmul.integer(f"trans{side}"))
            if way.is_batch:
                fused.set(f"transBatch{side}", 1)
            graph.set_input(matmul, i, way.node.inputs[0])
            graph.drop_if_unread(way.node)
            changed = True
    return changed


@dataclass(frozen=True)
class _Settings:
    """What a transpose before a matrix product is: a swap of rows and columns, the first dimension among them."""

    node: Node
    swaps: bool
    is_batch: bool


def _as_settings(graph: Graph, name: str) -> _Settings | None:
    node = graph.writer(name)
    if node is None or not node.is_a("Transpose") or name in graph.outputs:
        return None
    perm = permutation_of(graph, node)
    if len(perm) < 2:
        return None
    *batch, rows, columns = range(len(perm))
    inner = (*batch[1:], rows)
    ways = {
        (*batch, rows, columns): (False, False),
        (*batch, columns, rows): (True, False),
        (*inner, 0, columns): (False, True),
        (*inner, columns, 0): (True, True),
    }
    found = ways.get(perm)
    return _Settings(node, *found) if found is not None else None


def fuse_matmul_scales(graph: Graph) -> bool:
    """Products with and quotients by a constant number before or after a matrix product become its factor."""
    changed = False
    for matmul in _matmuls(graph):
        if graph.types[matmul.inputs[0]].element != FLOAT:
            continue
        found = False
        for i in (0, 1):
            scale = graph.writer(matmul.inputs[i])
            data = _scaled_input(graph, scale) if scale is not None else None
            if scale is not None and data is not None:
                graph.set_input(matmul, i, scale.inputs[data])
                graph.drop_if_unread(scale)
                found = True
        later = graph.only_reader(matmul)
        data = _scaled_input(graph, later) if later is not None else None
        if later is not None and data is not None and later.inputs[data] == matmul.output:
            graph.absorb(matmul, later)
            found = True
        if found:
            _fused(matmul, "MatMulScaleFusion")
            changed = True
    return changed


def _scaled_input(graph: Graph, node: Node) -> int | None:
    """Which input of a product with a constant number is scaled; None if it is no such product."""
    if not node.is_a("Mul", "Div"):
        return None
    for i in (1, 0) if node.op == "Mul" else (1,):
        constant = graph.constant(node, i)
        if constant is not None and constant.type.shape in ((), (1,)) and node.inputs[1 - i] not in graph.constants:
            return 1 - i
    return None
