"""Networks of searched cells on small images: those of DARTS and of NASNet-A."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.networks.blocks import Classifier

Edge = tuple[str, int]
"""An operation and the state it takes: 0 and 1 are the outputs of the two cells before, the nodes follow."""


@dataclass(frozen=True)
class Genotype:
    """A cell: every node is the sum of two edges; the output is the concatenation of the states in `joined`."""

    nodes: tuple[tuple[Edge, Edge], ...]
    joined: tuple[int, ...]


DARTS_NORMAL = Genotype(
    (
        (("separable_3", 0), ("separable_3", 1)),
        (("separable_3", 0), ("separable_3", 1)),
        (("separable_3", 1), ("skip", 0)),
        (("skip", 0), ("dilated_3", 2)),
    ),
    (2, 3, 4, 5),
)
DARTS_REDUCTION = Genotype(
    (
        (("max_3", 0), ("max_3", 1)),
        (("skip", 2), ("max_3", 1)),
        (("max_3", 0), ("skip", 2)),
        (("skip", 2), ("max_3", 1)),
    ),
    (2, 3, 4, 5),
)
"""Liu et al. 2019, arXiv:1806.09055, figures 4 and 5: the second-order search on CIFAR-10."""

NASNET_NORMAL = Genotype(
    (
        (("separable_3", 1), ("skip", 1)),
        (("separable_3", 0), ("separable_5", 1)),
        (("average_3", 1), ("skip", 0)),
        (("average_3", 0), ("average_3", 0)),
        (("separable_5", 0), ("separable_3", 0)),
    ),
    (0, 2, 3, 4, 5, 6),
)
NASNET_REDUCTION = Genotype(
    (
        (("separable_7", 0), ("separable_5", 1)),
        (("max_3", 1), ("separable_7", 0)),
        (("average_3", 1), ("separable_5", 0)),
        (("max_3", 1), ("separable_3", 2)),
        (("average_3", 2), ("skip", 3)),
    ),
    (3, 4, 5, 6),
)
"""Zoph et al. 2018, arXiv:1707.07012, figure 4."""


def _normed(in_channels: int, out_channels: int) -> list[nn.Module]:
    """ReLU, 1×1 convolution, norm."""
    return [nn.ReLU(), nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)]


def _depthwise(width: int, kernel_size: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    """ReLU, depthwise and 1×1 convolutions, norm."""
    padding = dilation * (kernel_size - 1) // 2
    return [
        nn.ReLU(),
        nn.Conv2d(width, width, kernel_size, stride, padding, dilation, groups=width, bias=False),
        nn.Conv2d(width, width, 1, bias=False),
        nn.BatchNorm2d(width),
    ]


class Halved(nn.Module):
    """Two strided 1×1 convolutions, one of the image moved by a pixel; together they see all rows and columns."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.even = nn.Conv2d(in_channels, out_channels // 2, 1, 2, bias=False)
        self.odd = nn.Conv2d(in_channels, out_channels - out_channels // 2, 1, 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x)
        return self.norm(torch.cat([self.even(x), self.odd(x[:, :, 1:, 1:])], dim=1))


def _operation(name: str, width: int, stride: int) -> nn.Module:
    kind, _, size = name.partition("_")
    match kind:
        case "separable":
            return nn.Sequential(*_depthwise(width, int(size), stride), *_depthwise(width, int(size), 1))
        case "dilated":
            return nn.Sequential(*_depthwise(width, int(size), stride, dilation=2))
        case "max":
            return nn.MaxPool2d(int(size), stride, 1)
        case "average":
            return nn.AvgPool2d(int(size), stride, 1, count_include_pad=False)
        case _:
            return nn.Identity() if stride == 1 else Halved(width, width)


class Cell(nn.Module):
    """A cell of `genotype`; in a reduction the edges from the two inputs have stride 2."""

    def __init__(
        self, genotype: Genotype, before: int, last: int, width: int, reduction: bool, after_reduction: bool
    ) -> None:
        super().__init__()
        self.joined = genotype.joined
        self.sources = [tuple(state for _, state in node) for node in genotype.nodes]
        self.inputs = nn.ModuleList(
            [
                Halved(before, width) if after_reduction else nn.Sequential(*_normed(before, width)),
                nn.Sequential(*_normed(last, width)),
            ]
        )
        self.operations = nn.ModuleList(
            _operation(name, width, 2 if reduction and state < 2 else 1)
            for node in genotype.nodes
            for name, state in node
        )
        self.width = width * len(genotype.joined)

    def forward(self, before: Tensor, last: Tensor) -> Tensor:
        states = [self.inputs[0](before), self.inputs[1](last)]
        for node, (left, right) in enumerate(self.sources):
            first, second = self.operations[2 * node], self.operations[2 * node + 1]
            states.append(first(states[left]) + second(states[right]))
        return torch.cat([states[state] for state in self.joined], dim=1)


class CellNetwork(nn.Module):
    """Stem of three times the width, cells, the width doubled at a third and at two thirds of the depth."""

    def __init__(self, normal: Genotype, reduction: Genotype, depth: int, width: int, classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 3 * width, 3, padding=1, bias=False), nn.BatchNorm2d(3 * width))
        before = last = 3 * width
        cells = []
        reduced = False
        for place in range(depth):
            reduces = place in (depth // 3, 2 * depth // 3)
            width *= 2 if reduces else 1
            cell = Cell(reduction if reduces else normal, before, last, width, reduces, reduced)
            before, last, reduced = last, cell.width, reduces
            cells.append(cell)
        self.cells = nn.ModuleList(cells)
        self.head = Classifier(last, classes)

    def forward(self, image: Tensor) -> Tensor:
        before = last = self.stem(image)
        for cell in self.cells:
            before, last = last, cell(before, last)
        return self.head(last)


def darts_cifar() -> nn.Module:
    """The depth and width of the search's own network, 8 cells and 16 channels, not the 20 and 36 of the result."""
    return CellNetwork(DARTS_NORMAL, DARTS_REDUCTION, 8, 16)


def darts_published() -> nn.Module:
    """At its published size, without the auxiliary head; here for its parameter count."""
    return CellNetwork(DARTS_NORMAL, DARTS_REDUCTION, 20, 36)


def nasnet_a_cifar() -> nn.Module:
    """8 cells and 16 channels; published are 20 and 32 (NASNet-A 6 @ 768)."""
    return CellNetwork(NASNET_NORMAL, NASNET_REDUCTION, 8, 16)
