"""Convolutional classifiers: LeNet, AlexNet, Xception, EfficientNetV2, SKNet, FasterNet, MobileOne, HRNet, R(2+1)D."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.blocks import Classifier, ConvNorm, InvertedResidual, SqueezeExcite
from benchmarks.networks.resnets import Residual


def lenet5() -> nn.Module:
    """LeCun et al. 1998, "Gradient-based learning applied to document recognition", section II.B, every map connected.

    Averages are not scaled and the output layer is linear.
    """
    return nn.Sequential(
        *(nn.Conv2d(1, 6, 5, padding=2), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 16, 5), nn.Tanh(), nn.AvgPool2d(2)),
        *(nn.Flatten(), nn.Linear(400, 120), nn.Tanh(), nn.Linear(120, 84), nn.Tanh(), nn.Linear(84, 10)),
    )


def alexnet() -> nn.Module:
    """Krizhevsky 2014, arXiv:1404.5997: the network of 2012 in one column."""
    layers: list[nn.Module] = []
    channels = 3
    for width, kernel_size, stride, pooled in (
        *((64, 11, 4, True), (192, 5, 1, True), (384, 3, 1, False), (256, 3, 1, False), (256, 3, 1, True)),
    ):
        layers += [nn.Conv2d(channels, width, kernel_size, stride, 2 if kernel_size > 3 else 1), nn.ReLU()]
        layers += [nn.MaxPool2d(3, 2)] if pooled else []
        channels = width
    head = [nn.Dropout(), nn.Linear(256 * 36, 4096), nn.ReLU(), nn.Dropout(), nn.Linear(4096, 4096), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(4096, 1000))


def _separable(in_channels: int, out_channels: int) -> list[nn.Module]:
    depthwise = nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False)
    return [depthwise, ConvNorm(in_channels, out_channels, activation=None)]


class XceptionBlock(nn.Module):
    """ReLU and separable convolution, twice or thrice, (pooled by 2,) beside a shortcut."""

    def __init__(self, in_channels: int, widths: tuple[int, ...], pooled: bool = True, first_relu: bool = True) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width in widths:
            layers += [nn.ReLU(), *_separable(channels, width)]
            channels = width
        self.layers = nn.Sequential(*layers[0 if first_relu else 1 :], *([nn.MaxPool2d(3, 2, 1)] if pooled else []))
        self.shortcut = ConvNorm(in_channels, channels, 1, 2, activation=None) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)


def xception_short(middle: int = 2) -> nn.Module:
    """Chollet 2017, arXiv:1610.02357, figure 5, with two of the eight blocks of the middle flow."""
    return nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 2, bias=False), nn.BatchNorm2d(32), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()),
        *(XceptionBlock(64, (128, 128), first_relu=False), XceptionBlock(128, (256, 256))),
        XceptionBlock(256, (728, 728)),
        *(XceptionBlock(728, (728, 728, 728), pooled=False) for _ in range(middle)),
        XceptionBlock(728, (728, 1024)),
        *(*_separable(1024, 1536), nn.ReLU(), *_separable(1536, 2048), nn.ReLU(), Classifier(2048)),
    )


def xception() -> nn.Module:
    """At its published depth; here for its parameter count."""
    return xception_short(8)


class FusedInverted(nn.Module):
    """Fused MBConv: a full 3×3 convolution expands, a 1×1 projects (one 3×3 alone where nothing expands)."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int) -> None:
        super().__init__()
        expanded = expansion * in_channels
        self.layers: nn.Module = (
            ConvNorm(in_channels, out_channels, 3, stride, activation=nn.SiLU)
            if expansion == 1
            else nn.Sequential(
                ConvNorm(in_channels, expanded, 3, stride, activation=nn.SiLU),
                ConvNorm(expanded, out_channels, activation=None),
            )
        )
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


def efficientnet_v2_short(depths: tuple[int, ...] = (1, 2, 2, 3, 4, 5)) -> nn.Module:
    """Tan and Le 2021, arXiv:2104.00298, table 4 (EfficientNetV2-S) with a third to a half of its depth."""
    rows = (
        *((True, 1, 24, 1), (True, 4, 48, 2), (True, 4, 64, 2)),
        *((False, 4, 128, 2), (False, 6, 160, 1), (False, 6, 256, 2)),
    )
    layers: list[nn.Module] = [ConvNorm(3, 24, 3, 2, activation=nn.SiLU)]
    channels = 24
    for depth, (fused, expansion, width, first) in zip(depths, rows, strict=True):
        for block in range(depth):
            stride = first if block == 0 else 1
            if fused:
                layers.append(FusedInverted(channels, width, expansion, stride))
            else:
                squeezed = channels // 4

                def excite(expanded: int, squeezed: int = squeezed) -> nn.Module:
                    return SqueezeExcite(expanded, squeezed, nn.SiLU)

                layers.append(InvertedResidual(channels, width, expansion * channels, 3, stride, nn.SiLU, excite))
            channels = width
    return nn.Sequential(*layers, ConvNorm(channels, 1280, activation=nn.SiLU), Classifier(1280))


