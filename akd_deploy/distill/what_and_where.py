"""L2T-ww (Jang et al. 2019, arXiv:1905.05901): what of the teacher to learn, and where, as the image itself says.

For every pair of a teacher's layer m and a student's layer n two meta-networks read the teacher's features of an image:
one weighs m's channels (softmax, their sum is 1), the other the pair as a whole (0 to 6). The student matches

    L_m(θ | x, φ) = Σ_(m,n) λ_mn(x) Σ_c w_mn,c(x) · mean over positions of (r_mn(student_n) − teacher_m)²_c

beside its cross-entropy, r a 1×1 convolution. The meta-networks φ follow the cross-entropy that the student would have
after some steps on the matching alone and one on the labels, all from where it is now: a look ahead whose steps are
differentiated, and undone. What is learned is how to match, with weights that hold at any time: the ancestor of a
process, whose weights are of pathways alone and change over time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from akd_deploy.data import ViewBank
from akd_deploy.distill.meta_gradient import twice_differentiable, without_running_statistics
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.distill.trainer import TrainingResult, batches_on, not_finite, optimiser_for
from akd_deploy.errors import UsageError
from akd_deploy.models.taps import map_shapes, tapped

METHOD = "what and where"


@dataclass(frozen=True)
class WhatAndWhereSettings:
    """`weight` of the matching beside the cross-entropy; `matching_steps` of the look ahead; Adam's `learning_rate` and
    `weight_decay` on the meta-networks. The paper's, but for a learning rate of 1e-4 there, over 200 epochs."""

    weight: float = 0.5
    matching_steps: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        ranges = {
            "weight": self.weight > 0,
            "matching_steps": self.matching_steps >= 1,
            "learning_rate": self.learning_rate > 0,
            "weight_decay": self.weight_decay >= 0,
        }
        for name, holds in ranges.items():
            if not holds:
                raise UsageError(
                    asked=f"setting {name} of L2T-ww",
                    found=repr(getattr(self, name)),
                    next="Give one within its range.",
                )


def _constant(inside: int, outside: int, value: float) -> nn.Linear:
    """A layer that puts out this value whatever it reads, until it learns."""
    layer = nn.Linear(inside, outside)
    nn.init.zeros_(layer.weight)
    nn.init.constant_(layer.bias, value)
    return layer


