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

QUICK_OPSET = 17
"""The last that the older exporter is complete for."""


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


def quick_onnx(module: nn.Module, input_shape: Sequence[int], path: Path) -> Path:
    """The same by torch's older exporter, in milliseconds instead of a second, where that one can: for networks that
    are looked at and not shipped, by the hundred. Its graphs differ from the newer one's in places.

    Raises:
        BuildError: neither exporter can.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    images = torch.zeros(tuple(input_shape))
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(_quietly())
            # It traces: what depends on the data would be what it was for these images.
            warnings.simplefilter("always", torch.jit.TracerWarning)
            told = stack.enter_context(warnings.catch_warnings(record=True))
            torch.onnx.export(
                module.eval(),
                (images,),
                path,
                dynamo=False,
                opset_version=QUICK_OPSET,
                input_names=[INPUT],
                output_names=[OUTPUT],
            )
    except (torch.onnx.errors.OnnxExporterError, RuntimeError, TypeError, ValueError):
        return onnx_from_module(module, input_shape, path)
    if any(issubclass(warning.category, torch.jit.TracerWarning) for warning in told):
        return onnx_from_module(module, input_shape, path)
    return path


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
