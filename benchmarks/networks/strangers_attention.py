"""Vision networks of other attention: PVTv2, CoAtNet, XCiT, gMLP."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.blocks import Attention, ConvNorm, FeedForward, SqueezeExcite


class ReducedAttention(nn.Module):
    """Attention to keys and values of an image made smaller by a strided convolution."""

    def __init__(self, width: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.reduce = nn.Conv2d(width, width, reduction, reduction) if reduction > 1 else None
        self.norm = nn.LayerNorm(width) if reduction > 1 else None

    def forward(self, x: Tensor, side: int) -> Tensor:
        batch, tokens, width = x.shape
        q = self.query(x).reshape(batch, tokens, self.heads, -1).transpose(1, 2)
        seen = x
        if self.reduce is not None and self.norm is not None:
            image = x.transpose(1, 2).reshape(batch, width, side, side)
            seen = self.norm(self.reduce(image).flatten(2).transpose(1, 2))
        k, v = self.key_value(seen).reshape(batch, -1, 2, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5, dim=-1)
        return self.project((weights @ v).transpose(1, 2).reshape(batch, tokens, width))


class PyramidBlock(nn.Module):
    """Reduced attention, then a feed-forward with a depthwise convolution inside."""

    def __init__(self, width: int, heads: int, reduction: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attention = ReducedAttention(width, heads, reduction)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.expand = nn.Linear(width, hidden)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = nn.Linear(hidden, width)

    def forward(self, x: Tensor, side: int) -> Tensor:
        x = x + self.attention(self.norm1(x), side)
        y = self.expand(self.norm2(x))
        image = y.transpose(1, 2).reshape(y.shape[0], -1, side, side)
        y = self.depthwise(image).flatten(2).transpose(1, 2)
        return x + self.contract(F.gelu(y))


class Pyramid(nn.Module):
    """Wang et al. 2022, arXiv:2106.13797, section 3 and table 1."""

    def __init__(self, widths: tuple[int, ...], heads: tuple[int, ...], depth: int = 2) -> None:
        super().__init__()
        self.embeddings, self.stages, self.norms = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        channels = 3
        for stage, (width, count) in enumerate(zip(widths, heads, strict=True)):
            kernel_size, stride = (7, 4) if stage == 0 else (3, 2)
            self.embeddings.append(nn.Conv2d(channels, width, kernel_size, stride, kernel_size // 2))
            hidden = (8, 8, 4, 4)[stage] * width
            reduction = (8, 4, 2, 1)[stage]
            self.stages.append(nn.ModuleList(PyramidBlock(width, count, reduction, hidden) for _ in range(depth)))
            self.norms.append(nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(2)))
            channels = width
        self.head = nn.Linear(channels, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = tokens = image
        for embedding, stage, norms in zip(self.embeddings, self.stages, self.norms, strict=True):
            assert isinstance(stage, nn.ModuleList)
            assert isinstance(norms, nn.ModuleList)
            embedded = embedding(x)
            tokens = norms[0](embedded.flatten(2).transpose(1, 2))
            for block in stage:
                tokens = block(tokens, embedded.shape[-1])
            tokens = norms[1](tokens)
            x = tokens.transpose(1, 2).reshape(embedded.shape)
        return self.head(tokens.mean(dim=1))


def pvt_v2_b0() -> nn.Module:
    return Pyramid((32, 64, 160, 256), (1, 2, 5, 8))


class PreNormInverted(nn.Module):
    """CoAtNet's MBConv: norm first, expansion 4, gate, stride in the expansion; a pooled shortcut."""

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.layers = nn.Sequential(
            nn.BatchNorm2d(in_channels),
            ConvNorm(in_channels, hidden, 1, stride, activation=nn.GELU),
            ConvNorm(hidden, hidden, 3, groups=hidden, activation=nn.GELU),
            SqueezeExcite(hidden, width, nn.GELU),
            nn.Conv2d(hidden, width, 1),
        )
        self.shortcut: nn.Module = (
            nn.Identity()
            if stride == 1
            else nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(in_channels, width, 1, bias=False))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.shortcut(x) + self.layers(x)


class RelativeBlock(nn.Module):
    """Transformer block of tokens of a square, biased by how far they lie apart."""

    def __init__(self, width: int, side: int, head_width: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, width // head_width)
        self.biases = nn.Parameter(torch.zeros(width // head_width, (2 * side - 1) ** 2))
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width)
        self.apart: Tensor
        places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")).flatten(1)
        down, across = (places[:, :, None] - places[:, None]) + side - 1
        self.register_buffer("apart", down * (2 * side - 1) + across, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), self.biases[:, self.apart])
        return x + self.feed_forward(self.norm2(x))


class Tokens(nn.Module):
    """An image halved and widened, its pixels as tokens through `blocks`, and an image again."""

    def __init__(self, in_channels: int, width: int, blocks: list[nn.Module]) -> None:
        super().__init__()
        self.reduce = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(in_channels, width, 1))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return self.blocks(x.flatten(2).transpose(1, 2)).transpose(1, 2).reshape(x.shape)


