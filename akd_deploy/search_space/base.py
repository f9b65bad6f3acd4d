"""The contract of a search space: choices in, layers out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from akd_deploy.architecture import Architecture
from akd_deploy.errors import MismatchError, UnknownNameError, UsageError

Value = int | float | str


@dataclass(frozen=True)
class Layer:
    """One layer of a student, as the torch module, the ONNX writer and the cost tables read it.

    `op`: "conv" (k×k), "dw_separable" (k×k depthwise + 1×1), "mbconv" (1×1 expand, k×k depthwise, 1×1
    project), "max_pool" or "avg_pool" (3×3), "stem" (k×k conv) or "head" (global average pool + linear to
    `out_channels` classes). `se_ratio` 0 is no squeeze-excite. `skip` says how the input comes in again: "none",
    "identity" (added), "pool" (average pool, then added), "dense" (concatenated, then a 1×1 convolution back to
    `out_channels`) or "dense_identity" (that, then added).
    `in_size` is the input's height and width. `name` is the prefix of its parameters and ONNX nodes.
    """

    name: str
    op: str
    in_channels: int
    out_channels: int
    in_size: int
    kernel_size: int = 1
    stride: int = 1
    expansion: int = 1
    se_ratio: float = 0.0
    skip: str = "none"
    activation: str = "relu"

    @property
    def out_size(self) -> int:
        """Height and width of the output ("same" padding); 1 for the head."""
        return 1 if self.op == "head" else -(-self.in_size // self.stride)


@dataclass(frozen=True)
class Segment:
    """A stretch of a network that depends on a few choices only.

    The layers of the whole network are the concatenation of its segments' layers; `choices` names the
    choices that a segment's layers depend on. Costs are tabulated segment by segment.
    """

    name: str
    choices: tuple[str, ...]


class SearchSpace(ABC):
    """A finite product of named choices. Every method is a pure function of its arguments."""

    name: str
    settings: Mapping[str, Any]
    choices: Mapping[str, tuple[Value, ...]]
    """Choice name → its options, in a fixed order: the token of an option is its index."""
    segments: tuple[Segment, ...]

    @abstractmethod
    def __init__(self, settings: Mapping[str, Any] | None = None) -> None:
        """Check the settings; what they leave out has a default, so that `self.settings` is complete."""

    @abstractmethod
    def segment_layers(self, segment: Segment, values: Mapping[str, Value]) -> tuple[Layer, ...]:
        """The layers of one segment, given values for at least the choices it names."""

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""

    @property
    @abstractmethod
    def classes(self) -> int:
        """Number of classes of the head."""

    @abstractmethod
    def hand_shrunk(self) -> list[list[Architecture]]:
        """What a person would try first: families of one plain network, uniformly narrower to wider."""

    def layers(self, architecture: Architecture) -> tuple[Layer, ...]:
        """All layers in order."""
        values = self.checked(architecture).choices
        return tuple(layer for segment in self.segments for layer in self.segment_layers(segment, values))

    def network_digest(self, architecture: Architecture) -> str:
        """Equal exactly for encodings of the same network: choices that change nothing do not count."""
        import hashlib

        return hashlib.sha256(repr(self.layers(architecture)).encode()).hexdigest()[:12]

    def architecture(self, choices: Mapping[str, Value]) -> Architecture:
        """Name one value per choice.

        Raises:
            UnknownNameError, UsageError: a choice is unknown, missing, or has no such option.
        """
        return self.checked(Architecture(self.name, self.settings, choices))

    def checked(self, architecture: Architecture) -> Architecture:
        """The architecture, if it belongs to this space.

        Raises:
            MismatchError: it names another space or other settings.
            UnknownNameError, UsageError: a choice is unknown, missing, or has no such option.
        """
        if architecture.space != self.name or not self._has_settings(architecture.settings):
            raise MismatchError(
                asked=f"an architecture of space {self.name} with settings {dict(self.settings)}",
                found=f"one of {architecture.space} with {dict(architecture.settings)}",
                next="Load the space from the architecture's own settings.",
            )
        for key in architecture.choices:
            if key not in self.choices:
                raise UnknownNameError("choice", key, self.choices, where=f"space {self.name}")
        for key, options in self.choices.items():
            if key not in architecture.choices:
                raise UsageError(asked=f"a value for choice {key}", found="none", next=f"Options: {options}.")
            if architecture.choices[key] not in options:
                raise UsageError(
                    asked=f"choice {key}", found=repr(architecture.choices[key]), next=f"Options: {options}."
                )
        return architecture

    def _has_settings(self, settings: Mapping[str, Any]) -> bool:
        """Whether these settings, completed, are this space's; lists and tuples are the same."""
        mine = self._kept_settings
        if settings == mine:
            return True
        return settings.keys() < mine.keys() and type(self)(settings).settings == dict(mine)

    @cached_property
    def _kept_settings(self) -> Mapping[str, Any]:
        """The settings as an architecture keeps them."""
        return Architecture(self.name, self.settings, {}).settings

    @cached_property
    def _token_of(self) -> tuple[tuple[str, dict[Value, int]], ...]:
        """For every choice in order: its name, and option → token."""
        return tuple(
            (key, {option: token for token, option in enumerate(options)}) for key, options in self.choices.items()
        )

    @property
    def size(self) -> int:
        """Number of encodings."""
        return int(np.prod([len(options) for options in self.choices.values()], dtype=object))

    def tokens(self, architecture: Architecture) -> np.ndarray:
        """(choices,) int64: the option index of every choice, in the order of `choices`."""
        return self.tokens_of([architecture])[0]

    def tokens_of(self, architectures: Sequence[Architecture]) -> np.ndarray:
        """(architectures, choices) int64: the tokens of many at once."""
        rows = [self._token_row(architecture) for architecture in architectures]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.choices))

    def _token_row(self, architecture: Architecture) -> list[int]:
        values = architecture.choices
        if (
            architecture.space == self.name
            and len(values) == len(self.choices)
            and architecture.settings == self._kept_settings
        ):
            try:
                return [tokens[values[key]] for key, tokens in self._token_of]
            except (KeyError, TypeError):
                # A choice that is missing, or a value that is no option: below it is named.
                pass
        values = self.checked(architecture).choices
        return [tokens[values[key]] for key, tokens in self._token_of]

    def from_tokens(self, tokens: Sequence[int] | np.ndarray) -> Architecture:
        """The architecture with these option indices; the inverse of `tokens`."""
        if len(tokens) != len(self.choices):
            raise UsageError(asked=f"{len(self.choices)} tokens", found=str(len(tokens)), next="One per choice.")
        choices: dict[str, Value] = {}
        for token, (key, options) in zip(tokens, self.choices.items(), strict=True):
            if not 0 <= int(token) < len(options):
                raise UsageError(asked=f"token of choice {key}", found=str(token), next=f"0 to {len(options) - 1}.")
            choices[key] = options[int(token)]
        return Architecture(self.name, self.settings, choices)

    def sample_tokens(self, count: int, rng: np.random.Generator) -> np.ndarray:
        """(count, choices) int64, uniform over encodings."""
        return np.stack([rng.integers(len(options), size=count) for options in self.choices.values()], axis=1)

    def sample(self, rng: np.random.Generator) -> Architecture:
        """One architecture, uniform over encodings."""
        return self.from_tokens(self.sample_tokens(1, rng)[0])
