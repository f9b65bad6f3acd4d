"""The `torch.export` archive of a network: what the torch engine loads."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from akd_deploy.errors import BuildError
from akd_deploy.models.student import Chain
from akd_deploy.search_space import Layer
from akd_deploy.search_space.operations import operations
from akd_deploy.storage import write_atomically


def archive_from_module(module: nn.Module, input_shape: Sequence[int], path: Path) -> Path:
    """Write `module`, in evaluation mode, for inputs of exactly `input_shape` (batch first) to `path` (`.pt2`).

    Raises:
        BuildError: torch cannot export it; says why.
        StorageError: the place cannot be written.
    """
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    content = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's own use of pytree.LeafSpec
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            program = torch.export.export(module.eval(), (torch.zeros(tuple(input_shape), device=device),))
        except RuntimeError as error:  # the one class that all of torch.export's refusals share
            raise BuildError(
                asked=f"an archive of {type(module).__name__} for inputs {tuple(input_shape)}",
                found=str(error).strip().splitlines()[0],
                next="Rewrite its forward so that torch.export.export accepts it.",
            ) from error
        torch.export.save(program, content)
    write_atomically(path, content.getvalue())
    return path


def archive_from_layers(layers: Sequence[Layer], path: Path, batch: int, seed: int) -> Path:
    """Write a stretch of a network with random weights."""
    steps = operations(layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - inside fork_rng, as in student.py
        chain = Chain(steps)
    first = steps[0]
    return archive_from_module(chain, (batch, first.in_channels, first.in_size, first.in_size), path)
