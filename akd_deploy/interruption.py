"""Ctrl-C at a moment when it does no harm; processes that do not outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def without_interruption() -> Iterator[None]:
    """Ctrl-C waits for the end of this, which must come soon.

    For starting a process and ending it: an exception in the middle of either would leave one behind that nobody
    knows of. Signals reach the main thread alone; elsewhere, and where Ctrl-C is ignored or kills, nothing is done.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if arrived:
            handler(*arrived[0])


def leave_with_the_parent() -> None:
    """This process, which multiprocessing started, ends when the one that started it has.

    A killed parent tells nobody: without this its pool would wait for work for ever.
    """
    threading.Thread(target=_leave, daemon=True).start()


def _leave() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
