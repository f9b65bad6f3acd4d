"""A compiled space on disk: beside its table, keyed by all that its costs depend on, never a pickle."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

import akd_deploy
from akd_deploy.errors import StorageError
from akd_deploy.predictor.compiled import COLUMNS, CompiledSpace
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.search_space import SearchSpace
from akd_deploy.storage import write_atomically

FORMAT_VERSION = 4
KEPT = 8
"""So many compiled spaces stay beside a table; the oldest make room."""


def compiled_key(predictor: Predictor, space: SearchSpace, engine_version: str, seed: int) -> str:
    """16 hexadecimal digits, other ones for any other table, space, runtime, version of this program or seed."""
    parts = {
        "format_version": FORMAT_VERSION,
        "program": akd_deploy.__version__,
        "table": predictor.table_digest,
        "coverage": predictor.coverage,
        "space": space.name,
        "settings": dict(space.settings),
        "engine_version": engine_version,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()[:16]


def compiled_of(
    directory: Path, key: str, space: SearchSpace, predictor: Predictor, build: Callable[[], CompiledSpace]
) -> CompiledSpace:
    """The compiled space of this key in `directory`, else what `build` gives, kept there if possible."""
    path = directory / f"compiled-{key}.npz"
    if path.is_file():
        found = _read(path, space, predictor)
        if found is not None:
            return found
        path.unlink(missing_ok=True)
    compiled = build()
    try:
        _write(compiled, path)
    except StorageError:
        return compiled  # a read-only place for tables is legitimate; this is only a cache
    newest = sorted(directory.glob("compiled-*.npz"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in newest[KEPT:]:
        old.unlink(missing_ok=True)
    return compiled


def _write(compiled: CompiledSpace, path: Path) -> None:
    content = io.BytesIO()
    document = {"columns": [list(columns) for columns in compiled.columns], "slack": compiled.slack}
    arrays = {f"table{i}": table for i, table in enumerate(compiled.tables)}
    np.savez_compressed(content, json=np.array(json.dumps(document)), **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())


def _read(path: Path, space: SearchSpace, predictor: Predictor) -> CompiledSpace | None:
    """None where the file is torn or of other segments: it is made again."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            document = json.loads(str(archive["json"]))
            tables = tuple(archive[f"table{i}"] for i in range(len(document["columns"])))
        columns = tuple(tuple(int(c) for c in columns) for columns in document["columns"])
        slack = float(document["slack"])
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        return None
    names = list(space.choices)
    for segment, table, own in zip(space.segments, tables, columns, strict=False):
        expected = (*(len(space.choices[name]) for name in segment.choices), COLUMNS)
        if own != tuple(names.index(name) for name in segment.choices) or table.shape != expected:
            return None
    return CompiledSpace(space, predictor, tables, columns, slack) if len(tables) == len(space.segments) else None
