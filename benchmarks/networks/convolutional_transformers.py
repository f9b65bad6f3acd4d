"""Networks between convolution and attention: ConvNeXt, PoolFormer, MobileViT."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.blocks import Attention, Classifier, ConvNorm, FeedForward, InvertedResidual, LayerNormChannels


class ConvNeXtBlock(nn.Module):
    """Depthwise 7×7, layer norm, feed-forward, scale per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width, 4 * width)
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.feed_forward(self.norm(self.depthwise(x).permute(0, 2, 3, 1)))
        return x + (self.scale * y).permute(0, 3, 1, 2)


def _convnext(depths: tuple[int, ...], widths: tuple[int, ...]) -> nn.Module:
    """Liu et al. 2022, arXiv:2201.03545, section 3."""
    layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 4, 4), LayerNormChannels(widths[0])]
    for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
        if stage > 0:
            layers += [LayerNormChannels(widths[stage - 1]), nn.Conv2d(widths[stage - 1], width, 2, 2)]
        layers += [ConvNeXtBlock(width) for _ in range(depth)]
    head = [nn.AdaptiveAvgPool2d(1), LayerNormChannels(widths[-1]), nn.Flatten(), nn.Linear(widths[-1], 1000)]
    return nn.Sequential(*layers, *head)


def convnext_atto() -> nn.Module:
    """The smallest of ConvNeXt V2's sizes (Woo et al. 2023, arXiv:2301.00808), in ConvNeXt's own blocks."""
    return _convnext((2, 2, 6, 2), (40, 80, 160, 320))


def convnext_tiny() -> nn.Module:
    return _convnext((3, 3, 9, 3), (96, 192, 384, 768))


class PoolFormerBlock(nn.Module):
    """Average pooling in attention's place, group norm of one group, scales per channel."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(1, width)
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.norm2 = nn.GroupNorm(1, width)
        self.feed_forward = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))
        self.scale1 = nn.Parameter(torch.ones(width, 1, 1))
        self.scale2 = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.scale1 * (self.pool(normed) - normed)
        return x + self.scale2 * self.feed_forward(self.norm2(x))


class PoolFormer(nn.Module):
    """Yu et al. 2022, arXiv:2111.11418, table 1."""

    def __init__(self, depths: tuple[int, ...], widths: tuple[int, ...]) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, widths[0], 7, 4, 2)]
        for stage, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if stage > 0:
                layers.append(nn.Conv2d(widths[stage - 1], width, 3, 2, 1))
            layers += [PoolFormerBlock(width) for _ in range(depth)]
        self.layers = nn.Sequential(*layers, nn.GroupNorm(1, widths[-1]))
        self.head = nn.Linear(widths[-1], 1000)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.layers(image).mean(dim=(2, 3)))


def poolformer_s12() -> nn.Module:
    return PoolFormer((2, 2, 6, 2), (64, 128, 320, 512))


class MobileViTTokens(nn.Module):
    """One transformer layer on (batch × pixels, patches, width)."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 2 * width, nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class MobileViTBlock(nn.Module):
    """Convolutions, then attention between the same pixels of all 2×2 patches, then fusion with the input.

    Mehta and Rastegari 2022, arXiv:2110.02178, section 3.1. Odd sides are stretched to even ones and back.
    """

    def __init__(self, channels: int, width: int, depth: int) -> None:
        super().__init__()
        self.local = nn.Sequential(
            ConvNorm(channels, channels, 3, activation=nn.SiLU), nn.Conv2d(channels, width, 1, bias=False)
        )
        self.tokens = nn.Sequential(*(MobileViTTokens(width) for _ in range(depth)), nn.LayerNorm(width))
        self.project = ConvNorm(width, channels, activation=nn.SiLU)
        self.fuse = ConvNorm(2 * channels, channels, 3, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        y = self.local(x)
        batch, width, height, across = y.shape
        rows, columns = (height + 1) // 2, (across + 1) // 2
        odd = (2 * rows, 2 * columns) != (height, across)
        if odd:
            y = F.interpolate(y, (2 * rows, 2 * columns), mode="bilinear", align_corners=False)
        y = y.reshape(batch, width, rows, 2, columns, 2).permute(0, 3, 5, 2, 4, 1)
        y = self.tokens(y.reshape(batch * 4, rows * columns, width))
        y = y.reshape(batch, 2, 2, rows, columns, width).permute(0, 5, 3, 1, 4, 2)
        y = y.reshape(batch, width, 2 * rows, 2 * columns)
        if odd:
            y = F.interpolate(y, (height, across), mode="bilinear", align_corners=False)
        return self.fuse(torch.cat([x, self.project(y)], dim=1))


def mobilevit_xs() -> nn.Module:
    """Mehta and Rastegari 2022, arXiv:2110.02178, table 4."""

    def inverted(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
        return InvertedResidual(in_channels, out_channels, 4 * in_channels, 3, stride, nn.SiLU)

    return nn.Sequential(
        ConvNorm(3, 16, 3, 2, activation=nn.SiLU),
        *(inverted(16, 32), inverted(32, 48, 2), inverted(48, 48), inverted(48, 48)),
        *(inverted(48, 64, 2), MobileViTBlock(64, 96, 2)),
        *(inverted(64, 80, 2), MobileViTBlock(80, 120, 4)),
        *(inverted(80, 96, 2), MobileViTBlock(96, 144, 3)),
        ConvNorm(96, 384, activation=nn.SiLU),
        Classifier(384),
    )
