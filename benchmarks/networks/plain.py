"""Networks before and beside the residual ones: VGG, SqueezeNet, GoogLeNet, DenseNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.networks.blocks import Classifier, ConvNorm

_VGG11 = (64, 0, 128, 0, 256, 256, 0, 512, 512, 0, 512, 512, 0)
"""Widths of 3×3 convolutions; 0 is a 2×2 max pooling."""


def _vgg(widths: tuple[int, ...], batch_norm: bool) -> nn.Module:
    """Simonyan and Zisserman 2014, arXiv:1409.1556, table 1."""
    layers: list[nn.Module] = []
    channels = 3
    for width in widths:
        if width == 0:
            layers.append(nn.MaxPool2d(2))
            continue
        layers.append(nn.Conv2d(channels, width, 3, padding=1))
        layers += [nn.BatchNorm2d(width), nn.ReLU()] if batch_norm else [nn.ReLU()]
        channels = width
    head = [nn.Linear(channels * 49, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *head, nn.Linear(4096, 1000))


def vgg11() -> nn.Module:
    return _vgg(_VGG11, batch_norm=False)


def vgg11_bn() -> nn.Module:
    """VGG-11 with the batch norms it is trained with today (the convolutions keep their biases)."""
    return _vgg(_VGG11, batch_norm=True)


class Concatenated(nn.Module):
    """Branches over one input, concatenated along the channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


def _fire(in_channels: int, squeezed: int, expanded: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(in_channels, squeezed, 1),
        nn.ReLU(),
        Concatenated(
            nn.Sequential(nn.Conv2d(squeezed, expanded, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(squeezed, expanded, 3, padding=1), nn.ReLU()),
        ),
    )


def squeezenet1_1() -> nn.Module:
    """Iandola et al. 2016, arXiv:1602.07360, in the authors' version 1.1 (earlier pooling, fewer filters)."""

    def pool() -> nn.Module:
        return nn.MaxPool2d(3, 2, ceil_mode=True)

    return nn.Sequential(
        nn.Conv2d(3, 64, 3, 2),
        nn.ReLU(),
        pool(),
        *(_fire(64, 16, 64), _fire(128, 16, 64), pool()),
        *(_fire(128, 32, 128), _fire(256, 32, 128), pool()),
        *(_fire(256, 48, 192), _fire(384, 48, 192), _fire(384, 64, 256), _fire(512, 64, 256)),
        *(nn.Dropout(), nn.Conv2d(512, 1000, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )


def _inception(in_channels: int, one: int, three: tuple[int, int], five: tuple[int, int], pooled: int) -> nn.Module:
    """The widths of the branches, each with its reduction; the "5×5" branch is a 3×3 as in the common weights."""
    return Concatenated(
        ConvNorm(in_channels, one),
        nn.Sequential(ConvNorm(in_channels, three[0]), ConvNorm(*three, 3)),
        nn.Sequential(ConvNorm(in_channels, five[0]), ConvNorm(*five, 3)),
        nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), ConvNorm(in_channels, pooled)),
    )


def googlenet() -> nn.Module:
    """Szegedy et al. 2015, arXiv:1409.4842, table 1, with batch norms and without the auxiliary heads."""
    return nn.Sequential(
        ConvNorm(3, 64, 7, 2),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        *(ConvNorm(64, 64), ConvNorm(64, 192, 3)),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _inception(192, 64, (96, 128), (16, 32), 32),
        _inception(256, 128, (128, 192), (32, 96), 64),
        nn.MaxPool2d(3, 2, ceil_mode=True),
        _inception(480, 192, (96, 208), (16, 48), 64),
        _inception(512, 160, (112, 224), (24, 64), 64),
        _inception(512, 128, (128, 256), (24, 64), 64),
        _inception(512, 112, (144, 288), (32, 64), 64),
        _inception(528, 256, (160, 320), (32, 128), 128),
        nn.MaxPool2d(2, 2, ceil_mode=True),
        _inception(832, 256, (160, 320), (32, 128), 128),
        _inception(832, 384, (192, 384), (48, 128), 128),
        Classifier(1024),
    )


class DenseLayer(nn.Module):
    """Norm, ReLU, 1×1, norm, ReLU, 3×3; its output joins its input."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.BatchNorm2d(in_channels), nn.ReLU(), nn.Conv2d(in_channels, 4 * growth, 1, bias=False)),
            *(nn.BatchNorm2d(4 * growth), nn.ReLU(), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], dim=1)


def densenet121(growth: int = 32) -> nn.Module:
    """Huang et al. 2017, arXiv:1608.06993, table 1: batch norms that stand before their convolutions."""
    layers: list[nn.Module] = [ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    depths = (6, 12, 24, 16)
    for stage, depth in enumerate(depths):
        for _ in range(depth):
            layers.append(DenseLayer(channels, growth))
            channels += growth
        layers += [nn.BatchNorm2d(channels), nn.ReLU()]
        if stage < len(depths) - 1:
            layers += [nn.Conv2d(channels, channels // 2, 1, bias=False), nn.AvgPool2d(2)]
            channels //= 2
    return nn.Sequential(*layers, Classifier(channels))
