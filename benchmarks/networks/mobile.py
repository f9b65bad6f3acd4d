"""Networks for phones: MobileNetV1 to V3, MnasNet, EfficientNet-B0, EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from benchmarks.networks.blocks import Activation, Classifier, ConvNorm, InvertedResidual, SqueezeExcite, round_channels


def mobilenet_v1() -> nn.Module:
    """Howard et al. 2017, arXiv:1704.04861, table 1: depthwise separable convolutions, no residual."""
    layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2)]
    channels = 32
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    for width, stride in zip(widths, (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1), strict=True):
        layers += [ConvNorm(channels, channels, 3, stride, groups=channels), ConvNorm(channels, width)]
        channels = width
    return nn.Sequential(*layers, Classifier(channels))


def mobilenet_v2() -> nn.Module:
    """Sandler et al. 2018, arXiv:1801.04381, table 2."""
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2, activation=nn.ReLU6)]
    channels = 32
    for expansion, width, depth, stride in rows:
        for block in range(depth):
            layers.append(
                InvertedResidual(channels, width, expansion * channels, 3, stride if block == 0 else 1, nn.ReLU6)
            )
            channels = width
    return nn.Sequential(*layers, ConvNorm(channels, 1280, activation=nn.ReLU6), Classifier(1280))


Row = tuple[int, int, int, bool, Activation, int]
"""Kernel size, expanded width, output width, gate, activation, stride: a row of MobileNetV3's tables."""

_LARGE: tuple[Row, ...] = (
    (3, 16, 16, False, nn.ReLU, 1),
    (3, 64, 24, False, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 1),
    (5, 72, 40, True, nn.ReLU, 2),
    (5, 120, 40, True, nn.ReLU, 1),
    (5, 120, 40, True, nn.ReLU, 1),
    (3, 240, 80, False, nn.Hardswish, 2),
    (3, 200, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 184, 80, False, nn.Hardswish, 1),
    (3, 480, 112, True, nn.Hardswish, 1),
    (3, 672, 112, True, nn.Hardswish, 1),
    (5, 672, 160, True, nn.Hardswish, 2),
    (5, 960, 160, True, nn.Hardswish, 1),
    (5, 960, 160, True, nn.Hardswish, 1),
)
_SMALL: tuple[Row, ...] = (
    (3, 16, 16, True, nn.ReLU, 2),
    (3, 72, 24, False, nn.ReLU, 2),
    (3, 88, 24, False, nn.ReLU, 1),
    (5, 96, 40, True, nn.Hardswish, 2),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 240, 40, True, nn.Hardswish, 1),
    (5, 120, 48, True, nn.Hardswish, 1),
    (5, 144, 48, True, nn.Hardswish, 1),
    (5, 288, 96, True, nn.Hardswish, 2),
    (5, 576, 96, True, nn.Hardswish, 1),
    (5, 576, 96, True, nn.Hardswish, 1),
)


def _hard_gate(channels: int) -> nn.Module:
    return SqueezeExcite(channels, round_channels(channels / 4), gate=nn.Hardsigmoid)


def _mobilenet_v3(rows: tuple[Row, ...], head: int, hidden: int) -> nn.Module:
    """Howard et al. 2019, arXiv:1905.02244, tables 1 and 2."""
    layers: list[nn.Module] = [ConvNorm(3, 16, 3, 2, activation=nn.Hardswish)]
    channels = 16
    for kernel_size, expanded, width, gated, activation, stride in rows:
        excite = _hard_gate if gated else None
        layers.append(InvertedResidual(channels, width, expanded, kernel_size, stride, activation, excite))
        channels = width
    return nn.Sequential(
        *layers,
        ConvNorm(channels, head, activation=nn.Hardswish),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(head, hidden), nn.Hardswish(), nn.Linear(hidden, 1000)),
    )


def mobilenet_v3_large() -> nn.Module:
    return _mobilenet_v3(_LARGE, 960, 1280)


def mobilenet_v3_small() -> nn.Module:
    return _mobilenet_v3(_SMALL, 576, 1024)


Stage = tuple[int, int, int, int, int, bool]
"""Kernel size, expansion, width, depth, stride, gate."""


def _from_stages(
    stages: tuple[Stage, ...], activation: Activation, gate: Callable[[int, int], nn.Module] | None = None
) -> nn.Module:
    """Stem of 32, the stages, 1280 channels; `gate(expanded, input channels)` builds a gated stage's gate."""
    layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2, activation=activation)]
    channels = 32
    for kernel_size, expansion, width, depth, stride, gated in stages:
        for block in range(depth):
            unexpanded = channels

            def excite(expanded: int, unexpanded: int = unexpanded) -> nn.Module:
                assert gate is not None
                return gate(expanded, unexpanded)

            layers.append(
                InvertedResidual(
                    *(channels, width, expansion * channels, kernel_size, stride if block == 0 else 1, activation),
                    excite if gated else None,
                )
            )
            channels = width
    return nn.Sequential(*layers, ConvNorm(channels, 1280, activation=activation), Classifier(1280))


def mnasnet_b1() -> nn.Module:
    """Tan et al. 2019, arXiv:1807.11626: the network found without gates."""
    stages = (
        *((3, 1, 16, 1, 1, False), (3, 3, 24, 3, 2, False), (5, 3, 40, 3, 2, False), (5, 6, 80, 3, 2, False)),
        *((3, 6, 96, 2, 1, False), (5, 6, 192, 4, 2, False), (3, 6, 320, 1, 1, False)),
    )
    return _from_stages(stages, nn.ReLU)


def mnasnet_a1() -> nn.Module:
    """Tan et al. 2019, arXiv:1807.11626, figure 7: gates at a quarter of the block's input channels."""
    stages = (
        *((3, 1, 16, 1, 1, False), (3, 6, 24, 2, 2, False), (5, 3, 40, 3, 2, True), (3, 6, 80, 4, 2, False)),
        *((3, 6, 112, 2, 1, True), (5, 6, 160, 3, 2, True), (3, 6, 320, 1, 1, False)),
    )
    return _from_stages(stages, nn.ReLU, lambda expanded, unexpanded: SqueezeExcite(expanded, unexpanded // 4))


def _efficientnet_stages(gated: bool) -> tuple[Stage, ...]:
    return (
        *((3, 1, 16, 1, 1, gated), (3, 6, 24, 2, 2, gated), (5, 6, 40, 2, 2, gated), (3, 6, 80, 3, 2, gated)),
        *((5, 6, 112, 3, 1, gated), (5, 6, 192, 4, 2, gated), (3, 6, 320, 1, 1, gated)),
    )


def efficientnet_b0() -> nn.Module:
    """Tan and Le 2019, arXiv:1905.11946, table 1: SiLU, and gates in every block."""
    return _from_stages(
        _efficientnet_stages(gated=True),
        nn.SiLU,
        lambda expanded, unexpanded: SqueezeExcite(expanded, unexpanded // 4, nn.SiLU),
    )


def efficientnet_lite0() -> nn.Module:
    """EfficientNet-B0 as its authors adapted it to integer hardware: ReLU6, and no gates."""
    return _from_stages(_efficientnet_stages(gated=False), nn.ReLU6)
