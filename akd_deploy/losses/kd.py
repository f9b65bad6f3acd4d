"""Knowledge distillation from one teacher or from the mean of several."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor


def kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) at `temperature`, in nats, averaged over the batch.

    Both logits are (batch, classes); no gradient reaches the teacher. Scaled by T^2 so the
    gradient keeps its size as T grows (Hinton et al. 2015, arXiv:1503.02531, section 2).
    """
    log_q = F.log_softmax(student_logits / temperature, dim=-1)
    log_p = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def mean_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`kd_loss` towards the mean of the teachers' probabilities at `temperature`.

    `student_logits` is (batch, classes), `teacher_logits` (teachers, batch, classes). With one teacher it
    is `kd_loss`. Probabilities are averaged, not logits (Hinton et al. 2015, arXiv:1503.02531, section 4).
    """
    log_q = F.log_softmax(student_logits / temperature, dim=-1)
    log_each = F.log_softmax(teacher_logits.detach() / temperature, dim=-1)
    log_p = torch.logsumexp(log_each, dim=0) - log(len(log_each))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True) * temperature**2


def mean_logit_kd_loss(student_logits: Tensor, teacher_logits: Tensor, temperature: float) -> Tensor:
    """`kd_loss` towards the mean of the teachers' logits, which is the geometric mean of their probabilities.

    `student_logits` is (batch, classes), `teacher_logits` (teachers, batch, classes).
    """
    return kd_loss(student_logits, teacher_logits.mean(dim=0), temperature)


def majority_vote_kd_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """KL(q || softmax(student)), in nats, averaged over the batch, with q the class most teachers choose.

    Where several classes have as many votes, q is even over these. A vote has no temperature.

    Args:
        student_logits: (batch, classes).
        teacher_logits: (teachers, batch, classes).
    """
    classes = student_logits.shape[-1]
    votes = F.one_hot(teacher_logits.argmax(dim=-1), classes).sum(dim=0)
    elected = (votes == votes.amax(dim=-1, keepdim=True)).to(student_logits.dtype)
    q = elected / elected.sum(dim=-1, keepdim=True)
    return F.kl_div(F.log_softmax(student_logits, dim=-1), q, reduction="batchmean")
