"""Oracle distillation: of several teachers, those that are right teach, or the righter ones teach more."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def correct_teachers(teacher_logits: Tensor, labels: Tensor) -> Tensor:
    """(teachers, batch) bool: whether teacher j classifies view i correctly.

    Args:
        teacher_logits: (teachers, batch, classes) on the very views the student sees.
        labels: (batch,) int64.
    """
    return teacher_logits.argmax(dim=-1) == labels


def oracle_kd_loss(student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Distillation from the teachers that are right about each view, cross-entropy where none is.

    With u_ij = 1 where teacher j is right about view i and z_ij its logits,

        q_i = Σ_j u_ij softmax(z_ij / T) / Σ_j u_ij
        L   = mean over i of  T² KL(q_i || softmax(s_i / T))  where Σ_j u_ij > 0,  else CE(y_i, s_i)

    (Kang, Mun & Han 2020, arXiv:1911.13019, section 3). In nats; no gradient reaches the teachers.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (teachers, batch, classes).
        labels: (batch,) int64.
        temperature: T > 0.
    """
    teacher_logits = teacher_logits.detach()
    correct = correct_teachers(teacher_logits, labels)
    taught = correct.any(dim=0)
    # Where nobody is right every teacher stands in, so that the unused branch stays finite.
    weights = torch.where(taught, correct, torch.ones_like(correct)).to(student_logits.dtype)
    distilled = _from_weighted(student_logits, teacher_logits, weights / weights.sum(dim=0), temperature)
    labelled = F.cross_entropy(student_logits, labels, reduction="none")
    return torch.where(taught, distilled, labelled).mean()


def soft_oracle_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, beta: float
) -> Tensor:
    """Distillation from every teacher, weighted by how much it believes in the label.

    With p_j(y_i | x_i) the probability (at temperature 1) that teacher j gives the label of view i,

        w_ij = p_j(y_i | x_i)^β / Σ_k p_k(y_i | x_i)^β
        q_i  = Σ_j w_ij softmax(z_ij / T)
        L    = mean over i of  T² KL(q_i || softmax(s_i / T))

    β = 0 is `mean_kd_loss`; the greater β, the more only the teacher that is surest of the label is heard, as by
    `oracle_kd_loss` the ones that are right; but where none is right the surest teaches, and not the label. Ours; no
    paper's. In nats; no gradient reaches the teachers.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (teachers, batch, classes).
        labels: (batch,) int64.
        temperature: T > 0.
        beta: β ≥ 0.
    """
    teacher_logits = teacher_logits.detach()
    belief = _of_labels(F.log_softmax(teacher_logits, dim=-1), labels)
    return _from_weighted(student_logits, teacher_logits, F.softmax(beta * belief, dim=0), temperature).mean()


def relative_oracle_kd_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, temperature: float, beta: float
) -> Tensor:
    """Distillation from every teacher, weighted by how near it is to choosing the label; the rest is the label's.

    With r_ij = p_j(y_i | x_i) / max_c p_j(c | x_i) at temperature 1, which is 1 where teacher j is right or undecided,

        w_ij = r_ij^β / Σ_k r_ik^β,    h_i = max_j r_ij^β
        q_i  = Σ_j w_ij softmax(z_ij / T)
        L    = mean over i of  h_i T² KL(q_i || softmax(s_i / T)) + (1 − h_i) CE(y_i, s_i)

    β = 0 is `mean_kd_loss`, and β → ∞ is `oracle_kd_loss`, its cross-entropy where none is right included. Ours; no
    paper's. In nats; no gradient reaches the teachers.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (teachers, batch, classes).
        labels: (batch,) int64.
        temperature: T > 0.
        beta: β ≥ 0.
    """
    teacher_logits = teacher_logits.detach()
    nearness = beta * (_of_labels(teacher_logits, labels) - teacher_logits.amax(dim=-1))
    heard = nearness.amax(dim=0).exp()
    distilled = _from_weighted(student_logits, teacher_logits, F.softmax(nearness, dim=0), temperature)
    labelled = F.cross_entropy(student_logits, labels, reduction="none")
    return (heard * distilled + (1 - heard) * labelled).mean()


def _of_labels(values: Tensor, labels: Tensor) -> Tensor:
    """(teachers, batch): of (teachers, batch, classes) values those of the labels."""
    return values.gather(-1, labels.expand(len(values), -1).unsqueeze(-1)).squeeze(-1)


def _from_weighted(student_logits: Tensor, teacher_logits: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """(batch,) T² KL(Σ_j w_ij softmax(z_ij / T) || softmax(s_i / T)), by (teachers, batch) weights."""
    q = (weights.unsqueeze(-1) * F.softmax(teacher_logits / temperature, dim=-1)).sum(dim=0)
    log_s = F.log_softmax(student_logits / temperature, dim=-1)
    return F.kl_div(log_s, q, reduction="none").sum(dim=-1) * temperature**2
