"""One training as NNI starts it: `python -m akd_deploy.search.experiment.trial SPECIFICATION`.

It connects to the search first, so that its death is noticed whenever it comes, and ends when the search is gone. What
it trains is in its own parameters, with the search's id of it, and its result goes back under that id.

NNI's server is asked for the parameters and told the result by HTTP, as NNI's own library does it; importing that
takes two seconds (it brings pandas and scipy.stats along), as long as many a training here.
"""

from __future__ import annotations

import http
import json
import os
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from akd_deploy.architecture import architecture_from_dict
from akd_deploy.errors import AkdError
from akd_deploy.search.experiment.exchange import Connection, connect
from akd_deploy.search.experiment.specification import Specification
from akd_deploy.search.trial import Score

NNI_TIMEOUT_S = 60.0
NNI_TRIES = 10
"""NNI's server holds a question open for some seconds before it says that it has no answer yet."""


def main(path: str) -> int:
    """Train one candidate; 0 when it has a score."""
    specification = Specification(**json.loads(Path(path).read_text(encoding="utf-8")))
    connection = connect(specification.socket)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    os.chdir(specification.working_directory)
    sys.path[:] = [*sys.path, *(entry for entry in specification.import_path if entry not in sys.path)]
    nni = _Nni(os.environ["NNI_TRIAL_COMMAND_CHANNEL"])
    parameters = nni.parameters
    candidate = parameters["candidate"]
    folder = os.environ["NNI_OUTPUT_DIR"]
    connection.send({"kind": "started", "candidate": candidate, "pid": os.getpid(), "folder": folder})
    began = time.perf_counter()
    try:
        architecture = architecture_from_dict(
            {"space": specification.space, "settings": specification.settings, "choices": parameters["choices"]}
        )
        score = specification.score()(architecture, parameters["seed"])
        shown = score.accuracy * parameters["reward_per_accuracy"]
        metric = {"default": shown, "accuracy": float(score.accuracy), "candidate": candidate}
        nni.report(metric)
        answer: dict[str, Any] = {"digest": architecture.digest, "score": _as_dict(score)}
    except Exception as error:  # noqa: BLE001  (the search decides what it means)
        answer = {"error": error_as_dict(error)}
    answer |= {"kind": "ended", "candidate": candidate, "seconds": time.perf_counter() - began}
    connection.send(answer)
    return 0 if "score" in answer else 1


class _Nni:
    """NNI's end: it gives the parameters once, and takes the final result, which its portal shows."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        self._put({"type": "request_parameter"})
        record = json.loads(self._get()["parameter"])
        self._parameter_id = record["parameter_id"]
        self.parameters: dict[str, Any] = record["parameters"]

    def report(self, metric: Mapping[str, Any]) -> None:
        fields = {
            "parameter_id": self._parameter_id,
            "trial_job_id": os.environ["NNI_TRIAL_JOB_ID"],
            "type": "FINAL",
            "sequence": 0,
            "value": json.dumps(dict(metric)),
        }
        self._put({"type": "metric", "metric": json.dumps(fields)})

    def _put(self, message: Mapping[str, Any]) -> None:
        request = urllib.request.Request(
            self._url, json.dumps(dict(message)).encode(), {"Content-Type": "application/json"}, method="PUT"
        )
        self._opener.open(request, timeout=NNI_TIMEOUT_S).close()

    def _get(self) -> dict[str, Any]:
        """Its next message; NNI says 408 while there is none."""
        for _ in range(NNI_TRIES):
            try:
                with self._opener.open(self._url, timeout=NNI_TIMEOUT_S) as answer:
                    return json.load(answer)
            except urllib.error.HTTPError as error:
                if error.code != http.HTTPStatus.REQUEST_TIMEOUT:
                    raise
        raise TimeoutError(f"no parameters from {self._url}")


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
