"""Points, series, speech, words and tables: PointNet, TCN, WaveNet, LSTM, Conformer, T5, DLRM and others."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.blocks import Attention, FeedForward
from benchmarks.networks.language import CausalDecoder


def _points(*widths: int) -> list[nn.Module]:
    """Layers of every point by itself: 1×1 convolution, norm, ReLU."""
    layers: list[nn.Module] = []
    for in_channels, out_channels in pairwise(widths):
        layers += [nn.Conv1d(in_channels, out_channels, 1), nn.BatchNorm1d(out_channels), nn.ReLU()]
    return layers


class Maximum(nn.Module):
    """(batch, channels, points) → (batch, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(dim=2)


class Aligned(nn.Module):
    """Points turned by a matrix that is computed from all of them; it starts from the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(*_points(channels, 64, 128, 1024), Maximum()),
            *(nn.Linear(1024, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 256), nn.BatchNorm1d(256)),
            *(nn.ReLU(), nn.Linear(256, channels * channels)),
        )
        self.identity: Tensor
        self.register_buffer("identity", torch.eye(channels), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        matrix = self.layers(x).reshape(x.shape[0], x.shape[1], x.shape[1]) + self.identity
        return (x.transpose(1, 2) @ matrix).transpose(1, 2)


def pointnet() -> nn.Module:
    """Qi et al. 2017, arXiv:1612.00593, figure 2, for 40 classes."""
    head = [nn.Linear(1024, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, 256), nn.BatchNorm1d(256), nn.ReLU()]
    trunk = [Aligned(3), *_points(3, 64, 64), Aligned(64), *_points(64, 64, 128, 1024), Maximum()]
    return nn.Sequential(*trunk, *head, nn.Linear(256, 40))


class CausalConv(nn.Module):
    """A dilated convolution that sees the past alone."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1) -> None:
        super().__init__()
        self.past = (kernel_size - 1) * dilation
        self.convolution = nn.Conv1d(in_channels, out_channels, kernel_size, dilation=dilation)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution(F.pad(x, (self.past, 0)))


class TemporalBlock(nn.Module):
    def __init__(self, in_channels: int, width: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *(CausalConv(in_channels, width, kernel_size, dilation), nn.ReLU()),
            *(CausalConv(width, width, kernel_size, dilation), nn.ReLU()),
        )
        self.shortcut = nn.Identity() if in_channels == width else nn.Conv1d(in_channels, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


class LastStep(nn.Module):
    """(batch, channels, steps) → (batch, channels)."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, -1]


def tcn() -> nn.Module:
    """Bai et al. 2018, arXiv:1803.01271, table 2 (sequential MNIST), weight norms dissolved."""
    blocks = [TemporalBlock(1 if level == 0 else 25, 25, 7, 2**level) for level in range(8)]
    return nn.Sequential(*blocks, LastStep(), nn.Linear(25, 10))


class GatedLayer(nn.Module):
    """tanh of one dilated convolution times sigmoid of another; gives what goes on and what is skipped out."""

    def __init__(self, width: int, skipped: int, dilation: int) -> None:
        super().__init__()
        self.both = CausalConv(width, 2 * width, 2, dilation)
        self.residual = nn.Conv1d(width, width, 1)
        self.skip = nn.Conv1d(width, skipped, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        filtered, gate = self.both(x).chunk(2, dim=1)
        y = torch.tanh(filtered) * torch.sigmoid(gate)
        return x + self.residual(y), self.skip(y)


class WaveNet(nn.Module):
    """van den Oord et al. 2016, arXiv:1609.03499, section 2; one pass over a known signal."""

    def __init__(self, width: int = 32, skipped: int = 128, doublings: int = 9, stacks: int = 2) -> None:
        super().__init__()
        self.first = CausalConv(1, width, 2)
        self.layers = nn.ModuleList(
            GatedLayer(width, skipped, 2**level) for _ in range(stacks) for level in range(doublings)
        )
        self.head = nn.Sequential(nn.ReLU(), nn.Conv1d(skipped, skipped, 1), nn.ReLU(), nn.Conv1d(skipped, 256, 1))

    def forward(self, signal: Tensor) -> Tensor:
        x = self.first(signal)
        total: Tensor | None = None
        for layer in self.layers:
            x, skip = layer(x)
            total = skip if total is None else total + skip
        assert total is not None
        return self.head(total)


def wavenet_small() -> nn.Module:
    return WaveNet()


class LstmClassifier(nn.Module):
    """Words through a bidirectional LSTM (Graves and Schmidhuber 2005); the maxima over time are classified."""

    def __init__(self, words: int = 10_000, width: int = 128, hidden: int = 128, classes: int = 5) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        self.recurrent = nn.LSTM(width, hidden, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, classes)

    def forward(self, input_ids: Tensor) -> Tensor:
        states, _ = self.recurrent(self.words(input_ids))
        return self.head(states.amax(dim=1))


def lstm_classifier() -> nn.Module:
    return LstmClassifier()


class DeepSpeech(nn.Module):
    """Amodei et al. 2016, arXiv:1512.02595: strided convolutions of a spectrogram, bidirectional GRUs, characters.

    Two GRUs of 256, not seven of 800; (batch, 1, frequencies, frames) → (batch, frames / 2, characters).
    """

    def __init__(self, frequencies: int = 80, hidden: int = 256, depth: int = 2, characters: int = 29) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            *(nn.Conv2d(1, 32, (41, 11), (2, 2), (20, 5), bias=False), nn.BatchNorm2d(32), nn.Hardtanh(0.0, 20.0)),
            *(nn.Conv2d(32, 32, (21, 11), (2, 1), (10, 5), bias=False), nn.BatchNorm2d(32), nn.Hardtanh(0.0, 20.0)),
        )
        self.recurrent = nn.GRU(32 * frequencies // 4, hidden, depth, batch_first=True, bidirectional=True)
        self.head = nn.Linear(2 * hidden, characters)

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = self.convolutions(spectrogram).flatten(1, 2).transpose(1, 2)
        states, _ = self.recurrent(x)
        return torch.log_softmax(self.head(states), dim=-1)


def deepspeech_small() -> nn.Module:
    return DeepSpeech()


class ConformerConvolution(nn.Module):
    """1×1 convolution with a gated linear unit, depthwise convolution, norm, swish, 1×1 convolution."""

    def __init__(self, width: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.layers = nn.Sequential(
            *(nn.Conv1d(width, 2 * width, 1), nn.GLU(dim=1)),
            nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, groups=width),
            *(nn.BatchNorm1d(width), nn.SiLU(), nn.Conv1d(width, width, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(self.norm(x).transpose(1, 2)).transpose(1, 2)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, convolution, half a feed-forward, norm."""

    def __init__(self, width: int, heads: int, kernel_size: int = 31) -> None:
        super().__init__()
        self.feed_forwards = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), FeedForward(width, 4 * width, nn.SiLU)) for _ in range(2)
        )
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.convolution = ConformerConvolution(width, kernel_size)
        self.last_norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + 0.5 * self.feed_forwards[0](x)
        x = x + self.attention(self.norm(x))
        x = x + self.convolution(x)
        return self.last_norm(x + 0.5 * self.feed_forwards[1](x))