class WhatAndWhere(nn.Module):
    """The meta-networks of all pairs: at first all channels alike, and every pair 1."""

    def __init__(self, channels: Sequence[int], pairs: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.pairs = tuple(pairs)
        self.what = nn.ModuleList(_constant(channels[m], channels[m], 0.0) for m, _ in pairs)
        self.where = nn.ModuleList(_constant(channels[m], 1, 1.0) for m, _ in pairs)

    def forward(self, features: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """The teacher's features → for each pair (batch, channels) weights and (batch,) weights."""
        pooled = [feature.mean((2, 3)) for feature in features]
        return [
            (F.softmax(what(pooled[m]), dim=1), F.relu6(where(pooled[m])[:, 0]))
            for (m, _), what, where in zip(self.pairs, self.what, self.where, strict=True)
        ]


class Matched(nn.Module):
    """A student with what brings its layers to the teacher's.

    Args:
        teacher_points, student_points: every one of the former is paired with every one of the latter.
        example: one batch of images.
        generator: of the 1×1 convolutions' weights.

    Raises:
        UsageError: no points, or points without maps.
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        teacher_points: Sequence[str],
        student_points: Sequence[str],
        example: Tensor,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        its = map_shapes(teacher, example, teacher_points, "teacher")
        mine = map_shapes(student, example, student_points, "student")
        if not its or not mine:
            raise UsageError(asked="pairs of layers to match", found="none", next="Tap a layer of both networks.")
        self.student = student
        self.teacher_points, self.student_points = list(teacher_points), list(student_points)
        self.channels = [shape[0] for shape in its]
        self.pairs = [(m, n) for m in range(len(its)) for n in range(len(mine))]
        self.connectors = nn.ModuleList()
        for m, n in self.pairs:
            connect = nn.Conv2d(mine[n][0], its[m][0], 1)
            nn.init.kaiming_normal_(connect.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            assert connect.bias is not None
            nn.init.zeros_(connect.bias)
            self.connectors.append(connect)

    def forward(
        self, images: Tensor, taught: Sequence[Tensor], weights: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor]:
        """Logits, and the matching loss."""
        logits, features = tapped(self.student, images, self.student_points)
        total = logits.new_zeros(())
        for (m, n), connect, (what, where) in zip(self.pairs, self.connectors, weights, strict=True):
            own, its = connect(features[n]), taught[m]
            if its.shape[-2:] != own.shape[-2:]:
                its = F.interpolate(its, own.shape[-2:], mode="bilinear", align_corners=False)
            total = total + (where * (what * (own - its).square().mean((2, 3))).sum(1)).mean()
        return logits, total


def loss_ahead(
    network: Matched,
    meta: WhatAndWhere,
    images: Tensor,
    labels: Tensor,
    taught: Sequence[Tensor],
    rate: float,
    steps: int,
) -> Tensor:
    """The cross-entropy after `steps` plain gradient steps on the matching and one on the cross-entropy, all on this
    batch, as a function of the meta-networks; the network stays as it is."""

    def moved(weights: dict[str, Tensor], loss: Tensor) -> dict[str, Tensor]:
        gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
        return {
            name: weight if gradient is None else weight - rate * gradient
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }

    weights: dict[str, Tensor] = {
        name: parameter.detach().requires_grad_() for name, parameter in network.named_parameters()
    }
    told = meta(taught)
    with without_running_statistics(network), twice_differentiable("L2T-ww's look ahead"):
        for _ in range(steps):
            weights = moved(weights, functional_call(network, weights, (images, taught, told))[1])
        student = {name.removeprefix("student."): w for name, w in weights.items() if name.startswith("student.")}
        student = moved(student, F.cross_entropy(functional_call(network.student, student, (images,)), labels))
        return F.cross_entropy(functional_call(network.student, student, (images,)), labels)


def train_what_and_where(
    network: Matched,
    teacher: nn.Module,
    views: ViewBank,
    settings: TrainingSettings,
    what_and_where: WhatAndWhereSettings,
    generator: torch.Generator,
    *,
    on_step: Callable[[int, int, float], None] | None = None,
) -> tuple[TrainingResult, WhatAndWhere]:
    """Train the network's student in place; it is left in evaluation mode. Returns the meta-networks too.

    Each step on CE + weight · matching is followed by one of the meta-networks, by looking ahead on the same batch.

    Raises:
        TrainingError: the loss, or the one ahead, is not finite; names the step.
    """
    device = next(network.parameters()).device
    meta = WhatAndWhere(network.channels, network.pairs).to(device)
    adam = torch.optim.Adam(meta.parameters(), what_and_where.learning_rate, weight_decay=what_and_where.weight_decay)
    optimiser = optimiser_for(network, settings)
    losses: list[float] = []
    begin = time.perf_counter()
    teacher.eval()
    network.train()
    try:
        for step, (images, labels, _) in enumerate(batches_on(device, views, settings, None, generator)):
            rate = settings.learning_rate_at(step)
            for group in optimiser.param_groups:
                group["lr"] = rate
            with torch.no_grad():
                taught = tapped(teacher, images, network.teacher_points)[1]
                told = meta(taught)
            logits, matching = network(images, taught, told)
            loss = F.cross_entropy(logits, labels) + what_and_where.weight * matching
            value = float(loss.detach())
            if not np.isfinite(value):
                raise not_finite(METHOD, settings, step, value, losses)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            adam.zero_grad()
            ahead = loss_ahead(network, meta, images, labels, taught, rate, what_and_where.matching_steps)
            if not bool(torch.isfinite(ahead)):
                raise not_finite(f"{METHOD} looking ahead", settings, step, float(ahead.detach()), losses)
            with twice_differentiable("L2T-ww's look ahead"):
                ahead.backward(inputs=list(meta.parameters()))
            adam.step()
            losses.append(value)
            if on_step is not None:
                on_step(step + 1, settings.steps, value)
    finally:
        network.eval()
    return TrainingResult(METHOD, settings, tuple(losses), time.perf_counter() - begin), meta
