"""Trainings along pathways: by a process that is known, or while it is searched for.

(DistPro, Deng et al. 2022, arXiv:2204.05547: bi-level optimisation, one step of the weights' parameters to each step
of the student's.)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from akd_deploy.data import ViewBank
from akd_deploy.distill.meta_gradient import (
    GRADIENTS,
    Step,
    Taught,
    TaughtBatch,
    meta_gradient,
    multi_step_gradient,
)
from akd_deploy.distill.pathways import Pathways
from akd_deploy.distill.process import NORMALISATIONS, Process, weights_of
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.distill.trainer import TrainingResult, batches_on, not_finite, optimiser_for
from akd_deploy.errors import MismatchError, UnknownNameError, UsageError

MULTI_STEP = "multi-step"
SEARCH_GRADIENTS = (*GRADIENTS, MULTI_STEP)
"""How a search looks ahead: one step, or several."""


@dataclass(frozen=True)
class ProcessSearchSettings:
    """How a process is searched for.

    `normalisation` is one of `NORMALISATIONS`, `kd_weight` what it is scaled by where it is; α begins at `alpha`, all
    alike, and is learnt by Adam at `learning_rate` (0.1, β 0.5 and 0.999: DistPro's). `gradient` is one of
    `SEARCH_GRADIENTS`; "multi-step" looks `ahead` steps further than the one that is made, on batches of their own, at
    so many times its price. Held-out batches have `held_out` images.
    """

    normalisation: str = "biased-softmax"
    kd_weight: float = 1.0
    alpha: float = 1.0
    learning_rate: float = 0.1
    beta1: float = 0.5
    beta2: float = 0.999
    gradient: str = "exact"
    ahead: int = 4
    held_out: int = 64

    def __post_init__(self) -> None:
        if self.normalisation not in NORMALISATIONS:
            raise UnknownNameError("normalisation", self.normalisation, NORMALISATIONS)
        if self.gradient not in SEARCH_GRADIENTS:
            raise UnknownNameError("meta-gradient", self.gradient, SEARCH_GRADIENTS)
        if self.held_out < 1 or self.ahead < 1 or not self.learning_rate > 0 or not self.kd_weight > 0:
            raise UsageError(
                asked="held_out, ahead, learning_rate and kd_weight above 0",
                found=f"{self.held_out}, {self.ahead}, {self.learning_rate:g}, {self.kd_weight:g}",
                next="Raise the one that is too low.",
            )


@dataclass(frozen=True)
class ProcessSearch:
    """The weights that were in force at each step, and the training that they were found in."""

    process: Process
    training: TrainingResult


def train_by_process(
    student: nn.Module,
    teacher: nn.Module,
    pathways: Pathways,
    process: Process,
    views: ViewBank,
    settings: TrainingSettings,
    generator: torch.Generator,
    *,
    ce_weight: float = 1.0,
    on_step: Callable[[int, int, float], None] | None = None,
) -> TrainingResult:
    """Train `student` in place on ce_weight · CE + Σ_i ω_i(t) D_i; it is left in evaluation mode.

    The teacher runs beside it, in evaluation mode; the connectors of `pathways` learn with it, and are of no use after.

    Raises:
        MismatchError: the process is of other pathways.
        TrainingError: the loss is not finite; names the step.
    """
    names = tuple(pathway.name for pathway in pathways.pathways)
    if process.pathways != names:
        raise MismatchError(
            asked=f"a process of the pathways {', '.join(names)}",
            found=f"one of {', '.join(process.pathways)}",
            next="Transfer it by position first, or enumerate the pathways that it was searched with.",
        )
    omega = torch.tensor(process.stretched(settings.steps), dtype=torch.float32)
    return _train(
        student, teacher, pathways, views, settings, generator, ce_weight, lambda step: omega[step], None, on_step
    )


def search_process(
    student: nn.Module,
    teacher: nn.Module,
    pathways: Pathways,
    views: ViewBank,
    held_out: ViewBank,
    settings: TrainingSettings,
    search: ProcessSearchSettings,
    generator: torch.Generator,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
) -> ProcessSearch:
    """Train `student` in place while the weights of its pathways learn what makes it better on held-out views.

    Beside each of the student's steps α makes one, against the gradient of the held-out loss after the student's; both
    use the gradients of one backward pass, so that α's counts from the next step on.

    Args:
        held_out: views that share no image with `views`, nor with what is reported.

    Raises:
        UsageError: another optimiser than SGD, whose step no meta-gradient here is of.
        TrainingError: the loss is not finite; names the step.
    """
    if settings.optimiser != "sgd":
        raise UsageError(
            asked=f"a search of a process by {settings.optimiser}",
            found="meta-gradients of SGD's step alone",
            next='Write optimiser = "sgd" for the search; trainings by its process may use any.',
        )
    alpha = torch.full((len(pathways.pathways),), search.alpha, requires_grad=True)
    adam = torch.optim.Adam([alpha], search.learning_rate, betas=(search.beta1, search.beta2))
    taken: list[np.ndarray] = []
    network = Taught(student, pathways)
    labels = torch.tensor(held_out.split.labels)

    def weights(step: int) -> Tensor:
        del step
        now = weights_of(alpha, search.normalisation, search.kd_weight).detach()
        taken.append(now.numpy().astype(np.float64))
        return now

    def learn(
        step: int, batch: TaughtBatch, compared: tuple[Sequence[Tensor], Tensor], optimiser: torch.optim.Optimizer
    ) -> None:
        images, chosen = _drawn(held_out, search.held_out, generator)
        device = batch.images.device
        unseen = (images.to(device), labels[chosen].to(device))
        if search.gradient == MULTI_STEP:
            further = [
                _further(views, settings.batch_size, teacher, pathways, generator, device) for _ in range(search.ahead)
            ]
            rate, omega = settings.learning_rate_at(step), compared[1]
            follow(multi_step_gradient(network, [batch, *further], unseen, omega, rate))
            return
        gradients = {
            name: torch.zeros_like(p) if p.grad is None else p.grad
            for name, p in student.named_parameters()
            if p.requires_grad
        }
        along = meta_gradient(
            network,
            batch,
            unseen,
            gradients,
            _step_of(optimiser, student, settings, step),
            search.gradient,
            compared,
        )
        follow(along)

    def follow(along: Tensor) -> None:
        """One step of α, given ∂L_val / ∂ω."""
        adam.zero_grad()
        weights_of(alpha, search.normalisation, search.kd_weight).backward(along.cpu())
        adam.step()

    result = _train(student, teacher, pathways, views, settings, generator, 1.0, weights, learn, on_step)
    names = tuple(pathway.name for pathway in pathways.pathways)
    return ProcessSearch(Process(np.stack(taken), names), result)


def _drawn(bank: ViewBank, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some views, and which images they are of."""
    chosen = torch.randint(len(bank), (min(size, len(bank)),), generator=generator)
    views = torch.randint(bank.views, (len(chosen),), generator=generator)
    return torch.from_numpy(bank.batch(views.numpy(), chosen.numpy())), chosen


def _further(
    views: ViewBank,
    size: int,
    teacher: nn.Module,
    pathways: Pathways,
    generator: torch.Generator,
    device: torch.device,
) -> TaughtBatch:
    """A batch to learn from as a step to come might have."""
    images, chosen = _drawn(views, size, generator)
    images = images.to(device)
    labels = torch.tensor(views.split.labels)[chosen].to(device)
    return TaughtBatch(images, labels, pathways.taught(teacher, images))


def _step_of(optimiser: torch.optim.Optimizer, student: nn.Module, settings: TrainingSettings, step: int) -> Step:
    moving = {}
    for name, parameter in student.named_parameters():
        buffer = optimiser.state.get(parameter, {}).get("momentum_buffer")
        if buffer is not None:
            moving[name] = buffer
    spared = frozenset(name for name, parameter in student.named_parameters() if parameter.ndim <= 1)
    momentum, rate = settings.momentum, settings.learning_rate_at(step)
    return Step(rate, momentum, settings.weight_decay, moving, nesterov=momentum > 0, spared=spared)


def _train(
    student: nn.Module,
    teacher: nn.Module,
    pathways: Pathways,
    views: ViewBank,
    settings: TrainingSettings,
    generator: torch.Generator,
    ce_weight: float,
    weights: Callable[[int], Tensor],
    after_backward: Callable[[int, TaughtBatch, tuple[Sequence[Tensor], Tensor], torch.optim.Optimizer], None] | None,
    on_step: Callable[[int, int, float], None] | None,
) -> TrainingResult:
    """Steps on ce_weight · CE + Σ ω D, with ω from `weights` of each; `after_backward` is given what each pathway
    compared, with its grad, and ω."""
    device = next(student.parameters()).device
    network = Taught(student, pathways)
    optimiser = optimiser_for(network, settings)
    losses: list[float] = []
    begin = time.perf_counter()
    teacher.eval()
    network.train()
    try:
        for step, (images, labels, _) in enumerate(batches_on(device, views, settings, None, generator)):
            for group in optimiser.param_groups:
                group["lr"] = settings.learning_rate_at(step)
            batch = TaughtBatch(images, labels, pathways.taught(teacher, images))
            omega = weights(step).to(device)
            inputs: list[Tensor] = []
            if after_backward is None:
                logits, distances = network(images, batch.taught)
            else:
                logits, inputs = network.inputs(images)
                for compared in inputs:
                    compared.retain_grad()
                distances = pathways.compared(inputs, batch.taught)
            loss = ce_weight * F.cross_entropy(logits, labels) + (omega * distances).sum()
            value = float(loss.detach())
            if not np.isfinite(value):
                raise not_finite("a process of pathways", settings, step, value, losses)
            optimiser.zero_grad()
            loss.backward()
            if after_backward is not None:
                after_backward(step, batch, (inputs, omega), optimiser)
            optimiser.step()
            losses.append(value)
            if on_step is not None:
                on_step(step + 1, settings.steps, value)
    finally:
        network.eval()
    return TrainingResult("process", settings, tuple(losses), time.perf_counter() - begin)
