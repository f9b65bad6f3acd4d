"""Networks that move channels instead of computing them: ShuffleNetV2, GhostNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.networks.blocks import ConvNorm, SqueezeExcite, round_channels


def channel_shuffle(x: Tensor, groups: int = 2) -> Tensor:
    """Channels of all groups interleaved: (batch, channels, h, w) keeps its shape."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, groups, channels // groups, height, width)
    return x.transpose(1, 2).reshape(batch, channels, height, width)


class ShuffleUnit(nn.Module):
    """Half of the channels pass by, half go through a bottleneck; then all are shuffled.

    Ma et al. 2018, arXiv:1807.11164, figure 3 (c), and (d) where `stride` is 2.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.by: nn.Module | None = None
        entering = in_channels // 2
        if stride == 2:
            entering = in_channels
            self.by = nn.Sequential(
                ConvNorm(in_channels, in_channels, 3, 2, groups=in_channels, activation=None),
                ConvNorm(in_channels, half),
            )
        self.through = nn.Sequential(
            ConvNorm(entering, half),
            ConvNorm(half, half, 3, stride, groups=half, activation=None),
            ConvNorm(half, half),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.by is None:
            kept, changed = x.chunk(2, dim=1)
        else:
            kept, changed = self.by(x), x
        return channel_shuffle(torch.cat([kept, self.through(changed)], dim=1))


def _shufflenet_v2(widths: tuple[int, int, int]) -> nn.Module:
    """Ma et al. 2018, arXiv:1807.11164, table 5."""
    layers: list[nn.Module] = [ConvNorm(3, 24, 3, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 24
    for depth, width in zip((4, 8, 4), widths, strict=True):
        for block in range(depth):
            layers.append(ShuffleUnit(channels, width, 2 if block == 0 else 1))
            channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1024, 1000)]
    return nn.Sequential(*layers, ConvNorm(channels, 1024), *head)


def shufflenet_v2_x0_5() -> nn.Module:
    return _shufflenet_v2((48, 96, 192))


def shufflenet_v2_x1_0() -> nn.Module:
    return _shufflenet_v2((116, 232, 464))


class GhostModule(nn.Module):
    """Half of the output by a 1×1 convolution, the other half from it by a depthwise 3×3 (arXiv:1911.11907, 3.1)."""

    def __init__(self, in_channels: int, out_channels: int, active: bool) -> None:
        super().__init__()
        half = -(-out_channels // 2)
        self.out_channels = out_channels
        activation = nn.ReLU if active else None
        self.primary = ConvNorm(in_channels, half, activation=activation)
        self.cheap = ConvNorm(half, half, 3, groups=half, activation=activation)

    def forward(self, x: Tensor) -> Tensor:
        primary = self.primary(x)
        return torch.cat([primary, self.cheap(primary)], dim=1)[:, : self.out_channels]


class GhostBottleneck(nn.Module):
    """Ghost module, depthwise convolution where strided, gate, ghost module; beside a shortcut (section 3.2)."""

    def __init__(
        self, in_channels: int, expanded: int, out_channels: int, kernel_size: int, stride: int, gated: bool
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [GhostModule(in_channels, expanded, active=True)]
        if stride == 2:
            layers.append(ConvNorm(expanded, expanded, kernel_size, 2, groups=expanded, activation=None))
        if gated:
            layers.append(SqueezeExcite(expanded, round_channels(expanded / 4, 4), gate=nn.Hardsigmoid))
        layers.append(GhostModule(expanded, out_channels, active=False))
        self.layers = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride == 2 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                ConvNorm(in_channels, in_channels, kernel_size, stride, groups=in_channels, activation=None),
                ConvNorm(in_channels, out_channels, activation=None),
            )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + self.shortcut(x)


def ghostnet() -> nn.Module:
    """Han et al. 2020, arXiv:1911.11907, table 7."""
    rows = (  # kernel size, expanded, out, gate, stride
        *((3, 16, 16, False, 1), (3, 48, 24, False, 2), (3, 72, 24, False, 1), (5, 72, 40, True, 2)),
        *((5, 120, 40, True, 1), (3, 240, 80, False, 2), (3, 200, 80, False, 1), (3, 184, 80, False, 1)),
        *((3, 184, 80, False, 1), (3, 480, 112, True, 1), (3, 672, 112, True, 1), (5, 672, 160, True, 2)),
        *((5, 960, 160, False, 1), (5, 960, 160, True, 1), (5, 960, 160, False, 1), (5, 960, 160, True, 1)),
    )
    layers: list[nn.Module] = [ConvNorm(3, 16, 3, 2)]
    channels = 16
    for kernel_size, expanded, width, gated, stride in rows:
        layers.append(GhostBottleneck(channels, expanded, width, kernel_size, stride, gated))
        channels = width
    head = [nn.AdaptiveAvgPool2d(1), nn.Conv2d(960, 1280, 1), nn.ReLU(), nn.Flatten(), nn.Linear(1280, 1000)]
    return nn.Sequential(*layers, ConvNorm(channels, 960), *head)
