"""The journal of a run: every trial and completed stage, one transaction each, in `journal.sqlite`."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

from akd_deploy.architecture import architecture_from_dict
from akd_deploy.errors import AkdError, CorruptFileError, MismatchError, MissingFileError, StorageError, UsageError
from akd_deploy.search.trial import STATES, Trial
from akd_deploy.storage import exclusive_lock

FORMAT = "akd_deploy journal"
FORMAT_VERSION = 1
BUSY_TIMEOUT_S = 30.0
"""How long a write waits for a reader (a report on a running search) to finish."""

_SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE stages (name TEXT PRIMARY KEY, result TEXT NOT NULL, finished TEXT NOT NULL)",
    "CREATE TABLE trials (search TEXT NOT NULL, id INTEGER NOT NULL, strategy TEXT NOT NULL, "
    "architecture TEXT NOT NULL, network TEXT NOT NULL, state TEXT NOT NULL, "
    "latency_s REAL NOT NULL, upper_s REAL NOT NULL, "
    "seed INTEGER NOT NULL, reward REAL, accuracy REAL, metrics TEXT NOT NULL, seconds REAL NOT NULL, "
    "attempts INTEGER NOT NULL, started TEXT, finished TEXT, error TEXT, PRIMARY KEY (search, id))",
)
_OVERLAPS = (
    "CREATE TABLE IF NOT EXISTS overlaps "
    "(search TEXT NOT NULL, id INTEGER NOT NULL, trainings INTEGER NOT NULL, PRIMARY KEY (search, id))"
)
"""Made when several candidates are first in training at a time: other journals have nothing to say there."""
_COLUMNS = tuple(field.name for field in dataclasses.fields(Trial))
_UPSERT = (
    f"INSERT INTO trials (search, {', '.join(_COLUMNS)}) VALUES (?, {', '.join('?' * len(_COLUMNS))}) "
    f"ON CONFLICT (search, id) DO UPDATE SET {', '.join(f'{c} = excluded.{c}' for c in _COLUMNS[1:])} "
    "WHERE trials.state IN ('running', 'interrupted')"
)
_STORAGE_ERRORS = ("FULL", "READONLY", "IOERR", "CANTOPEN", "BUSY", "LOCKED", "PERM", "NOLFS", "AUTH")


class Journal:
    """An open journal. `open_journal` writes, `read_journal` reads, `Journal()` lives in memory and dies with it.

    A journal holds the trials of several searches, each under its name: `of_search(name)` is the same journal
    seen by one of them. The unnamed search is the only one of a journal that has no others.
    """

    def __init__(
        self, path: Path | None = None, connection: sqlite3.Connection | None = None, search: str = ""
    ) -> None:
        self.path = path
        self.search = search
        self._held = ExitStack()
        if connection is None:
            connection = sqlite3.connect(":memory:", isolation_level=None)
            _write_schema(connection, {})
        self._connection = connection
        self._held.callback(connection.close)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let the next writer in."""
        self._held.close()

    def of_search(self, name: str) -> Journal:
        """This journal as the search of that name sees it; it is closed with this one, not by itself."""
        view = Journal.__new__(Journal)
        view.path, view.search, view._connection, view._held = self.path, name, self._connection, ExitStack()
        return view

    @property
    def configuration(self) -> dict[str, Any]:
        """The resolved configuration the run was started with."""
        return self._meta_json("configuration") or {}

    def trials(self) -> list[Trial]:
        """Every trial of this search, by id.

        Raises:
            CorruptFileError: a row that cannot be a trial; names the file and the row.
        """
        with _errors_about(self.path):
            rows = self._connection.execute(
                f"SELECT {', '.join(_COLUMNS)} FROM trials WHERE search = ? ORDER BY id", (self.search,)
            ).fetchall()
        return [self._trial(row) for row in rows]

    def has_trials(self) -> bool:
        """Whether any search of this journal has recorded a candidate."""
        with _errors_about(self.path):
            return self._connection.execute("SELECT 1 FROM trials LIMIT 1").fetchone() is not None

    def overlaps(self) -> dict[int, int]:
        """Id → how many earlier candidates were still in training when this one was asked for; none where it is not
        here."""
        with _errors_about(self.path):
            if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'overlaps'").fetchone():
                return {}
            rows = self._connection.execute("SELECT id, trainings FROM overlaps WHERE search = ?", (self.search,))
            return dict(rows.fetchall())

    def record(self, trials: Sequence[Trial], overlaps: Mapping[int, int] = MappingProxyType({})) -> None:
        """Write the trials in one transaction: all of them or none, on disk when this returns.

        A trial replaces the row of its id while that one is running or interrupted. `overlaps` are kept with them.

        Raises:
            MismatchError: a trial of that id is finished already.
            StorageError: the disk is full, or the file cannot be written; nothing has changed.
        """
        with self._transaction():
            if overlaps:
                self._connection.execute(_OVERLAPS)
            for number, trainings in overlaps.items():
                self._connection.execute(
                    "INSERT OR REPLACE INTO overlaps VALUES (?, ?, ?)", (self.search, number, trainings)
                )
            for trial in trials:
                if self._connection.execute(_UPSERT, [self.search, *_row(trial)]).rowcount != 1:
                    raise MismatchError(
                        asked=f"to record trial {trial.id} as {trial.state} in {self.path}",
                        found="it is finished already",
                        next="A finished trial is never changed; resume with the strategy that wrote the journal.",
                    )

    def mark_interrupted(self) -> int:
        """Turn every running trial into an interrupted one; returns how many. For a writer that just opened."""
        with self._transaction():
            return self._connection.execute("UPDATE trials SET state = 'interrupted' WHERE state = 'running'").rowcount

    def stage_result(self, name: str) -> dict[str, Any] | None:
        """What the stage recorded when it completed; None when it has not."""
        with _errors_about(self.path):
            row = self._connection.execute("SELECT result FROM stages WHERE name = ?", (name,)).fetchone()
        return None if row is None else self._json(row[0], f"stage {name}")

    def record_stage(self, name: str, result: Mapping[str, Any]) -> None:
        """Note that a stage has completed, with its result as JSON types; in place of an earlier result.

        Raises:
            UsageError: the result is not made of finite JSON types.
            StorageError: it cannot be written; nothing has changed.
        """
        text = _canonical(result, f"the result of stage {name}")
        with self._transaction():
            self._connection.execute("INSERT OR REPLACE INTO stages VALUES (?, ?, ?)", (name, text, now()))

    def stages(self) -> dict[str, dict[str, Any]]:
        """Name → result of every completed stage, in the order of completion."""
        with _errors_about(self.path):
            rows = self._connection.execute("SELECT name, result FROM stages ORDER BY finished, rowid").fetchall()
        return {name: self._json(result, f"stage {name}") for name, result in rows}

    def agree_on(self, key: str, values: Mapping[str, Any]) -> None:
        """Record the values under this key the first time; later refuse any others.

        Raises:
            MismatchError: they differ from the recorded ones; names every key that differs, with both values.
        """
        stored = self._meta_json(key)
        if stored is None:
            text = _canonical(values, key)
            with self._transaction():
                self._connection.executemany("INSERT INTO meta VALUES (?, ?)", _agreed(key, text))
            return
        differences = differing_keys(stored, values)
        if differences:
            raise MismatchError(
                asked=f"to resume {self.path} under the same {key}",
                found="; ".join(differences),
                next="Restore those values to resume, or start a new run in another directory.",
                differing=differences,
            )

    def _meta_json(self, key: str) -> dict[str, Any] | None:
        with _errors_about(self.path):
            row = self._connection.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
            digest = self._connection.execute("SELECT value FROM meta WHERE key = ?", (f"{key}_sha256",)).fetchone()
        if row is None:
            return None
        if digest is None or digest[0] != hashlib.sha256(row[0].encode()).hexdigest():
            raise CorruptFileError(
                asked=f"the {key} recorded in {self.path}", found="a text that its checksum denies", next=_START_ANEW
            )
        return self._json(row[0], key)

    def _json(self, text: str, place: str) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (TypeError, ValueError) as error:
            raise CorruptFileError(
                asked=f"JSON at {place} of {self.path}", found=str(error), next=_START_ANEW
            ) from error
        return value

    def _trial(self, row: Sequence[Any]) -> Trial:
        fields = dict(zip(_COLUMNS, row, strict=True))
        place = f"trial {fields['id']} of {self.path}"
        if fields["state"] not in STATES:
            raise CorruptFileError(asked=place, found=f"state {fields['state']!r}", next=_START_ANEW)
        fields["architecture"] = architecture_from_dict(
            self._json(fields["architecture"], f"trial {fields['id']}"), where=place
        )
        fields["metrics"] = self._json(fields["metrics"], f"trial {fields['id']}")
        return Trial(**fields)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with _errors_about(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")


_START_ANEW = "The file is damaged or was changed by hand; restore it from a copy, or start a new run."


def open_journal(path: Path, configuration: Mapping[str, Any], *, resume: bool = False) -> Journal:
    """Open a run's journal for writing; create it when there is none. Trials found running become interrupted.

    A journal of another configuration that holds no trial is begun anew: a mistake found before anything was trained
    is corrected in place.

    Args:
        configuration: the resolved run configuration, JSON types only.
        resume: continue a journal that exists, under the same configuration.

    Raises:
        UsageError: there is a journal and `resume` is false.
        MismatchError: there is a journal of another configuration; names every key that differs.
        CorruptFileError: the file is truncated, damaged, or something else.
        StorageError: another process writes it (the message names it), or the place cannot be written.
    """
    with ExitStack() as held:
        held.enter_context(exclusive_lock(path.with_name(path.name + ".lock")))
        if path.exists() and _is_of_another_run_without_trials(path, configuration):
            path.unlink()
        if path.exists():
            if not resume:
                raise UsageError(
                    asked=f"a new run in {path.parent}",
                    found=f"the journal of an earlier one, {path.name}",
                    next="Pass --resume to continue it, or choose another directory.",
                )
        else:
            _create(path, configuration)
        journal = _opened(path, "rw")
        held.callback(journal.close)
        with _errors_about(path):
            # EXTRA is FULL that also syncs the directory once a transaction's rollback file is gone.
            journal._connection.execute("PRAGMA synchronous = EXTRA")
        journal.agree_on("configuration", configuration)
        journal.mark_interrupted()
        journal._held.push(held.pop_all())
    return journal


def _is_of_another_run_without_trials(path: Path, configuration: Mapping[str, Any]) -> bool:
    # For writing, because a killed writer's unfinished transaction is rolled back first.
    with _opened(path, "rw") as journal:
        return not journal.has_trials() and bool(differing_keys(journal.configuration, configuration))


def read_journal(path: Path) -> Journal:
    """Open a journal for reading, also while a search writes it.

    Raises:
        MissingFileError, CorruptFileError, StorageError: as for `open_journal`.
    """
    if not path.is_file():
        raise MissingFileError(asked=f"the journal {path}", found="no such file", next="Check the run directory.")
    if path.with_name(path.name + "-journal").exists():
        # A writer is at work, or was killed inside a transaction, which only a writer can take back.
        with suppress(StorageError), exclusive_lock(path.with_name(path.name + ".lock")):
            _opened(path, "rw").close()
    return _opened(path, "ro")


def differing_keys(stored: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line `a.b: stored → new` for each key on which two nested configurations differ, in alphabetical order."""
    missing = object()
    lines = []
    for key in sorted({*stored, *new}):
        before, after = stored.get(key, missing), new.get(key, missing)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += differing_keys(before, after, f"{prefix}{key}.")
        elif before is missing or after is missing or _plain(before) != _plain(after):
            texts = ["(absent)" if value is missing else json.dumps(_plain(value)) for value in (before, after)]
            lines.append(f"{prefix}{key}: {texts[0]} → {texts[1]}")
    return lines


def now() -> str:
    """The time in UTC as ISO 8601, to the millisecond."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _plain(value: object) -> object:
    """The value as it comes back from JSON: a tuple is a list."""
    return json.loads(json.dumps(value, default=dict))


def _canonical(values: Mapping[str, Any], what: str) -> str:
    try:
        return json.dumps(dict(values), sort_keys=True, allow_nan=False, default=dict)
    except (TypeError, ValueError) as error:
        raise UsageError(asked=f"{what} as JSON", found=str(error), next="Use finite numbers and texts.") from error


def _agreed(key: str, text: str) -> list[tuple[str, str]]:
    return [(key, text), (f"{key}_sha256", hashlib.sha256(text.encode()).hexdigest())]


def _row(trial: Trial) -> list[Any]:
    values = {name: getattr(trial, name) for name in _COLUMNS}
    values["architecture"] = trial.architecture.text
    values["metrics"] = _canonical(trial.metrics, f"the metrics of trial {trial.id}")
    return [values[name] for name in _COLUMNS]


def _write_schema(connection: sqlite3.Connection, meta: Mapping[str, str]) -> None:
    connection.execute("BEGIN IMMEDIATE")
    for statement in _SCHEMA:
        connection.execute(statement)
    rows = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "created": now(), **meta}
    connection.executemany("INSERT INTO meta VALUES (?, ?)", rows.items())
    connection.execute("COMMIT")


def _create(path: Path, configuration: Mapping[str, Any]) -> None:
    """Write the empty journal under another name, then rename it: an incomplete one is never found. Holds the lock."""
    fresh = path.with_name(f".{path.name}.new")
    # A rollback file left by a killed process would be played into the new file of that name.
    leftovers = (fresh, fresh.with_name(fresh.name + "-journal"), path.with_name(path.name + "-journal"))
    meta = dict(_agreed("configuration", _canonical(configuration, "the configuration")))
    with _errors_about(path):
        for leftover in leftovers:
            leftover.unlink(missing_ok=True)
        connection = sqlite3.connect(fresh, isolation_level=None)
        try:
            connection.execute("PRAGMA synchronous = EXTRA")
            _write_schema(connection, meta)
        finally:
            connection.close()
        fresh.replace(path)
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)


