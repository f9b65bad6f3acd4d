"""Lines of JSON between the search and the processes that NNI starts, over a socket that only this user can open."""

from __future__ import annotations

import json
import queue
import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from akd_deploy.errors import StorageError


class Connection:
    """One end of a conversation."""

    def __init__(self, own: socket.socket) -> None:
        self._socket = own
        self._lines = own.makefile("r", encoding="utf-8")
        self._writing = threading.Lock()

    def send(self, message: Mapping[str, Any]) -> None:
        """Raises OSError where the other side is gone."""
        with self._writing:
            self._socket.sendall((json.dumps(dict(message)) + "\n").encode())

    def receive(self) -> dict[str, Any] | None:
        """The next message; None when the other side is gone."""
        try:
            line = self._lines.readline()
        except (OSError, ValueError):
            return None
        return json.loads(line) if line.endswith("\n") else None

    def close(self) -> None:
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # whoever is reading is told that there is no more
        with suppress(OSError, ValueError):
            self._lines.close()
        self._socket.close()


def connect(path: str) -> Connection:
    """To the search that listens there."""
    own = socket.socket(socket.AF_UNIX)
    own.connect(path)
    return Connection(own)


class Exchange:
    """The search's end: whatever is said to it lands in `inbox` as (connection, message), a farewell as None.

    The socket lies in a folder of its own that nobody else may enter. Paths of sockets must be short, so that it is
    not in the run's folder.
    """

    def __init__(self) -> None:
        self.inbox: queue.Queue[tuple[Connection, dict[str, Any] | None]] = queue.Queue()
        self._folder = tempfile.TemporaryDirectory(prefix="akd-")
        self.path = str(Path(self._folder.name) / "search")
        self._connections: list[Connection] = []
        self._listener = socket.socket(socket.AF_UNIX)
        try:
            self._listener.bind(self.path)
        except OSError as error:
            self._folder.cleanup()
            raise StorageError(
                asked=f"a socket at {self.path}", found=str(error), next="Set TMPDIR to a short path on a local disk."
            ) from error
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Hang up on everyone; trainings end themselves when they notice."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            connection.close()
        self._folder.cleanup()

    def _accept(self) -> None:
        while True:
            try:
                connection = Connection(self._listener.accept()[0])
            except OSError:
                return
            self._connections.append(connection)
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()

    def _read(self, connection: Connection) -> None:
        while True:
            message = connection.receive()
            self.inbox.put((connection, message))
            if message is None:
                return
