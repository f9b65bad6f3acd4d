"""A CIFAR-style residual network, as a user would bring one: the teacher that students are cut out of."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _Block(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.norm1, self.norm2 = nn.BatchNorm2d(outside), nn.BatchNorm2d(outside)
        self.around = nn.Sequential()
        if inside != outside or stride != 1:
            self.around = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(y + self.around(x))


class ResidualNetwork(nn.Module):
    """`blocks` per stage of the given widths; a stem of stride 2, since images are 32 pixels wide."""

    def __init__(self, classes: int, widths: tuple[int, ...] = (16, 32, 64), blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU())
        stages: list[nn.Module] = []
        inside = widths[0]
        for stage, width in enumerate(widths):
            for block in range(blocks):
                stages.append(_Block(inside, width, 2 if stage and not block else 1))
                inside = width
        self.blocks = nn.Sequential(*stages)
        self.classifier = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        logits: Tensor = self.classifier(x.mean((2, 3)))
        return logits


def residual_network(classes: int, seed: int) -> ResidualNetwork:
    """With fresh weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - inside fork_rng: modules initialise themselves
        return ResidualNetwork(classes)
