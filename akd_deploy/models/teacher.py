"""Teachers: whatever maps a batch of images to logits, with a record of where it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import log

import torch
from torch import Tensor, nn

from akd_deploy.errors import MismatchError, UsageError


@dataclass(frozen=True)
class TeacherProvenance:
    """`source` says what was loaded, `sha256` is that of its weights, `parameters` counts them (0: unknown)."""

    source: str
    sha256: str
    parameters: int

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Teacher:
    """A function from images to logits.

    `forward` maps (n, C, H, W) float32 to (n, classes) float32; `module` is the torch network behind it, in
    evaluation mode, or None for an ONNX file.
    """

    forward: Callable[[Tensor], Tensor]
    input_shape: tuple[int, int, int]
    classes: int
    provenance: TeacherProvenance
    module: nn.Module | None = None

    def logits(self, images: Tensor, batch_size: int = 256) -> Tensor:
        """(n, classes) float32 for (n, C, H, W) images, `batch_size` at a time, without gradient."""
        with torch.no_grad():
            return torch.cat([self.forward(batch).float() for batch in images.split(batch_size)])


def teacher_from_module(
    module: nn.Module, input_shape: Sequence[int], classes: int, source: str, sha256: str | None = None
) -> Teacher:
    """Make a torch network a teacher; it is put into evaluation mode and its weights are frozen.

    Args:
        module: (n, C, H, W) float32 → (n, classes) logits.
        input_shape: (C, H, W) of the dataset's images.
        classes: of the dataset.
        source: what it is, for the record.
        sha256: of the weights' file; of the weights themselves where None.

    Raises:
        MismatchError: it does not take such images, or has another number of classes.
    """
    module.eval().requires_grad_(False)
    channels, height, width = input_shape
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad():
            output = module(torch.zeros(2, channels, height, width, device=device))
    except (RuntimeError, ValueError, TypeError) as error:
        raise MismatchError(
            asked=f"the teacher {source} on images of {channels}×{height}×{width}",
            found=f"its forward pass fails: {error}",
            next="Give the dataset the resolution and channels that the teacher was trained with.",
        ) from error
    check_classes(output, 2, classes, source)
    provenance = TeacherProvenance(
        source=source,
        sha256=sha256 or state_sha256(module),
        parameters=sum(parameter.numel() for parameter in module.parameters()),
    )
    return Teacher(module, (channels, height, width), classes, provenance, module)


class Ensemble(nn.Module):
    """Several networks as one: (batch, C, H, W) → (batch, classes) logarithms of the mean of their probabilities."""

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, images: Tensor) -> Tensor:
        log_each = torch.stack([torch.log_softmax(member(images), dim=-1) for member in self.members])
        return torch.logsumexp(log_each, dim=0) - log(len(self.members))


def ensemble_of(teachers: Sequence[Teacher]) -> Teacher:
    """The teachers as one, whose probabilities are the mean of theirs; a single one as it is.

    Raises:
        UsageError: no teacher, or one of several without a torch network.
        MismatchError: they differ in classes or in the images they take.
    """
    if len(teachers) == 1:
        return teachers[0]
    modules = [teacher.module for teacher in teachers if teacher.module is not None]
    if not teachers or len(modules) < len(teachers):
        raise UsageError(
            asked=f"an ensemble of {len(teachers)} teachers",
            found=f"{len(modules)} torch networks",
            next="Give networks by a factory, each with weights of its own.",
        )
    first = teachers[0]
    for other in teachers[1:]:
        if (other.classes, other.input_shape) != (first.classes, first.input_shape):
            raise MismatchError(
                asked=f"teachers of {first.classes} classes and images {first.input_shape}",
                found=f"{other.classes} and {other.input_shape} in {other.provenance.source}",
                next="Leave out those that differ.",
            )
    digest = hashlib.sha256("".join(teacher.provenance.sha256 for teacher in teachers).encode())
    sources = dict.fromkeys(teacher.provenance.source for teacher in teachers)
    provenance = TeacherProvenance(
        source=f"an ensemble of {len(teachers)}: {', '.join(sources)}",
        sha256=digest.hexdigest(),
        parameters=sum(teacher.provenance.parameters for teacher in teachers),
    )
    module = Ensemble(modules).eval()
    return Teacher(module, first.input_shape, first.classes, provenance, module)


def check_classes(output: object, batch: int, classes: int, source: str) -> None:
    """Raise MismatchError unless `output` is (batch, classes) logits."""
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != batch:
        raise MismatchError(
            asked=f"logits (batch, {classes}) from the teacher {source}",
            found=f"an output of {shape} for a batch of {batch}",
            next="Let the network return its logits alone, one row per image.",
        )
    if shape[1] != classes:
        raise MismatchError(
            asked=f"a teacher of {classes} classes, as the dataset has",
            found=f"{shape[1]} classes in {source}",
            next="Use a teacher trained on these classes.",
            dataset_classes=classes,
            teacher_classes=shape[1],
        )


def state_sha256(module: nn.Module) -> str:
    """SHA-256 over the names, types, shapes and bytes of a network's state."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
