"""Files on disk: written whole or not at all, by one writer at a time, known by their hash."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from akd_deploy.errors import StorageError

_MODE = 0o644
_CHUNK_BYTES = 1 << 20


def write_atomically(path: Path, content: bytes) -> None:
    """Write beside the destination, flush to the disk, then rename over it; missing folders are made.

    A symbolic link stays one: what it points to is written.

    Raises:
        StorageError: the place is full, read-only or not a folder, or there is a device, pipe or folder of that
            name; what was there is left as it was.
    """
    draft: Path | None = None
    try:
        destination = path.resolve() if path.is_symlink() else path
        if destination.exists() and not destination.is_file():
            raise OSError("no regular file there but a device, pipe or folder, which is not replaced")
        destination.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{destination.name}.", suffix=".part", dir=destination.parent)
        draft = Path(name)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        draft.chmod(_MODE)
        draft.replace(destination)
    except (OSError, RuntimeError) as error:  # the latter where links go round in circles
        raise StorageError(
            asked=f"to write {path}", found=str(error), next="Free some space, or choose another place."
        ) from error
    finally:
        if draft is not None:
            with suppress(OSError):  # already renamed
                draft.unlink()


def require_place(path: Path) -> None:
    """Try whether `path` could be written: before the work whose result is to go there.

    Raises:
        StorageError: as `write_atomically` raises it; only the space that the result will need is not known yet.
    """
    # What is no regular file is refused by its own name, and a file that is there is left alone.
    tried = path if path.exists() and not path.is_file() else path.with_name(f".{path.name}.try")
    write_atomically(tried, b"")
    tried.unlink(missing_ok=True)


def write_text_atomically(path: Path, text: str) -> None:
    """`write_atomically` for text, as UTF-8."""
    write_atomically(path, text.encode())


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copied_sha256(path: Path, copy: Path) -> str:
    """Copy a file, folders made where there are none; SHA-256 of the bytes that were written.

    Raises:
        StorageError: it cannot be read, or the place of the copy not be written.
    """
    hasher = hashlib.sha256()
    try:
        copy.parent.mkdir(parents=True, exist_ok=True)
        with path.open("rb") as source, copy.open("wb") as file:
            while chunk := source.read(_CHUNK_BYTES):
                hasher.update(chunk)
                file.write(chunk)
    except OSError as error:
        raise StorageError(
            asked=f"a copy of {path} in {copy.parent}", found=str(error), next="Check the permissions and the space."
        ) from error
    return hasher.hexdigest()


def make_folder(path: Path) -> Path:
    """Make a folder and the ones above it.

    Raises:
        StorageError: the place cannot be written.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(asked=f"the folder {path}", found=str(error), next="Choose another place.") from error
    return path


@contextmanager
def exclusive_lock(path: Path) -> Iterator[None]:
    """Hold `path` for this process; the system lets go of it when the process ends, however it ends.

    The file stays behind: removing it would let two processes each lock a different file of the same name.

    Raises:
        StorageError: another process holds it, which the message names, or the place cannot be written.
    """
    import fcntl

    make_folder(path.parent)
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, _MODE)
    except OSError as error:
        raise StorageError(asked=f"the lock {path}", found=str(error), next="Choose a writable place.") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            me = {"pid": os.getpid(), "host": platform.node(), "since": datetime.now(UTC).isoformat(timespec="seconds")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(me).encode(), 0)
        except BlockingIOError:
            raise StorageError(
                asked=f"to write beside {path}",
                found=f"it is in use by {_holder(path)}",
                next="Wait for that process to end, or stop it.",
            ) from None
        except OSError as error:
            raise StorageError(
                asked=f"the lock {path}", found=str(error), next="Choose a writable file system that can lock files."
            ) from error
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
