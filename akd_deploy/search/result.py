"""What a search came to: its trials, the best of them, and the front between latency and accuracy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from akd_deploy.search.trial import Trial


@dataclass(frozen=True)
class SearchResult:
    """`trials` has every candidate by id.

    `seconds` is the search's own cost: `training` over all processes that worked on the search (trainings cut off
    by an interruption are not known), `prediction`, `strategy` and `journal` of this process, replay included.
    `stopped` says why it ended: `trials` (all were made), `exhausted` (the strategy has nothing more to propose) or
    `draws` (too many candidates in a row gave nothing to train). `diverged` says that a resumed strategy did not
    propose what the journal holds, and was given the journal's trials as history instead.
    """

    trials: tuple[Trial, ...]
    seconds: Mapping[str, float]
    stopped: str = "trials"
    diverged: bool = False

    @property
    def best(self) -> Trial:
        """The trained student with the greatest reward; the earliest of equals."""
        return max((trial for trial in self.trials if trial.state == "done"), key=lambda trial: trial.reward or 0.0)

    @property
    def counts(self) -> dict[str, int]:
        """How many candidates were trained (`done`), `failed`, `infeasible` and `duplicate`."""
        found = Counter(trial.state for trial in self.trials)
        return {state: found[state] for state in ("done", "failed", "infeasible", "duplicate")}

    def front(self) -> list[dict[str, Any]]:
        """The trained students that no other one beats in both latency and accuracy, fastest first.

        One row each: `arch` (a dict), `latency_s` (point prediction), `reward`, `accuracy`.
        """
        return [
            {
                "arch": trial.architecture.as_dict(),
                "latency_s": trial.latency_s,
                "reward": trial.reward,
                "accuracy": trial.accuracy,
            }
            for trial in pareto_front(trial for trial in self.trials if trial.state == "done")
        ]


def pareto_front(trials: Iterable[Trial]) -> list[Trial]:
    """Those that no other one equals or beats in both latency and accuracy, fastest first; the earliest of equals."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda t: (t.latency_s, -(t.accuracy or 0.0), t.id)):
        if not front or (trial.accuracy or 0.0) > (front[-1].accuracy or 0.0):
            front.append(trial)
    return front
