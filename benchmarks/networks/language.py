"""Networks of text: BERT encoders, DistilBERT, causal decoders, convolutions over characters."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.blocks import Attention, FeedForward

VOCABULARY = 30_522
"""WordPiece tokens of the published uncased BERT."""


class SelfAttention(nn.Module):
    """Attention with separate query, key and value layers, as BERT's checkpoints have it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.project = nn.Linear(width, width)

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        q, k, v = self._split(self.query(x)), self._split(self.key(x)), self._split(self.value(x))
        scores = q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5
        mixed = torch.softmax(scores + bias, dim=-1) @ v
        return self.project(mixed.transpose(1, 2).flatten(2))


class BertLayer(nn.Module):
    """Post-norm: each sum of a sublayer and its input is normed."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention = SelfAttention(width, heads)
        self.norm1 = nn.LayerNorm(width, eps=1e-12)
        self.feed_forward = FeedForward(width, 4 * width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = self.norm1(x + self.attention(x, bias))
        return self.norm2(x + self.feed_forward(x))


class Bert(nn.Module):
    """Devlin et al. 2019, arXiv:1810.04805; the small sizes are Turc et al. 2019, arXiv:1908.08962, table 1.

    `input_ids` and `attention_mask` are (batch, tokens) integers; the sentence of every token is the first.
    With `pooler` the output is the pooled first token, (batch, width), else all tokens, (batch, tokens, width).
    """

    def __init__(self, depth: int, width: int, heads: int, sentences: int = 2, pooler: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, width)
        self.positions = nn.Embedding(512, width)
        self.sentences = nn.Embedding(sentences, width) if sentences else None
        self.norm = nn.LayerNorm(width, eps=1e-12)
        self.layers = nn.ModuleList(BertLayer(width, heads) for _ in range(depth))
        self.pooler = nn.Linear(width, width) if pooler else None

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        x = self.words(input_ids) + self.positions.weight[: input_ids.shape[1]]
        if self.sentences is not None:
            x = x + self.sentences(torch.zeros_like(input_ids))
        x = self.norm(x)
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * torch.finfo(x.dtype).min
        for layer in self.layers:
            x = layer(x, bias)
        return x if self.pooler is None else torch.tanh(self.pooler(x[:, 0]))


def bert_tiny() -> nn.Module:
    return Bert(2, 128, 2)


def bert_mini() -> nn.Module:
    return Bert(4, 256, 4)


def bert_small() -> nn.Module:
    return Bert(4, 512, 8)


def bert_base() -> nn.Module:
    return Bert(12, 768, 12)


def distilbert() -> nn.Module:
    """Sanh et al. 2019, arXiv:1910.01108: every other layer of BERT-base, no sentences, no pooler."""
    return Bert(6, 768, 12, sentences=0, pooler=False)


class DecoderBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.feed_forward = FeedForward(width, 4 * width, lambda: nn.GELU(approximate="tanh"))

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), bias)
        return x + self.feed_forward(self.norm2(x))


class CausalDecoder(nn.Module):
    """GPT-2's network (Radford et al. 2019, "Language Models are Unsupervised Multitask Learners", section 2.3).

    (batch, tokens) integers → (batch, tokens, vocabulary) logits by the transposed embedding.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        heads: int,
        vocabulary: int,
        context: int,
        block: Callable[[int, int], nn.Module] = DecoderBlock,
    ) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.future: Tensor
        future = torch.full((context, context), torch.finfo(torch.float32).min).triu(1)
        self.register_buffer("future", future, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        tokens = input_ids.shape[1]
        x = self.words(input_ids) + self.positions.weight[:tokens]
        for block in self.blocks:
            x = block(x, self.future[:tokens, :tokens])
        return self.norm(x) @ self.words.weight.T


def gpt2() -> nn.Module:
    """The smallest published size; here for its parameter count."""
    return CausalDecoder(12, 768, 12, 50_257, 1024)


def gpt_20m() -> nn.Module:
    return CausalDecoder(8, 384, 6, 16_384, 128)


class LlamaBlock(nn.Module):
    """RMS norms, rotary positions, torch's own attention, a gated feed-forward; no biases."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.RMSNorm(width, eps=1e-5)
        self.query, self.key, self.value, self.project = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.norm2 = nn.RMSNorm(width, eps=1e-5)
        self.gate, self.up = (nn.Linear(width, hidden, bias=False) for _ in range(2))
        self.down = nn.Linear(hidden, width, bias=False)

    def _split(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        return x.reshape(batch, tokens, self.heads, width // self.heads).transpose(1, 2)

    def forward(self, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        normed = self.norm1(x)
        q, k, v = (self._split(layer(normed)) for layer in (self.query, self.key, self.value))
        q, k = (_rotated(vectors, cosines, sines) for vectors in (q, k))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.project(mixed.transpose(1, 2).flatten(2))
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))


def _rotated(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Each pair (first half, second half) of the last axis turned by its position's angle (arXiv:2104.09864)."""
    first, second = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-second, first], dim=-1) * sines


class Llama(nn.Module):
    """Touvron et al. 2023, arXiv:2302.13971: (batch, tokens) integers → (batch, tokens, vocabulary) logits."""

    def __init__(self, depth: int, width: int, heads: int, hidden: int, context: int, tied: bool = True) -> None:
        super().__init__()
        self.words = nn.Embedding(32_000, width)
        self.blocks = nn.ModuleList(LlamaBlock(width, heads, hidden) for _ in range(depth))
        self.norm = nn.RMSNorm(width, eps=1e-5)
        self.head = nn.Linear(width, 32_000, bias=False)
        if tied:
            self.head.weight = self.words.weight
        self.cosines: Tensor
        self.sines: Tensor
        half = width // heads // 2
        angles = torch.arange(context)[:, None] * 10_000.0 ** (-torch.arange(half) / half)
        self.register_buffer("cosines", torch.cat([angles, angles], dim=-1).cos(), persistent=False)
        self.register_buffer("sines", torch.cat([angles, angles], dim=-1).sin(), persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        tokens = input_ids.shape[1]
        x = self.words(input_ids)
        for block in self.blocks:
            x = block(x, self.cosines[:tokens], self.sines[:tokens])
        return self.head(self.norm(x))


def llama_7b() -> nn.Module:
    """The smallest published size; here for its parameter count."""
    return Llama(32, 4096, 32, 11_008, 2048, tied=False)


def llama_15m() -> nn.Module:
    return Llama(6, 288, 6, 768, 256)


def char_cnn() -> nn.Module:
    """Zhang et al. 2015, arXiv:1509.01626, tables 1 and 2, small: 70 characters × 1014 places, 14 classes."""
    layers: list[nn.Module] = []
    channels = 70
    for kernel_size, pooled in ((7, True), (7, True), (3, False), (3, False), (3, False), (3, True)):
        layers += [nn.Conv1d(channels, 256, kernel_size), nn.ReLU(), *([nn.MaxPool1d(3)] if pooled else [])]
        channels = 256
    head = [nn.Linear(34 * 256, 1024), nn.ReLU(), nn.Dropout(), nn.Linear(1024, 1024), nn.ReLU(), nn.Dropout()]
    return nn.Sequential(*layers, nn.Flatten(), *head, nn.Linear(1024, 14))
