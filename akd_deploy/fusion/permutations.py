"""Permutations of dimensions: what transposes do, one after another and through reshapes."""

from __future__ import annotations

import math
from collections.abc import Sequence

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Node
from akd_deploy.kernel import Shape

Permutation = tuple[int, ...]


def permutation_of(graph: Graph, transpose: Node) -> Permutation:
    """Dimension i of the output is dimension `perm[i]` of the input."""
    perm = transpose.integers("perm")
    return perm if perm is not None else tuple(reversed(range(len(graph.shape(transpose.inputs[0])))))


def is_identity(perm: Permutation) -> bool:
    return perm == tuple(range(len(perm)))


def inverse(perm: Permutation) -> Permutation:
    return tuple(sorted(range(len(perm)), key=perm.__getitem__))


def compose(first: Permutation, then: Permutation) -> Permutation:
    """The one transpose that does what two do."""
    return tuple(first[i] for i in then)


def squeezed(perm: Permutation, axes: Sequence[int]) -> Permutation:
    """What is left of a transpose once these dimensions of its input are gone."""
    kept = [axis for axis in range(len(perm)) if axis not in axes]
    return tuple(kept.index(axis) for axis in perm if axis not in axes)


def unsqueezed(perm: Permutation, axes: Sequence[int]) -> Permutation:
    """The transpose with dimensions of 1 put in, which stay where they are."""
    rank = len(perm) + len(axes)
    kept = [axis for axis in range(rank) if axis not in axes]
    moved = iter(perm)
    return tuple(axis if axis in axes else kept[next(moved)] for axis in range(rank))


def as_permutation(before: Shape, after: Shape) -> Permutation | None:
    """The transpose that a reshape between these shapes is: dimensions other than 1 keep their order."""
    if len(before) != len(after):
        return None
    left = list(before)
    own = []
    for dim in after:
        for axis, candidate in enumerate(left):
            if candidate == dim:
                own.append(axis)
                left[axis] = -1
                break
            if candidate not in (-1, 1) and dim != 1:
                return None
        else:
            return None
    return tuple(own)


def refinement(before: Shape, after: Shape) -> list[Shape] | None:
    """The dimensions of `after` that each one of `before` is split into; None where some are joined."""
    parts: list[Shape] = []
    i = 0
    for dim in before:
        part: list[int] = []
        while i < len(after) and (not part or math.prod(part) < dim):
            part.append(after[i])
            i += 1
        if not part or math.prod(part) != dim:
            return None
        parts.append(tuple(part))
    if i < len(after):
        return None
    return parts
