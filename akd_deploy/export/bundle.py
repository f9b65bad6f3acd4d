"""Write a bundle as a directory: whole or not at all, the same bytes for the same inputs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from akd_deploy.errors import MissingFileError, StorageError, UsageError, VerificationError
from akd_deploy.export.manifest import (
    FORMAT,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    ROLES,
    SIGNATURE_NAME,
    BundleFacts,
    FileEntry,
    Manifest,
    name_problem,
)
from akd_deploy.export.signature import public_key_of, read_private_key, sign_manifest
from akd_deploy.export.stored_zip import file_chunks
from akd_deploy.export.verify import verify_bundle


@dataclass(frozen=True)
class BundleFile:
    """A file to bundle: its name inside, where it is now, and its role (a key of `manifest.ROLES`)."""

    name: str
    source: Path
    role: str


@dataclass(frozen=True)
class GeneratedFile:
    """A file to bundle whose text follows from the manifest of the other ones: its name inside, and its role."""

    name: str
    role: str
    text_from: Callable[[Manifest], str]


def write_bundle(
    out: Path,
    files: Sequence[BundleFile],
    facts: BundleFacts,
    *,
    generated: Sequence[GeneratedFile] = (),
    key: Path | None = None,
    force: bool = False,
) -> Manifest:
    """Copy the files into a new directory `out` with their manifest, and verify it there before it gets its name.

    Args:
        generated: written after `files`, from a manifest that has their hashes.
        key: PEM file of the Ed25519 private key to sign with.
        force: replace `out` where it is a bundle already; nothing else is ever replaced.

    Raises:
        UsageError: a name, role or fact that cannot be in a bundle; `out` is in the way.
        MissingFileError, CorruptFileError: a file or key that is not there or cannot be read.
        StorageError: the place is full or read-only; what was there before is still there.
    """
    _check_names(files, generated)
    with replaced_whole(out, force) as staging:
        staging.mkdir()
        entries = {file.name: _copy(file, staging) for file in files}
        entries |= {file.name: _generate(file, staging, Manifest(entries, facts)) for file in generated}
        return finish_bundle(staging, Manifest(entries, facts), key)


def finish_bundle(staging: Path, manifest: Manifest, key: Path | None) -> Manifest:
    """Write manifest and signature beside files that are in place, and verify the whole."""
    private_key = None if key is None else read_private_key(key)
    manifest = manifest.with_signer(None if private_key is None else public_key_of(private_key))
    data = manifest.to_bytes()
    (staging / MANIFEST_NAME).write_bytes(data)
    if private_key is not None:
        (staging / SIGNATURE_NAME).write_bytes(sign_manifest(data, private_key))
    check_staged(staging)
    return manifest


def check_staged(staging: Path) -> None:
    """Raise VerificationError unless what was just written verifies: a failing disk is noticed here."""
    verification = verify_bundle(staging)
    if not verification.ok:
        raise VerificationError(
            asked="a bundle as it was just written",
            found="; ".join(verification.problems),
            next="Check that nothing changes the files meanwhile, and the disk.",
        )


@contextmanager
def replaced_whole(out: Path, force: bool) -> Iterator[Path]:
    """A path beside `out` to write to; it becomes `out` when the block ends well, and is removed otherwise.

    Raises:
        UsageError: `out` exists and is not a bundle, or `force` is not set.
        StorageError: an operation on files failed; `out` is as it was.
    """
    if out.is_symlink() or (out.exists() and not (force and is_bundle(out))):
        raise UsageError(
            asked=f"a bundle in {out}",
            found="a bundle there already" if is_bundle(out) else "something that is not a bundle",
            next="Replace it with --force." if is_bundle(out) else "Choose another place.",
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
        try:
            yield folder / "new"
            _sync(folder / "new")
            if out.exists():
                out.rename(folder / "old")
                try:
                    (folder / "new").rename(out)
                except OSError:
                    (folder / "old").rename(out)
                    raise
            else:
                (folder / "new").rename(out)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    except (MissingFileError, StorageError):
        raise  # they are OSErrors too, and say more
    except OSError as error:
        raise StorageError(
            asked=f"a bundle in {out}", found=str(error), next="Free some space or choose another place."
        ) from error


def is_bundle(path: Path) -> bool:
    """Whether a directory or ZIP file claims to be a bundle; a damaged one still does."""
    try:
        if path.is_dir():
            with (path / MANIFEST_NAME).open("rb") as file:
                claim = json.loads(file.read(MAX_MANIFEST_BYTES))
            return isinstance(claim, dict) and claim.get("format") == FORMAT
        with path.open("rb") as file:
            head = file.read(30 + len(MANIFEST_NAME))
        return head.startswith(b"PK\x03\x04") and head.endswith(MANIFEST_NAME.encode())
    except (OSError, ValueError, RecursionError):
        return False


def _check_names(files: Sequence[BundleFile], generated: Sequence[GeneratedFile]) -> None:
    seen: set[str] = set()
    everything: list[BundleFile | GeneratedFile] = [*files, *generated]
    for file in everything:
        problem = name_problem(file.name)
        if problem is None and file.name.lower() in seen | {MANIFEST_NAME, SIGNATURE_NAME}:
            problem = f"{file.name!r} is taken"
        if problem is None and file.role not in ROLES:
            problem = f"role {file.role!r} of {file.name!r} is not one of {', '.join(ROLES)}"
        if problem is not None:
            raise UsageError(asked="a file in a bundle", found=problem, next="Name it otherwise.")
        if isinstance(file, BundleFile) and not file.source.is_file():
            raise MissingFileError(
                asked=f"{file.source} as {file.name} of a bundle", found="no such file", next="Check the path."
            )
        seen.add(file.name.lower())
    if not any(file.role in ("onnx", "engine") for file in files):
        raise UsageError(asked="a bundle", found="neither an ONNX network nor an engine", next="Add what it ships.")


def _copy(file: BundleFile, staging: Path) -> FileEntry:
    """Copy one file and hash the very bytes that were copied."""
    destination = staging / file.name
    destination.parent.mkdir(parents=True, exist_ok=True)
    sha256, size = hashlib.sha256(), 0
    with destination.open("wb") as copy:
        for chunk in file_chunks(file.source):
            sha256.update(chunk)
            size += len(chunk)
            copy.write(chunk)
    return FileEntry(sha256.hexdigest(), size, file.role)


def _generate(file: GeneratedFile, staging: Path, manifest: Manifest) -> FileEntry:
    data = file.text_from(manifest).encode()
    destination = staging / file.name
    destination.parent.mkdir(parents=True, exist_ok=True)
    destination.write_bytes(data)
    return FileEntry(hashlib.sha256(data).hexdigest(), len(data), file.role)


def _sync(path: Path) -> None:
    """Flush a file, or every file of a directory, to the disk, so that the rename never precedes the contents."""
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
