"""The mobile space: a heterogeneous stack of blocks in the spirit of MnasNet and AKD.

Per block: the operator, kernel size, squeeze-excite ratio, skip, number of layers, and width (Tan et al.
2019, arXiv:1807.11626, section 4; Liu et al. 2020, arXiv:1911.09074). Sized by resolution and blocks, so that one
space serves 12×12 digits and 224×224 photographs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from akd_deploy.architecture import Architecture
from akd_deploy.search_space.base import Layer, SearchSpace, Segment, Value
from akd_deploy.search_space.settings import Rules, are_all, are_options, checked_settings, is_count, is_number

OPERATORS = ("conv", "dw_separable", "mbconv3", "mbconv6")
SKIPS = ("none", "identity", "pool")
ACTIVATIONS = ("relu", "hardswish")
CHANNEL_MULTIPLE = 4
"""Widths are rounded to this many channels."""

_DEFAULTS: Mapping[str, Any] = {
    "resolution": 12,
    "in_channels": 1,
    "classes": 10,
    "stem_width": 8,
    "stem_stride": 1,
    "widths": [16, 24, 48],
    "strides": [1, 2, 2],
    "layers": [[1, 2], [1, 2], [1, 2]],
    "operators": list(OPERATORS),
    "kernels": [3, 5],
    "se_ratios": [0.0, 0.25],
    "skips": ["none", "identity", "pool"],
    "width_multipliers": [0.5, 0.75, 1.0, 1.25],
    "activation": "relu",
}

MOBILENET_SETTINGS: Mapping[str, Any] = {
    "resolution": 224,
    "in_channels": 3,
    "classes": 1000,
    "stem_width": 32,
    "stem_stride": 2,
    "widths": [16, 24, 32, 64, 96, 160, 320],
    "strides": [1, 2, 2, 2, 1, 2, 1],
    "layers": [[1, 2], [1, 2, 3], [2, 3, 4], [3, 4, 5], [2, 3, 4], [2, 3, 4], [1, 2]],
    "kernels": [3, 5, 7],
    "width_multipliers": [0.75, 1.0, 1.25],
}
"""The seven blocks of MobileNetV2 with AKD's choices around them, for 224×224 images."""


_RULES: Rules = {
    **{
        key: ("a whole number ≥ 1", is_count)
        for key in ("resolution", "in_channels", "classes", "stem_width", "stem_stride")
    },
    "widths": ("a list of numbers ≥ 1", lambda v: are_all(v, lambda n: is_number(n, 1))),
    "strides": ("a list of whole numbers ≥ 1", lambda v: are_all(v, is_count)),
    "layers": (
        "a list of lists of different whole numbers ≥ 1",
        lambda v: are_all(v, lambda options: are_options(options, is_count)),
    ),
    # With an even window no padding gives ⌈size / stride⌉.
    "kernels": ("different odd whole numbers", lambda v: are_options(v, lambda k: is_count(k) and k % 2 == 1)),
    "se_ratios": ("different numbers ≥ 0", lambda v: are_options(v, lambda r: is_number(r, 0))),
    "width_multipliers": ("different numbers > 0", lambda v: are_options(v, lambda m: is_number(m, 1e-9))),
    "operators": (f"different ones of {OPERATORS}", lambda v: are_options(v, lambda o: o in OPERATORS)),
    "skips": (f"different ones of {SKIPS}", lambda v: are_options(v, lambda s: s in SKIPS)),
    "activation": (f"one of {ACTIVATIONS}", lambda v: v in ACTIVATIONS),
}


def rounded_channels(channels: float) -> int:
    """The nearest multiple of `CHANNEL_MULTIPLE`, at least one of them."""
    return max(CHANNEL_MULTIPLE, CHANNEL_MULTIPLE * int(channels / CHANNEL_MULTIPLE + 0.5))


