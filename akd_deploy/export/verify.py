"""Verify a bundle, as a directory or a ZIP file, without unpacking it and without any runtime."""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from akd_deploy.errors import CorruptFileError, MissingFileError, StorageError, UsageError
from akd_deploy.export.manifest import (
    MANIFEST_NAME,
    MAX_DEPTH,
    MAX_FILES,
    MAX_MANIFEST_BYTES,
    SIGNATURE_NAME,
    UNLISTED,
    Manifest,
    manifest_from_bytes,
    name_problem,
)
from akd_deploy.export.signature import MAX_SIGNATURE_BYTES, read_public_key, signature_problem
from akd_deploy.export.stored_zip import CHUNK_BYTES, StoredMember, member_chunks, read_stored_zip

MAX_PROBLEMS = 100
"""After so many problems nobody reads on."""


@dataclass(frozen=True)
class Verification:
    """What is wrong with a bundle; nothing: `ok`.

    `authentic` says that it is the expected one: signed with the given key, or of the given digest. Without
    either, only accidental changes are found: whoever changes a file on purpose can write a new manifest.
    """

    problems: tuple[str, ...]
    digest: str | None
    signed_by: str | None
    authentic: bool
    manifest: Manifest | None

    @property
    def ok(self) -> bool:
        return not self.problems

    def as_dict(self) -> dict[str, object]:
        return {
            "ok": self.ok,
            "problems": list(self.problems),
            "digest": self.digest,
            "signed_by": self.signed_by,
            "authentic": self.authentic,
        }


@dataclass(frozen=True)
class _Member:
    """A file of the bundle: its size, and its bytes (which may raise CorruptFileError or OSError on the way)."""

    size_bytes: int
    chunks: Callable[[], Iterator[bytes]]


def verify_bundle(
    path: Path, key: Path | None = None, digest: str | None = None, *, copy_to: Path | None = None, whole: bool = False
) -> Verification:
    """Check every byte of a bundle against its manifest, and the manifest against a key or digest.

    Args:
        path: a directory or a ZIP file that `package` wrote.
        key: PEM file with the Ed25519 public key that must have signed it.
        digest: the manifest's expected checksum, 64 hexadecimal digits (`sha256:` before it is allowed).
        copy_to: an empty folder of the caller's own to write the listed files to, each chunk as it is hashed: what
            lies there afterwards is what was verified, whatever becomes of `path` meanwhile. Only where there are no
            problems is the copy whole; where manifest, key or digest are wrong nothing is copied.
        whole: copy manifest and signature too, which are none of the listed files, so that the copy is a bundle.

    Returns:
        Every problem found; a bundle, however broken, is never an exception.

    Raises:
        MissingFileError: no such bundle or key.
        UsageError, CorruptFileError: a digest or a key that cannot be one.
        StorageError: `copy_to` cannot be written.
    """
    expected_key = None if key is None else read_public_key(key)
    expected_digest = None if digest is None else _checked_digest(digest)
    if not path.exists():
        raise MissingFileError(asked=f"the bundle {path}", found="nothing there", next="Check the path.")
    problems: list[str] = []
    with ExitStack() as stack:
        members = _directory_members(path, problems) if path.is_dir() else _zip_members(path, stack, problems)
        manifest, unlisted = _check_manifest(members, expected_key, expected_digest, problems)
        if manifest is not None:
            copied = None if problems else copy_to
            _check_files(members, manifest, problems, copied)
            for name, data in unlisted.items() if copied is not None and whole else ():
                with _copy(copied, name) as write:
                    write(data)
    proven = expected_key is not None or expected_digest is not None
    return Verification(
        problems=tuple(problems[:MAX_PROBLEMS]),
        digest=None if manifest is None else manifest.digest,
        signed_by=None if manifest is None else manifest.signed_by,
        authentic=proven and not problems,
        manifest=manifest,
    )


def _checked_digest(digest: str) -> str:
    text = digest.lower().removeprefix("sha256:")
    if not re.fullmatch("[0-9a-f]{64}", text):
        raise UsageError(
            asked=f"a bundle of digest {digest[:80]!r}",
            found="not 64 hexadecimal digits",
            next="Copy it from `package`.",
        )
    return text


def _directory_members(root: Path, problems: list[str]) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    folders = [(root, "", 1)]
    while folders:
        folder, prefix, depth = folders.pop()
        try:
            with os.scandir(folder) as listing:
                entries = sorted(listing, key=lambda e: e.name)
        except OSError as error:
            problems.append(f"{prefix or '.'}: cannot be listed ({error.strerror})")
            continue
        if prefix and not entries:
            problems.append(f"{prefix}: an empty folder, which no bundle has")
        for entry in entries:
            name = prefix + entry.name
            problem = name_problem(name)
            if problem is not None:
                problems.append(problem)
            elif entry.is_symlink():
                problems.append(f"{name}: a symbolic link")
            elif entry.is_dir(follow_symlinks=False):
                if depth >= MAX_DEPTH:
                    problems.append(f"{name}: more than {MAX_DEPTH} folders deep")
                else:
                    folders.append((Path(entry.path), f"{name}/", depth + 1))
            elif not entry.is_file(follow_symlinks=False):
                problems.append(f"{name}: neither a file nor a folder")
            else:
                members[name] = _file_member(Path(entry.path), entry.stat(follow_symlinks=False).st_size)
            if len(members) > MAX_FILES + len(UNLISTED) or len(problems) >= MAX_PROBLEMS:
                problems.append(f"more than {MAX_FILES} files, or too many problems: stopped at {name}")
                return members
    return members


