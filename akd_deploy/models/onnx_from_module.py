"""The ONNX of any torch module, by torch's own exporter."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import nn

from akd_deploy.errors import BuildError
from akd_deploy.models.onnx_from_student import INPUT, OPSET, OUTPUT


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """torch.onnx reports its progress and its missing companions (torchvision) on every call."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def onnx_from_module(module: nn.Module, input_shape: Sequence[int], path: Path) -> Path:
    """Export `module`, in evaluation mode, for inputs of exactly `input_shape` (batch first), with static shapes.

    Raises:
        BuildError: torch cannot export it; says at which operator.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with _quietly():
            program = torch.onnx.export(
                module.eval(),
                (torch.zeros(tuple(input_shape), device=device),),
                dynamo=True,
                opset_version=OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
                verbose=False,
            )
            assert program is not None
            program.save(path)
    except torch.onnx.errors.OnnxExporterError as error:
        raise BuildError(
            asked=f"the ONNX of {type(module).__name__} for inputs {tuple(input_shape)}",
            found=str(error).strip().splitlines()[0],
            next="Export it with a script of your own and give the ONNX file instead.",
        ) from error
    return path
