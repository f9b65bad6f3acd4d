"""Mean squared distance of feature maps, where the student's may be coarser than its teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def coarser_by(student_features: Tensor, teacher_features: Tensor) -> tuple[int, int] | None:
    """By what whole factors the teacher's map is higher and wider; None where it is not.

    Raises:
        ValueError: another batch or another number of channels.
    """
    mine, its = tuple(student_features.shape), tuple(teacher_features.shape)
    if len(mine) != 4 or len(its) != 4 or mine[:2] != its[:2]:
        raise ValueError(f"feature maps differ: student {mine}, teacher {its}")
    (down, down_rest), (across, across_rest) = (divmod(to, by) for to, by in zip(its[2:], mine[2:], strict=True))
    return None if down_rest or across_rest else (down, across)


def differences(student_features: Tensor, teacher_features: Tensor) -> tuple[Tensor, Tensor]:
    """(batch, channels, height, width) of the student less the teacher's mean around each of its positions, and what
    the mean square of that lacks of the mean square over all of the teacher's positions, the student's repeated there.

    Over n positions t around a mean t̄, Σ (s − t)² is n (s − t̄)² + Σ (t − t̄)²: the latter is the teacher's alone, and
    has no gradient. No gradient reaches the teacher.

    Raises:
        ValueError: the teacher's map is not the student's or larger by whole factors.
    """
    factors, teacher_features = coarser_by(student_features, teacher_features), teacher_features.detach()
    if factors is None:
        raise ValueError(
            f"feature maps differ: student {tuple(student_features.shape)}, teacher {tuple(teacher_features.shape)}"
        )
    if factors == (1, 1):
        return student_features - teacher_features, teacher_features.new_zeros(())
    around = F.avg_pool2d(teacher_features, factors)
    rest = (_mean_square(teacher_features) - _mean_square(around)).clamp(min=0)
    return student_features - around, rest.to(student_features.dtype)


def _mean_square(tensor: Tensor) -> Tensor:
    """In float64, as little is left of two means; without a tensor of squares, which would cost more than the sum."""
    return torch.linalg.vector_norm(tensor, dtype=torch.float64).square() / tensor.numel()


def mse_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared error over the teacher's positions; a coarser map of the student's counts as repeated.

    Raises:
        ValueError: as for `differences`.
    """
    apart, rest = differences(student_features, teacher_features)
    return apart.square().mean() + rest
