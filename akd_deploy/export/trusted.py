"""Which engine files may reach a runtime: those built here, those of a bundle that verifies, those asked for.

Loading an engine can run what is in it. `build` therefore leaves a record of the hash of what it wrote in the user's
data directory; a file that nobody here has built is refused before a byte of it reaches a runtime.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from akd_deploy.engines.base import BuiltEngine, Engine
from akd_deploy.errors import MismatchError, MissingFileError, VerificationError
from akd_deploy.export.bundle import is_bundle
from akd_deploy.export.engine_facts import NATIVE_ENGINES, facts_of_built
from akd_deploy.export.manifest import MAX_DEPTH
from akd_deploy.export.verify import verify_bundle
from akd_deploy.storage import copied_sha256, file_sha256, write_text_atomically
from akd_deploy.target import user_data_dir

CODE_ENGINES = (*NATIVE_ENGINES, "torch")
"""Engines whose files can run what their author wants: machine code, and torch's archives of graphs and sources."""

NATIVE_SUFFIXES = (".plan",)
"""Files that are native code whichever option names them."""


def record_built(engine: Engine, built: BuiltEngine, network: Path) -> None:
    """Remember an engine that was built here just now from `network`: its facts, and the hash of every file.

    Raises:
        StorageError: the user's data directory cannot be written.
    """
    folder = built.path.parent
    parts = {str(path.relative_to(folder)): file_sha256(path) for path in built.files if path != built.path}
    record = {
        "parts": parts,
        "facts": facts_of_built(engine, built).as_dict(),
        "network": {"path": str(network.absolute()), "sha256": file_sha256(network)},
        "built": datetime.now(UTC).isoformat(timespec="seconds"),
        "path": str(built.path.absolute()),
    }
    write_text_atomically(_record(file_sha256(built.path)), json.dumps(record, indent=1, sort_keys=True) + "\n")


def built_record(path: Path) -> dict[str, Any]:
    """What `record_built` wrote about a file that is still as it was built.

    Raises:
        VerificationError: no such record, or a part that changed.
    """
    found = why_not_built_here(path)
    if found is None:
        record: dict[str, Any] = json.loads(_record(file_sha256(path)).read_text(encoding="utf-8"))
        if {"parts", "facts", "network"} <= set(record):
            return record
        found = "a record without its facts"
    raise VerificationError(
        asked=f"{path} as an engine that was built here",
        found=found,
        next="Build it here with `akd-deploy build`, or name the folder of a bundle.",
    )


def network_built_from(path: Path) -> Path:
    """The network that an engine was built from here, as it was then.

    Raises:
        VerificationError: the engine was not built here, or changed since.
        MissingFileError, MismatchError: the network is gone, or another one now.
    """
    told = built_record(path)["network"]
    network = Path(told["path"])
    if not network.is_file():
        raise MissingFileError(
            asked=f"the network that {path} was built from", found=f"no file {network}", next="Build the engine again."
        )
    if file_sha256(network) != told["sha256"]:
        raise MismatchError(
            asked=f"the network that {path} was built from",
            found=f"another one in {network} now",
            next="Build the engine again.",
        )
    return network


def why_not_built_here(path: Path) -> str | None:
    """None where `record_built` knows the file and all its parts are as they were, else what is wrong."""
    sha256 = file_sha256(path)
    parts = _recorded_parts(sha256)
    if parts is None:
        return _unknown(sha256)
    changed = (name for name, expected in parts.items() if _sha256_of_part(path.parent / name) != expected)
    return next((_other_part(name) for name in changed), None)


def _recorded_parts(sha256: str) -> dict[str, str] | None:
    """Name → SHA-256 of the files beside an engine that was built here; None of one that was not."""
    try:
        return dict(json.loads(_record(sha256).read_text(encoding="utf-8"))["parts"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _sha256_of_part(path: Path) -> str | None:
    return file_sha256(path) if path.is_file() else None


def _unknown(sha256: str) -> str:
    return f"no record that it was built here (SHA-256 {sha256})"


def _other_part(name: str) -> str:
    return f"{name} beside it missing or changed since it was built here"


def checked_engine_file(path: Path, engine: str, folder: Path, *, trust: bool = False, key: Path | None = None) -> Path:
    """Let an engine file pass that was built here, that lies in a bundle which verifies, or that is trusted on request.

    A bundle's engine that can run code is let pass only if its bundle is signed with the private half of `key`:
    without one a bundle shows no more than that nothing changed by accident.

    Args:
        folder: an empty one of the caller's own, for copies.

    Returns:
        The file to load: a copy in `folder`, with what belongs to it beside it, made as it was hashed, so that what is
        loaded is what was checked, whatever becomes of `path` meanwhile. What is trusted is `path` itself, unread.

    Raises:
        VerificationError: any other file; none of it reached a runtime.
        MissingFileError: no such file.
        StorageError: `folder` has no room.
    """
    if trust:
        return path
    if not path.is_file():
        raise MissingFileError(asked=f"the engine {path}", found="no such file", next="Check the path.")
    place = path.resolve()
    copy, found = _copy_of_built(place, folder / "built")
    if found is None:
        return copy
    bundle = next((above for above in list(place.parents)[: MAX_DEPTH + 1] if is_bundle(above)), None)
    if bundle is not None:
        verification = verify_bundle(bundle, key, copy_to=folder / "bundle")
        copy = folder / "bundle" / place.relative_to(bundle)
        if verification.ok and copy.is_file() and (verification.authentic or engine not in CODE_ENGINES):
            return copy
        found = f"{found}, in the bundle {bundle}: " + (
            "; ".join(verification.problems) or "it is whole, but nothing says whose it is"
        )
    raise VerificationError(
        asked=f"the engine {path} to be loaded",
        found=found,
        next="An engine can run code of its own. Build it here from its ONNX, load its bundle with `akd-deploy load "
        "BUNDLE --key KEY`, or say --trust-engine if you know where it comes from.",
    )


def _copy_of_built(path: Path, folder: Path) -> tuple[Path, str | None]:
    """A copy of an engine and its parts, and what is wrong with them; None where they are what was built here."""
    copy = folder / path.name
    sha256 = copied_sha256(path, copy)
    parts = _recorded_parts(sha256)
    if parts is None:
        return copy, _unknown(sha256)
    for name, expected in parts.items():
        part = path.parent / name
        if not part.is_file() or copied_sha256(part, folder / name) != expected:
            return copy, _other_part(name)
    return copy, None


def check_engine_file(path: Path, engine: str, *, trust: bool = False, key: Path | None = None) -> None:
    """`checked_engine_file` of a file that is not loaded."""
    with tempfile.TemporaryDirectory(prefix="akd-engine-") as folder:
        checked_engine_file(path, engine, Path(folder), trust=trust, key=key)


@contextmanager
def checked_models(
    engine: str, built: Iterable[Path], others: Iterable[Path] = (), *, trust: bool = False, key: Path | None = None
) -> Iterator[dict[Path, Path]]:
    """`checked_engine_file` for files given as engines, and for native code among files given as models.

    Gives, for as long as it lasts, each of these paths → the file to load instead; other models are loaded as they are.
    """
    with tempfile.TemporaryDirectory(prefix="akd-engines-") as folder:
        natives = [path for path in others if path.suffix in NATIVE_SUFFIXES]
        paths = dict.fromkeys([*built, *natives])
        yield {
            path: checked_engine_file(path, engine, Path(folder, str(i)), trust=trust, key=key)
            for i, path in enumerate(paths)
        }


def _record(sha256: str) -> Path:
    return user_data_dir() / "built_engines" / f"{sha256}.json"
