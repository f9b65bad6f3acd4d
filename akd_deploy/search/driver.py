"""The search: ask a strategy, refuse what is over the budget, have the rest trained, tell, and write it down."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from akd_deploy.architecture import Architecture
from akd_deploy.errors import MismatchError, TrainingError, UsageError
from akd_deploy.search.journal import Journal, now
from akd_deploy.search.result import SearchResult
from akd_deploy.search.reward import REWARD_PRESETS, RewardShape, over_budget_penalty, reward
from akd_deploy.search.strategies import (
    LatencyBudget,
    Parameters,
    StrategyFactory,
    load_strategy,
    nni_space,
    nothing_within_budget,
    require_nni,
    settings_for,
)
from akd_deploy.search.trainings import Ended, InProcess, ScoreFunction, Trainings
from akd_deploy.search.trial import FINISHED, Score, Trial
from akd_deploy.search_space import SearchSpace

Predict = Callable[[Sequence[Architecture]], tuple[np.ndarray, np.ndarray]]
"""n architectures → ((n,) point predictions, (n,) upper bounds) in seconds, upper ≥ point > 0. The upper bound is
for the percentile the budget is about (interval and tail factor included); the budget constrains it."""

PENDING_ROWS = 256
"""Untrained candidates are written together with the next training, at the latest when this many wait: a kill loses
some of them, and resuming proposes them again."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SearchSettings:
    """What a search is told.

    `trials` counts trainings, failed ones too; refused and duplicate candidates are free. `constraint` "upper"
    refuses candidates whose upper bound exceeds the budget; "none" leaves the trade-off to the reward alone, as
    published. `max_draws` candidates in a row without a training end the search, `max_failures` failed trainings in
    a row stop it with an error; both were picked by eye.

    Raises:
        UsageError: a number outside its range, or an unknown constraint.
    """

    trials: int
    budget_s: float
    shape: RewardShape = REWARD_PRESETS["soft"]
    constraint: Literal["upper", "none"] = "upper"
    seed: int = 0
    max_draws: int = 1000
    max_failures: int = 5
    strategy_settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("trials", "max_draws", "max_failures"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} of at least 1", repr(getattr(self, name)), "Raise it.")
        if not (math.isfinite(self.budget_s) and self.budget_s > 0):
            raise UsageError("a budget above 0 seconds", repr(self.budget_s), "Give seconds.")
        if self.seed < 0:
            raise UsageError("a seed of at least 0", repr(self.seed), "Give a whole number ≥ 0.")
        if self.constraint not in ("upper", "none"):
            raise UsageError('constraint "upper" or "none"', repr(self.constraint), "Choose one of the two.")
        object.__setattr__(self, "strategy_settings", MappingProxyType(dict(self.strategy_settings)))

    def as_dict(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**fields, "shape": asdict(self.shape), "strategy_settings": dict(self.strategy_settings)}


def search(
    space: SearchSpace,
    strategy: str | StrategyFactory,
    predict: Predict,
    score: ScoreFunction | Trainings,
    settings: SearchSettings,
    journal: Journal | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    screen: Predict | None = None,
) -> SearchResult:
    """Search the space for the student with the greatest reward.

    A journal with trials in it is continued: the strategy is asked and told everything again in order, and what the
    journal holds is not trained again. Should the strategy propose something else than the journal says (a library
    changed), the rest of the journal is handed to it as history. Without a journal nothing is kept.

    Where several candidates are in training at a time, results are told in the order in which the candidates were
    asked for, and how many were in training when each was asked for is kept: one seed and number of jobs give one
    search, however long each training takes, and a resumed search retraces it with any driver.

    Args:
        score: a function, called here for one candidate at a time, or `Trainings` of another kind.
        predict: judges every candidate before it is trained.
        screen: a faster stand-in for `predict` with which a strategy looks many candidates over; `predict` where None.
        strategy: a name of `STRATEGIES`, or a factory like theirs.
        on_trial: called with every finished trial that was not in the journal before.

    Raises:
        InfeasibleBudgetError: no candidate inside the budget was found; the message says the fastest.
        TrainingError: `max_failures` trainings failed in a row, or all of them did; its cause is the last error.
        MismatchError: the journal is of another search, or `predict` returns something else than it should.
        MissingRuntimeError: NNI cannot be imported here.
        StorageError: the journal cannot be written; or raised by `score`, which is not held against the candidate
            (nor is a MissingRuntimeError): it is trained again when the search is resumed.
    """
    trainings = score if isinstance(score, Trainings) else InProcess(score)
    if journal is None:
        with Journal() as kept_in_memory:
            return _Search(space, strategy, predict, trainings, settings, kept_in_memory, on_trial, screen).run()
    return _Search(space, strategy, predict, trainings, settings, journal, on_trial, screen).run()


