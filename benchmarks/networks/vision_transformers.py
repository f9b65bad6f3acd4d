"""Image networks of tokens: ViT, DeiT, Swin, MLP-Mixer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.networks.blocks import Attention, FeedForward


class EncoderBlock(nn.Module):
    """Attention and feed-forward, each behind its layer norm and beside its input."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class VisionTransformer(nn.Module):
    """Dosovitskiy et al. 2020, arXiv:2010.11929: 16×16 patches of a 224×224 image and a class token."""

    def __init__(self, width: int, heads: int, depth: int = 12) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, 14 * 14 + 1, width))
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(image.shape[0], -1, -1), tokens], dim=1)
        return self.head(self.norm(self.blocks(tokens + self.positions))[:, 0])


def vit_tiny_16() -> nn.Module:
    return VisionTransformer(192, 3)


def deit_small_16() -> nn.Module:
    """Touvron et al. 2021, arXiv:2012.12877, table 1, without the distillation token: ViT-S/16."""
    return VisionTransformer(384, 6)


class SwinBlock(nn.Module):
    """Attention within 7×7 windows, shifted by half a window in every other block.

    Liu et al. 2021, arXiv:2103.14030, section 3.2. Tokens are (batch, height, width, channels).
    """

    def __init__(self, side: int, width: int, heads: int, shifted: bool, window: int = 7) -> None:
        super().__init__()
        self.side, self.window = side, window
        self.relative_index: Tensor
        self.mask: Tensor
        self.shift = window // 2 if shifted and side > window else 0
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)
        self.relative_bias = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_index", self._relative_index(), persistent=False)
        if self.shift:
            self.register_buffer("mask", self._mask(), persistent=False)

    def _relative_index(self) -> Tensor:
        """(window², window²): which row of the bias belongs to a pair of positions."""
        axis = torch.arange(self.window)
        y, x = (grid.flatten() for grid in torch.meshgrid(axis, axis, indexing="ij"))
        dy, dx = (at[:, None] - at[None, :] + self.window - 1 for at in (y, x))
        return dy * (2 * self.window - 1) + dx

    def _mask(self) -> Tensor:
        """(windows, 1, window², window²): −100 between tokens that only the shift has made neighbours."""
        band = torch.zeros(self.side, dtype=torch.long)
        band[-self.window :] = 1
        band[-self.shift :] = 2
        region = (3 * band[:, None] + band[None, :]).reshape(1, self.side, self.side, 1)
        region = self._windows(region).squeeze(-1)
        return (region[:, None, :, None] != region[:, None, None, :]).float() * -100.0

    def _windows(self, x: Tensor) -> Tensor:
        batch, side, _, width = x.shape
        n = side // self.window
        x = x.reshape(batch, n, self.window, n, self.window, width).transpose(2, 3)
        return x.reshape(batch * n * n, self.window**2, width)

    def _unwindowed(self, x: Tensor, batch: int) -> Tensor:
        n = self.side // self.window
        x = x.reshape(batch, n, n, self.window, self.window, x.shape[-1]).transpose(2, 3)
        return x.reshape(batch, self.side, self.side, x.shape[-1])

    def _attended(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), (1, 2))
        tokens = self.window**2
        bias = self.relative_bias[self.relative_index.flatten()].reshape(1, tokens, tokens, -1).permute(0, 3, 1, 2)
        if self.shift:
            bias = (bias + self.mask).repeat(batch, 1, 1, 1)
        x = self._unwindowed(self.attention(self._windows(x), bias), batch)
        return torch.roll(x, (self.shift, self.shift), (1, 2)) if self.shift else x

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attended(self.norm1(x))
        return x + self.feed_forward(self.norm2(x))


class PatchMerging(nn.Module):
    """Every 2×2 neighbourhood becomes one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduce = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]]
        return self.reduce(self.norm(torch.cat(corners, dim=-1)))


class Swin(nn.Module):
    """Liu et al. 2021, arXiv:2103.14030, table 7."""

    def __init__(self, width: int = 96, depths: tuple[int, ...] = (2, 2, 6, 2)) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.patch_norm = nn.LayerNorm(width)
        layers: list[nn.Module] = []
        side = 56
        for stage, depth in enumerate(depths):
            if stage > 0:
                layers.append(PatchMerging(width))
                width, side = 2 * width, side // 2
            layers += [SwinBlock(side, width, width // 32, shifted=block % 2 == 1) for block in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_norm(self.patches(image).permute(0, 2, 3, 1))
        return self.head(self.norm(self.layers(x)).mean(dim=(1, 2)))


def swin_tiny() -> nn.Module:
    return Swin()


class MixerBlock(nn.Module):
    """Tolstikhin et al. 2021, arXiv:2105.01601, figure 1: one feed-forward over tokens, one over channels."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.over_tokens = FeedForward(tokens, width // 2)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.over_channels = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.over_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.over_channels(self.norm2(x))


class Mixer(nn.Module):
    def __init__(self, width: int = 512, depth: int = 8) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 16, 16)
        self.blocks = nn.Sequential(*(MixerBlock(14 * 14, width) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        tokens = self.patches(image).flatten(2).transpose(1, 2)
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


def mixer_small_16() -> nn.Module:
    return Mixer()