class MobileSpace(SearchSpace):
    """Settings (all optional): see `_DEFAULTS`; lists `widths`, `strides` and `layers` have one entry per block.

    Choices: `b0.op`, `b0.kernel`, `b0.se`, `b0.skip`, `b0.layers`, `b0.width` for block 0, and so on.
    """

    name = "mobile"

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self.settings = checked_settings(self.name, _DEFAULTS, settings, _RULES, ("strides", "layers"))
        blocks = len(self.settings["widths"])
        choices: dict[str, tuple[Value, ...]] = {}
        for b in range(blocks):
            choices[f"b{b}.op"] = tuple(self.settings["operators"])
            choices[f"b{b}.kernel"] = tuple(self.settings["kernels"])
            choices[f"b{b}.se"] = tuple(float(r) for r in self.settings["se_ratios"])
            choices[f"b{b}.skip"] = tuple(self.settings["skips"])
            choices[f"b{b}.layers"] = tuple(self.settings["layers"][b])
            choices[f"b{b}.width"] = tuple(float(m) for m in self.settings["width_multipliers"])
        self.choices = choices
        segments = [Segment("stem", ())]
        for b in range(blocks):
            own = tuple(f"b{b}.{key}" for key in ("op", "kernel", "se", "skip", "layers", "width"))
            segments.append(Segment(f"b{b}", own if b == 0 else (f"b{b - 1}.width", *own)))
        segments.append(Segment("head", (f"b{blocks - 1}.width",)))
        self.segments = tuple(segments)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.settings["in_channels"], self.settings["resolution"], self.settings["resolution"])

    @property
    def classes(self) -> int:
        return int(self.settings["classes"])

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.settings["widths"])

    def _width(self, block: int, values: Mapping[str, Value]) -> int:
        return rounded_channels(self.settings["widths"][block] * float(values[f"b{block}.width"]))

    def _size(self, block: int) -> int:
        """Height and width of block `block`'s input."""
        size = -(-self.settings["resolution"] // self.settings["stem_stride"])
        for stride in self.settings["strides"][:block]:
            size = -(-size // stride)
        return size

    def segment_layers(self, segment: Segment, values: Mapping[str, Value]) -> tuple[Layer, ...]:
        settings = self.settings
        stem_width = rounded_channels(settings["stem_width"])
        if segment.name == "stem":
            return (
                Layer("stem", "stem", settings["in_channels"], stem_width, settings["resolution"], kernel_size=3,
                      stride=settings["stem_stride"], activation=settings["activation"]),
            )  # fmt: skip
        if segment.name == "head":
            last = self.blocks - 1
            return (Layer("head", "head", self._width(last, values), settings["classes"], self._size(self.blocks)),)
        b = int(segment.name[1:])
        operator = str(values[f"b{b}.op"])
        width = self._width(b, values)
        before = stem_width if b == 0 else self._width(b - 1, values)
        layers = []
        for i in range(int(values[f"b{b}.layers"])):
            in_channels, stride = (before, settings["strides"][b]) if i == 0 else (width, 1)
            skip = str(values[f"b{b}.skip"])
            if in_channels != width or (stride != 1 and skip == "identity"):
                skip = "none"
            layers.append(
                Layer(
                    name=f"b{b}.{i}",
                    op="mbconv" if operator.startswith("mbconv") else operator,
                    in_channels=in_channels,
                    out_channels=width,
                    in_size=self._size(b) if i == 0 else -(-self._size(b) // settings["strides"][b]),
                    kernel_size=int(values[f"b{b}.kernel"]),
                    stride=stride,
                    expansion=int(operator[-1]) if operator.startswith("mbconv") else 1,
                    se_ratio=float(values[f"b{b}.se"]),
                    skip=skip,
                    activation=settings["activation"],
                )
            )
        return tuple(layers)

    def hand_shrunk(self) -> list[list[Architecture]]:
        """Per operator, one plain network at every uniform width from a fifth to three times, narrowest first.

        3×3 windows, no squeeze-excite, identity skips, the middle number of layers. Each width is a setting of
        its own, so the architectures belong to spaces beside this one.
        """
        return [
            [self._plain(operator, round(percent / 100, 2)) for percent in range(20, 301, 5)]
            for operator in self.settings["operators"]
        ]

    def _plain(self, operator: str, width: float) -> Architecture:
        kernel = 3 if 3 in self.settings["kernels"] else self.settings["kernels"][0]
        beside = MobileSpace(
            {
                **self.settings,
                "operators": [operator],
                "kernels": [kernel],
                "se_ratios": [0.0],
                "skips": ["identity"],
                "layers": [[sorted(options)[len(options) // 2]] for options in self.settings["layers"]],
                "width_multipliers": [width],
            }
        )
        return beside.architecture({name: options[0] for name, options in beside.choices.items()})
