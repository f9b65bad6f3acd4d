"""A lock on a run directory's journal: one writer at a time, which it names."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from akd_deploy.errors import StorageError


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold `path` for this process; the system lets go of it when the process ends, however it ends.

    The file stays behind: removing it would let two processes each lock a different file of the same name.

    Raises:
        StorageError: another process holds it, which the message names, or the place cannot be written.
    """
    import fcntl

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise StorageError(asked=f"the lock {path}", found=str(error), next="Choose a writable place.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageError(
                asked=f"to write beside {path}",
                found=f"it is in use by {_holder(path)}",
                next="Wait for that process to end, or stop it.",
            ) from None
        except OSError as error:
            raise StorageError(
                asked=f"the lock {path}", found=str(error), next="Choose a file system that can lock files."
            ) from error
        me = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(me).encode(), 0)
        except OSError as error:
            raise StorageError(asked=f"the lock {path}", found=str(error), next="Choose a writable place.") from error
        yield
    finally:
        os.close(descriptor)


def _holder(path: Path) -> str:
    """The holder in words; it may be writing its name this very moment."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return f"process {holder['pid']} on {holder['host']} since {holder['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
