"""The `torch.export` archive of a network: what the torch engine loads."""

from __future__ import annotations

import copy
import io
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils import _pytree as pytree

from akd_deploy.errors import BuildError
from akd_deploy.models.student import Chain
from akd_deploy.search_space import Layer
from akd_deploy.search_space.operations import operations
from akd_deploy.storage import write_atomically

ELEMENT_TYPES: Mapping[str, torch.dtype] = {
    "fp32": torch.float32,
    "tf32": torch.float32,  # a mode of float32 products, which the engine sets
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
"""Precision of a target → element type of an archive's weights and tensors."""


class _Typed(nn.Module):
    """A module computing in a 16-bit type: floating inputs are cast on their way in, outputs back to float32."""

    def __init__(self, module: nn.Module, element_type: torch.dtype) -> None:
        super().__init__()
        self.module, self.element_type = module.to(element_type), element_type

    def forward(self, *inputs: torch.Tensor) -> Any:
        outputs = self.module(*(x.to(self.element_type) if x.is_floating_point() else x for x in inputs))
        return pytree.tree_map(lambda y: y.float() if isinstance(y, torch.Tensor) else y, outputs)


def shipped(module: nn.Module, precision: str) -> nn.Module:
    """The module, put in evaluation mode, as it ships: typed, batch norms folded into the convolutions before them.

    Folding needs a symbolic trace of the module; one that cannot be traced keeps its batch norms.

    Raises:
        BuildError: torch ships no such precision here.
    """
    if precision not in ELEMENT_TYPES:
        raise BuildError(
            asked=f"an archive of {type(module).__name__} in {precision}",
            found=f"torch archives in {', '.join(ELEMENT_TYPES)}",
            next="Quantised students ship through ONNX Runtime, OpenVINO or TensorRT.",
        )
    folded = _folded(module.eval())
    element_type = ELEMENT_TYPES[precision]
    return folded if element_type == torch.float32 else _Typed(copy.deepcopy(folded), element_type).eval()


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def _folded(module: nn.Module) -> nn.Module:
    """The module with every batch norm that alone reads a convolution folded into it; itself if it has no trace."""
    try:
        traced = fx.symbolic_trace(module)
    except (fx.proxy.TraceError, TypeError, AttributeError, NotImplementedError, RuntimeError):
        return module  # what a trace refuses has no class of its own
    modules = dict(traced.named_modules())
    calls: dict[object, int] = {}
    for node in traced.graph.nodes:
        calls[node.target] = calls.get(node.target, 0) + 1
    for node in list(traced.graph.nodes):
        source = node.args[0] if node.args else None
        if node.op != "call_module" or not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        norm, convolution = modules[str(node.target)], modules[str(source.target)]
        alone = len(source.users) == 1 and calls[node.target] == 1 and calls[source.target] == 1
        if type(norm) in _NORMS and type(convolution) in _CONVOLUTIONS and alone:
            traced.set_submodule(str(source.target), fuse_conv_bn_eval(convolution, norm))
            node.replace_all_uses_with(source)
            traced.graph.erase_node(node)
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced


def archive_from_module(module: nn.Module, input_shape: Sequence[int], path: Path, precision: str = "fp32") -> Path:
    """Write `module`, as `shipped`, for one float32 input of exactly `input_shape` (batch first) to `path` (`.pt2`).

    Raises:
        BuildError: torch cannot export it, or ships no such precision; says why.
        StorageError: the place cannot be written.
    """
    example = torch.zeros(tuple(input_shape), device=next((p.device for p in module.parameters()), "cpu"))
    return archive_from_inputs(module, (example,), path, precision)


def archive_from_inputs(module: nn.Module, inputs: Sequence[torch.Tensor], path: Path, precision: str = "fp32") -> Path:
    """`archive_from_module` for any positional inputs, whose shapes and types are fixed by these examples."""
    return write_archive(shipped(module, precision), inputs, path, type(module).__name__)


def write_archive(module: nn.Module, inputs: Sequence[torch.Tensor], path: Path, name: str = "a module") -> Path:
    """Export a module as it is; raises as `archive_from_module`, calling it `name`."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's own use of pytree.LeafSpec
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            program = torch.export.export(module, tuple(inputs))
        except RuntimeError as error:  # the one class that all of torch.export's refusals share
            raise BuildError(
                asked=f"an archive of {name} for inputs {[tuple(x.shape) for x in inputs]}",
                found=str(error).strip().splitlines()[0],
                next="Rewrite its forward so that torch.export.export accepts it.",
            ) from error
        torch.export.save(program, content)
    write_atomically(path, content.getvalue())
    return path


def archive_from_layers(layers: Sequence[Layer], path: Path, batch: int, seed: int, precision: str = "fp32") -> Path:
    """Write a stretch of a network with random weights."""
    steps = operations(layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - inside fork_rng, as in student.py
        chain = Chain(steps)
    first = steps[0]
    shape = (batch, first.in_channels, first.in_size, first.in_size)
    return archive_from_module(chain, shape, path, precision)
