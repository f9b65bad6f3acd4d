"""Connectors: small networks that bring a student's feature map to where its teacher's can be compared with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from akd_deploy.errors import UnknownNameError

MOST_CHANNELS = 512
"""Inside a connector."""


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """(batch, channels, height, width) to another height × width by the nearest position."""
    if tuple(x.shape[-2:]) == size:
        return x
    (down, down_rest), (across, across_rest) = (divmod(to, by) for to, by in zip(size, x.shape[-2:], strict=True))
    if down_rest or across_rest:
        return F.interpolate(x, size, mode="nearest")
    # Several times as large: positions are repeated, which takes a third of what the interpolation does.
    batch, channels, height, width = x.shape
    repeated = x[:, :, :, None, :, None].expand(batch, channels, height, down, width, across)
    return repeated.reshape(batch, channels, *size)


class _Resized(nn.Module):
    """To height × width by the nearest position; `leaves` a map that these are whole multiples of as coarse as it is,
    for a loss that knows how to compare it."""

    def __init__(self, size: tuple[int, int], leaves: bool = False) -> None:
        super().__init__()
        self.size, self.leaves = size, leaves

    def forward(self, x: Tensor) -> Tensor:
        if self.leaves and not any(to % by for to, by in zip(self.size, x.shape[-2:], strict=True)):
            return x
        return resized(x, self.size)


class _SpatialAttention(nn.Module):
    """x times a map of weights, one for each position, that a 1×1 convolution of x makes."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(channels, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weigh(x)


def _convolution(inside: int, outside: int, window: int, activated: bool) -> list[nn.Module]:
    layers: list[nn.Module] = [
        nn.Conv2d(inside, outside, window, padding=window // 2, bias=False),
        nn.BatchNorm2d(outside),
    ]
    return [*layers, nn.ReLU()] if activated else layers


def _linear(inside: int, outside: int, size: tuple[int, int]) -> nn.Module:
    return nn.Sequential(*_convolution(inside, outside, 1, activated=False), _Resized(size, leaves=True))


def _attention(inside: int, outside: int, size: tuple[int, int]) -> nn.Module:
    between = min(MOST_CHANNELS, inside, outside)
    return nn.Sequential(
        *_convolution(inside, between, 3, activated=True),
        _SpatialAttention(between),
        _Resized(size),
        *_convolution(between, outside, 3, activated=False),
    )


def _complex(inside: int, outside: int, size: tuple[int, int]) -> nn.Module:
    between = min(MOST_CHANNELS, inside, outside)
    return nn.Sequential(
        *_convolution(inside, between, 3, activated=True),
        _SpatialAttention(between),
        *_convolution(between, between, 3, activated=True),
        _Resized(size),
        *_convolution(between, outside, 3, activated=False),
    )


TRANSFORMS: Mapping[str, Callable[[int, int, tuple[int, int]], nn.Module]] = {
    "linear": _linear,
    "attention": _attention,
    "complex": _complex,
}
"""Name → a connector from so many channels to so many, of height × width. "linear" is a 1×1 convolution, and leaves a
map that is coarser by whole factors so; "attention" has two 3×3 convolutions with spatial attention between them,
"complex" three, as DistPro's release uses (Deng et al. 2022, arXiv:2204.05547)."""


def connector(
    transform: str, inside: int, outside: int, size: tuple[int, int], generator: torch.Generator
) -> nn.Module:
    """A fresh connector: He normal weights, zero biases.

    Raises:
        UnknownNameError: no such transform.
    """
    if transform not in TRANSFORMS:
        raise UnknownNameError("transform", transform, TRANSFORMS)
    made = TRANSFORMS[transform](inside, outside, size)
    for module in made.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return made
