"""Residual networks of plain and grouped convolutions: ResNet, Wide ResNet, ResNeXt, RegNet, RepVGG as deployed."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from benchmarks.networks.blocks import Classifier, ConvNorm, SqueezeExcite


class Residual(nn.Module):
    """`body` beside its input (through a strided 1×1 convolution where the shapes differ), then ReLU."""

    def __init__(self, body: nn.Module, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.body = body
        same = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same else ConvNorm(in_channels, out_channels, 1, stride, activation=None)
        self.activation = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.body(x) + self.shortcut(x))


def _basic(in_channels: int, width: int, stride: int) -> Residual:
    body = nn.Sequential(ConvNorm(in_channels, width, 3, stride), ConvNorm(width, width, 3, activation=None))
    return Residual(body, in_channels, width, stride)


def _bottleneck(
    in_channels: int, inner: int, out_channels: int, stride: int, groups: int = 1, squeezed: int = 0
) -> Residual:
    layers: list[nn.Module] = [ConvNorm(in_channels, inner), ConvNorm(inner, inner, 3, stride, groups)]
    if squeezed:
        layers.append(SqueezeExcite(inner, squeezed))
    layers.append(ConvNorm(inner, out_channels, activation=None))
    return Residual(nn.Sequential(*layers), in_channels, out_channels, stride)


def _resnet(depths: Sequence[int], bottleneck: bool, inner_width: int = 64, groups: int = 1) -> nn.Module:
    """He et al. 2015, arXiv:1512.03385, table 1 (the stride of a bottleneck is in its 3×3 convolution)."""
    layers: list[nn.Module] = [ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage, depth in enumerate(depths):
        for block in range(depth):
            stride = 2 if stage > 0 and block == 0 else 1
            if bottleneck:
                out = 256 * 2**stage
                layers.append(_bottleneck(channels, inner_width * 2**stage, out, stride, groups))
            else:
                out = 64 * 2**stage
                layers.append(_basic(channels, out, stride))
            channels = out
    return nn.Sequential(*layers, Classifier(channels))


def resnet18() -> nn.Module:
    return _resnet((2, 2, 2, 2), bottleneck=False)


def resnet34() -> nn.Module:
    return _resnet((3, 4, 6, 3), bottleneck=False)


def resnet50() -> nn.Module:
    return _resnet((3, 4, 6, 3), bottleneck=True)


def wide_resnet50_2() -> nn.Module:
    """Zagoruyko and Komodakis 2016, arXiv:1605.07146: the inner convolutions twice as wide."""
    return _resnet((3, 4, 6, 3), bottleneck=True, inner_width=128)


def resnext50_32x4d() -> nn.Module:
    """Xie et al. 2017, arXiv:1611.05431: 32 groups of 4 channels."""
    return _resnet((3, 4, 6, 3), bottleneck=True, inner_width=128, groups=32)


def _regnet(depths: Sequence[int], widths: Sequence[int], group_width: int, excite: bool) -> nn.Module:
    """Radosavovic et al. 2020, arXiv:2003.13678, section 4: stem of 32 channels, bottlenecks without a bottleneck.

    Y-networks squeeze to a quarter of the block's *input* channels.
    """
    layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2)]
    channels = 32
    for depth, width in zip(depths, widths, strict=True):
        for block in range(depth):
            squeezed = round(channels / 4) if excite else 0
            stride = 2 if block == 0 else 1
            layers.append(_bottleneck(channels, width, width, stride, width // group_width, squeezed))
            channels = width
    return nn.Sequential(*layers, Classifier(channels))


def regnetx_400mf() -> nn.Module:
    return _regnet((1, 2, 7, 12), (32, 64, 160, 384), 16, excite=False)


def regnety_400mf() -> nn.Module:
    return _regnet((1, 3, 6, 6), (48, 104, 208, 440), 8, excite=True)


def regnety_800mf() -> nn.Module:
    return _regnet((1, 3, 8, 2), (64, 128, 320, 768), 16, excite=True)


def repvgg_a0() -> nn.Module:
    """Ding et al. 2021, arXiv:2101.03697, table 2, branches merged: 3×3 convolutions with bias and ReLU alone."""
    layers: list[nn.Module] = []
    channels = 3
    for depth, width in zip((1, 2, 4, 14, 1), (48, 48, 96, 192, 1280), strict=True):
        for block in range(depth):
            layers += [nn.Conv2d(channels, width, 3, 2 if block == 0 else 1, 1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, Classifier(channels))