class Conformer(nn.Module):
    """Gulati et al. 2020, arXiv:2005.08100, table 1 (S) at 4 of 16 blocks; its attention knows no relative positions.

    (batch, 80 frequencies, frames) → (batch, a quarter of the frames, width).
    """

    def __init__(self, width: int = 144, heads: int = 4, depth: int = 4) -> None:
        super().__init__()
        self.subsample = nn.Sequential(
            *(nn.Conv2d(1, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU())
        )
        self.project = nn.Linear(20 * width, width)
        self.blocks = nn.Sequential(*(ConformerBlock(width, heads) for _ in range(depth)))

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = self.subsample(spectrogram[:, None])
        return self.blocks(self.project(x.flatten(1, 2).transpose(1, 2)))


def conformer_short() -> nn.Module:
    return Conformer()


class EncoderBlock(nn.Module):
    """Norms before attention and feed-forward."""

    def __init__(self, width: int, heads: int, activation: type[nn.Module] = nn.GELU) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width, activation)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), bias)
        return x + self.feed_forward(self.norm2(x))


class WhisperEncoder(nn.Module):
    """Radford et al. 2022, arXiv:2212.04356, section 2.2: two convolutions, sines of the positions, encoder blocks."""

    def __init__(self, width: int, depth: int, heads: int, frames: int) -> None:
        super().__init__()
        self.first = nn.Conv1d(80, width, 3, padding=1)
        self.second = nn.Conv1d(width, width, 3, 2, 1)
        self.positions: Tensor
        half = width // 2
        angles = torch.arange(frames // 2)[:, None] * 10_000.0 ** (-torch.arange(half) / (half - 1))
        self.register_buffer("positions", torch.cat([angles.sin(), angles.cos()], dim=1), persistent=False)
        self.blocks = nn.Sequential(*(EncoderBlock(width, heads) for _ in range(depth)), nn.LayerNorm(width))

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = F.gelu(self.second(F.gelu(self.first(spectrogram))))
        return self.blocks(x.transpose(1, 2) + self.positions)


def whisper_tiny_encoder() -> nn.Module:
    """The tiny size on 6 of 30 seconds."""
    return WhisperEncoder(384, 4, 6, 600)


def opt_small() -> nn.Module:
    """Zhang et al. 2022, arXiv:2205.01068 (OPT), small: learned positions, ReLU, logits by the transposed embedding."""
    return CausalDecoder(4, 512, 8, 8_192, 128, lambda width, heads: EncoderBlock(width, heads, nn.ReLU))


class T5Layer(nn.Module):
    """RMS norms, attention without biases or scale, a feed-forward of ReLU."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (nn.RMSNorm(width, eps=1e-6) for _ in range(2))
        self.query, self.key, self.value, self.project = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        normed = self.norm1(x)
        q, k, v = (
            layer(normed).reshape(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = torch.softmax(q @ k.transpose(-2, -1) + bias, dim=-1) @ v
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        return x + self.down(F.relu(self.up(self.norm2(x))))


class T5Encoder(nn.Module):
    """Raffel et al. 2020, arXiv:1910.10683, section 2.1: positions are biases by distance, shared by all layers.

    Near distances have a bucket each, farther ones share buckets of growing size, to either side.
    """

    def __init__(self, depth: int, width: int, heads: int, hidden: int, context: int, buckets: int = 32) -> None:
        super().__init__()
        self.words = nn.Embedding(32_128, width)
        self.biases = nn.Embedding(buckets, heads)
        self.layers = nn.ModuleList(T5Layer(width, heads, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-6)
        self.buckets: Tensor
        offsets = torch.arange(context) - torch.arange(context)[:, None]
        side, exact = buckets // 2, buckets // 4
        far = exact + (offsets.abs().clamp(min=1) / exact).log() / math.log(128 / exact) * (side - exact)
        distance = torch.where(offsets.abs() < exact, offsets.abs(), far.long().clamp(max=side - 1))
        self.register_buffer("buckets", distance + side * (offsets > 0), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        tokens = input_ids.shape[1]
        bias = self.biases(self.buckets[:tokens, :tokens]).permute(2, 0, 1)[None]
        x = self.words(input_ids)
        for layer in self.layers:
            x = layer(x, bias)
        return self.norm(x)


def t5_small_encoder() -> nn.Module:
    return T5Encoder(6, 512, 8, 2048, 128)


def tabular_mlp() -> nn.Module:
    """Gorishniy et al. 2021, arXiv:2106.11959, section 3.1: 64 features, five layers of 512, dropout between."""
    layers: list[nn.Module] = []
    width = 64
    for _ in range(5):
        layers += [nn.Linear(width, 512), nn.ReLU(), nn.Dropout(0.1)]
        width = 512
    return nn.Sequential(*layers, nn.Linear(512, 10))


class Dlrm(nn.Module):
    """Naumov et al. 2019, arXiv:1906.00091, figure 1: embeddings of categories, products of all pairs, two MLPs."""

    def __init__(self, numbers: int = 13, categories: int = 26, rows: int = 1_000, width: int = 16) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(categories))
        self.bottom = nn.Sequential(
            *(nn.Linear(numbers, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 64), nn.ReLU()),
            *(nn.Linear(64, width), nn.ReLU()),
        )
        pairs = (categories + 1) * categories // 2
        self.top = nn.Sequential(
            *(nn.Linear(width + pairs, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 1)),
            nn.Sigmoid(),
        )
        self.pairs: Tensor
        below = torch.tril_indices(categories + 1, categories + 1, -1)
        self.register_buffer("pairs", below[0] * (categories + 1) + below[1], persistent=False)

    def forward(self, numbers: Tensor, categories: Tensor) -> Tensor:
        dense = self.bottom(numbers)
        vectors = torch.stack([dense, *(table(categories[:, i]) for i, table in enumerate(self.tables))], dim=1)
        products = (vectors @ vectors.transpose(1, 2)).flatten(1)
        return self.top(torch.cat([dense, products[:, self.pairs]], dim=1))


def dlrm_small() -> nn.Module:
    return Dlrm()