@dataclass(frozen=True)
class _Waiting:
    """A candidate to be trained that the strategy has not been told about; without parameters it is history."""

    trial: Trial
    parameters: Parameters | None
    is_new: bool


class _Search:
    """One run of the loop: its counters, its clock, and the rows not yet written."""

    def __init__(
        self,
        space: SearchSpace,
        strategy: str | StrategyFactory,
        predict: Predict,
        trainings: Trainings,
        settings: SearchSettings,
        journal: Journal,
        on_trial: Callable[[Trial], None] | None,
        screen: Predict | None,
    ) -> None:
        self.space, self.settings, self.journal = space, settings, journal
        self.predict, self.trainings, self.on_trial = predict, trainings, on_trial
        self.screen = screen or predict
        self.seconds = {"training": 0.0, "prediction": 0.0, "strategy": 0.0, "journal": 0.0}
        budget = LatencyBudget(settings.budget_s, self._upper_s) if settings.constraint == "upper" else None
        if isinstance(strategy, str):
            self.name = strategy
            own = settings_for(strategy, settings.trials, settings.strategy_settings)
            self.strategy = load_strategy(strategy, settings.seed, own, budget)
        else:
            require_nni()
            self.name = getattr(strategy, "__qualname__", type(strategy).__qualname__)
            self.strategy = strategy(settings.seed, settings.strategy_settings, budget)
        self.trials: list[Trial] = []
        """By id; those in training as they are until their result is told."""
        self.pending: list[Trial] = []
        self.overlaps: dict[int, int] = {}
        """Id → how many candidates asked for earlier had not been told about; none where it is not here."""
        self.waiting: deque[_Waiting] = deque()
        """In the order asked for, which is the order they are told about."""
        self.ended: dict[int, tuple[Trial, Exception | None]] = {}
        """Of those waiting, what became of them."""
        self.trained: dict[str, Trial] = {}
        """Network digest → its trial, done or failed."""
        self.draws = 0
        self.failures = 0
        self.diverged = False

    def run(self) -> SearchResult:
        space = {"name": self.space.name, "settings": dict(self.space.settings)}
        self.journal.agree_on(
            f"search {self.journal.search}".strip(), {"strategy": self.name, "space": space, **self.settings.as_dict()}
        )
        recorded = {trial.id: trial for trial in self.journal.trials()}
        with self._timed("strategy"):
            self.strategy.update_search_space(nni_space(self.space))
        with self.trainings:
            stopped = self._until_stopped(recorded, self.journal.overlaps())
            self.trainings.no_more()
            self._settle(0)
        self._write()
        self._check_something_was_trained()
        return SearchResult(tuple(self.trials), dict(self.seconds), stopped, self.diverged)

    def _until_stopped(self, recorded: Mapping[int, Trial], overlaps: Mapping[int, int]) -> str:
        """Ask for candidates and have them trained; why no more are."""
        from nni import NoMoreTrialError

        while len(self.trained) + len(self.waiting) < self.settings.trials:
            number = len(self.trials)
            row = recorded.get(number)
            self._settle(self.trainings.jobs - 1 if row is None else overlaps.get(number, 0))
            if self.draws == self.settings.max_draws:
                return "draws"
            if self.waiting:
                self.overlaps[number] = len(self.waiting)
            try:
                parameters = None if self.diverged and row else self._ask()
            except NoMoreTrialError:
                return "exhausted"
            self._step(row, parameters)
        return "trials"

    def _step(self, row: Trial | None, parameters: Parameters | None) -> None:
        """Find out what a candidate is worth, from the journal or by judging it; tell it, or have it trained first."""
        number = len(self.trials)
        if row is not None and parameters is not None and self.space.architecture(parameters) != row.architecture:
            _log.warning(
                "the strategy proposed another candidate than trial %d of the journal; the journal's trials from "
                "there on are handed to it as history",
                number,
            )
            self.diverged = True
            with self._timed("strategy"):
                self.strategy.trial_end(number, False)
            parameters = None
        if row is None:
            assert parameters is not None
            trial = self._judged(number, self.space.architecture(parameters))
        else:
            trial = row if row.state in FINISHED else replace(row, state="running")
            if trial.state == "duplicate":
                self._settle_network(trial.network)
        if trial.state in ("infeasible", "duplicate"):
            self.draws += 1
            self.trials.append(trial)
            self._tell(trial, parameters, is_new=trial is not row)
            return
        self.draws = 0
        if trial.state == "running":
            trial = self._begun(trial)
        else:
            self.ended[number] = trial, None
        self.trials.append(trial)
        self.waiting.append(_Waiting(trial, parameters, is_new=trial is not row))

    def _settle(self, most: int) -> None:
        """Tell the strategy about the oldest of those waiting, until `most` are left."""
        while len(self.waiting) > most:
            oldest = self.waiting[0]
            while oldest.trial.id not in self.ended:
                self._write_ended(self.trainings.next_ended())
            trial, error = self.ended.pop(oldest.trial.id)
            self.waiting.popleft()
            self.trials[trial.id] = self.trained[trial.network] = trial
            self.seconds["training"] += trial.seconds
            self._tell(trial, oldest.parameters, oldest.is_new)
            if oldest.is_new:
                self._count_failures(trial, error)

    def _settle_network(self, network: str) -> None:
        """Tell until nothing of that network is waiting."""
        waiting = [entry.trial.network for entry in self.waiting]
        if network in waiting:
            self._settle(len(waiting) - 1 - waiting.index(network))

    def _ask(self) -> Parameters:
        # Predictions that the strategy asks for are counted as predictions.
        before = self.seconds["prediction"]
        with self._timed("strategy"):
            parameters = self.strategy.generate_parameters(len(self.trials))
        self.seconds["strategy"] -= self.seconds["prediction"] - before
        return parameters

    def _tell(self, trial: Trial, parameters: Parameters | None, is_new: bool) -> None:
        """Tell the strategy what its candidate is worth, and whoever listens; without parameters it is not the
        strategy's own, but history."""
        value = trial.reward
        if trial.state == "infeasible":
            value = over_budget_penalty(trial.upper_s, self.settings.budget_s)
        with self._timed("strategy"):
            if parameters is not None:
                if value is not None:
                    self.strategy.receive_trial_result(trial.id, parameters, value)
                self.strategy.trial_end(trial.id, value is not None)
            elif value is not None:
                choices = dict(trial.architecture.choices)
                self.strategy.import_data([{"parameter": choices, "value": value}])
        if is_new and self.on_trial is not None:
            self.on_trial(trial)

    def _judged(self, number: int, architecture: Architecture) -> Trial:
        """Refuse a new candidate, recognise its network, or leave it to be trained."""
        network = self.space.network_digest(architecture)
        latency_s, upper_s = (float(values[0]) for values in self._predicted(self.predict, [architecture]))
        seed = int.from_bytes(hashlib.sha256(f"{self.settings.seed} {network}".encode()).digest()[:4], "big")
        trial = Trial(number, self.name, architecture, network, "running", latency_s, upper_s, seed)
        if self.settings.constraint == "upper" and upper_s > self.settings.budget_s:
            trial = replace(trial, state="infeasible", finished=now())
        else:
            self._settle_network(network)
            known = self.trained.get(network)
            if known is None:
                return trial
            trial = replace(
                trial,
                state="duplicate",
                reward=known.reward,
                accuracy=known.accuracy,
                error=known.error,
                finished=now(),
            )
        self.pending.append(trial)
        if len(self.pending) >= PENDING_ROWS:
            self._write()
        return trial

    def _begun(self, trial: Trial) -> Trial:
        """Write down that a training begins, and begin it."""
        trial = replace(trial, started=now(), attempts=trial.attempts + 1)
        self.pending.append(trial)
        self._write()
        self.trainings.start(trial, reward(1.0, trial.latency_s, self.settings.budget_s, self.settings.shape))
        return trial

    def _write_ended(self, ended: Ended) -> None:
        """Write down what became of a training, whichever ended; the strategy hears of it when its turn comes."""
        trial, error = self.trials[ended.id], None
        if isinstance(ended.outcome, Score):
            score = ended.outcome
            trial = replace(
                trial,
                state="done",
                accuracy=float(score.accuracy),
                reward=reward(score.accuracy, trial.latency_s, self.settings.budget_s, self.settings.shape),
                metrics=score.metrics,
                seconds=float(score.seconds),
            )
        else:
            error = ended.outcome
            trial = replace(trial, state="failed", seconds=ended.seconds, error=f"{type(error).__name__}: {error}")
        trial = replace(trial, finished=now())
        self.pending.append(trial)
        self._write()
        self.ended[trial.id] = trial, error

    def _count_failures(self, trial: Trial, error: Exception | None) -> None:
        self.failures = 0 if error is None else self.failures + 1
        if error is not None and self.failures == self.settings.max_failures:
            raise TrainingError(
                asked=f"trial {trial.id}",
                found=f"{self.failures} failed trainings in a row, the last with {trial.error}",
                next="Correct the cause and resume; the failed trials are in the journal.",
            ) from error

    def _check_something_was_trained(self) -> None:
        if any(trial.state == "done" for trial in self.trials):
            return
        failed = [trial for trial in self.trials if trial.state == "failed"]
        if failed:
            raise TrainingError(
                asked="at least one trained student",
                found=f"{len(failed)} failed trainings, the last with {failed[-1].error}",
                next="Correct the cause and start a new run.",
            )
        fastest_s = min((trial.upper_s for trial in self.trials), default=math.inf)
        raise nothing_within_budget(self.settings.budget_s, fastest_s, len(self.trials))

    def _upper_s(self, candidates: Sequence[Parameters]) -> np.ndarray:
        return self._predicted(self.screen, [self.space.architecture(parameters) for parameters in candidates])[1]

    def _predicted(self, predict: Predict, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        with self._timed("prediction"):
            latency_s, upper_s = (np.asarray(values, dtype=float) for values in predict(architectures))
        shape = (len(architectures),)
        if latency_s.shape != shape or upper_s.shape != shape:
            raise MismatchError(
                asked=f"{shape[0]} predictions and as many upper bounds",
                found=f"shapes {latency_s.shape} and {upper_s.shape}",
                next="Return two arrays of one number per architecture.",
            )
        if not (np.isfinite(upper_s).all() and (latency_s > 0).all() and (upper_s >= latency_s).all()):
            bad = int(np.argmin(np.isfinite(upper_s) & (latency_s > 0) & (upper_s >= latency_s)))
            raise MismatchError(
                asked=f"a latency above 0 and a finite upper bound of at least it for {architectures[bad].text}",
                found=f"{latency_s[bad]} s and {upper_s[bad]} s",
                next="Correct the predictor, or fit it again.",
            )
        return latency_s, upper_s

    def _write(self) -> None:
        if self.pending:
            with self._timed("journal"):
                overlaps = {trial.id: self.overlaps[trial.id] for trial in self.pending if trial.id in self.overlaps}
                self.journal.record(self.pending, overlaps)
            self.pending.clear()

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - began
