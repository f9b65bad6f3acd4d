"""Networks that answer for every pixel: segmentation, detection, super-resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.blocks import ConvNorm, InvertedResidual


def _double(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(ConvNorm(in_channels, out_channels, 3), ConvNorm(out_channels, out_channels, 3))


class UNet(nn.Module):
    """Ronneberger et al. 2015, arXiv:1505.04597, figure 1, padded, with batch norms: transposed convolutions, skips."""

    def __init__(self, width: int, classes: int = 21, depth: int = 4) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(depth + 1)]
        self.down = nn.ModuleList(_double(a, b) for a, b in zip([3, *widths], widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        lower = [*zip(widths[1:], widths[:-1], strict=True)][::-1]
        self.upsample = nn.ModuleList(nn.ConvTranspose2d(below, above, 2, 2) for below, above in lower)
        self.up = nn.ModuleList(_double(below, above) for below, above in lower)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, image: Tensor) -> Tensor:
        skips = [self.down[0](image)]
        for down in list(self.down)[1:]:
            skips.append(down(self.pool(skips[-1])))
        x = skips.pop()
        for upsample, up in zip(self.upsample, self.up, strict=True):
            x = up(torch.cat([skips.pop(), upsample(x)], dim=1))
        return self.head(x)


def unet_published() -> nn.Module:
    """The paper's width; here for its parameter count."""
    return UNet(64, classes=2)


def unet_small() -> nn.Module:
    return UNet(16)


class DilatedPyramid(nn.Module):
    """Atrous spatial pyramid pooling: a 1×1, dilated 3×3s and the image's mean, side by side."""

    def __init__(self, in_channels: int, width: int, rates: tuple[int, ...]) -> None:
        super().__init__()
        self.branches = nn.ModuleList([ConvNorm(in_channels, width)])
        for rate in rates:
            conv = nn.Conv2d(in_channels, width, 3, padding=rate, dilation=rate, bias=False)
            self.branches.append(nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()))
        self.whole = nn.Sequential(nn.AdaptiveAvgPool2d(1), ConvNorm(in_channels, width))
        self.project = ConvNorm((len(rates) + 2) * width, width)

    def forward(self, x: Tensor) -> Tensor:
        whole = self.whole(x).expand(-1, -1, *x.shape[2:])
        return self.project(torch.cat([*(branch(x) for branch in self.branches), whole], dim=1))


def _mobilenet_v2_trunk(stop: int, output_stride: int = 32) -> tuple[list[nn.Module], int]:
    """The first `stop` rows of MobileNetV2's table 2, strides beyond `output_stride` left out; and their width."""
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2, activation=nn.ReLU6)]
    channels, reached = 32, 2
    for expansion, width, depth, stride in rows[:stop]:
        first = stride if reached * stride <= output_stride else 1
        reached *= first
        for block in range(depth):
            layers.append(InvertedResidual(channels, width, expansion * channels, 3, first if block == 0 else 1))
            channels = width
    return layers, channels


class DeepLabV3Plus(nn.Module):
    """Chen et al. 2018, arXiv:1802.02611, on MobileNetV2 at output stride 16: dilation, Resize, a low-level skip."""

    def __init__(self, classes: int = 21, width: int = 128) -> None:
        super().__init__()
        layers, channels = _mobilenet_v2_trunk(7, output_stride=16)
        self.low = nn.Sequential(*layers[:4])
        self.high = nn.Sequential(*layers[4:])
        self.pyramid = DilatedPyramid(channels, width, (6, 12, 18))
        self.reduce = ConvNorm(24, 48)
        self.decode = nn.Sequential(ConvNorm(width + 48, width, 3), nn.Conv2d(width, classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        low = self.low(image)
        pyramid = F.interpolate(self.pyramid(self.high(low)), low.shape[2:], mode="bilinear", align_corners=False)
        logits = self.decode(torch.cat([pyramid, self.reduce(low)], dim=1))
        return F.interpolate(logits, image.shape[2:], mode="bilinear", align_corners=False)


def deeplab_v3_plus() -> nn.Module:
    return DeepLabV3Plus()


class PyramidDetector(nn.Module):
    """Feature pyramid (Lin et al. 2017, arXiv:1612.03144) and one-stage heads (arXiv:1708.02002) on MobileNetV2.

    Image → scores (batch, anchors, classes) and boxes (batch, anchors, 4); the heads are shared by all levels.
    """

    def __init__(self, classes: int = 80, width: int = 64, anchors: int = 9) -> None:
        super().__init__()
        layers, channels = _mobilenet_v2_trunk(7)
        self.stages = nn.ModuleList(
            [nn.Sequential(*layers[:7]), nn.Sequential(*layers[7:14]), nn.Sequential(*layers[14:])]
        )
        self.lateral = nn.ModuleList(nn.Conv2d(inner, width, 1) for inner in (32, 96, channels))
        self.smooth = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.classes = classes
        self.scores = nn.Sequential(ConvNorm(width, width, 3), nn.Conv2d(width, anchors * classes, 3, padding=1))
        self.boxes = nn.Sequential(ConvNorm(width, width, 3), nn.Conv2d(width, anchors * 4, 3, padding=1))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        features = []
        x = image
        for stage, lateral in zip(self.stages, self.lateral, strict=True):
            x = stage(x)
            features.append(lateral(x))
        for level in (1, 0):
            features[level] = features[level] + F.interpolate(features[level + 1], scale_factor=2.0, mode="nearest")
        levels = [smooth(feature) for smooth, feature in zip(self.smooth, features, strict=True)]
        scores = [self.scores(level).permute(0, 2, 3, 1).reshape(len(image), -1, self.classes) for level in levels]
        boxes = [self.boxes(level).permute(0, 2, 3, 1).reshape(len(image), -1, 4) for level in levels]
        return torch.sigmoid(torch.cat(scores, dim=1)), torch.cat(boxes, dim=1)


def retinanet_mobilenet_v2() -> nn.Module:
    return PyramidDetector()


def espcn_x3() -> nn.Module:
    """Shi et al. 2016, arXiv:1609.05158, section 3: luminance only, three layers, pixel shuffle by 3."""
    return nn.Sequential(
        *(nn.Conv2d(1, 64, 5, padding=2), nn.Tanh(), nn.Conv2d(64, 32, 3, padding=1), nn.Tanh()),
        *(nn.Conv2d(32, 9, 3, padding=1), nn.PixelShuffle(3)),
    )


class EdsrBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class Edsr(nn.Module):
    """Lim et al. 2017, arXiv:1707.02921, table 1: residual blocks without norms, pixel shuffle by 2."""

    def __init__(self, depth: int = 16, width: int = 64) -> None:
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(*(EdsrBlock(width) for _ in range(depth)), nn.Conv2d(width, width, 3, padding=1))
        self.tail = nn.Sequential(
            nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)
        )

    def forward(self, image: Tensor) -> Tensor:
        x = self.head(image)
        return self.tail(x + self.body(x))


def edsr_baseline_x2() -> nn.Module:
    return Edsr()
