"""A network's graph as torch.fx traces it, made to say what depends on what, and compared with the network."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from akd_deploy.errors import UsageError

SAME = 1e-4
"""Outputs of two networks differ by less than this share of the greatest, if they compute the same."""


def traced_network(network: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    """A network's graph, in which every node knows its shape and no tensor is read under its name after it was changed.
    What depends on the mode is as in evaluation: no dropout, if a function of the mode.

    Args:
        network: (batch, channels, height, width) → logits, of modules and functions that torch.fx can trace.
        input_shape: (channels, height, width).

    Raises:
        UsageError: torch.fx cannot trace it (its path depends on the data), says where; or its graph computes something
            else, since a tensor that is changed in place is read under another name.
    """
    with evaluating(network), torch.no_grad():
        try:
            traced = fx.symbolic_trace(network)
            _read_what_was_changed(traced)
            ShapeProp(traced.eval()).propagate(torch.zeros(2, *input_shape))
            difference = _most_different(network, traced, input_shape)
        except (TypeError, ValueError, RuntimeError, fx.proxy.TraceError) as error:
            raise UsageError(
                asked=f"the graph of {type(network).__name__}",
                found=f"torch.fx cannot trace it: {error}",
                next="Take out what depends on the data, or give another network.",
            ) from error
    if difference > SAME:
        raise UsageError(
            asked=f"the graph of {type(network).__name__}",
            found=f"one that computes something else, by {difference:.2g} of the greatest output",
            next="Write x = x + y in place of x += y, where x is read under another name afterwards.",
        )
    return traced


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """In evaluation mode for a while; every module then has the mode that it had."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def most_different(one: Any, other: Any) -> float:
    """The greatest difference of two outputs, tensors or what holds some, as a share of the greatest; infinite where
    they are not of the same shapes."""
    ours, theirs = _tensors(one), _tensors(other)
    if not ours or [tensor.shape for tensor in ours] != [tensor.shape for tensor in theirs]:
        return float("inf")
    pairs = zip(ours, theirs, strict=True)
    return max((_share_different(a, b) for a, b in pairs if a.numel()), default=0.0)


def _share_different(one: Tensor, other: Tensor) -> float:
    known = one.isfinite() & other.isfinite()
    if not bool((known | (one == other) | (one.isnan() & other.isnan())).all()):
        return float("inf")
    found, greatest = torch.where(known, one - other, 0.0).abs().max(), torch.where(known, one, 0.0).abs().max()
    return float(found / greatest.clamp(min=1e-12))


def _tensors(found: Any) -> list[Tensor]:
    if isinstance(found, Tensor):
        return [found]
    listed = found.values() if isinstance(found, Mapping) else found if isinstance(found, tuple | list) else ()
    return [tensor for part in listed for tensor in _tensors(part)]


def _most_different(network: nn.Module, traced: nn.Module, input_shape: Sequence[int]) -> float:
    images = torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))
    return most_different(network(images.clone()), traced(images.clone()))


def _read_what_was_changed(traced: fx.GraphModule) -> None:
    """Where a tensor is changed in place, what reads it afterwards reads the outcome: the graph then says by itself
    what depends on what, and a part of it can be left out."""
    nodes = list(traced.graph.nodes)
    for place, node in enumerate(nodes):
        if not (node.all_input_nodes and _is_in_place(traced, node)):
            continue
        changed = node.args[0] if node.args else None
        for later in nodes[place + 1 :]:
            if isinstance(changed, fx.Node) and changed in later.all_input_nodes:
                later.replace_input_with(changed, node)
    traced.recompile()


def _is_in_place(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(traced.get_submodule(str(node.target)), "inplace", False))
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    return node.op == "call_function" and (
        bool(node.kwargs.get("inplace", False)) or node.target in (operator.iadd, operator.imul, operator.isub)
    )


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """A node's tensor's, None of what is no tensor."""
    meta = node.meta.get("tensor_meta")
    return tuple(meta.shape) if meta is not None and hasattr(meta, "shape") else None


def tensor_of(network: fx.GraphModule, node: fx.Node) -> Tensor:
    """The parameter or buffer that a node reads by itself."""
    found: Any = network
    for part in str(node.target).split("."):
        found = getattr(found, part)
    result: Tensor = found
    return result
