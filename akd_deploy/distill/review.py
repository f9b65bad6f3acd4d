"""ReviewKD (Chen et al. 2021, arXiv:2104.09044): every depth of the teacher teaches all that the student has seen so
far.

A strong baseline with fixed weights. From the deepest point on, a student's features are fused with what was fused
before by attention, and compared with the teacher's of that depth.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from akd_deploy.distill.pathways import Pathway, Pathways
from akd_deploy.errors import UsageError
from akd_deploy.losses import hcl_loss
from akd_deploy.models.connectors import MOST_CHANNELS
from akd_deploy.models.taps import map_shapes


class _Fusion(nn.Module):
    """Attention-based fusion: two maps of weights, one for what comes from here and one for what was fused before."""

    def __init__(self, inside: int, between: int, outside: int, fuses: bool) -> None:
        super().__init__()
        self.enter = nn.Sequential(nn.Conv2d(inside, between, 1, bias=False), nn.BatchNorm2d(between))
        self.weigh = nn.Conv2d(2 * between, 2, 1) if fuses else None
        self.leave = nn.Sequential(nn.Conv2d(between, outside, 3, padding=1, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor, before: Tensor | None, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        x = self.enter(x)
        if self.weigh is not None:
            assert before is not None
            before = F.interpolate(before, x.shape[-2:], mode="nearest")
            weights = torch.sigmoid(self.weigh(torch.cat([x, before], dim=1)))
            x = x * weights[:, :1] + before * weights[:, 1:]
        out = self.leave(x)
        return x, out if tuple(out.shape[-2:]) == size else F.interpolate(out, size, mode="nearest")


class Review(Pathways):
    """Used where `Pathways` are: one distance, the mean over depths of the hierarchical context loss.

    Args:
        teacher_points, student_points: as many of each, from shallow to deep.
        example: one batch of images.
        generator: of the fusions' weights.

    Raises:
        UsageError: another number of points, or points without maps.
    """

    def __init__(
        self,
        teacher: nn.Module,
        student: nn.Module,
        teacher_points: Sequence[str],
        student_points: Sequence[str],
        example: Tensor,
        generator: torch.Generator,
    ) -> None:
        nn.Module.__init__(self)
        if len(teacher_points) != len(student_points) or not teacher_points:
            raise UsageError(
                asked="ReviewKD between points of equal number",
                found=f"{len(teacher_points)} of the teacher, {len(student_points)} of the student",
                next="Tap as many layers of both.",
            )
        self.pathways = (Pathway("review", "review", "fusion"),)
        self.teacher_points, self.student_points = list(teacher_points), list(student_points)
        shapes = [
            map_shapes(teacher, example, self.teacher_points, "teacher"),
            map_shapes(student, example, self.student_points, "student"),
        ]
        between = min(MOST_CHANNELS, *(shape[0] for shape in shapes[0]))
        self.fusions = nn.ModuleList(
            _Fusion(mine[0], between, its[0], fuses=i < len(shapes[0]) - 1)
            for i, (its, mine) in enumerate(zip(*shapes, strict=True))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, logits: Tensor, features: Sequence[Tensor], taught: tuple[Tensor, Sequence[Tensor]]) -> Tensor:
        """(1,) distance of a student's features from its teacher's; the logits have no part in it."""
        del logits
        before: Tensor | None = None
        distances = []
        for fusion, mine, its in reversed(list(zip(self.fusions, features, taught[1], strict=True))):
            before, out = fusion(mine, before, tuple(its.shape[-2:]))
            distances.append(hcl_loss(out, its))
        return torch.stack(distances).mean()[None]
