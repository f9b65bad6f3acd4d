"""Parts of a stage that took long, each kept in the run's folder: an interrupted stage goes on behind them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from akd_deploy.errors import CorruptFileError
from akd_deploy.storage import write_text_atomically


def kept(path: Path | None, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `make` gives (JSON types only), or gave when it was last asked for this file; without one it is not kept.

    Raises:
        CorruptFileError: the file is not one that was kept.
    """
    if path is None:
        return make()
    if not path.is_file():
        write_text_atomically(path, json.dumps(make(), indent=1) + "\n")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise TypeError(f"a {type(found).__name__}")
    except (ValueError, TypeError) as error:
        raise CorruptFileError(
            asked=f"what was kept in {path}", found=f"no whole file ({error})", next="Delete it: it is found again."
        ) from error
    return found
