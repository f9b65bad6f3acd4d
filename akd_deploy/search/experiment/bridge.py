"""The tuner that NNI runs in its own process: it passes on what the search proposes, and decides nothing itself."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from nni import NoMoreTrialError
from nni.tuner import Tuner

from akd_deploy.search.experiment.exchange import connect


class Bridge(Tuner):
    """Asks the search for candidates over its socket.

    NNI hangs without a word when a tuner raises: what goes wrong here ends the process, which the search notices.
    Results take no part in this: trainings tell them to the search themselves.
    """

    def __init__(self, socket: str) -> None:
        super().__init__()
        self._connection = connect(socket)
        self._connection.send({"kind": "bridge", "pid": os.getpid()})
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while True:
            answer = self._connection.receive()
            if answer is None:  # the search is over or gone
                os._exit(0)
            self._answers.put(answer)

    def update_search_space(self, search_space: dict[str, Any]) -> None:
        """The search knows its own."""

    def generate_parameters(self, parameter_id: int, **_: Any) -> dict[str, Any]:
        """The next candidate, as soon as the search has one.

        Raises:
            nni.NoMoreTrialError: there will be no more.
        """
        try:
            self._connection.send({"kind": "ask", "parameter_id": parameter_id})
        except OSError:
            os._exit(1)
        parameters = self._answers.get()["parameters"]
        if parameters is None:
            raise NoMoreTrialError("the search has no more candidates")
        return parameters

    def generate_multiple_parameters(self, parameter_id_list: list[int], **_: Any) -> Sequence[dict[str, Any]]:
        """As many candidates as NNI asks for at once, each made when NNI comes to send it on: the first does not wait
        for the second, which may have to wait for the first one's result."""
        return _AskedOneByOne(self, parameter_id_list)

    def receive_trial_result(self, parameter_id: int, parameters: Any, value: Any, **_: Any) -> None:
        """The search has it from the training."""

    def trial_end(self, parameter_id: int, success: bool, **_: Any) -> None:
        """The search has it from the training."""

    def import_data(self, data: Any) -> None:
        """There is none: the search resumes from its own journal."""


class _AskedOneByOne(Sequence[dict[str, Any]]):
    """What NNI goes through once, sending on each; then it compares the length with what it asked for."""

    def __init__(self, bridge: Bridge, parameter_ids: list[int]) -> None:
        self._bridge, self._parameter_ids = bridge, parameter_ids
        self._made: list[dict[str, Any]] = []

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for parameter_id in self._parameter_ids:
            try:
                self._made.append(self._bridge.generate_parameters(parameter_id))
            except NoMoreTrialError:
                return
            yield self._made[-1]

    def __getitem__(self, index: Any) -> Any:
        return self._made[index]

    def __len__(self) -> int:
        return len(self._made)
