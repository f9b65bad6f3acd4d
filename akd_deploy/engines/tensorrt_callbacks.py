"""What TensorRT calls back while it works: the logger it writes to, the monitor it tells its progress.

The runtime's module is handed in as `trt`; nothing is imported.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from akd_deploy.engines.base import Progress
from akd_deploy.engines.tensorrt_api import TensorRt

if TYPE_CHECKING:
    import tensorrt_rtx as api

    class MessageLog(api.ILogger):
        """A logger that keeps what it is told."""

        records: list[tuple[api.ILogger.Severity, str]]

        def errors(self) -> list[str]: ...


_T = TypeVar("_T")


@cache
def message_log(trt: TensorRt) -> MessageLog:
    """The one logger of this process; TensorRT ignores a second one while the first has users."""
    base: Any = trt.ILogger  # a class that is known at run time only cannot be derived from in types

    class Log(base):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.records: list[tuple[api.ILogger.Severity, str]] = []

        def log(self, severity: api.ILogger.Severity, message: str) -> None:
            self.records.append((severity, message))

        def errors(self) -> list[str]:
            """The messages about errors, without their places in TensorRT's sources."""
            grave = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
            return [re.sub(r"\s+In \w+ at \S+?:\d+", "", text) for severity, text in self.records if severity in grave]

    return cast("MessageLog", Log())


def run_monitored(
    trt: TensorRt, config: api.IBuilderConfig, build: Callable[[], _T], on_progress: Progress | None
) -> _T:
    """Run `build` with a progress monitor in `config`; Ctrl-C and an exception in `on_progress` cancel it.

    The build runs in a thread of its own, so that Ctrl-C arrives here and not inside TensorRT, which
    would swallow it; `on_progress` is called from that thread.
    """

    base: Any = trt.IProgressMonitor

    class Monitor(base):
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
    config.progress_monitor = cast("api.IProgressMonitor", monitor)
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
