"""Numbers below the least normal one: what a masked softmax makes many of, and a CPU computes with slowly.

A mask of −100 added to attention's scores leaves exponentials of 4e-44. Each of them takes a processor's slow way in
the softmax and in every product that reads it, up to 90 times as long (Swin-T on x86), and no shape tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from akd_deploy.engines.onnx_file import node_names
from akd_deploy.kernel import ExecutedKernel

DENORMAL_EXPONENTS = (-104.0, -87.34)
"""Between these the exponential of a float32 is denormal; below it is zero."""

DENORMALS = "denormals"
"""The attribute of a kernel that works on such numbers: their share among what it reads."""

RESHAPING = ("Reshape", "Squeeze", "Unsqueeze", "Identity", "Flatten")
PASSING = (*RESHAPING, "Dropout", "Transpose")
"""Operators that only move what they are given."""
_REPEATING = (*PASSING, "Expand", "Tile")
_MOST_TERMS = 8
"""So many sums within sums are looked into."""
_PRODUCTS = ("MatMul", "Gemm", "Einsum")
_SLOW = ("softmax", "matmul", "gemm", "attention", "einsum")
"""Parts of the names of kernels that compute with what they read; others move it."""


def masks_before(
    softmax: onnx.NodeProto, maker: Mapping[str, onnx.NodeProto], is_constant: Callable[[str], bool]
) -> list[str]:
    """The names of the constants that were added to what a Softmax reads, directly or among themselves beforehand."""
    name, masks = softmax.input[0], []
    while (node := maker.get(name)) is not None and node.op_type in ("Add", *RESHAPING) and node.input:
        if node.op_type != "Add":
            name = node.input[0]
            continue
        name = ""
        for read in node.input:
            terms = _terms(read, maker, is_constant)
            if terms is None:
                name = read
            else:
                masks += terms
    return masks


def _terms(name: str, maker: Mapping[str, onnx.NodeProto], is_constant: Callable[[str], bool]) -> list[str] | None:
    """The constants whose sum, repeated and reshaped, a tensor is; None where it is anything else."""
    terms: list[str] = []
    asked = [name]
    while asked:
        read = asked.pop()
        node = maker.get(read)
        if is_constant(read):
            terms.append(read)
        elif node is not None and node.op_type == "Add" and len(asked) < _MOST_TERMS:
            asked += node.input
        elif node is not None and node.op_type in _REPEATING and node.input:
            asked.append(node.input[0])
        else:
            return None
    return terms


def denormal_share(masks: Sequence[np.ndarray]) -> float:
    """The share of a softmax's outputs that are denormal, by what was added before it; 0 where nothing was."""
    if not masks:
        return 0.0
    try:
        return _share(np.asarray(sum(masks[1:], masks[0])))
    except ValueError:  # moved about in between: no two of them meet as they are, and biases beside a mask are small
        return max(map(_share, masks))


def _share(mask: np.ndarray) -> float:
    least, most = DENORMAL_EXPONENTS
    return float(np.mean((mask > least) & (mask < most))) if mask.size else 0.0


def added_masks(graph: onnx.GraphProto) -> Iterator[tuple[onnx.NodeProto, list[onnx.TensorProto]]]:
    """Each Softmax that constants are added before, with these."""
    softmaxes = [node for node in graph.node if node.op_type == "Softmax" and node.input and any(node.output)]
    if not softmaxes:
        return
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants |= {name: a.t for name in node.output for a in node.attribute if a.name == "value"}
    maker = {name: node for node in graph.node for name in node.output if name not in constants}
    for softmax in softmaxes:
        masks = masks_before(softmax, maker, constants.__contains__)
        if masks:
            yield softmax, [constants[name] for name in masks]


def denormal_shares(graph: onnx.GraphProto, folder: Path | None = None) -> dict[str, float]:
    """Node name (as `node_names` gives it) → share of denormal numbers, of each Softmax that makes some and of the
    products that read them.

    Args:
        folder: of the weights files; a mask whose values are nowhere counts as one without denormal numbers.
    """
    found: dict[str, float] = {}
    names: dict[str, str] = {}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for softmax, masks in added_masks(graph):
        known = [value for mask in masks if (value := _values(mask, folder)) is not None]
        share = float(f"{denormal_share(known):.2g}")
        if not share:
            continue
        if not names:
            for node, name in zip(graph.node, node_names(graph), strict=True):
                names |= dict.fromkeys(filter(None, node.output), name)
                for read in node.input:
                    readers.setdefault(read, []).append(node)
        found |= {names[name]: share for name in softmax.output if name}
        reached = list(softmax.output)
        while reached:
            for node in readers.get(reached.pop(), []):
                if node.op_type in _PRODUCTS:
                    found |= {names[name]: share for name in node.output if name}
                elif node.op_type in PASSING:
                    reached += node.output
    return found


def with_denormals(
    executed: Sequence[ExecutedKernel], graph: onnx.GraphProto, folder: Path | None = None
) -> tuple[ExecutedKernel, ...]:
    """The kernels of a network, those that compute with denormal numbers told by their attribute `DENORMALS`."""
    shares = denormal_shares(graph, folder)
    if not shares:
        return tuple(executed)

    def told(one: ExecutedKernel) -> ExecutedKernel:
        share = max((shares.get(node, 0.0) for node in one.nodes), default=0.0)
        if not share or not any(part in one.kernel.op.lower() for part in _SLOW):
            return one
        attributes = (*one.kernel.attributes, (DENORMALS, share))
        return replace(one, kernel=replace(one.kernel, attributes=attributes))

    return tuple(map(told, executed))


def _values(tensor: onnx.TensorProto, folder: Path | None) -> np.ndarray | None:
    is_external = tensor.data_location == onnx.TensorProto.EXTERNAL
    if is_external and folder is None:
        return None
    try:
        return numpy_helper.to_array(tensor, str(folder or ""))
    except (ValueError, TypeError):  # left out of a structure, or of a type that numpy does not know
        return None
