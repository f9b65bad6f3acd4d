"""Trains one network on a bank of views, by cross-entropy or with teachers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from akd_deploy.data import ViewBank
from akd_deploy.distill.bank import TeacherBank
from akd_deploy.distill.methods import method_for, training_loss
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.errors import MismatchError, TrainingError, UsageError
from akd_deploy.models.shared_network import SampledNetwork
from akd_deploy.models.teacher import Teacher

_FRESH = 1 << 40
"""Fresh views are numbered below this: two draws of one image in a training coincide about never."""


@dataclass(frozen=True)
class TrainingResult:
    """What a training did: the loss of each step and how long it took."""

    method: str
    settings: TrainingSettings
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class _Batches:
    """One training's batches: `image_ids` and `view_ids` are (steps, batch) int64."""

    image_ids: Tensor
    view_ids: Tensor


def draw_batches(images: int, views: int, settings: TrainingSettings, generator: torch.Generator) -> _Batches:
    """Batches in which every image comes once before any comes twice, each in a random view."""
    size = min(settings.batch_size, images)
    needed = settings.steps * size
    epochs = [torch.randperm(images, generator=generator) for _ in range(-(-needed // images))]
    view_ids = torch.randint(_FRESH if settings.fresh_views else views, (needed,), generator=generator)
    return _Batches(torch.cat(epochs)[:needed].view(-1, size), view_ids.view(-1, size))


def optimiser_for(network: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """SGD or AdamW over the network's trainable parameters; biases and norms do not decay."""
    trainable = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    # The fused ones want a gradient of every parameter at every step, which shared weights do not get.
    fused = not isinstance(network, SampledNetwork)
    if settings.optimiser == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.learning_rate, momentum=settings.momentum, nesterov=settings.momentum > 0, fused=fused
        )
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=fused)


def batches_on(
    device: torch.device,
    views: ViewBank,
    settings: TrainingSettings,
    teacher: TeacherBank | Sequence[Teacher] | None,
    generator: torch.Generator,
) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
    """(images, labels, teachers' logits or None) of each step."""
    n = len(views)
    drawn = draw_batches(n, views.views, settings, generator)
    labels = torch.tensor(views.split.labels, device=device)
    in_memory = not settings.fresh_views and views.nbytes <= settings.max_bank_bytes
    images = torch.tensor(views.all(), device=device).flatten(0, 1) if in_memory else None
    cached = torch.tensor(teacher.logits, device=device).flatten(1, 2) if isinstance(teacher, TeacherBank) else None
    for image_ids, view_ids in zip(drawn.image_ids, drawn.view_ids, strict=True):
        flat = (view_ids * n + image_ids).to(device)
        if images is not None:
            batch = images[flat]
        else:
            batch = torch.from_numpy(views.batch(view_ids.numpy(), image_ids.numpy())).to(device)
        taught = None
        if cached is not None:
            taught = cached[:, flat].float()
        elif teacher is not None:
            assert not isinstance(teacher, TeacherBank)
            taught = torch.stack([one.logits(batch) for one in teacher])
        yield batch, labels[image_ids.to(device)], taught


def train(
    student: nn.Module,
    views: ViewBank,
    settings: TrainingSettings,
    generator: torch.Generator,
    *,
    method: str = "kd",
    teacher: TeacherBank | Sequence[Teacher] | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> TrainingResult:
    """Train `student` in place, on the device its parameters are on; it is left in evaluation mode.

    Every random choice of the training comes from `generator` (a CPU one); the student's initial weights are the
    caller's. An interruption (Ctrl-C) passes through and leaves the weights of the last whole step.

    Args:
        student: (batch, C, H, W) float32 → (batch, classes) logits.
        views: the views to learn from.
        settings: of this training.
        generator: of the batches and views.
        method: a name in `METHODS`; "ce" uses no teacher.
        teacher: a bank computed on these views (no teacher runs then), or the teachers themselves.
        on_step: called as (steps done, steps in all, loss) after each step.

    Raises:
        UnknownNameError, UsageError: no such method, or it does not fit the number of teachers.
        MismatchError: the bank is of other views, or the student has fewer classes than labels or teachers say.
        TrainingError: the loss is not finite; names the step.
    """
    if method == "ce":
        teacher = None
    elif isinstance(teacher, TeacherBank):
        teacher.require_views(views)
        if settings.fresh_views:
            raise UsageError(
                asked="fresh views with a bank of teacher logits",
                found="logits of the bank's views alone",
                next="Give the teachers themselves, or switch fresh_views off.",
            )
    count = 0 if teacher is None else teacher.teachers if isinstance(teacher, TeacherBank) else len(teacher)
    loss_of = method_for(method, count)
    device = next(student.parameters()).device
    optimiser = optimiser_for(student, settings)
    losses: list[float] = []
    begin = time.perf_counter()
    # Depthwise and 1×1 convolutions run up to twice as fast on this layout, plain 3×3 ones no slower.
    student.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    student.train()
    try:
        for step, (images, labels, taught) in enumerate(batches_on(device, views, settings, teacher, generator)):
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate_at(step)
            logits = student(images)
            if step == 0:
                _check_classes(logits, views, taught)
            loss = training_loss(loss_of, logits, taught, labels, settings)
            value = float(loss.detach())
            if not np.isfinite(value):
                raise not_finite(method, settings, step, value, losses)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(value)
            if on_step is not None:
                on_step(step + 1, settings.steps, value)
    finally:
        student.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        student.eval()
    return TrainingResult(method, settings, tuple(losses), time.perf_counter() - begin)


def not_finite(
    method: str, settings: TrainingSettings, step: int, value: float, losses: Sequence[float]
) -> TrainingError:
    """The error of a training whose loss is no finite number."""
    return TrainingError(
        asked=f"training by {method}, step {step + 1} of {settings.steps}",
        found=f"a loss of {value}" + (f" after {losses[-1]:.4g}" if losses else ""),
        next=f"Lower learning_rate (now {settings.learning_rate:g}) or lengthen warmup "
        f"(now {settings.warmup:g}); if it is the first step, check the images and the weights.",
        step=step + 1,
    )


def _check_classes(logits: Tensor, views: ViewBank, taught: Tensor | None) -> None:
    classes = logits.shape[-1]
    if logits.ndim != 2 or classes <= int(views.split.labels.max()):
        raise MismatchError(
            asked=f"logits (batch, classes) for labels up to {int(views.split.labels.max())}",
            found=f"an output of {tuple(logits.shape)}",
            next="Give the student as many classes as the dataset has.",
        )
    if taught is not None and taught.shape[-1] != classes:
        raise MismatchError(
            asked=f"a teacher of the student's {classes} classes",
            found=f"{taught.shape[-1]} classes",
            next="Use a teacher and a student of the same classes.",
        )
