"""What a run's summary holds, and how it is read back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from akd_deploy.errors import CorruptFileError, MissingFileError

Fields = Mapping[str, Any]
"""A JSON object: times in seconds, rates as fractions."""

PARTS: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "seed": int,
    "version": str,
    "created": str,
    "run_dir": str,
    "target": Mapping,
    "device": Mapping,
    "engine_version": str,
    "budget": Mapping,
    "profile": Mapping,
    "predictor": Mapping,
    "feasible": Mapping,
    "teacher": Mapping,
    "search": Mapping,
    "preferences": Mapping,
    "winner": Mapping,
    "accuracy": Mapping,
    "process": Mapping,
    "oracle_beta": Mapping,
    "export": Mapping,
    "bundle": Mapping,
    "stages": list,
    "seconds": (int, float),
    "limits": list,
}
"""The summary's parts and their types; all but `name` may be missing or null."""


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Read `summary.json` of a run directory.

    Raises:
        MissingFileError: no such folder, or no summary in it.
        CorruptFileError: the file holds no JSON object, or a part of it has the wrong type.
    """
    path = run_dir / "summary.json"
    if not path.is_file():
        raise MissingFileError(
            asked=f"the run's summary {path}",
            found="no such file" if run_dir.is_dir() else f"no folder {run_dir}",
            next="Give the folder of a run that came to its end, or finish it with `akd-deploy run --resume`.",
        )
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptFileError(
            asked=f"the run's summary {path}",
            found=f"no JSON ({error})",
            next="Write it again with `akd-deploy run --resume`.",
        ) from error
    if not isinstance(summary, dict):
        raise CorruptFileError(
            asked=f"a JSON object in {path}", found=f"a {type(summary).__name__}", next="Give a run's own summary."
        )
    check_parts(summary, where=str(path))
    return summary


def check_parts(summary: Fields, where: str) -> None:
    """Refuse a summary whose parts cannot be what they are named.

    Raises:
        CorruptFileError: a part has the wrong type, or the name is missing.
    """
    for name, kind in PARTS.items():
        value = summary.get(name)
        if value is None and name != "name":
            continue
        if not isinstance(value, kind) or isinstance(value, bool):
            kinds = kind if isinstance(kind, tuple) else (kind,)
            raise CorruptFileError(
                asked=f"{name!r} in {where} as {' or '.join(k.__name__ for k in kinds)}",
                found="nothing" if value is None else f"{type(value).__name__} {str(value)[:60]!r}",
                next="Write the summary again.",
            )
