"""NNI's processes for one experiment: started on the loopback address alone, watched, and none left behind."""

from __future__ import annotations

import atexit
import ipaddress
import logging
import os
import shlex
import socket
import sys
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from akd_deploy.errors import ExperimentError, UsageError

PACKAGE_ROOT = Path(__file__).parents[3]
LOOPBACK = "127.0.0.1"
ATTEMPTS = 2
"""Another process may take the free port before NNI does."""
ANSWER_LIMIT_S = 60
"""NNI gives its server three seconds to answer; a busy machine needs longer."""
STOP_LIMIT_S = 20.0
"""NNI takes four seconds to stop; one that takes so long never will."""
KILLED_LIMIT_S = 5.0

_log = logging.getLogger(__name__)


class Server:
    """A running experiment: NNI's server, its tuner's process, and the trainings these start."""

    def __init__(
        self,
        folder: Path,
        space: Mapping[str, Any],
        trial_arguments: list[str],
        tuner_arguments: Mapping[str, Any],
        jobs: int,
        port: int | None,
    ) -> None:
        """Start it.

        Args:
            folder: NNI's own, inside the run's.
            space: in NNI's JSON form; what the portal draws.
            trial_arguments: of the interpreter, for each training.
            port: of the portal; a free one where None.

        Raises:
            UsageError: the port is taken.
            ExperimentError: NNI does not start here, or listens where others could reach it.
        """
        code = folder / "code"
        code.mkdir(parents=True, exist_ok=True)
        if port is not None and not _is_free(port):
            raise UsageError(f"NNI's portal on port {port}", "that port taken", "Choose another, or leave it out.")
        for attempt in range(ATTEMPTS):
            experiment = self._configured(folder, code, space, trial_arguments, tuner_arguments, jobs)
            chosen = port or _free_port()
            try:
                with _environment(), _nni_leaks():
                    experiment.start(chosen)
                break
            except Exception as error:  # NNI raises whatever it met
                atexit.unregister(experiment.stop)
                if attempt + 1 == ATTEMPTS:
                    raise ExperimentError(
                        asked="NNI's server for a search",
                        found=f"{type(error).__name__}: {error}",
                        next=f'See {folder / experiment.id / "log"}; or search with driver = "in-process".',
                    ) from error
        atexit.unregister(experiment.stop)  # `stop` here does that, and waits no longer than it must
        self._experiment = experiment
        self.folder = folder / experiment.id
        self.url = f"http://{LOOPBACK}:{chosen}"
        self._node = psutil.Process(experiment._proc.pid)
        self._seen: set[psutil.Process] = {self._node}
        try:
            self._check_listeners()
        except BaseException:
            self.stop()
            raise

    def _configured(
        self,
        folder: Path,
        code: Path,
        space: Mapping[str, Any],
        trial_arguments: list[str],
        tuner_arguments: Mapping[str, Any],
        jobs: int,
    ) -> Any:
        os.environ.setdefault("NNI_FRAMEWORK", "none")
        from nni.experiment import Experiment
        from nni.experiment.config import CustomAlgorithmConfig

        experiment = Experiment("local")
        config = experiment.config
        config.experiment_working_directory = folder
        config.trial_code_directory = code
        config.trial_command = f"exec {shlex.join([sys.executable, *trial_arguments])}"
        config.search_space = dict(space)
        config.trial_concurrency = jobs
        config.log_level = "warning"
        config.tuner = CustomAlgorithmConfig(
            class_name="akd_deploy.search.experiment.bridge.Bridge",
            code_directory=PACKAGE_ROOT,
            class_args=dict(tuner_arguments),
        )
        return experiment

    def why_not_running(self) -> str | None:
        """None while NNI's server runs."""
        with suppress(psutil.NoSuchProcess):
            if self._node.is_running() and self._node.status() != psutil.STATUS_ZOMBIE:
                self._seen.update(self._node.children(recursive=True))
                return None
        return "its server ended"

    def _check_listeners(self) -> None:
        """See for ourselves that nobody else can reach it."""
        listening = [
            entry.laddr.ip
            for process in (self._node, *self._node.children(recursive=True))
            for entry in process.net_connections(kind="inet")
            if entry.status == psutil.CONN_LISTEN
        ]
        open_to_others = [ip for ip in listening if not ipaddress.ip_address(ip).is_loopback]
        if open_to_others or not listening:
            raise ExperimentError(
                asked=f"NNI's server on {LOOPBACK} alone",
                found=f"it listening on {', '.join(open_to_others) or 'nothing'}",
                next='It runs commands for whoever reaches it, and was stopped; search with driver = "in-process".',
            )

    def stop(self) -> None:
        """Stop the experiment in NNI's way; kill whatever of it is left after that."""
        self.why_not_running()  # for the processes that it has started by now
        stopping = threading.Thread(target=self._stop_quietly, daemon=True)
        with _nni_leaks():
            stopping.start()
            stopping.join(STOP_LIMIT_S)
        with suppress(psutil.Error):
            self._seen.update(self._node.children(recursive=True))
        left = [process for process in self._seen if process.is_running()]
        for process in left:
            with suppress(psutil.Error):
                process.kill()
        _, alive = psutil.wait_procs(left, timeout=KILLED_LIMIT_S)
        if alive:
            _log.warning("processes %s of NNI's could not be ended", [process.pid for process in alive])

    def _stop_quietly(self) -> None:
        with suppress(Exception):
            self._experiment.stop()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


@contextmanager
def _nni_leaks() -> Iterator[None]:
    """NNI leaves a socket and a log open, of which Python warns where it is asked to."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield


@contextmanager
def _environment() -> Iterator[None]:
    """What NNI's server is started with: our preload, where this package is, no proxy in between, and patience."""
    preload = Path(__file__).with_name("loopback.cjs")
    quoted = '"' + str(preload).replace("\\", "\\\\").replace('"', '\\"') + '"'
    hosts = ",".join(filter(None, [os.environ.get("no_proxy"), "localhost", LOOPBACK]))
    changes = {
        "NODE_OPTIONS": " ".join(filter(None, [os.environ.get("NODE_OPTIONS"), f"--require {quoted}"])),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PACKAGE_ROOT), os.environ.get("PYTHONPATH")])),
        "no_proxy": hosts,
        "NO_PROXY": hosts,
    }
    from nni.experiment import launcher

    before = {name: os.environ.get(name) for name in changes}
    checked_by_nni = launcher._check_rest_server
    os.environ.update(changes)
    launcher._check_rest_server = partial(checked_by_nni, retry=ANSWER_LIMIT_S)  # once a second
    try:
        yield
    finally:
        launcher._check_rest_server = checked_by_nni
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
