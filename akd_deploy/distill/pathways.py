"""Pathways of distillation: from which layer of the teacher to which of the student, through what, compared how.

(DistPro, Deng et al. 2022, arXiv:2204.05547, section 3.1.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.losses import hcl_loss, kd_loss, mse_loss
from akd_deploy.models.connectors import TRANSFORMS, connector
from akd_deploy.models.taps import map_shapes, tapped

RULES: Mapping[str, Callable[[int, int], bool]] = {
    "up": lambda teacher, student: student >= teacher,
    "all": lambda teacher, student: True,
    "diagonal": lambda teacher, student: student == teacher,
}
"""Name → whether the teacher's i-th point teaches the student's j-th. "up" is DistPro's: no point learns from a deeper
one."""
DISTANCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "hcl": hcl_loss,
    "mse": mse_loss,
}
LOGITS = "logits"


@dataclass(frozen=True)
class Pathway:
    """`teacher` and `student` are names of points, or both `LOGITS` for the outputs themselves."""

    teacher: str
    student: str
    transform: str = ""

    @property
    def name(self) -> str:
        return LOGITS if self.teacher == LOGITS else f"{self.teacher} → {self.student} ({self.transform})"


def enumerate_pathways(
    teacher_points: Sequence[str],
    student_points: Sequence[str],
    rule: str = "up",
    transforms: Sequence[str] = ("complex",),
    logits: bool = True,
) -> list[Pathway]:
    """Every pathway that the rule allows, by each transform; the logits' last.

    Raises:
        UnknownNameError: no such rule or transform.
    """
    if rule not in RULES:
        raise UnknownNameError("rule of connection", rule, RULES)
    for transform in transforms:
        if transform not in TRANSFORMS:
            raise UnknownNameError("transform", transform, TRANSFORMS)
    found = [
        Pathway(teacher, student, transform)
        for i, teacher in enumerate(teacher_points)
        for j, student in enumerate(student_points)
        if RULES[rule](i, j)
        for transform in transforms
    ]
    return [*found, Pathway(LOGITS, LOGITS)] if logits else found


class Pathways(nn.Module):
    """Pathways between two networks with their connectors; `distances` of a batch is what weights are given to.

    Args:
        example: one batch of images, whose features say how large connectors must be.
        generator: of the connectors' weights.
    """

    def __init__(
        self,
        pathways: Sequence[Pathway],
        teacher: nn.Module,
        student: nn.Module,
        example: Tensor,
        generator: torch.Generator,
        *,
        distance: str = "hcl",
        temperature: float = 4.0,
    ) -> None:
        super().__init__()
        if not pathways:
            raise UsageError(asked="pathways of distillation", found="none", next="Allow some, or use another method.")
        if distance not in DISTANCES:
            raise UnknownNameError("distance of features", distance, DISTANCES)
        self.pathways = tuple(pathways)
        self.temperature = temperature
        self._distance = DISTANCES[distance]
        featured = [pathway for pathway in pathways if pathway.teacher != LOGITS]
        self.teacher_points = list(dict.fromkeys(pathway.teacher for pathway in featured))
        self.student_points = list(dict.fromkeys(pathway.student for pathway in featured))
        shapes: dict[tuple[str, str], tuple[int, int, int]] = {}
        for who, network, points in (
            ("teacher", teacher, self.teacher_points),
            ("student", student, self.student_points),
        ):
            for point, shape in zip(points, map_shapes(network, example, points, who), strict=True):
                shapes[who, point] = shape
        self.connectors = nn.ModuleList(
            nn.Identity()
            if pathway.teacher == LOGITS
            else connector(
                pathway.transform,
                shapes["student", pathway.student][0],
                shapes["teacher", pathway.teacher][0],
                shapes["teacher", pathway.teacher][1:],
                generator,
            )
            for pathway in pathways
        )

    def taught(self, teacher: nn.Module, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The teacher's logits and features of a batch, without gradient."""
        with torch.no_grad():
            return tapped(teacher, images, self.teacher_points)

    def inputs(self, logits: Tensor, features: Sequence[Tensor]) -> list[Tensor]:
        """What each pathway compares of a student, its logits or a feature (at `student_points`): a view of its own, so
        that a gradient at it is this pathway's alone."""
        of_student = dict(zip(self.student_points, features, strict=True))
        compared = [logits if p.teacher == LOGITS else of_student[p.student] for p in self.pathways]
        return [tensor.view_as(tensor) for tensor in compared]

    def distance(self, index: int, compared: Tensor, taught: tuple[Tensor, Sequence[Tensor]]) -> Tensor:
        """The distance of one pathway's input from what its teacher says."""
        pathway, (teacher_logits, teacher_features) = self.pathways[index], taught
        if pathway.teacher == LOGITS:
            return kd_loss(compared, teacher_logits, self.temperature)
        feature = teacher_features[self.teacher_points.index(pathway.teacher)]
        return self._distance(self.connectors[index](compared), feature)

    def compared(self, inputs: Sequence[Tensor], taught: tuple[Tensor, Sequence[Tensor]]) -> Tensor:
        """(pathways,) distances of `inputs` from what the teacher says."""
        return torch.stack([self.distance(i, compared, taught) for i, compared in enumerate(inputs)])

    def forward(self, logits: Tensor, features: Sequence[Tensor], taught: tuple[Tensor, Sequence[Tensor]]) -> Tensor:
        """(pathways,) distances of a student's logits and features (at `student_points`) from its teacher's."""
        return self.compared(self.inputs(logits, features), taught)
