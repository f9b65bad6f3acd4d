"""Hierarchical context loss: feature maps compared at several coarsenesses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

LEVELS = (4, 2, 1)
"""Side lengths that feature maps are pooled to beside their full size (Chen et al. 2021, arXiv:2104.09044)."""


def hcl_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared error at full size and pooled to 4×4, 2×2 and 1×1, weighted 1, ½, ¼, ⅛ over their sum.

    A level not smaller than the map itself is left out, and the next one takes its weight. Both maps are
    (batch, channels, height, width) of one shape; no gradient reaches the teacher
    (ReviewKD: Chen et al. 2021, arXiv:2104.09044, section 3.3).
    """
    if student_features.shape != teacher_features.shape:
        raise ValueError(
            f"feature maps differ: student {tuple(student_features.shape)}, teacher {tuple(teacher_features.shape)}"
        )
    teacher_features = teacher_features.detach()
    loss = F.mse_loss(student_features, teacher_features)
    weight = total = 1.0
    for level in LEVELS:
        if level >= min(student_features.shape[-2:]):
            continue
        weight /= 2
        total += weight
        loss = loss + weight * F.mse_loss(
            F.adaptive_avg_pool2d(student_features, level), F.adaptive_avg_pool2d(teacher_features, level)
        )
    return loss / total
