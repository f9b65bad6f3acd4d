"""What networks of images begin and end with: few channels, many positions, and what stands between them and those."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from akd_deploy.models.graph_builder import Graph, Recipe


def _stem(window: int, channels: int = 3, **attributes: Any) -> Recipe:
    return lambda g: g("Relu", g.conv(g.given(channels, g.extent, g.extent), channels, g.width, window, **attributes))


def _patches(size: int) -> Recipe:
    """As transformers cut an image into tokens."""

    def cut(g: Graph) -> str:
        image, weight = g.given(3, g.extent, g.extent), g.weight(g.width, 3, size, size)
        patches = g("Conv", image, weight, g.weight(g.width), kernel_shape=[size] * 2, strides=[size] * 2)
        tokens = g("Transpose", g("Reshape", patches, g.whole(0, g.width, -1)), perm=[0, 2, 1])
        return g("LayerNormalization", tokens, g.weight(g.width), g.weight(g.width), axis=-1)

    return cut


def _normalized(g: Graph) -> str:
    centred = g("Sub", g.given(3, g.extent, g.extent), g.weight(3, 1, 1))
    return g.conv(g("Div", centred, g.constant([[[0.2]], [[0.3]], [[0.4]]])), 3, g.width, 3, strides=[2, 2])


def _wide(g: Graph) -> str:
    return g("Relu", g.conv(g.given(3, g.extent, g.extent), 3, g.width))


def _head(out: int, window: int, last: str = "") -> Recipe:
    def end(g: Graph) -> str:
        mapped = g.conv(_wide(g), g.width, out, window)
        return g(last, mapped) if last else mapped

    return end


def _shuffled(factor: int, out: int, mode: str) -> Recipe:
    def shuffle(g: Graph) -> str:
        mapped = g.conv(_wide(g), g.width, out * factor**2, 3)
        return g("DepthToSpace", mapped, blocksize=factor, mode=mode)

    return shuffle


def _upsampled(window: int, factor: int, out: int, last: str = "") -> Recipe:
    def upsample(g: Graph) -> str:
        spread = g("ConvTranspose", _wide(g), g.weight(g.width, out, window, window), g.weight(out),
                   kernel_shape=[window] * 2, strides=[factor] * 2, pads=[(window - factor + 1) // 2] * 4,
                   output_padding=[(window - factor) % 2] * 2)  # fmt: skip
        return g(last, spread) if last else spread

    return upsample


IMAGE_OPERATORS: Mapping[str, Recipe] = MappingProxyType({
    "Stem3": _stem(3), "Stem3Strided": _stem(3, strides=[2, 2]), "Stem5": _stem(5),
    "Stem7Strided": _stem(7, strides=[2, 2]), "Stem9": _stem(9), "Stem11Strided": _stem(11, strides=[4, 4]),
    "GreyStem3": _stem(3, 1), "GreyStem5": _stem(5, 1), "PairStem3": _stem(3, 2), "StackedStem3": _stem(3, 12),
    "Patches4": _patches(4), "Patches8": _patches(8), "Patches16": _patches(16), "NormalizedStem": _normalized,
    "HeadOne1": _head(1, 1), "HeadOne3": _head(1, 3), "HeadTwo3": _head(2, 3), "HeadColour3": _head(3, 3),
    "HeadColour9": _head(3, 9), "HeadColourTanh": _head(3, 3, "Tanh"), "HeadOneSigmoid": _head(1, 1, "Sigmoid"),
    "HeadClasses": _head(21, 1), "HeadClassesSoftmax": lambda g: g("Softmax", _head(21, 1)(g), axis=1),
    "PixelShuffle2": _shuffled(2, 3, "CRD"), "PixelShuffle3": _shuffled(3, 1, "CRD"),
    "DepthToSpace4": _shuffled(4, 3, "DCR"),
    "UpsampledColour4": _upsampled(4, 2, 3, "Tanh"), "UpsampledOne9": _upsampled(9, 3, 1),
    "UpsampledClasses": _upsampled(4, 2, 21),
})  # fmt: skip
"""Name → what comes after an image."""
