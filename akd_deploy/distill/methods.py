"""Distillation methods by name: how teachers' logits become a loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.losses import (
    dist_loss,
    dkd_loss,
    majority_vote_kd_loss,
    mean_kd_loss,
    mean_logit_kd_loss,
    oracle_kd_loss,
    relative_oracle_kd_loss,
    soft_oracle_kd_loss,
)

if TYPE_CHECKING:
    from akd_deploy.distill.settings import TrainingSettings

DistillationLoss = Callable[[Tensor, Tensor, Tensor, "TrainingSettings"], Tensor]
"""(student logits (batch, classes), teachers' (teachers, batch, classes), labels (batch,), settings) → a scalar."""


@dataclass(frozen=True)
class Method:
    """`loss` is None for cross-entropy alone. `max_teachers` is None where any number of teachers can teach."""

    loss: DistillationLoss | None
    max_teachers: int | None = None


def _kd(student: Tensor, teachers: Tensor, labels: Tensor, settings: TrainingSettings) -> Tensor:  # noqa: ARG001
    return mean_kd_loss(student, teachers, settings.temperature)


def _dkd(student: Tensor, teachers: Tensor, labels: Tensor, settings: TrainingSettings) -> Tensor:
    return dkd_loss(student, teachers[0], labels, settings.temperature, settings.dkd_alpha, settings.dkd_beta)


def _dist(student: Tensor, teachers: Tensor, labels: Tensor, settings: TrainingSettings) -> Tensor:  # noqa: ARG001
    return dist_loss(student, teachers[0], settings.temperature, settings.dist_beta, settings.dist_gamma)


def _oracle(student: Tensor, teachers: Tensor, labels: Tensor, settings: TrainingSettings) -> Tensor:
    return oracle_kd_loss(student, teachers, labels, settings.temperature)


def _soft_oracle(student: Tensor, teachers: Tensor, labels: Tensor, settings: TrainingSettings) -> Tensor:
    return soft_oracle_kd_loss(student, teachers, labels, settings.temperature, settings.oracle_beta)


def _relative_oracle(student: Tensor, teachers: Tensor, labels: Tensor, settings: TrainingSettings) -> Tensor:
    return relative_oracle_kd_loss(student, teachers, labels, settings.temperature, settings.oracle_beta)


def _mean_logit(student: Tensor, teachers: Tensor, labels: Tensor, settings: TrainingSettings) -> Tensor:  # noqa: ARG001
    return mean_logit_kd_loss(student, teachers, settings.temperature)


def _majority_vote(student: Tensor, teachers: Tensor, labels: Tensor, settings: TrainingSettings) -> Tensor:  # noqa: ARG001
    return majority_vote_kd_loss(student, teachers)


METHODS: Mapping[str, Method] = {
    "ce": Method(None, max_teachers=0),
    "kd": Method(_kd),
    "dkd": Method(_dkd, max_teachers=1),
    "dist": Method(_dist, max_teachers=1),
    "mean-logit": Method(_mean_logit),
    "majority-vote": Method(_majority_vote),
    "oracle": Method(_oracle),
    "soft-oracle": Method(_soft_oracle),
    "relative-oracle": Method(_relative_oracle),
}
"""Method name → its loss. "kd" of several teachers learns from the mean of their probabilities."""


PROCESS = "process"
"""The method that is no loss of logits: pathways between layers, whose weights change (`process_training`)."""


def method_for(name: str, teachers: int) -> Method:
    """The method of that name, which so many teachers can teach by. "ce" ignores them.

    Raises:
        UnknownNameError: no such method.
        UsageError: it needs a teacher and there is none, takes fewer than there are, or is no loss of logits.
    """
    if name == PROCESS:
        raise UsageError(
            asked=f"method {name} here",
            found="a training that compares logits alone",
            next="Use it in [distill] of a `run`, or with `akd-deploy distill`.",
        )
    if name not in METHODS:
        raise UnknownNameError("distillation method", name, (*METHODS, PROCESS))
    method = METHODS[name]
    if method.loss is not None and teachers == 0:
        raise UsageError(asked=f"method {name}", found="no teacher", next="Give a teacher, or use method ce.")
    if method.loss is not None and method.max_teachers is not None and teachers > method.max_teachers:
        many = ", ".join(key for key, other in METHODS.items() if other.max_teachers is None)
        raise UsageError(
            asked=f"method {name}, which takes {method.max_teachers} teacher",
            found=f"{teachers} teachers",
            next=f"Give one teacher, or use one of: {many}.",
        )
    return method


def training_loss(
    method: Method, student: Tensor, teachers: Tensor | None, labels: Tensor, settings: TrainingSettings
) -> Tensor:
    """(1 − λ) CE + λ · the method's loss, λ = `settings.kd_weight`; CE alone where the method has no loss."""
    if method.loss is None:
        return F.cross_entropy(student, labels)
    assert teachers is not None
    distilled = method.loss(student, teachers, labels, settings)
    if settings.kd_weight == 1:
        return distilled
    return (1 - settings.kd_weight) * F.cross_entropy(student, labels) + settings.kd_weight * distilled
