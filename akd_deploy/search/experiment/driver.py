"""The trainings of a search as trials of an NNI experiment, every result under the candidate that it is about."""

from __future__ import annotations

import json
import queue
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from akd_deploy import errors
from akd_deploy.errors import AkdError, ExperimentError, MissingRuntimeError, StorageError, TrainingError, UsageError
from akd_deploy.search.experiment.exchange import Connection, Exchange
from akd_deploy.search.experiment.server import Server
from akd_deploy.search.experiment.specification import Specification
from akd_deploy.search.strategies import nni_space, require_nni
from akd_deploy.search.trainings import Ended, ScoreFunction, Trainings
from akd_deploy.search.trial import Score, Trial
from akd_deploy.search_space import SearchSpace
from akd_deploy.storage import make_folder, write_text_atomically

START_LIMIT_S = 120.0
"""A training that NNI has not started by then, it never will: its loop takes two seconds, a busy machine some more."""
TICK_S = 0.5
"""So often the processes are looked at while nothing is heard from them."""


@dataclass
class _Candidate:
    """One that is to be trained, from when the search gives it out until it has ended."""

    trial: Trial
    parameters: dict[str, Any]
    begun: float
    """By the monotonic clock: given out; from its first word on, when that came."""
    is_given: bool = False
    """NNI has it."""
    pid: int | None = None
    folder: str = ""
    is_over_time: bool = False


