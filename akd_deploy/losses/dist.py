"""DIST: distillation that asks for correlation with the teacher, not equality."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_TINY = 1e-8
"""Keeps the correlation of a constant row finite (it is then 0); far below any real variance of probabilities."""


def pearson_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson correlation along the last dimension, −1 to 1; the result has that dimension removed."""
    a = a - a.mean(dim=-1, keepdim=True)
    b = b - b.mean(dim=-1, keepdim=True)
    return (a * b).sum(dim=-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp_min(_TINY)


def dist_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    temperature: float,
    beta: float = 1.0,
    gamma: float = 1.0,
) -> Tensor:
    """T² · (beta · inter-class + gamma · intra-class relation loss) (Huang et al. 2022, arXiv:2205.10536, section 3).

    Inter-class: 1 − the correlation of each view's class probabilities, averaged over the batch. Intra-class:
    1 − the correlation of each class's probabilities over the batch, averaged over classes. 0 where both agree
    up to a positive scale and a shift. Both logits are (batch, classes); no gradient reaches the teacher.
    """
    q = F.softmax(student_logits / temperature, dim=-1)
    p = F.softmax(teacher_logits.detach() / temperature, dim=-1)
    inter = 1 - pearson_correlation(q, p).mean()
    intra = 1 - pearson_correlation(q.T, p.T).mean()
    return (beta * inter + gamma * intra) * temperature**2
