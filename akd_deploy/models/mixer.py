"""An MLP-Mixer: a teacher without convolutions, whose inductive bias is another one than the convolutional teacher's.

(Tolstikhin et al. 2021, arXiv:2105.01601, section 2.)
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from akd_deploy.errors import UsageError


@dataclass(frozen=True)
class MixerSettings:
    """Images of `resolution` are cut into squares of `patch` pixels, each a token of `width` numbers; in every one of
    `depth` blocks they mix over tokens by a hidden layer of `token_width`, and over channels by one of twice
    `width`."""

    in_channels: int = 3
    classes: int = 10
    resolution: int = 32
    patch: int = 4
    width: int = 96
    token_width: int = 64
    depth: int = 6

    def __post_init__(self) -> None:
        if min(asdict(self).values()) < 1 or self.classes < 2 or self.resolution % self.patch:
            raise UsageError(
                asked=f"a mixer of {asdict(self)}",
                found="a number that is too low, or a patch that does not divide the resolution",
                next="Give at least 2 classes, and a patch that divides the resolution.",
            )


class _Block(nn.Module):
    def __init__(self, tokens: int, settings: MixerSettings) -> None:
        super().__init__()
        width = settings.width
        self.norm_tokens, self.norm_channels = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens = nn.Sequential(
            nn.Linear(tokens, settings.token_width), nn.GELU(), nn.Linear(settings.token_width, tokens)
        )
        self.channels = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.norm_tokens(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.norm_channels(x))


class Mixer(nn.Module):
    """(batch, in_channels, resolution, resolution) float32 → (batch, classes) logits."""

    def __init__(self, settings: MixerSettings) -> None:
        super().__init__()
        self.settings = settings
        tokens = (settings.resolution // settings.patch) ** 2
        self.patches = nn.Conv2d(settings.in_channels, settings.width, settings.patch, stride=settings.patch)
        self.blocks = nn.Sequential(*(_Block(tokens, settings) for _ in range(settings.depth)))
        self.norm = nn.LayerNorm(settings.width)
        self.classifier = nn.Linear(settings.width, settings.classes)

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks(self.patches(images).flatten(2).transpose(1, 2))
        logits: Tensor = self.classifier(self.norm(x).mean(dim=1))
        return logits


def mixer(settings: MixerSettings, generator: torch.Generator) -> Mixer:
    """A network with fresh weights: normal of variance 1 / inputs, biases 0."""
    network = Mixer(settings)
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5, generator=generator)
            assert module.bias is not None
            nn.init.zeros_(module.bias)
    return network
