"""What commands print: one JSON object on stdout, or tables for people; logs and errors on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from akd_deploy.errors import AkdError, StorageError

stdout = Console()
stderr = Console(stderr=True)


@dataclass(frozen=True)
class Outcome:
    """What a command found. `data` is printed with `--json`, else `show` prints; `exit_code` is the process's."""

    data: Mapping[str, Any]
    show: Callable[[Console], None]
    exit_code: int = 0


@contextmanager
def writing_stdout() -> Iterator[None]:
    """Print within this; where stdout cannot be written, one line on stderr says so and the process leaves."""
    try:
        if sys.stdout is None:
            raise OSError("it is closed")
        yield
        sys.stdout.flush()
    except AkdError:
        raise
    except OSError as error:
        # What is left in the buffer goes nowhere: flushed at exit, it would fail a second time.
        with suppress(OSError, AttributeError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        with suppress(OSError):
            stderr.print(f"error: standard output cannot be written: {error}", markup=False, highlight=False)
        sys.exit(StorageError.exit_code)


def emit(outcome: Outcome, as_json: bool) -> None:
    """Print an outcome and leave with its exit code unless it is 0."""
    with writing_stdout():
        if as_json:
            sys.stdout.write(json.dumps(dict(outcome.data), allow_nan=False, default=_plain) + "\n")
        else:
            outcome.show(stdout)
    if outcome.exit_code:
        raise SystemExit(outcome.exit_code)


def emit_error(error: AkdError, as_json: bool) -> None:
    """Print an error as a JSON object on stdout, or in words on stderr.

    Its details (`uncovered`, `fastest_s`, …) stand beside `error` too, where the command's own answer has them.
    """
    if as_json:
        with writing_stdout():
            sys.stdout.write(json.dumps({**error.details, "error": error.as_dict()}, default=_plain) + "\n")
        return
    stderr.print("[bold red]error[/]", end=" ")
    stderr.print(f"asked for {error.asked}", markup=False, highlight=False, soft_wrap=True)
    stderr.print(f"      found {error.found}", markup=False, highlight=False, soft_wrap=True)
    stderr.print(f"      {error.next}", markup=False, highlight=False, soft_wrap=True)


def _plain(value: object) -> object:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"no JSON for {type(value).__name__}")


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A rich table; columns whose name starts with `>` are aligned to the right.

    No cell is cut: what is too long goes on in the next line. The first column, the names, stays on one line
    while it leaves the others half of the width.
    """
    cells = [[str(cell) for cell in row] for row in rows]
    names_fit = max((len(row[0]) for row in cells), default=0) <= stdout.width // 2
    result = Table(title=title, title_justify="left", title_style="bold")
    for i, column in enumerate(columns):
        justify: Literal["left", "right"] = "right" if column.startswith(">") else "left"
        result.add_column(column.removeprefix(">"), justify=justify, overflow="fold", no_wrap=i == 0 and names_fit)
    for row in cells:
        result.add_row(*row)
    return result


class OnProgress(Protocol):
    """Told what is under way, how much of it is done, and a note to show beside it."""

    def __call__(self, what: str, done: int, total: int, note: str = "") -> None: ...


@contextmanager
def progress_bars(as_json: bool) -> Iterator[OnProgress]:
    """A function (what, done, total) that draws one bar per `what` on stderr, full when the next one begins.

    Where stderr is no terminal each new `what` is a line instead; with `--json` there is neither.
    """
    on_terminal = stderr.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, disable=as_json or not on_terminal, transient=False) as progress:
        tasks: dict[str, TaskID] = {}
        current: str | None = None

        def complete() -> None:
            if current is not None:
                task = tasks[current]
                total = next(t.total for t in progress.tasks if t.id == task) or 1
                progress.update(task, completed=total, total=total)
                progress.stop_task(task)

        def on_progress(what: str, done: int, total: int, note: str = "") -> None:
            nonlocal current
            if what != current:
                complete()
                current = what
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=total or None)
                if not (as_json or on_terminal):
                    stderr.print(what, markup=False, highlight=False, soft_wrap=True)
            shown = f"{what}, {note}" if note else what
            progress.update(tasks[what], completed=done, total=total or None, description=shown)

        yield on_progress
        complete()


@contextmanager
def phase_bars(as_json: bool) -> Iterator[Callable[[str, float], None]]:
    """A function (phase, fraction) that draws one bar on stderr for each phase under way, inner ones below outer ones.

    Where stderr is no terminal each new phase is a line instead; with `--json` neither. Any thread may call it.
    """
    on_terminal = stderr.is_terminal
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, disable=as_json or not on_terminal, transient=True) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(phase: str, fraction: float) -> None:
            if phase not in tasks:
                tasks[phase] = progress.add_task(phase, total=1.0)
                if not (as_json or on_terminal):
                    stderr.print(phase, markup=False, highlight=False, soft_wrap=True)
            progress.update(tasks[phase], completed=fraction, visible=fraction < 1)

        yield on_progress
