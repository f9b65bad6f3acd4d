"""One training as NNI starts it: `python -m akd_deploy.search.experiment.trial SPECIFICATION`.

It connects to the search first, so that its death is noticed whenever it comes, and ends when the search is gone. What
it trains is in its own parameters, with the search's id of it, and its result goes back under that id.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from akd_deploy.architecture import architecture_from_dict
from akd_deploy.errors import AkdError
from akd_deploy.search.experiment.exchange import Connection, connect
from akd_deploy.search.trainings import ScoreFunction
from akd_deploy.search.trial import Score


@dataclass(frozen=True)
class Specification:
    """What all trainings of an experiment share; a JSON file in the experiment's folder.

    `module`, `function` and `arguments` say how a process of its own gets at the score function.
    """

    socket: str
    working_directory: str
    import_path: list[str]
    space: str
    settings: Mapping[str, Any]
    module: str
    function: str
    arguments: Mapping[str, Any]

    def score(self) -> ScoreFunction:
        """Import the factory and call it."""
        factory = getattr(importlib.import_module(self.module), self.function)
        return factory(**self.arguments)


def main(path: str) -> int:
    """Train one candidate; 0 when it has a score."""
    specification = Specification(**json.loads(Path(path).read_text(encoding="utf-8")))
    connection = connect(specification.socket)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    os.chdir(specification.working_directory)
    sys.path[:] = [*sys.path, *(entry for entry in specification.import_path if entry not in sys.path)]
    os.environ.setdefault("NNI_FRAMEWORK", "none")
    import nni

    nni.silence_stdout()
    parameters = nni.get_next_parameter()
    candidate = parameters["candidate"]
    folder = os.environ.get("NNI_SYS_DIR", "")
    connection.send({"kind": "started", "candidate": candidate, "pid": os.getpid(), "folder": folder})
    began = time.perf_counter()
    try:
        architecture = architecture_from_dict(
            {"space": specification.space, "settings": specification.settings, "choices": parameters["choices"]}
        )
        score = specification.score()(architecture, parameters["seed"])
        shown = score.accuracy * parameters["reward_per_accuracy"]
        nni.report_final_result({"default": shown, "accuracy": score.accuracy, "candidate": candidate})
        answer: dict[str, Any] = {"digest": architecture.digest, "score": _as_dict(score)}
    except Exception as error:  # noqa: BLE001  (the search decides what it means)
        answer = {"error": error_as_dict(error)}
    answer |= {"kind": "ended", "candidate": candidate, "seconds": time.perf_counter() - began}
    connection.send(answer)
    return 0 if "score" in answer else 1


def _as_dict(score: Score) -> dict[str, Any]:
    return {"accuracy": float(score.accuracy), "metrics": dict(score.metrics), "seconds": float(score.seconds)}


def error_as_dict(error: Exception) -> dict[str, Any]:
    """An error as JSON types: of our own its parts, of others the name and the text."""
    if isinstance(error, AkdError):
        return {"type": type(error).__name__, "asked": error.asked, "found": error.found, "next": error.next}
    return {"type": type(error).__name__, "text": str(error)}


def _end_with(connection: Connection) -> None:
    """End this process, and what it started, when the search hangs up."""
    while connection.receive() is not None:
        pass
    for child in psutil.Process().children(recursive=True):
        child.kill()
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
