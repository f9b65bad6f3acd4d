"""Check the arrays handed to a session against the inputs it declares."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np

from akd_deploy.engines.base import TensorSpec
from akd_deploy.errors import UnknownNameError, UsageError


def checked_feeds(inputs: Iterable[TensorSpec], feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every input's array, contiguous, in the order of `inputs`; nothing is cast or broadcast.

    Raises:
        UnknownNameError: an array for an input that the network does not have.
        UsageError: an input without an array, or an array of another shape or dtype.
    """
    specs = {spec.name: spec for spec in inputs}
    for name in feeds:
        if name not in specs:
            raise UnknownNameError("input", name, specs)
    arrays = {}
    for name, spec in specs.items():
        asked = f"input {name!r} of shape {spec.shape} and dtype {spec.dtype}"
        if name not in feeds:
            raise UsageError(asked=asked, found="no array for it", next=f"Feed all of: {', '.join(specs)}.")
        array = np.asarray(feeds[name])
        if array.shape != spec.shape or array.dtype.name != spec.dtype:
            raise UsageError(
                asked=asked,
                found=f"an array of shape {array.shape} and dtype {array.dtype.name}",
                next="Feed one batch of the target's size, in the network's own dtype.",
            )
        arrays[name] = np.asarray(array, order="C")  # ascontiguousarray would give a scalar a dimension
    return arrays


CACHE_LINE_BYTES = 64
"""Runtimes load vectors faster from buffers that begin at a cache line; numpy promises 16 bytes only."""


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """The same values in a buffer that begins at a cache line, so that timings do not hang on where malloc put it."""
    buffer = np.empty(array.nbytes + CACHE_LINE_BYTES, np.uint8)
    start = -buffer.ctypes.data % CACHE_LINE_BYTES
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
