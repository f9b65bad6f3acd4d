"""What every strategy shares: NNI's vocabulary, the latency budget it may look at, its settings."""

from __future__ import annotations

import dataclasses
import logging
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import numpy as np

from akd_deploy.errors import InfeasibleBudgetError, MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.search_space import SearchSpace

Parameters = Mapping[str, Any]
"""One candidate as NNI has it: choice name → value."""


class Strategy(Protocol):
    """The part of `nni.tuner.Tuner` that the drivers use; every strategy is such a tuner. Greater values are better."""

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """Start on a space in NNI's JSON form."""

    def generate_parameters(self, parameter_id: int) -> Parameters:
        """The next candidate. Raises `nni.NoMoreTrialError` when there is none left."""

    def receive_trial_result(self, parameter_id: int, parameters: Parameters, value: float) -> None:
        """What a candidate turned out to be worth."""

    def trial_end(self, parameter_id: int, success: bool) -> None:
        """A candidate is done with; without success it has no value."""

    def import_data(self, data: Sequence[Mapping[str, Any]]) -> None:
        """Candidates of elsewhere: `{"parameter": …, "value": …}` each."""


def learns_by_rank(strategy: Strategy) -> bool:
    """Whether it asks of values only which is greater, and must be told of what is refused to learn where not to look:
    a penalty below all rewards then costs it nothing. Its class says so."""
    return bool(getattr(strategy, "learns_by_rank", False))


@dataclass(frozen=True)
class LatencyBudget:
    """The hard constraint, for strategies that propose inside it.

    `upper_s` maps n candidates to the (n,) upper bounds of their predicted latency, in seconds; a candidate is
    inside when its bound is ≤ `budget_s`.
    """

    budget_s: float
    upper_s: Callable[[Sequence[Parameters]], np.ndarray]


StrategyFactory = Callable[[int, Mapping[str, Any], LatencyBudget | None], Strategy]
"""(seed, settings, budget) → strategy; the budget is None where nothing is constrained."""


def nni_space(space: SearchSpace) -> dict[str, Any]:
    """A space in NNI's JSON form: `{"b0.op": {"_type": "choice", "_value": […]}, …}`, in the space's order."""
    return {name: {"_type": "choice", "_value": list(options)} for name, options in space.choices.items()}


def require_nni() -> None:
    """Import NNI and keep it off standard output.

    Raises:
        MissingRuntimeError: it cannot be imported here.
    """
    try:
        import nni
    except ImportError as error:
        raise MissingRuntimeError(
            asked="NNI 3.0, whose tuners the search strategies are",
            found=f"{error} on {platform.machine()}",
            next="Install nni==3.0, which has wheels for x86_64 only, and search on such a machine; profiling, "
            "prediction, measuring, building and verifying work here without it.",
        ) from error
    nni.silence_stdout()
    logging.getLogger("nni").setLevel(logging.WARNING)


Settings = TypeVar("Settings")


def strategy_settings(
    kind: type[Settings],
    given: Mapping[str, Any],
    strategy: str,
    shares: Sequence[str] = (),
    weights: Sequence[str] = (),
) -> Settings:
    """A strategy's settings from the keys of a file: `shares` are from 0 to 1, `weights` 0 or more, others above 0.

    Raises:
        UnknownNameError: a key that the strategy does not have.
        UsageError: a value of another type than its default's, or one that is not finite or outside its range.
    """
    known = {field.name: field.default for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in given.items():
        if key not in known:
            raise UnknownNameError("setting", key, known, where=f"strategy {strategy}")
        wanted = (int, float) if isinstance(known[key], float) else int
        is_number = isinstance(value, wanted) and not isinstance(value, bool)
        if key in shares:
            asked, fits = "a share from 0 to 1", is_number and 0 <= value <= 1
        elif key in weights:
            asked, fits = "a number of at least 0", is_number and 0 <= value < math.inf
        else:
            asked, fits = f"a positive {type(known[key]).__name__}", is_number and 0 < value < math.inf
        if not fits:
            raise UsageError(
                asked=f"setting {key} of strategy {strategy} as {asked}",
                found=repr(value),
                next=f"The default is {known[key]}.",
            )
    return kind(**given)


def nothing_within_budget(budget_s: float, fastest_s: float, candidates: int) -> InfeasibleBudgetError:
    """The error of a search that met no candidate inside the budget; `fastest_s` is the least upper bound it met."""
    return InfeasibleBudgetError(
        asked=f"a student whose predicted latency bound is within {budget_s * 1e3:.4g} ms",
        found=f"none among {candidates} candidates; the fastest is bound by {fastest_s * 1e3:.4g} ms",
        next="Raise the budget, or widen the space towards smaller networks.",
        budget_s=budget_s,
        fastest_s=fastest_s,
    )
