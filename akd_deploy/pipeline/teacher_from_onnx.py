"""A teacher from an ONNX file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor

from akd_deploy.errors import MismatchError, MissingFileError
from akd_deploy.models.teacher import Teacher, TeacherProvenance, check_classes
from akd_deploy.storage import file_sha256

_BATCH = 32
"""Images per call where the file leaves the batch open."""


def teacher_from_onnx(
    path: Path,
    input_shape: Sequence[int],
    classes: int,
    run: Callable[[np.ndarray], np.ndarray] | None = None,
    threads: int = 1,
) -> Teacher:
    """An ONNX classifier with one image input; its first output is the logits.

    `run` maps (n, C, H, W) float32 to (n, classes); without it, ONNX Runtime evaluates the file on this CPU
    with `threads`. A file of fixed batch size is fed in batches of that size.

    Raises:
        MissingFileError, CorruptFileError: the file is not there, or no ONNX network.
        MissingRuntimeError: ONNX Runtime is not here and no `run` was given.
        MismatchError: the network does not fit the data.
    """
    if not path.is_file():
        raise MissingFileError(asked=f"the teacher {path}", found="no such file", next="Check the path.")
    channels, height, width = input_shape
    call = run or _run_onnx(path, (channels, height, width), threads)

    def forward(images: Tensor) -> Tensor:
        return torch.tensor(call(images.detach().cpu().numpy()), device=images.device)

    check_classes(forward(torch.zeros(2, channels, height, width)), 2, classes, path.name)
    provenance = TeacherProvenance(source=path.name, sha256=file_sha256(path), parameters=0)
    return Teacher(forward, (channels, height, width), classes, provenance)


def _run_onnx(path: Path, input_shape: tuple[int, int, int], threads: int) -> Callable[[np.ndarray], np.ndarray]:
    from akd_deploy.engines import load_engine
    from akd_deploy.target import Target

    batch = _declared_batch(path) or _BATCH
    target = Target("teacher", device="cpu", engine="onnxruntime", batch=batch, engine_options={"threads": threads})
    engine = load_engine(target)
    engine.require(engine.why_not())
    session = engine.load(path)
    if len(session.inputs) != 1 or tuple(session.inputs[0].shape[1:]) != input_shape:
        found = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in session.inputs)
        raise MismatchError(
            asked=f"a teacher of one input [batch, {', '.join(map(str, input_shape))}] in {path}",
            found=found or "no input",
            next="Give the dataset the resolution and channels that the teacher was exported with.",
        )
    name, fixed = session.inputs[0].name, session.inputs[0].shape[0]
    output = session.outputs[0].name

    def run(images: np.ndarray) -> np.ndarray:
        parts = []
        for start in range(0, len(images), fixed):
            part = images[start : start + fixed]
            padded = np.concatenate([part, np.zeros((fixed - len(part), *part.shape[1:]), part.dtype)])
            parts.append(session.run({name: padded})[output][: len(part)])
        return np.concatenate(parts)

    return run


def _declared_batch(path: Path) -> int | None:
    """The first dimension of the first input; None where it is open."""
    from akd_deploy.engines.onnx_file import graph_inputs, read_onnx

    read_onnx(path, 1)  # says what is wrong with the file, if anything is
    inputs = graph_inputs(onnx.load(str(path), format="protobuf", load_external_data=False).graph)
    dims = inputs[0].type.tensor_type.shape.dim if inputs else []
    return dims[0].dim_value if len(dims) and dims[0].HasField("dim_value") else None