@dataclass
class NniExperiment(Trainings):
    """Trainings in processes of their own, `jobs` at a time, started by NNI and shown in its web portal.

    NNI is started with the first training, so that a finished search needs none.

    Args:
        space: the search's.
        score_factory: a function of a module that a process of its own can import; makes the score function.
        arguments: the factory's, JSON types.
        folder: for NNI's files, which nothing here reads again.
        trial_limit_s: a training that takes longer is killed and counts as failed.
        port: of the portal on this machine's loopback address; a free one where None.
        on_portal: told the portal's address once it is there.
    """

    space: SearchSpace
    score_factory: Callable[..., ScoreFunction]
    arguments: Mapping[str, Any]
    folder: Path
    jobs: int = 1
    trial_limit_s: float = 3600.0
    port: int | None = None
    on_portal: Callable[[str], None] = lambda url: None
    start_limit_s: float = START_LIMIT_S
    _exchange: Exchange | None = field(default=None, init=False)
    _server: Server | None = field(default=None, init=False)
    _bridge: Connection | None = field(default=None, init=False)
    _asks: deque[Connection] = field(default_factory=deque, init=False)
    _to_give: deque[_Candidate] = field(default_factory=deque, init=False)
    _current: dict[int, _Candidate] = field(default_factory=dict, init=False)
    _speakers: dict[Connection, int] = field(default_factory=dict, init=False)
    _finished: set[Connection] = field(default_factory=set, init=False)
    """Of which nothing but the farewell is to come."""
    _lost: int = field(default=0, init=False)
    """Trainings that were gone before they said which candidate is theirs."""
    _ended: deque[Ended] = field(default_factory=deque, init=False)
    _is_all: bool = field(default=False, init=False)
    _term_before: Any = field(default=None, init=False)

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise UsageError("at least 1 training at a time", repr(self.jobs), "Raise jobs.")
        if not self.trial_limit_s > 0:
            raise UsageError("a time limit above 0 seconds", repr(self.trial_limit_s), "Give seconds.")
        if "." in self.score_factory.__qualname__ or self.score_factory.__module__ == "__main__":
            raise UsageError(
                asked=f"{self.score_factory.__qualname__} in another process",
                found="a function that no import reaches",
                next="Define the factory at the top level of a module.",
            )
        require_nni()

    def __enter__(self) -> NniExperiment:
        # SIGTERM ends a process on the spot, and would leave NNI's behind; as an interruption it takes them along.
        if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
            self._term_before = signal.signal(signal.SIGTERM, _interrupt)
        return self

    def start(self, trial: Trial, reward_per_accuracy: float) -> None:
        if self._server is None:
            self._launch(trial)
        choices = dict(trial.architecture.choices)
        parameters = {
            **choices,  # for the portal, which draws them by name
            "candidate": trial.id,
            "seed": trial.seed,
            "choices": choices,
            "reward_per_accuracy": reward_per_accuracy,
        }
        candidate = _Candidate(trial, parameters, time.monotonic())
        self._current[trial.id] = candidate
        self._to_give.append(candidate)
        self._give()

    def next_ended(self) -> Ended:
        while not self._ended:
            assert self._exchange is not None
            assert self._current, "nothing is in training"
            with suppress(queue.Empty):
                self._hear(*self._exchange.inbox.get(timeout=TICK_S))
            self._watch()
        return self._ended.popleft()

    def no_more(self) -> None:
        self._is_all = True
        self._give()

    def close(self) -> None:
        if self._exchange is not None:
            self._to_give.clear()
            # NNI stops when its tuner has stopped, which may be asking for candidates meanwhile.
            threading.Thread(target=self._refuse, args=(self._exchange,), daemon=True).start()
            if self._server is not None:
                self._server.stop()
            self._exchange.close()
            self._exchange = self._server = None
        if self._term_before is not None:
            signal.signal(signal.SIGTERM, self._term_before)
            self._term_before = None

    def _launch(self, trial: Trial) -> None:
        make_folder(self.folder)
        self._exchange = Exchange()
        specification = Specification(
            socket=self._exchange.path,
            working_directory=str(Path.cwd()),
            import_path=[str(Path(entry).absolute()) for entry in sys.path],
            space=trial.architecture.space,
            settings=dict(trial.architecture.settings),
            module=self.score_factory.__module__,
            function=self.score_factory.__qualname__,
            arguments=dict(self.arguments),
        )
        path = self.folder.absolute() / "trainings.json"
        write_text_atomically(path, json.dumps(asdict(specification), default=dict))
        command = ["-m", "akd_deploy.search.experiment.trial", str(path)]
        tuner = {"socket": self._exchange.path}
        self._server = Server(self.folder.absolute(), nni_space(self.space), command, tuner, self.jobs, self.port)
        self.on_portal(self._server.url)

    def _give(self) -> None:
        """Answer NNI's requests for candidates, as far as there are any."""
        while self._asks and (self._to_give or self._is_all):
            candidate = self._to_give.popleft() if self._to_give else None
            if candidate is not None:
                candidate.is_given = True
            with suppress(OSError):  # `_watch` sees it
                self._asks.popleft().send({"parameters": candidate and candidate.parameters})

    def _refuse(self, exchange: Exchange) -> None:
        """Say no to whatever NNI asks for, until its tuner is gone."""
        self.no_more()
        while self._bridge is not None:
            connection, message = exchange.inbox.get()
            if message is None and connection is self._bridge:
                return
            if message is not None and message["kind"] == "ask":
                self._asks.append(connection)
                self._give()

    def _hear(self, connection: Connection, message: dict[str, Any] | None) -> None:
        if message is None:
            self._hear_farewell(connection)
        elif message["kind"] == "bridge":
            self._bridge = connection
        elif message["kind"] == "ask":
            self._asks.append(connection)
            self._give()
        else:
            self._hear_of_training(connection, message)

    def _hear_of_training(self, connection: Connection, message: dict[str, Any]) -> None:
        number = message["candidate"]
        candidate = self._current.get(number)
        assert candidate is not None, f"trial {number} is not in training"
        if message["kind"] == "started":
            candidate.pid, candidate.folder, candidate.begun = message["pid"], message["folder"], time.monotonic()
            self._speakers[connection] = number
        else:
            del self._speakers[connection]
            self._finished.add(connection)
            self._end(candidate, self._outcome(candidate.trial, message), message["seconds"])

    def _outcome(self, trial: Trial, message: Mapping[str, Any]) -> Score | Exception:
        if "error" in message:
            error = error_from_dict(message["error"])
            if isinstance(error, StorageError | MissingRuntimeError):
                raise error  # the machine's fault, not the candidate's
            return error
        if message["digest"] != trial.architecture.digest:
            raise ExperimentError(
                asked=f"the result of trial {trial.id}, architecture {trial.architecture.digest}",
                found=f"one for architecture {message['digest']}",
                next='Resume with driver = "in-process", and report this.',
            )
        return Score(**message["score"])

    def _hear_farewell(self, connection: Connection) -> None:
        if connection is self._bridge:
            raise self._broken("its tuner's process ended")
        if connection in self._finished:
            self._finished.remove(connection)
            return
        candidate = self._current.get(self._speakers.pop(connection, -1))
        if candidate is None:
            self._lost += 1
        else:
            self._end_without_result(candidate)

    def _end_without_result(self, candidate: _Candidate) -> None:
        seconds = time.monotonic() - candidate.begun
        if candidate.is_over_time:
            found = f"no result within {self.trial_limit_s:g} s, after which its process was killed"
        else:
            found = f"its process gone after {seconds:.1f} s, without a result"
        assert self._server is not None
        where = Path(candidate.folder or self._server.folder / "environments" / "local-env" / "trials" / "*")
        self._end(
            candidate, TrainingError(f"trial {candidate.trial.id}", found, f"See {where / 'trial.stderr'}."), seconds
        )

    def _end(self, candidate: _Candidate, outcome: Score | Exception, seconds: float) -> None:
        del self._current[candidate.trial.id]
        self._ended.append(Ended(candidate.trial.id, outcome, seconds))

    def _watch(self) -> None:
        """See that something is going on: NNI itself never says that it is stuck."""
        assert self._server is not None
        trouble = self._server.why_not_running()
        if trouble is not None:
            raise self._broken(trouble)
        unheard_of = [candidate for candidate in self._current.values() if candidate.is_given and candidate.pid is None]
        if unheard_of and len(unheard_of) <= self._lost:  # then these are the lost ones
            self._lost -= len(unheard_of)
            for candidate in unheard_of:
                self._end_without_result(candidate)
        for candidate in self._current.values():
            seconds = time.monotonic() - candidate.begun
            if candidate.pid is None and seconds > self.start_limit_s:
                raise self._broken(f"trial {candidate.trial.id} not started within {self.start_limit_s:g} s")
            if candidate.pid is not None and seconds > self.trial_limit_s and not candidate.is_over_time:
                candidate.is_over_time = True
                _kill(candidate.pid)

    def _broken(self, found: str) -> ExperimentError:
        assert self._server is not None
        return ExperimentError(
            asked="NNI's experiment to go on",
            found=found,
            next=f'What was finished is kept: resume, with driver = "in-process" if it happens again. NNI\'s own words '
            f"are in {self._server.folder / 'log'}.",
        )


def error_from_dict(parts: Mapping[str, str]) -> Exception:
    """An error that a training met, as near to itself as its name allows."""
    kind = getattr(errors, parts["type"], None)
    if isinstance(kind, type) and issubclass(kind, AkdError):
        return errors.rebuilt_error(kind, parts["asked"], parts["found"], parts["next"], {})
    return type(parts["type"], (RuntimeError,), {})(parts.get("text", ""))


def _kill(pid: int) -> None:
    """A training and whatever it has started."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        for child in process.children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        process.kill()


def _interrupt(number: int, frame: object) -> None:
    del number, frame
    raise KeyboardInterrupt
