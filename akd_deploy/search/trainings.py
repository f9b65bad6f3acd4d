"""How a search has its candidates trained: here, one at a time, or elsewhere, several at once."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType

from akd_deploy.architecture import Architecture
from akd_deploy.errors import AkdError, MissingRuntimeError, StorageError
from akd_deploy.search.trial import Score, Trial

ScoreFunction = Callable[[Architecture, int], Score]
"""(architecture, seed) → its score. The seed is the same for the same network in searches of the same seed."""


@dataclass(frozen=True)
class Ended:
    """A training that is over: with a score, or with the error that it failed with after `seconds`."""

    id: int
    outcome: Score | Exception
    seconds: float


class Trainings(ABC):
    """The trainings of one search, which enters it as a context; leaving it ends those still at work.

    `jobs` is how many candidates may be in training at a time.
    """

    jobs: int = 1

    def __enter__(self) -> Trainings:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @abstractmethod
    def start(self, trial: Trial, reward_per_accuracy: float) -> None:
        """Begin a training, or queue it. What its accuracy is to be multiplied by is for whoever shows rewards."""

    @abstractmethod
    def next_ended(self) -> Ended:
        """Wait for any of the trainings begun.

        Raises:
            StorageError, MissingRuntimeError: the machine's fault, not the candidate's.
        """

    def no_more(self) -> None:  # noqa: B027  (nothing to do for most)
        """What was begun is all there will be."""

    def close(self) -> None:  # noqa: B027  (nothing to do for most)
        """End whatever is still at work. May be called twice."""


class InProcess(Trainings):
    """One at a time, in this process, when the search waits for it.

    An exception that is no candidate's fault (a bug, an interruption) goes through.
    """

    def __init__(self, score: ScoreFunction) -> None:
        self._score = score
        self._begun: deque[Trial] = deque()

    def start(self, trial: Trial, reward_per_accuracy: float) -> None:
        del reward_per_accuracy
        self._begun.append(trial)

    def next_ended(self) -> Ended:
        trial = self._begun.popleft()
        began = time.perf_counter()
        try:
            score = self._score(trial.architecture, trial.seed)
        except (StorageError, MissingRuntimeError):
            raise
        except (AkdError, ArithmeticError, RuntimeError) as error:
            return Ended(trial.id, error, time.perf_counter() - began)
        return Ended(trial.id, score, score.seconds)
