"""Hierarchical context loss: feature maps compared at several coarsenesses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from akd_deploy.losses.maps import coarser_by, differences

LEVELS = (4, 2, 1)
"""Side lengths that feature maps are pooled to beside their full size (Chen et al. 2021, arXiv:2104.09044)."""


def hcl_loss(student_features: Tensor, teacher_features: Tensor) -> Tensor:
    """Mean squared error at full size and pooled to 4×4, 2×2 and 1×1, weighted 1, ½, ¼, ⅛ over their sum.

    A level not smaller than the teacher's map is left out, and the next one takes its weight. Maps are (batch,
    channels, height, width); the student's may be coarser by whole factors, and counts as repeated. No gradient
    reaches the teacher (ReviewKD: Chen et al. 2021, arXiv:2104.09044, section 3.3).

    Raises:
        ValueError: the teacher's map is not the student's or larger by whole factors.
    """
    factors, size = coarser_by(student_features, teacher_features), tuple(teacher_features.shape[-2:])
    levels = [level for level in LEVELS if level < min(size)]
    if factors not in (None, (1, 1)) and any(side % level for level in levels for side in student_features.shape[-2:]):
        # A level's bins would cut through repeated positions.
        student_features = F.interpolate(student_features, size, mode="nearest")
    apart, rest = differences(student_features, teacher_features)
    loss = apart.square().mean() + rest
    weight = total = 1.0
    finest = apart
    for level in levels:
        weight /= 2
        total += weight
        # A difference of means is the mean of differences: one map is pooled, not two.
        pooled = F.adaptive_avg_pool2d(finest, level)
        loss = loss + weight * pooled.square().mean()
        if not any(side % level for side in apart.shape[-2:]):
            finest = pooled  # of even bins, so that the next level's means are means of these
    return loss / total
