"""What commands print: one JSON object on stdout, or tables for people; logs and errors on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from akd_deploy.errors import AkdError

stdout = Console()
stderr = Console(stderr=True)


@dataclass(frozen=True)
class Outcome:
    """What a command found. `data` is printed with `--json`, else `show` prints; `exit_code` is the process's."""

    data: Mapping[str, Any]
    show: Callable[[Console], None]
    exit_code: int = 0


def emit(outcome: Outcome, as_json: bool) -> None:
    """Print an outcome and leave with its exit code unless it is 0."""
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
    """A rich table; columns whose name starts with `>` are aligned to the right."""
    result = Table(title=title, title_justify="left", title_style="bold")
    for column in columns:
        result.add_column(column.removeprefix(">"), justify="right" if column.startswith(">") else "left")
    for row in rows:
        result.add_row(*(str(cell) for cell in row))
    return result


@contextmanager
def progress_bars(as_json: bool) -> Iterator[Callable[[str, int, int], None]]:
    """A function (what, done, total) that draws one bar per `what` on stderr; a bar is hidden with `--json`."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=stderr, disable=as_json, transient=False) as progress:
        tasks: dict[str, TaskID] = {}

        def on_progress(what: str, done: int, total: int) -> None:
            if what not in tasks:
                for task in tasks.values():
                    progress.stop_task(task)
                tasks[what] = progress.add_task(what, total=total or None)
            progress.update(tasks[what], completed=done, total=total or None)

        yield on_progress
