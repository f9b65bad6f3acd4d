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
    probabilities = F.softmax(teacher_logits / temperature, dim=-1)
    q = (weights.unsqueeze(-1) * probabilities).sum(dim=0) / weights.sum(dim=0).unsqueeze(-1)
    log_s = F.log_softmax(student_logits / temperature, dim=-1)
    distilled = F.kl_div(log_s, q, reduction="none").sum(dim=-1) * temperature**2
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
    `oracle_kd_loss` the ones that are right. Ours; no paper's. In nats; no gradient reaches the teachers.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (teachers, batch, classes).
        labels: (batch,) int64.
        temperature: T > 0.
        beta: β ≥ 0.
    """
    teacher_logits = teacher_logits.detach()
    belief = F.log_softmax(teacher_logits, dim=-1).gather(-1, labels.expand(len(teacher_logits), -1).unsqueeze(-1))
    weights = F.softmax(beta * belief.squeeze(-1), dim=0)
    q = (weights.unsqueeze(-1) * F.softmax(teacher_logits / temperature, dim=-1)).sum(dim=0)
    log_s = F.log_softmax(student_logits / temperature, dim=-1)
    return F.kl_div(log_s, q, reduction="batchmean") * temperature**2
