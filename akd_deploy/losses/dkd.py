"""Decoupled distillation: what the teacher says of the true class, apart from what it says of the others."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def _others(values: Tensor, labels: Tensor) -> Tensor:
    """(batch, classes − 1): every column but the labelled one."""
    keep = torch.ones_like(values, dtype=torch.bool).scatter_(1, labels.unsqueeze(1), False)
    return values[keep].view(len(values), -1)


def _target_against_rest(log_p: Tensor, labels: Tensor) -> Tensor:
    """(batch, 2): log-probability of the true class, and of all others together."""
    target = log_p.gather(1, labels.unsqueeze(1))
    rest = torch.logsumexp(_others(log_p, labels), dim=1, keepdim=True)
    return torch.cat([target, rest], dim=1)


def target_class_kd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """TCKD: KL(teacher || student) of "the true class or not", in nats × T², averaged over the batch."""
    log_q = _target_against_rest(F.log_softmax(student_logits / temperature, dim=-1), labels)
    log_p = _target_against_rest(F.log_softmax(teacher_logits.detach() / temperature, dim=-1), labels)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def non_target_class_kd(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """NCKD: KL(teacher || student) among the other classes alone, in nats × T², averaged over the batch."""
    log_q = F.log_softmax(_others(student_logits, labels) / temperature, dim=-1)
    log_p = F.log_softmax(_others(teacher_logits.detach(), labels) / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def dkd_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    labels: Tensor,
    temperature: float,
    alpha: float = 1.0,
    beta: float = 8.0,
) -> Tensor:
    """alpha · TCKD + beta · NCKD (Zhao et al. 2022, arXiv:2203.08679, equation 7).

    Ordinary distillation is TCKD + (1 − p_target) · NCKD for each view: a confident teacher's knowledge of the
    other classes is all but switched off, and `beta` switches it on again.

    Args:
        student_logits, teacher_logits: (batch, classes), at least two classes; no gradient reaches the teacher.
        labels: (batch,) int64.
    """
    target = target_class_kd(student_logits, teacher_logits, labels, temperature)
    others = non_target_class_kd(student_logits, teacher_logits, labels, temperature)
    return alpha * target + beta * others
