"""Files that other tools wrote, read so that whatever is wrong with one is told by file and place."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path
from typing import Any

from akd_deploy.errors import CorruptFileError, MissingFileError, UnknownNameError

_AGAIN = "Export it again, or correct the file."


def corrupt(path: Path, what: str, found: str, next: str = _AGAIN) -> CorruptFileError:
    """An error about a place in a file: `what` was expected there."""
    return CorruptFileError(asked=f"{what} in {path}", found=found, next=next)


def read_text(path: Path, what: str) -> str:
    """The file's text.

    Raises:
        MissingFileError, CorruptFileError: no such file, or no text.
    """
    if not path.is_file():
        raise MissingFileError(asked=f"{what}: {path}", found="no such file", next="Check the path.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise corrupt(path, what, f"no text ({error})") from error


def read_json(path: Path, what: str) -> Any:
    """The file's JSON; a key that stands twice is an error, where Python alone would keep the last.

    Raises:
        MissingFileError, CorruptFileError: no such file, or no JSON (a tool that was killed leaves half of one).
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) < len(pairs):
            repeated = sorted({key for key, _ in pairs if [k for k, _ in pairs].count(key) > 1})
            raise corrupt(path, what, f"the key {repeated[0]!r} twice in one object")
        return result

    text = read_text(path, what)
    try:
        return json.loads(text, object_pairs_hook=unique)
    except CorruptFileError:
        raise
    except (ValueError, RecursionError) as error:
        raise corrupt(path, what, f"no JSON ({error})") from error


def known_keys(keys: Collection[str], known: Collection[str], what: str, where: str) -> None:
    """Check that every key is known.

    Raises:
        UnknownNameError: the first that is not; the message lists the known ones.
    """
    for key in keys:
        if key not in known:
            raise UnknownNameError(what, str(key), known, where=where)


def seconds_from_ms(value: object, what: str, path: Path) -> float:
    """Milliseconds as a file tells them (a number, or text that is one), in seconds; may be 0.

    Raises:
        CorruptFileError: no finite number, or a negative one.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number < 0:
        raise corrupt(path, f"{what}, in milliseconds,", repr(value))
    return number / 1e3


def whole_number(value: object, what: str, path: Path, least: int = 1) -> int:
    """A whole number of at least `least`, given as a number or as text ("13", and "13.0" from a spreadsheet).

    Raises:
        CorruptFileError: it is none.
    """
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number) or number != int(number) or number < least:
        raise corrupt(path, f"{what}, a whole number of at least {least},", repr(value))
    return int(number)
