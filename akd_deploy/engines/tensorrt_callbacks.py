"""What TensorRT calls back while it works: the logger it writes to, the monitor it tells its progress.

The runtime's module is handed in as `trt`; nothing is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

Progress = Callable[[str, float], None]
"""Called with the name of the phase under way and the fraction of it that is done, 0 to 1."""


@cache
def message_log(trt: Any) -> Any:
    """The one logger of this process; TensorRT ignores a second one while the first has users."""

    class MessageLog(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.records: list[tuple[Any, str]] = []

        def log(self, severity: Any, message: str) -> None:
            self.records.append((severity, message))

        def errors(self) -> list[str]:
            """The messages about errors, without their places in TensorRT's sources."""
            grave = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
            return [re.sub(r"\s+In \w+ at \S+?:\d+", "", text) for severity, text in self.records if severity in grave]

    return MessageLog()


def run_monitored(trt: Any, config: Any, build: Callable[[], Any], on_progress: Progress | None) -> Any:
    """Run `build` with a progress monitor in `config`; Ctrl-C and an exception in `on_progress` cancel it.

    The build runs in a thread of its own, so that Ctrl-C arrives here and not inside TensorRT, which
    would swallow it; `on_progress` is called from that thread.
    """

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}
            self.go_on = True
            self.error: Exception | None = None

        def phase_start(self, phase: str, _parent: str | None, steps: int) -> None:
            self.steps[phase] = max(steps, 1)
            self._report(phase, 0.0)

        def phase_finish(self, phase: str) -> None:
            self._report(phase, 1.0)

        def step_complete(self, phase: str, step: int) -> bool:
            self._report(phase, min((step + 1) / self.steps.get(phase, 1), 1.0))
            return self.go_on

        def _report(self, phase: str, fraction: float) -> None:
            if self.go_on and on_progress is not None:
                try:
                    on_progress(phase, fraction)
                except Exception as error:  # noqa: BLE001 - must not unwind through C++; raised again below
                    self.go_on, self.error = False, error

    monitor = Monitor()
    config.progress_monitor = monitor
    with ThreadPoolExecutor(1, thread_name_prefix="tensorrt-build") as pool:
        building = pool.submit(build)
        try:
            built = building.result()
        except BaseException:
            monitor.go_on = False
            raise
    if monitor.error is not None:
        raise monitor.error
    return built
