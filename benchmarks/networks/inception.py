"""Inception V3: branches of rectangular windows (Szegedy et al. 2016, arXiv:1512.00567)."""

from __future__ import annotations

from torch import nn

from benchmarks.networks.blocks import Classifier
from benchmarks.networks.plain import Concatenated

Window = tuple[int, int]


def _conv(
    in_channels: int, out_channels: int, window: int | Window = 1, stride: int = 1, padding: int | Window = 0
) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, window, stride, padding, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels, eps=1e-3), nn.ReLU())


def _chain(in_channels: int, *steps: tuple[int, Window]) -> nn.Sequential:
    """Convolutions of (width, window), each padded to keep the size."""
    layers = []
    for width, window in steps:
        layers.append(_conv(in_channels, width, window, padding=(window[0] // 2, window[1] // 2)))
        in_channels = width
    return nn.Sequential(*layers)


def _pooled(in_channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.AvgPool2d(3, 1, 1), _conv(in_channels, width))


def _square(in_channels: int, pooled: int) -> nn.Module:
    """Figure 5: 1×1; 5×5; two 3×3; pooling."""
    return Concatenated(
        _conv(in_channels, 64),
        _chain(in_channels, (48, (1, 1)), (64, (5, 5))),
        _chain(in_channels, (64, (1, 1)), (96, (3, 3)), (96, (3, 3))),
        _pooled(in_channels, pooled),
    )


def _factorised(width: int) -> nn.Module:
    """Figure 6 with n = 7: 7×7 windows as 1×7 after 7×1, once and twice."""
    across, along, n = (1, 7), (7, 1), width
    return Concatenated(
        _conv(768, 192),
        _chain(768, (n, (1, 1)), (n, across), (192, along)),
        _chain(768, (n, (1, 1)), (n, along), (n, across), (n, along), (192, across)),
        _pooled(768, 192),
    )


def _expanded(in_channels: int) -> nn.Module:
    """Figure 7: 1×3 and 3×1 side by side."""

    def both(width: int) -> nn.Module:
        return Concatenated(_chain(width, (384, (1, 3))), _chain(width, (384, (3, 1))))

    return Concatenated(
        _conv(in_channels, 320),
        nn.Sequential(_conv(in_channels, 384), both(384)),
        nn.Sequential(_chain(in_channels, (448, (1, 1)), (384, (3, 3))), both(384)),
        _pooled(in_channels, 192),
    )


def inception_v3() -> nn.Module:
    """Szegedy et al. 2016, arXiv:1512.00567, table 1, for 299×299 images and without the auxiliary head."""
    return nn.Sequential(
        *(_conv(3, 32, 3, 2), _conv(32, 32, 3), _conv(32, 64, 3, padding=1), nn.MaxPool2d(3, 2)),
        *(_conv(64, 80), _conv(80, 192, 3), nn.MaxPool2d(3, 2)),
        *(_square(192, 32), _square(256, 64), _square(288, 64)),
        Concatenated(
            _conv(288, 384, 3, 2),
            nn.Sequential(_chain(288, (64, (1, 1)), (96, (3, 3))), _conv(96, 96, 3, 2)),
            nn.MaxPool2d(3, 2),
        ),
        *(_factorised(128), _factorised(160), _factorised(160), _factorised(192)),
        Concatenated(
            nn.Sequential(_conv(768, 192), _conv(192, 320, 3, 2)),
            nn.Sequential(_chain(768, (192, (1, 1)), (192, (1, 7)), (192, (7, 1))), _conv(192, 192, 3, 2)),
            nn.MaxPool2d(3, 2),
        ),
        *(_expanded(1280), _expanded(2048)),
        Classifier(2048),
    )
