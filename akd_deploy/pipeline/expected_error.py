"""The error to expect of networks once some of a plan's probes are measured, and when a plan has told enough."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from akd_deploy.engines.denormals import DENORMALS
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import PROBE, TableRow
from akd_deploy.predictor.features import regime
from akd_deploy.predictor.probe_choice import Beliefs, Choice, Counts, Outlook, beliefs, choose

LEAST_GAIN = 0.01
"""A plan ends where all that is left of it would lower the expected error by less than this, relatively."""
COUNT, ERROR, GAIN = "probes", "error", "gain"
"""Why a plan ends where it does: it has as many probes as it may, its expected error is small enough, or what else it
could measure is not expected to help."""


@dataclass(frozen=True)
class ExpectedError:
    """`before` are beliefs about probes of these `names`, in this order, and about the networks."""

    names: Sequence[str]
    before: Beliefs

    def watch(self) -> Callable[[str], float]:
        """A function that is told what was measured, name by name, and says the error expected from then on. Names that
        are none of the plan's probes change nothing."""
        outlook, position = Outlook(self.before), {name: i for i, name in enumerate(self.names)}

        def measured(name: str) -> float:
            return outlook.measure(position[name]) if name in position else outlook.error

        return measured

    def of(self, measured: Iterable[str]) -> float | None:
        """The error expected once the probes of these names are measured; None where none of them is the plan's."""
        watch, own = self.watch(), set(self.names)
        errors = [watch(name) for name in dict.fromkeys(measured) if name in own]
        return errors[-1] if errors else None


class LiveError:
    """The expected error of a profile under way, for whoever watches it; `note` is empty while there is none."""

    def __init__(self, expected: ExpectedError | None) -> None:
        self._watch = None if expected is None else expected.watch()
        self.note = ""

    def measured(self, name: str) -> None:
        """A block of this subject is there."""
        if self._watch is not None:
            self.note = f"expected error {self._watch(name):.1%}"


@dataclass(frozen=True)
class Enough:
    """When to stop: at `most` probes, at an expected error of `until_error`, or where the rest of the plan promises
    less than `least_gain` of the expected error. None stands for no such rule."""

    most: int
    until_error: float | None = None
    least_gain: float | None = LEAST_GAIN

    def of(self, order: Iterator[Choice], least: int = 0) -> tuple[list[Choice], str]:
        """The beginning of `order` that is enough, `least` of it in any case, and why it ends there."""
        choices: list[Choice] = []
        for choice in islice(order, self.most):
            choices.append(choice)
            if self.until_error is not None and len(choices) >= least and choice.error <= self.until_error:
                return choices, ERROR
        if self.least_gain is not None and choices:
            last = choices[-1].error
            for count, choice in enumerate(choices, start=1):
                if count >= least and choice.error - last < self.least_gain * choice.error:
                    return choices[:count], COUNT if count == len(choices) else GAIN
        return choices, COUNT


def chosen_among(
    names: Sequence[str],
    candidates: Sequence[Counts],
    networks: Sequence[Counts],
    enough: Enough,
    measured: Sequence[TableRow] = (),
    seconds: Sequence[float] | None = None,
    required: Sequence[int] = (),
    in_order: bool = False,
) -> tuple[list[Choice], ExpectedError, str]:
    """The candidates to measure, what to expect of them, and why no more are chosen.

    Args:
        names: of the candidates; `measured` rows of a table come first where they have one, and are known where not.
        seconds: what measuring each candidate takes; equal where None.
        required: positions of candidates that are chosen in any case, beside those without which some kind of kernel
            of the networks is in none.
        in_order: the candidates are in order already, and only how many of them are enough is asked.
    """
    of_table = {row.name: row.counts() for row in measured if row.kind == PROBE}
    position = {name: i for i, name in enumerate(names)}
    first = [position[name] for name in of_table if name in position]
    first = list(dict.fromkeys([*first, *required]))
    least = len(first)
    if in_order:
        first = list(dict.fromkeys([*first, *range(len(names))]))
    before = beliefs(candidates, networks, [counts for name, counts in of_table.items() if name not in position])
    choices, ended = enough.of(choose(before, seconds, first), least)
    indices = [choice.index for choice in choices]
    known = [*(candidates[i] for i in indices), *of_table.values()]
    missing = _covering(networks, known, candidates, seconds)
    if missing:
        certain = list(dict.fromkeys([*missing, *required]))
        most = replace(enough, most=max(enough.most, least + len(missing)))
        return chosen_among(names, candidates, networks, most, measured, seconds, certain, in_order)
    return choices, ExpectedError([names[i] for i in indices], before.of(indices)), ended


def _covering(
    networks: Sequence[Counts], known: Sequence[Counts], candidates: Sequence[Counts], seconds: Sequence[float] | None
) -> list[int]:
    """The quickest candidates that hold what the networks have and nothing known holds: a kernel that costs next to
    nothing tells nothing either, and yet a network of which nobody measured one is not predicted at all. And what
    denormal numbers cost nobody knows beforehand."""
    held = {_kind(kernel) for counts in known for kernel in counts}
    chosen: dict[int, None] = {}
    for one in dict.fromkeys(_kind(kernel) for counts in networks for kernel in counts):
        able = [i for i, counts in enumerate(candidates) if any(_kind(kernel) == one for kernel in counts)]
        if one not in held and able:
            chosen[min(able, key=lambda i: 0.0 if seconds is None else seconds[i])] = None
    return list(chosen)


def _kind(kernel: Kernel) -> str | Kernel:
    """What must have been measured for a kernel to be predicted: one of its regime, or itself where masks slow it."""
    return regime(kernel) if kernel.attribute(DENORMALS) is None else kernel
