"""Time the parts of an inference on a device with events of its own clock: copies there, computing, copies back."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Protocol

from akd_deploy.engines.base import Timings


class Event(Protocol):
    """A moment on the device's clock, as `torch.cuda.Event(enable_timing=True)` is."""

    def record(self) -> None:
        """Take it when the device has done what was asked of it before."""

    def synchronize(self) -> None:
        """Wait until it was taken."""

    def elapsed_time(self, end_event: Any, /) -> float:
        """Milliseconds from this to a later one."""


def timed_parts(
    copy_in: Callable[[], None],
    launch: Callable[[], None],
    copy_out: Callable[[], None],
    event: Callable[[], Event],
    clock: Callable[[], float] = time.perf_counter,
) -> Callable[[], Timings]:
    """A call that runs and times `copy_in`, `launch` and `copy_out`.

    Args:
        copy_in, launch, copy_out: each asks the device for its part, in the order of one stream, and waits for none.
        event: makes an event of that stream; four are made once and used in every call.
    """
    begin, copied, computed, done = (event() for _ in range(4))

    def call() -> Timings:
        start = clock()
        begin.record()
        copy_in()
        copied.record()
        before = clock()
        launch()
        enqueued = clock()
        computed.record()
        copy_out()
        done.record()
        done.synchronize()
        end = clock()
        return Timings(
            enqueue_s=enqueued - before,
            h2d_s=begin.elapsed_time(copied) / 1e3,
            compute_s=copied.elapsed_time(computed) / 1e3,
            d2h_s=computed.elapsed_time(done) / 1e3,
            end_to_end_s=end - start,
        )

    return call
