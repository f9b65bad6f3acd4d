"""The in-process search: ask a strategy, refuse what is over the budget, train the rest, tell, and write it down."""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

import numpy as np

from akd_deploy.architecture import Architecture
from akd_deploy.errors import AkdError, MismatchError, MissingRuntimeError, StorageError, TrainingError, UsageError
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
)
from akd_deploy.search.trial import FINISHED, Score, Trial
from akd_deploy.search_space import SearchSpace

Predict = Callable[[Sequence[Architecture]], tuple[np.ndarray, np.ndarray]]
"""n architectures → ((n,) point predictions, (n,) upper bounds) in seconds, upper ≥ point > 0. The upper bound is
for the percentile the budget is about (interval and tail factor included); the budget constrains it."""

ScoreFunction = Callable[[Architecture, int], Score]
"""(architecture, seed) → its score. The seed is the same for the same network in searches of the same seed."""

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
    score: ScoreFunction,
    settings: SearchSettings,
    journal: Journal | None = None,
    on_trial: Callable[[Trial], None] | None = None,
    screen: Predict | None = None,
) -> SearchResult:
    """Search the space for the student with the greatest reward.

    A journal with trials in it is continued: the strategy is asked and told everything again in order, and what the
    journal holds is not trained again. Should the strategy propose something else than the journal says (a library
    changed), the rest of the journal is handed to it as history. Without a journal nothing is kept.

    Args:
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
    if journal is None:
        with Journal() as kept_in_memory:
            return _Search(space, strategy, predict, score, settings, kept_in_memory, on_trial, screen).run()
    return _Search(space, strategy, predict, score, settings, journal, on_trial, screen).run()


class _Search:
    """One run of the loop: its counters, its clock, and the rows not yet written."""

    def __init__(
        self,
        space: SearchSpace,
        strategy: str | StrategyFactory,
        predict: Predict,
        score: ScoreFunction,
        settings: SearchSettings,
        journal: Journal,
        on_trial: Callable[[Trial], None] | None,
        screen: Predict | None,
    ) -> None:
        self.space, self.settings, self.journal = space, settings, journal
        self.predict, self.score, self.on_trial = predict, score, on_trial
        self.screen = screen or predict
        self.seconds = {"training": 0.0, "prediction": 0.0, "strategy": 0.0, "journal": 0.0}
        budget = LatencyBudget(settings.budget_s, self._upper_s) if settings.constraint == "upper" else None
        if isinstance(strategy, str):
            self.name = strategy
            self.strategy = load_strategy(strategy, settings.seed, settings.strategy_settings, budget)
        else:
            require_nni()
            self.name = getattr(strategy, "__qualname__", type(strategy).__qualname__)
            self.strategy = strategy(settings.seed, settings.strategy_settings, budget)
        self.trials: list[Trial] = []
        self.pending: list[Trial] = []
        self.trained: dict[str, Trial] = {}
        """Network digest → its trial, done or failed."""
        self.draws = 0
        self.failures = 0
        self.diverged = False

    def run(self) -> SearchResult:
        from nni import NoMoreTrialError

        space = {"name": self.space.name, "settings": dict(self.space.settings)}
        self.journal.agree_on(
            f"search {self.journal.search}".strip(), {"strategy": self.name, "space": space, **self.settings.as_dict()}
        )
        recorded = {trial.id: trial for trial in self.journal.trials()}
        with self._timed("strategy"):
            self.strategy.update_search_space(nni_space(self.space))
        stopped = "trials"
        while len(self.trained) < self.settings.trials:
            if self.draws == self.settings.max_draws:
                stopped = "draws"
                break
            row = recorded.get(len(self.trials))
            try:
                parameters = None if self.diverged and row else self._ask()
            except NoMoreTrialError:
                stopped = "exhausted"
                break
            self._step(row, parameters)
        self._write()
        self._check_something_was_trained()
        return SearchResult(tuple(self.trials), dict(self.seconds), stopped, self.diverged)

    def _step(self, row: Trial | None, parameters: Parameters | None) -> None:
        """Find out what a candidate is worth, from the journal or by judging it, and tell the strategy."""
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
        if row is not None:
            trial = row if row.state in FINISHED else self._train(replace(row, state="running"))
        else:
            assert parameters is not None
            trial = self._judge(number, self.space.architecture(parameters))
        self.trials.append(trial)
        if trial.state in ("done", "failed"):
            self.trained[trial.network] = trial
            self.seconds["training"] += trial.seconds
            self.draws = 0
        else:
            self.draws += 1
        self._tell(trial, parameters)
        if trial is not row and self.on_trial is not None:
            self.on_trial(trial)

    def _ask(self) -> Parameters:
        # Predictions that the strategy asks for are counted as predictions.
        before = self.seconds["prediction"]
        with self._timed("strategy"):
            parameters = self.strategy.generate_parameters(len(self.trials))
        self.seconds["strategy"] -= self.seconds["prediction"] - before
        return parameters

    def _tell(self, trial: Trial, parameters: Parameters | None) -> None:
        """Tell the strategy what its candidate is worth; without parameters it is not its own, but history."""
        value = trial.reward
        if trial.state == "infeasible":
            value = over_budget_penalty(trial.upper_s, self.settings.budget_s)
        with self._timed("strategy"):
            if parameters is None:
                if value is not None:
                    choices = dict(trial.architecture.choices)
                    self.strategy.import_data([{"parameter": choices, "value": value}])
                return
            if value is not None:
                self.strategy.receive_trial_result(trial.id, parameters, value)
            self.strategy.trial_end(trial.id, value is not None)

    def _judge(self, number: int, architecture: Architecture) -> Trial:
        """Refuse a new candidate, recognise its network, or train it."""
        network = self.space.network_digest(architecture)
        latency_s, upper_s = (float(values[0]) for values in self._predicted(self.predict, [architecture]))
        seed = int.from_bytes(hashlib.sha256(f"{self.settings.seed} {network}".encode()).digest()[:4], "big")
        trial = Trial(number, self.name, architecture, network, "running", latency_s, upper_s, seed)
        known = self.trained.get(network)
        if self.settings.constraint == "upper" and upper_s > self.settings.budget_s:
            trial = replace(trial, state="infeasible", finished=now())
        elif known is not None:
            trial = replace(
                trial,
                state="duplicate",
                reward=known.reward,
                accuracy=known.accuracy,
                error=known.error,
                finished=now(),
            )
        else:
            return self._train(trial)
        self.pending.append(trial)
        if len(self.pending) >= PENDING_ROWS:
            self._write()
        return trial

    def _train(self, trial: Trial) -> Trial:
        trial = replace(trial, started=now(), attempts=trial.attempts + 1)
        self.pending.append(trial)
        self._write()
        began = time.perf_counter()
        error: Exception | None = None
        try:
            score = self.score(trial.architecture, trial.seed)
            trial = replace(
                trial,
                state="done",
                accuracy=float(score.accuracy),
                reward=reward(score.accuracy, trial.latency_s, self.settings.budget_s, self.settings.shape),
                metrics=score.metrics,
                seconds=float(score.seconds),
            )
        except (StorageError, MissingRuntimeError):
            raise  # The machine's fault, not the candidate's.
        except (AkdError, ArithmeticError, RuntimeError) as caught:
            error = caught
            trial = replace(
                trial,
                state="failed",
                seconds=time.perf_counter() - began,
                error=f"{type(caught).__name__}: {caught}",
            )
        trial = replace(trial, finished=now())
        self.pending.append(trial)
        self._write()
        self.failures = 0 if error is None else self.failures + 1
        if error is not None and self.failures == self.settings.max_failures:
            raise TrainingError(
                asked=f"trial {trial.id}",
                found=f"{self.failures} failed trainings in a row, the last with {trial.error}",
                next="Correct the cause and resume; the failed trials are in the journal.",
            ) from error
        return trial

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
                self.journal.record(self.pending)
            self.pending.clear()

    @contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - began
