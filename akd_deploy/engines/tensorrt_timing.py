"""TensorRT's timing caches: one file for each GPU, driver, TensorRT version and set of flags, shared by builds."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from akd_deploy.errors import CorruptFileError, MissingFileError, StorageError
from akd_deploy.storage import exclusive_lock, write_atomically

if TYPE_CHECKING:
    import tensorrt_rtx as api


LOCK_WAIT_S = 30.0
"""Longer than any other build needs to write its timings, even onto a slow network drive (picked by eye)."""
LOCK_POLL_S = 0.1


@dataclass(frozen=True)
class TimingCache:
    """A cache file; `pinned`: a build may use only what is in it, and never changes it."""

    path: Path
    pinned: bool = False


def timing_cache_path(folder: Path, facts: Mapping[str, object]) -> Path:
    """The cache in `folder` for what decides whether timings hold: GPU, driver, TensorRT version, flags."""
    text = json.dumps(dict(facts), sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()}.timing"


def read_timing_cache(config: api.IBuilderConfig, cache: TimingCache) -> str:
    """Give a build the timings in a file; none where it is not there yet. Returns the SHA-256 of what was read.

    Raises:
        MissingFileError: a pinned cache that is not there.
        StorageError, CorruptFileError: it cannot be read, or holds no timings of this GPU and version.
    """
    content = _content(cache.path)
    if cache.pinned and not content:
        raise MissingFileError(
            asked=f"the pinned timing cache {cache.path}",
            found="no such file",
            next="Build once on this GPU, driver and TensorRT without pin_timing_cache, or bring the file along.",
        )
    timings = config.create_timing_cache(content)
    if timings is None or not config.set_timing_cache(timings, False):
        raise _foreign(cache.path)
    return hashlib.sha256(content).hexdigest()


def write_timing_cache(config: api.IBuilderConfig, cache: TimingCache) -> str:
    """Add a build's timings to those that other builds have written meanwhile. Returns the file's SHA-256.

    Raises:
        StorageError: it cannot be written, or another process is writing it.
        CorruptFileError: what another one wrote is no timing cache.
    """
    with _locked(cache.path.with_suffix(".lock")):
        timings = config.get_timing_cache()
        content = _content(cache.path)
        if content:
            others = config.create_timing_cache(content)
            if others is None or not timings.combine(others, False):
                raise _foreign(cache.path)
        data = bytes(timings.serialize())
        write_atomically(cache.path, data)
    return hashlib.sha256(data).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """`exclusive_lock`, waited for: whoever holds it writes one file."""
    end = time.monotonic() + LOCK_WAIT_S
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(exclusive_lock(path))
                break
            except StorageError:
                if time.monotonic() >= end:
                    raise
                time.sleep(LOCK_POLL_S)
        yield


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StorageError(asked=f"timing cache {path}", found=str(error), next="Check the path.") from error


def _foreign(path: Path) -> CorruptFileError:
    return CorruptFileError(
        asked=f"timing cache {path}",
        found="a file that is no timing cache of this GPU and TensorRT version",
        next="Name another folder, or delete the file.",
    )
