"""A network of the zoo as an ONNX file, its weights drawn from a seed."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from akd_deploy.errors import BuildError, UsageError
from akd_deploy.models.onnx_from_student import OPSET
from benchmarks.networks import Input, Network

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def inputs_of(network: Network, image_size: int | None = None, batch: int = 1) -> tuple[Input, ...]:
    """The network's inputs at another batch, and for images at another size.

    Raises:
        UsageError: the network takes no image of this size.
    """
    sized = []
    for name, shape, dtype in network.input_shapes:
        sides = shape[2:]
        if image_size is not None and len(sides) == 2 and sides != (image_size, image_size):
            if network.image_multiple == 0 or image_size % network.image_multiple:
                takes = f"multiples of {network.image_multiple}" if network.image_multiple else f"{sides} only"
                raise UsageError(
                    asked=f"{network.name} for images of {image_size}×{image_size}",
                    found=f"it takes {takes}",
                    next="Leave the image size out, or choose one that it takes.",
                )
            sides = (image_size, image_size)
        sized.append((name, (batch, shape[1], *sides), dtype))
    return tuple(sized)


def seeded(module: nn.Module, seed: int) -> nn.Module:
    """`module` with all its weights redrawn, the same for one seed.

    Batch norms get statistics of no special value, so that folding them changes numbers; matrices are He-normal.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor: Tensor, mean: float, std: float) -> None:
        tensor.normal_(mean, std, generator=generator)

    with torch.no_grad():
        for part in module.modules():
            for parameter_name, parameter in part.named_parameters(recurse=False):
                if isinstance(part, nn.Embedding):
                    normal(parameter, 0.0, 0.02)
                elif parameter.ndim > 1 and parameter.numel() > len(parameter):
                    normal(parameter, 0.0, math.sqrt(len(parameter) / parameter.numel()))
                else:
                    normal(parameter, 0.0 if parameter_name == "bias" else 1.0, 0.1)
            if isinstance(part, NORMS):
                assert part.running_mean is not None
                assert part.running_var is not None
                normal(part.running_mean, 0.0, 0.1)
                part.running_var.uniform_(0.5, 1.5, generator=generator)
    return module


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torch.onnx reports its progress and its missing companions on every call."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_onnx(network: Network, folder: Path, *, image_size: int | None = None, batch: int = 1, seed: int = 0) -> Path:
    """Export the network with weights drawn from `seed`, static shapes, to `folder/<name>.onnx`.

    Raises:
        UsageError: the network takes no image of this size.
        BuildError: torch cannot export it.
    """
    inputs = inputs_of(network, image_size, batch)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{network.name}.onnx"
    with torch.random.fork_rng():  # torch draws initial weights while a module is built; ours replace them
        module = seeded(network.build(), seed).eval()
    examples = tuple(torch.zeros(shape, dtype=getattr(torch, dtype)) for _, shape, dtype in inputs)
    try:
        with _quietly():
            program = torch.onnx.export(
                module,
                examples,
                dynamo=True,
                opset_version=OPSET,
                input_names=[name for name, _, _ in inputs],
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except torch.onnx.errors.OnnxExporterError as error:
        raise BuildError(
            asked=f"the ONNX of {network.name}",
            found=str(error).strip().splitlines()[0],
            next="Rewrite what torch cannot export.",
        ) from error
    return path
