"""What lint is told about time: predictions that a caller with a latency table hands in, none by default."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LintCosts:
    """Predictions in seconds, as functions; None of them where no table of the target is at hand.

    `padding_s` takes the name of a node and the input and output channels that it might have instead (None: as it has
    them): its kernel's cost as it is and with those, None where it is not known. `sizes_s` takes sizes of dynamic
    dimensions by name: the cost of the network exported with them, None where it is not known. `dimensions` says which
    sizes are meant: (least, usual, most) by name.
    """

    padding_s: Callable[[str, int | None, int | None], tuple[float, float] | None] | None = None
    sizes_s: Callable[[Mapping[str, int]], float | None] | None = None
    dimensions: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