def _file_member(path: Path, size_bytes: int) -> _Member:
    def chunks() -> Iterator[bytes]:
        # Not through a link that took the file's place since it was listed.
        with os.fdopen(os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(f"{path.name} is no regular file any more")
            while chunk := file.read(CHUNK_BYTES):
                yield chunk

    return _Member(size_bytes, chunks)


def _zip_members(path: Path, stack: ExitStack, problems: list[str]) -> dict[str, _Member]:
    members: dict[str, _Member] = {}
    if not path.is_file():
        problems.append("neither a file nor a folder")
        return members
    try:
        archive = stack.enter_context(path.open("rb"))
        stored_members = read_stored_zip(archive, os.fstat(archive.fileno()).st_size)
    except (CorruptFileError, OSError) as error:
        problems.append(f"not a bundle's ZIP file: {_found(error)}")
        return members
    for stored in stored_members:
        problem = name_problem(stored.name)
        if problem is not None:
            problems.append(problem)
        elif stored.name in members:
            problems.append(f"{stored.name}: there twice")
        else:
            members[stored.name] = _stored_member(archive, stored)
    names = [stored.name for stored in stored_members]
    if names != bundle_order(names):
        problems.append("files in another order than they are packaged in")
    return members


def _stored_member(archive: BinaryIO, stored: StoredMember) -> _Member:
    return _Member(stored.size_bytes, lambda: member_chunks(archive, stored))


def bundle_order(names: list[str]) -> list[str]:
    """The order of files in a ZIP bundle: manifest, signature, then by name."""
    return sorted(names, key=lambda name: (name != MANIFEST_NAME, name != SIGNATURE_NAME, name))


def _read_small(members: Mapping[str, _Member], name: str, limit: int, problems: list[str]) -> bytes | None:
    member = members.get(name)
    if member is None:
        problems.append(f"{name}: missing")
        return None
    if member.size_bytes > limit:
        problems.append(f"{name}: {member.size_bytes} bytes, more than {limit}")
        return None
    try:
        data = b""
        for chunk in member.chunks():
            data += chunk
            if len(data) > limit:
                problems.append(f"{name}: grew beyond {limit} bytes while it was read")
                return None
    except (CorruptFileError, OSError) as error:
        problems.append(f"{name}: {_found(error)}")
        return None
    return data


def _check_manifest(
    members: Mapping[str, _Member], key: str | None, digest: str | None, problems: list[str]
) -> tuple[Manifest | None, dict[str, bytes]]:
    """The manifest, and the bytes of itself and of its signature."""
    data = _read_small(members, MANIFEST_NAME, MAX_MANIFEST_BYTES, problems)
    if data is None:
        return None, {}
    read = {MANIFEST_NAME: data}
    try:
        manifest = manifest_from_bytes(data)
    except CorruptFileError as error:
        problems.append(f"{MANIFEST_NAME}: {error.found}")
        return None, {}
    if digest is not None and manifest.digest != digest:
        problems.append(f"{MANIFEST_NAME}: digest {manifest.digest}, not the expected {digest}")
    if key is not None and manifest.signed_by != key:
        signer = "nobody" if manifest.signed_by is None else manifest.signed_by
        problems.append(f"{SIGNATURE_NAME}: signed by {signer}, not by the given key {key}")
    if manifest.signed_by is not None:
        signature = _read_small(members, SIGNATURE_NAME, MAX_SIGNATURE_BYTES, problems)
        if signature is not None:
            read[SIGNATURE_NAME] = signature
            problem = signature_problem(signature, data, manifest.signed_by)
            if problem is not None:
                problems.append(f"{SIGNATURE_NAME}: {problem}")
    elif SIGNATURE_NAME in members:
        problems.append(f"{SIGNATURE_NAME}: the manifest says it is not signed")
    return manifest, read


def _check_files(members: Mapping[str, _Member], manifest: Manifest, problems: list[str], copy_to: Path | None) -> None:
    for name in sorted(members.keys() - manifest.files.keys() - set(UNLISTED)):
        problems.append(f"{name}: not in the manifest")
    for name, entry in manifest.files.items():
        member = members.get(name)
        if member is None:
            problems.append(f"{name}: missing")
        elif member.size_bytes != entry.size_bytes:
            problems.append(f"{name}: {member.size_bytes} bytes, the manifest says {entry.size_bytes}")
        else:
            try:
                with _copy(copy_to, name) as write:
                    sha256 = _sha256(member, entry.size_bytes, write)
            except (CorruptFileError, OSError) as error:
                if isinstance(error, StorageError):
                    raise
                problems.append(f"{name}: {_found(error)}")
                continue
            if sha256 != entry.sha256:
                problems.append(f"{name}: its contents changed (SHA-256 {sha256}, not {entry.sha256})")


def _sha256(member: _Member, size_bytes: int, write: Callable[[bytes], object]) -> str:
    """Hash a member and write it chunk by chunk; one that has grown since it was listed is not read on for ever."""
    sha256, size = hashlib.sha256(), 0
    for chunk in member.chunks():
        size += len(chunk)
        if size > size_bytes:
            raise OSError("grew while it was read")
        sha256.update(chunk)
        write(chunk)
    return sha256.hexdigest()


@contextmanager
def _copy(folder: Path | None, name: str) -> Iterator[Callable[[bytes], object]]:
    """What takes the chunks of a file that is copied; nothing where there is no folder."""
    if folder is None:
        yield lambda chunk: None
        return
    path = folder / name
    failed = f"a private copy of {name} in {folder}"

    def write(chunk: bytes) -> None:
        try:
            file.write(chunk)
        except OSError as error:
            raise StorageError(asked=failed, found=str(error), next="Free some space.") from error

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("xb", buffering=0)
    except OSError as error:
        raise StorageError(asked=failed, found=str(error), next="Free some space.") from error
    with file:
        yield write


def _found(error: Exception) -> str:
    return error.found if isinstance(error, CorruptFileError) else str(error)
