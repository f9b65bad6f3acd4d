"""A backbone with room for more: what may be inserted after each of its layers.

The space of Oracle-KD's search (Kang, Mun & Han 2020, arXiv:1911.13019): L insertion points, one of seven operators and
two connection choices each, 7^L × 2^(2L) encodings. Identity everywhere is the backbone itself. What the paper's two
binary choices are is not known here; ours are whether an added layer's input is added to its output, and whether the
two are concatenated and brought back to the backbone's width.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from akd_deploy.architecture import Architecture
from akd_deploy.errors import UsageError
from akd_deploy.search_space.base import Layer, SearchSpace, Segment, Value
from akd_deploy.search_space.mobile import ACTIVATIONS, rounded_channels
from akd_deploy.search_space.mobile import OPERATORS as BACKBONES
from akd_deploy.search_space.settings import Rules, are_all, are_options, checked_settings, is_count

IDENTITY = "identity"
ADDED: Mapping[str, tuple[str, int]] = {
    "conv3": ("conv", 3),
    "conv5": ("conv", 5),
    "dw_separable3": ("dw_separable", 3),
    "dw_separable5": ("dw_separable", 5),
    "max_pool": ("max_pool", 3),
    "avg_pool": ("avg_pool", 3),
}
"""What can be inserted: name → the layer's operator and its window."""
OPERATORS = (IDENTITY, *ADDED)

_DEFAULTS: Mapping[str, Any] = {
    "resolution": 12,
    "in_channels": 1,
    "classes": 10,
    "stem_width": 8,
    "stem_stride": 1,
    "widths": [16, 24, 48],
    "strides": [1, 2, 2],
    "depths": [1, 1, 1],
    "backbone": "conv",
    "kernel": 3,
    "operators": list(OPERATORS),
    "activation": "relu",
}


_RULES: Rules = {
    **{
        key: ("a whole number ≥ 1", is_count)
        for key in ("resolution", "in_channels", "classes", "stem_width", "stem_stride")
    },
    **{key: ("a list of whole numbers ≥ 1", lambda v: are_all(v, is_count)) for key in ("widths", "strides", "depths")},
    "kernel": ("an odd whole number", lambda v: is_count(v) and v % 2 == 1),
    "backbone": (f"one of {BACKBONES}", lambda v: v in BACKBONES),
    "operators": (f"different ones of {OPERATORS}", lambda v: are_options(v, lambda o: o in OPERATORS)),
    "activation": (f"one of {ACTIVATIONS}", lambda v: v in ACTIVATIONS),
}


class AugmentedSpace(SearchSpace):
    """Settings (all optional): see `_DEFAULTS`; `widths`, `strides` and `depths` have one entry per stage.

    The backbone is a stem and in each stage `depths` layers of operator `backbone` (as in space mobile), the first with
    the stage's stride, with identity skips where shapes allow. Choices: `a0.op`, `a0.skip`, `a0.dense` for what comes
    after the first of them, and so on; of an identity the latter two change nothing.
    """

    name = "augmented"

    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        self.settings = checked_settings(self.name, _DEFAULTS, settings, _RULES, ("strides", "depths"))
        self._backbone = self._backbone_layers()
        self.choices = {
            f"a{i}.{key}": options
            for i in range(self.points)
            for key, options in (("op", tuple(self.settings["operators"])), ("skip", (0, 1)), ("dense", (0, 1)))
        }
        self.segments = (
            Segment("stem", ()),
            *(Segment(f"p{i}", (f"a{i}.op", f"a{i}.skip", f"a{i}.dense")) for i in range(self.points)),
            Segment("head", ()),
        )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (self.settings["in_channels"], self.settings["resolution"], self.settings["resolution"])

    @property
    def classes(self) -> int:
        return int(self.settings["classes"])

    @property
    def points(self) -> int:
        """Number of insertion points."""
        return int(sum(self.settings["depths"]))

    def backbone(self) -> Architecture:
        """Identity everywhere.

        Raises:
            UsageError: identity is not among the operators.
        """
        if IDENTITY not in self.settings["operators"]:
            raise UsageError(
                asked=f"the backbone of space {self.name}, to which nothing is added",
                found=f"operators {', '.join(self.settings['operators'])}, and no {IDENTITY} among them",
                next=f'Add "{IDENTITY}" to operators, or do without the backbone alone.',
            )
        return self.architecture(
            {name: (IDENTITY if name.endswith(".op") else options[0]) for name, options in self.choices.items()}
        )

    def _backbone_layers(self) -> tuple[Layer, ...]:
        """Stem, layers in order, head."""
        settings = self.settings
        operator, activation = settings["backbone"], settings["activation"]
        channels = rounded_channels(settings["stem_width"])
        size = -(-settings["resolution"] // settings["stem_stride"])
        layers = [
            Layer("stem", "stem", settings["in_channels"], channels, settings["resolution"], kernel_size=3,
                  stride=settings["stem_stride"], activation=activation)
        ]  # fmt: skip
        for width, first_stride, depth in zip(settings["widths"], settings["strides"], settings["depths"], strict=True):
            for i in range(depth):
                stride, out = (first_stride if i == 0 else 1), rounded_channels(width)
                layers.append(
                    Layer(
                        name=f"b{len(layers) - 1}",
                        op="mbconv" if operator.startswith("mbconv") else operator,
                        in_channels=channels,
                        out_channels=out,
                        in_size=size,
                        kernel_size=settings["kernel"],
                        stride=stride,
                        expansion=int(operator[-1]) if operator.startswith("mbconv") else 1,
                        skip="identity" if stride == 1 and channels == out else "none",
                        activation=activation,
                    )
                )
                channels, size = out, layers[-1].out_size
        return (*layers, Layer("head", "head", channels, settings["classes"], size))

    def segment_layers(self, segment: Segment, values: Mapping[str, Value]) -> tuple[Layer, ...]:
        if segment.name == "stem":
            return self._backbone[:1]
        if segment.name == "head":
            return self._backbone[-1:]
        i = int(segment.name[1:])
        before, operator = self._backbone[1 + i], str(values[f"a{i}.op"])
        if operator == IDENTITY:
            return (before,)
        op, kernel = ADDED[operator]
        parts = [name for name, key in (("dense", "dense"), ("identity", "skip")) if values[f"a{i}.{key}"]]
        width = before.out_channels
        added = Layer(f"a{i}", op, width, width, before.out_size, kernel_size=kernel, skip="_".join(parts) or "none",
                      activation=self.settings["activation"])  # fmt: skip
        return before, added

    def hand_shrunk(self) -> list[list[Architecture]]:
        """The backbone at every uniform width from a fifth to three times, narrowest first: each width is a setting of
        its own, so the architectures belong to spaces beside this one."""
        return [[self.widened(round(percent / 100, 2)) for percent in range(20, 301, 5)]]

    def widened(self, factor: float) -> Architecture:
        """The backbone alone with every stage so many times as wide, rounded to the multiple of channels."""
        widths = [rounded_channels(width * factor) for width in self.settings["widths"]]
        beside = AugmentedSpace({**self.settings, "widths": widths, "operators": [IDENTITY]})
        return beside.backbone()