def efficientnet_v2_s() -> nn.Module:
    """At its published depth; here for its parameter count."""
    return efficientnet_v2_short((2, 4, 4, 6, 9, 15))


class SelectiveKernel(nn.Module):
    """Two grouped 3×3 convolutions, one dilated; a softmax between them, per channel, from their sum's means."""

    def __init__(self, width: int, stride: int, groups: int = 32, least: int = 32, reduction: int = 16) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(width, width, 3, stride, dilation, dilation, groups, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            for dilation in (1, 2)
        )
        squeezed = max(width // reduction, least)
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNorm(width, squeezed))
        self.select = nn.Conv2d(squeezed, 2 * width, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        branches = torch.stack([branch(x) for branch in self.branches], dim=1)
        scores = self.select(self.squeeze(branches.sum(dim=1)))
        weights = torch.softmax(scores.reshape(x.shape[0], 2, -1, 1, 1), dim=1)
        return (branches * weights).sum(dim=1)


def sknet26() -> nn.Module:
    """Li et al. 2019, arXiv:1903.06586, table 1 (SKNet-50) at two blocks a stage."""
    layers: list[nn.Module] = [ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for stage in range(4):
        inner, out = 128 * 2**stage, 256 * 2**stage
        for block in range(2):
            stride = 2 if stage > 0 and block == 0 else 1
            body = (ConvNorm(channels, inner), SelectiveKernel(inner, stride), ConvNorm(inner, out, activation=None))
            layers.append(Residual(nn.Sequential(*body), channels, out, stride))
            channels = out
    return nn.Sequential(*layers, Classifier(channels))


class FasterBlock(nn.Module):
    """A 3×3 convolution of a quarter of the channels, the rest passed by; then an inverted pair of 1×1."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.taken = width // 4
        self.partial = nn.Conv2d(self.taken, self.taken, 3, padding=1, bias=False)
        self.mlp = nn.Sequential(
            ConvNorm(width, 2 * width, activation=nn.GELU), nn.Conv2d(2 * width, width, 1, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        taken, passed = torch.split(x, [self.taken, x.shape[1] - self.taken], dim=1)
        return x + self.mlp(torch.cat([self.partial(taken), passed], dim=1))


def fasternet_t0() -> nn.Module:
    """Chen et al. 2023, arXiv:2303.03667, table 8 (T0)."""
    layers: list[nn.Module] = [nn.Conv2d(3, 40, 4, 4, bias=False), nn.BatchNorm2d(40)]
    for stage, depth in enumerate((1, 2, 8, 2)):
        width = 40 * 2**stage
        if stage > 0:
            layers += [nn.Conv2d(width // 2, width, 2, 2, bias=False), nn.BatchNorm2d(width)]
        layers += [FasterBlock(width) for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(320, 1280, 1, bias=False), nn.GELU(), nn.Flatten()]
    return nn.Sequential(*layers, *head, nn.Linear(1280, 1000))


def mobileone_s0() -> nn.Module:
    """Vasu et al. 2023, arXiv:2206.04040, table 2 (S0), branches merged: biases, no norms, no residuals."""
    layers: list[nn.Module] = [nn.Conv2d(3, 48, 3, 2, 1), nn.ReLU()]
    channels = 48
    for depth, width in zip((2, 8, 10, 1), (48, 128, 256, 1024), strict=True):
        for block in range(depth):
            layers += [nn.Conv2d(channels, channels, 3, 2 if block == 0 else 1, 1, groups=channels), nn.ReLU()]
            layers += [nn.Conv2d(channels, width, 1), nn.ReLU()]
            channels = width
    return nn.Sequential(*layers, Classifier(channels))


class Exchange(nn.Module):
    """Two residual blocks at every resolution, then every resolution gets the sum of all, resampled.

    Down by strided 3×3 convolutions, up by a 1×1 convolution and nearest neighbours.
    """

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(*(Residual(_two_convolutions(width), width, width, 1) for _ in range(2))) for width in widths
        )
        self.paths = nn.ModuleList(
            nn.ModuleList(_resampling(widths, source, target) for source in range(len(widths)))
            for target in range(len(widths))
        )

    def forward(self, *features: Tensor) -> list[Tensor]:
        own = [branch(x) for branch, x in zip(self.branches, features, strict=True)]
        mixed = []
        for paths in self.paths:
            assert isinstance(paths, nn.ModuleList)
            total = paths[0](own[0])
            for path, x in zip(paths[1:], own[1:], strict=True):
                total = total + path(x)
            mixed.append(F.relu(total))
        return mixed


def _two_convolutions(width: int) -> nn.Module:
    return nn.Sequential(ConvNorm(width, width, 3), ConvNorm(width, width, 3, activation=None))


def _resampling(widths: tuple[int, ...], source: int, target: int) -> nn.Module:
    if source == target:
        return nn.Identity()
    if source > target:
        enlarged = nn.Upsample(scale_factor=2.0 ** (source - target), mode="nearest")
        return nn.Sequential(ConvNorm(widths[source], widths[target], activation=None), enlarged)
    steps: list[nn.Module] = [ConvNorm(widths[source], widths[source], 3, 2) for _ in range(target - source - 1)]
    return nn.Sequential(*steps, ConvNorm(widths[source], widths[target], 3, 2, activation=None))


class HighResolution(nn.Module):
    """Wang et al. 2019, arXiv:1908.07919: resolutions in parallel; here its small W18, for segmentation (figure 4b)."""

    def __init__(self, width: int = 16, classes: int = 19) -> None:
        super().__init__()
        body = nn.Sequential(ConvNorm(64, 32), ConvNorm(32, 32, 3), ConvNorm(32, 128, activation=None))
        self.stem = nn.Sequential(ConvNorm(3, 64, 3, 2), ConvNorm(64, 64, 3, 2), Residual(body, 64, 128, 1))
        widths = tuple(width * 2**branch for branch in range(4))
        self.first = ConvNorm(128, widths[0], 3)
        self.further = nn.ModuleList(
            ConvNorm(128 if branch == 0 else widths[branch], widths[branch + 1], 3, 2) for branch in range(3)
        )
        self.exchanges = nn.ModuleList(Exchange(widths[:branches]) for branches in (2, 3, 4))
        self.head = nn.Sequential(ConvNorm(sum(widths), sum(widths)), nn.Conv2d(sum(widths), classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        features = [self.first(x)]
        for further, exchange in zip(self.further, self.exchanges, strict=True):
            features.append(further(x if len(features) == 1 else features[-1]))
            features = exchange(*features)
        size = features[0].shape[2:]
        enlarged = [F.interpolate(x, size, mode="bilinear", align_corners=False) for x in features[1:]]
        return self.head(torch.cat([features[0], *enlarged], dim=1))


def hrnet_w18_small() -> nn.Module:
    return HighResolution()


class FactorisedVideo(nn.Module):
    """Convolution in space, norm, ReLU, convolution in time; as many weights as one of 3×3×3."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        inner = in_channels * out_channels * 27 // (in_channels * 9 + out_channels * 3)
        self.space = nn.Conv3d(in_channels, inner, (1, 3, 3), (1, stride, stride), (0, 1, 1), bias=False)
        self.norm = nn.BatchNorm3d(inner)
        self.time = nn.Conv3d(inner, out_channels, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.time(F.relu(self.norm(self.space(x))))


class VideoBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(FactorisedVideo(in_channels, out_channels, stride), nn.BatchNorm3d(out_channels), nn.ReLU()),
            *(FactorisedVideo(out_channels, out_channels), nn.BatchNorm3d(out_channels)),
        )
        self.shortcut = (
            nn.Identity()
            if stride == 1 and in_channels == out_channels
            else nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm3d(out_channels)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


def r2plus1d_narrow() -> nn.Module:
    """Tran et al. 2018, arXiv:1711.11248, at 10 layers and a quarter of the width: 8 frames of 56×56, 400 classes."""
    stem = [nn.Conv3d(3, 12, (1, 7, 7), (1, 2, 2), (0, 3, 3), bias=False), nn.BatchNorm3d(12), nn.ReLU()]
    stem += [nn.Conv3d(12, 16, (3, 1, 1), padding=(1, 0, 0), bias=False), nn.BatchNorm3d(16), nn.ReLU()]
    blocks = [VideoBlock(16, 16, 1), VideoBlock(16, 32, 2), VideoBlock(32, 64, 2), VideoBlock(64, 128, 2)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(128, 400))