def _opened(path: Path, mode: str) -> Journal:
    """Open an existing file and check that it is a whole journal that this version can read."""
    with _errors_about(path), ExitStack() as undo:
        uri = f"{path.absolute().as_uri()}?mode={mode}"
        connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=BUSY_TIMEOUT_S)
        undo.callback(connection.close)
        tables = {row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        found = dict(connection.execute("SELECT key, value FROM meta")) if "meta" in tables else {}
        if found.get("format") != FORMAT or not {"trials", "stages"} <= tables:
            raise CorruptFileError(
                asked=f"a journal in {path}",
                found=f"another SQLite file (tables: {', '.join(sorted(tables)) or 'none'})",
                next="Check the path.",
            )
        if found.get("format_version") != str(FORMAT_VERSION):
            raise MismatchError(
                asked=f"journal format {FORMAT_VERSION} in {path}",
                found=f"format {found.get('format_version')}",
                next="Read it with the version of akd-deploy that wrote it.",
            )
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if verdict != "ok":
            raise CorruptFileError(asked=f"a whole journal in {path}", found=verdict, next=_START_ANEW)
        undo.pop_all()
    return Journal(path, connection)


@contextmanager
def _errors_about(path: Path | None) -> Iterator[None]:
    """Say which file SQLite's complaint, or the system's, is about, and of which kind it is."""
    try:
        yield
    except AkdError:
        raise
    except sqlite3.DatabaseError as error:
        name = getattr(error, "sqlite_errorname", "")
        if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
            raise CorruptFileError(asked=f"a journal in {path}", found=str(error), next=_START_ANEW) from error
        if name.startswith(tuple(f"SQLITE_{kind}" for kind in _STORAGE_ERRORS)):
            raise _storage_error(path, error) from error
        raise
    except OSError as error:
        raise _storage_error(path, error) from error


def _storage_error(path: Path | None, error: Exception) -> StorageError:
    return StorageError(
        asked=f"to use the journal {path}",
        found=str(error),
        next="Free some space or choose a writable place, then resume; what was recorded is intact.",
    )