def coatnet_short() -> nn.Module:
    """Dai et al. 2021, arXiv:2106.04803, table 3 (CoAtNet-0) at depths 1, 2, 2, 1; its tokens are pooled unmixed."""
    stem = [ConvNorm(3, 64, 3, 2, activation=nn.GELU), nn.Conv2d(64, 64, 3, padding=1)]
    convolutions = [PreNormInverted(64, 96, 2), PreNormInverted(96, 192, 2), PreNormInverted(192, 192, 1)]
    blocks3: list[nn.Module] = [RelativeBlock(384, 14) for _ in range(2)]
    blocks4: list[nn.Module] = [RelativeBlock(768, 7)]
    tokens = [Tokens(192, 384, blocks3), Tokens(384, 768, blocks4)]
    return nn.Sequential(
        *stem, *convolutions, *tokens, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(768), nn.Linear(768, 1000)
    )


class CrossCovariance(nn.Module):
    """Attention between channels: queries and keys of unit length over the tokens."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Linear(width, 3 * width)
        self.project = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 4, 1)
        scores = F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1)
        mixed = torch.softmax(scores * self.temperature, dim=-1) @ v
        return self.project(mixed.permute(0, 3, 1, 2).reshape(batch, tokens, width))


class XcitBlock(nn.Module):
    """Cross-covariance attention, two depthwise convolutions between neighbours, feed-forward; each scaled."""

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        self.scales = nn.ParameterList(torch.ones(width) for _ in range(3))
        self.attention = CrossCovariance(width, heads)
        self.local = nn.Sequential(
            *(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.GELU(), nn.BatchNorm2d(width)),
            nn.Conv2d(width, width, 3, padding=1, groups=width),
        )
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.scales[0] * self.attention(self.norms[0](x))
        image = self.norms[1](x).transpose(1, 2).reshape(x.shape[0], -1, self.side, self.side)
        x = x + self.scales[1] * self.local(image).flatten(2).transpose(1, 2)
        return x + self.scales[2] * self.feed_forward(self.norms[2](x))


class ClassAttention(nn.Module):
    """The class token alone asks (Touvron et al. 2021, arXiv:2103.17239), and alone is fed forward."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.project = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.feed_forward = FeedForward(width, 4 * width)

    def forward(self, token: Tensor, x: Tensor) -> Tensor:
        seen = self.norm1(torch.cat([token, x], dim=1))
        batch, tokens, width = seen.shape
        q = self.query(seen[:, :1]).reshape(batch, 1, self.heads, -1).transpose(1, 2)
        k, v = self.key_value(seen).reshape(batch, tokens, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        weights = torch.softmax(q @ k.transpose(-2, -1) * (width // self.heads) ** -0.5, dim=-1)
        token = token + self.project((weights @ v).transpose(1, 2).reshape(batch, 1, width))
        return token + self.feed_forward(self.norm2(token))


class Xcit(nn.Module):
    """El-Nouby et al. 2021, arXiv:2106.09681, table 1; positions are learned here, not made of sines."""

    def __init__(self, width: int, depth: int, heads: int, side: int = 14) -> None:
        super().__init__()
        steps = [ConvNorm(3, width // 8, 3, 2, activation=nn.GELU)]
        steps += [ConvNorm(width // f, 2 * width // f, 3, 2, activation=nn.GELU if f > 2 else None) for f in (8, 4, 2)]
        self.embedding = nn.Sequential(*steps)
        self.positions = nn.Parameter(torch.zeros(side * side, width))
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(XcitBlock(width, heads, side) for _ in range(depth)))
        self.class_blocks = nn.ModuleList(ClassAttention(width, heads) for _ in range(2))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1000)

    def forward(self, image: Tensor) -> Tensor:
        x = self.blocks(self.embedding(image).flatten(2).transpose(1, 2) + self.positions)
        token = self.token.expand(x.shape[0], -1, -1)
        for block in self.class_blocks:
            token = block(token, x)
        return self.head(self.norm(token[:, 0]))


def xcit_nano_12() -> nn.Module:
    return Xcit(128, 12, 4)


class SpatialGating(nn.Module):
    """Half of the channels, mixed between tokens, scale the other half."""

    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mix = nn.Linear(tokens, tokens)

    def forward(self, x: Tensor) -> Tensor:
        kept, gate = x.chunk(2, dim=-1)
        return kept * self.mix(self.norm(gate).transpose(1, 2)).transpose(1, 2)


class GatedBlock(nn.Module):
    def __init__(self, width: int, tokens: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(nn.LayerNorm(width, eps=1e-6), nn.Linear(width, 6 * width), nn.GELU()),
            *(SpatialGating(3 * width, tokens), nn.Linear(3 * width, width)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class PatchTokens(nn.Module):
    """16×16 patches of an image as (batch, patches, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Conv2d(3, width, 16, 16)

    def forward(self, image: Tensor) -> Tensor:
        return self.embedding(image).flatten(2).transpose(1, 2)


class MeanHead(nn.Module):
    """The tokens' mean, normed, to classes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(x).mean(dim=1))


def gmlp_short(depth: int = 10) -> nn.Module:
    """Liu et al. 2021, arXiv:2105.08050, table 1 (gMLP-Ti, 128 wide) at 10 of its 30 layers."""
    return nn.Sequential(PatchTokens(128), *(GatedBlock(128, 196) for _ in range(depth)), MeanHead(128))


def gmlp_tiny() -> nn.Module:
    """At its published depth; here for its parameter count."""
    return gmlp_short(30)
