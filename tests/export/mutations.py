"""Bundles changed as disks, transfers and attackers change them: every kind of mutation by name.

A bundle is name → bytes; as a ZIP file it is the bytes that `package` writes. No mutation returns what it was given.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from akd_deploy.export.manifest import canonical_json
from akd_deploy.export.stored_zip import StoredMember, _trailer
from akd_deploy.export.verify import bundle_order

Files = dict[str, bytes]
Rng = np.random.Generator

MANIFEST, SIGNATURE = "manifest.json", "manifest.sig"


def packed(files: list[tuple[str, bytes]]) -> bytes:
    """A ZIP file in our own layout, with whatever names and order."""
    members: list[StoredMember] = []
    archive = b""
    for name, data in files:
        member = StoredMember(name, len(data), zlib.crc32(data), members[-1].end if members else 0)
        members.append(member)
        archive += member.local_header() + data
    return archive + _trailer(members)


def in_order(files: Files) -> list[tuple[str, bytes]]:
    return [(name, files[name]) for name in bundle_order(list(files))]


def _one(rng: Rng, values):
    values = list(values)
    return values[int(rng.integers(len(values)))]


# --- bytes -----------------------------------------------------------------------------------------------------


def _bit(data: bytes, rng: Rng) -> bytes:
    place = int(rng.integers(len(data)))
    return data[:place] + bytes([data[place] ^ (1 << int(rng.integers(8)))]) + data[place + 1 :]


def _truncated(data: bytes, rng: Rng) -> bytes:
    return data[: int(rng.integers(len(data)))]


def _spliced(data: bytes, rng: Rng) -> bytes:
    """Noise put in, bytes cut out, bytes overwritten, bytes twice, noise after the end, or the whole turned round."""
    place, length = int(rng.integers(len(data))), int(rng.integers(1, 64))
    noise = rng.integers(0, 256, length, dtype=np.uint8).tobytes()
    head, tail, rest = data[:place], data[place:], data[place + length :]
    ways = (head + noise + tail, head + rest, head + noise + rest, head + tail[:length] * 2 + rest, data + noise)
    return _one(rng, (*ways, tail + head))


BYTES: dict[str, Callable[[bytes, Rng], bytes]] = {"bit": _bit, "truncated": _truncated, "spliced": _spliced}


# --- names and contents ----------------------------------------------------------------------------------------


def _missing(files: Files, rng: Rng) -> Files:
    gone = _one(rng, files)
    return {name: data for name, data in files.items() if name != gone}


def _renamed(files: Files, rng: Rng) -> Files:
    old = _one(rng, files)
    new = _one(rng, (f"{old}x", old.upper(), f"folder/{old}", "renamed"))
    return {new if name == old else name: data for name, data in files.items()}


def _extra(files: Files, rng: Rng) -> Files:
    name = _one(rng, ("extra.bin", "engines/extra.engine", "LABELS.TXT", "1/model.plan", "student.onnx.bak", ".hidden"))
    return {**files, name: _one(rng, files.values())}


def _swapped(files: Files, rng: Rng) -> Files:
    a, b = _one(rng, files), _one(rng, files)
    return {**files, a: files[b], b: files[a]}


def _one_file(files: Files, rng: Rng) -> Files:
    name = _one(rng, files)
    return {**files, name: _one(rng, BYTES.values())(files[name], rng)}


# --- facts in the manifest -------------------------------------------------------------------------------------

_VALUES = (None, True, False, 0, 1, -1, 2**64, 0.5, "", "x", "../x", "0" * 64, [], {}, [1], {"a": 1}, "\u2028", "a.pkl")


def _changed_somewhere(value, rng: Rng):
    """The JSON value with one thing changed, removed or added, somewhere."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = _one(rng, value)
        way = rng.random()
        if way < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if way < 0.2:
            return {**value, _one(rng, ("other", key.upper() + "_", "../up", "x" * 300, "")): value[key]}
        return {**value, key: _changed_somewhere(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = int(rng.integers(len(value)))
        return [*value[:place], _changed_somewhere(value[place], rng), *value[place + 1 :]]
    if isinstance(value, str) and value and rng.random() < 0.6:
        place = int(rng.integers(len(value)))
        return value[:place] + _one(rng, "0aA./ é") + value[place + 1 :]
    if isinstance(value, int | float) and not isinstance(value, bool) and rng.random() < 0.6:
        return value + _one(rng, (1, -1, 1e-9))
    return _one(rng, _VALUES)


def _fact(files: Files, rng: Rng) -> Files:
    """Canonical JSON again, and the checksum as it was."""
    return {**files, MANIFEST: canonical_json(_changed_somewhere(json.loads(files[MANIFEST]), rng))}


def _forged_fact(files: Files, rng: Rng) -> Files:
    """With a checksum that fits: what only the signature, or the expected digest, gives away."""
    body = json.loads(files[MANIFEST])
    del body["manifest_sha256"]
    body = _changed_somewhere(body, rng)
    if isinstance(body, dict):
        body = {**body, "manifest_sha256": hashlib.sha256(canonical_json(body)).hexdigest()}
    return {**files, MANIFEST: canonical_json(body)}


FILES: dict[str, Callable[[Files, Rng], Files]] = {
    "missing file": _missing,
    "renamed file": _renamed,
    "extra file": _extra,
    "swapped files": _swapped,
    "changed file": _one_file,
    "changed fact": _fact,
    "forged fact": _forged_fact,
}


# --- ZIP files -------------------------------------------------------------------------------------------------

_HEADERS = {b"PK\x03\x04": "<4sHHHHHLLLHH", b"PK\x01\x02": "<4sHHHHHHLLLHHHHHLL", b"PK\x05\x06": "<4sHHHHLLH"}


def _header(data: bytes, rng: Rng) -> bytes:
    """One field of a local header, a directory entry or the end record set to another number."""
    mark = _one(rng, _HEADERS)
    places = [i for i in range(len(data)) if data.startswith(mark, i)]
    place, layout = _one(rng, places), struct.Struct(_HEADERS[mark])
    fields = list(layout.unpack_from(data, place))
    which = int(rng.integers(1, len(fields)))
    top = 0xFFFFFFFF if layout.format.replace("4s", "")[which] == "L" else 0xFFFF
    fields[which] = _one(rng, (0, 1, 8, top, top - 1, (fields[which] + 1) & top, fields[which] ^ 0x0800, len(data)))
    return data[:place] + layout.pack(*fields) + data[place + layout.size :]


def _name_twice(data: bytes, files: Files, rng: Rng) -> bytes:
    listed = in_order(files)
    name, _ = _one(rng, listed)
    listed.insert(int(rng.integers(len(listed) + 1)), (name, _one(rng, files.values())))
    return packed(listed)


def _other_order(data: bytes, files: Files, rng: Rng) -> bytes:
    listed = in_order(files)
    return packed([listed[i] for i in rng.permutation(len(listed))])


ARCHIVES: dict[str, Callable[[bytes, Files, Rng], bytes]] = {
    "archive bit": lambda data, files, rng: _bit(data, rng),
    "archive truncated": lambda data, files, rng: _truncated(data, rng),
    "archive spliced": lambda data, files, rng: _spliced(data, rng),
    "zip header": lambda data, files, rng: _header(data, rng),
    "name twice": _name_twice,
    "other order": _other_order,
}


def mutated_files(files: Files, kind: str, rng: Rng) -> Files:
    """Another bundle than the one given."""
    while True:
        changed = FILES[kind](files, rng)
        if changed != files:
            return changed


def mutated_archive(files: Files, kind: str, rng: Rng) -> bytes:
    """Other bytes than those of the bundle's ZIP file; kinds of `FILES` are packed in our own layout."""
    data = packed(in_order(files))
    while True:
        if kind in FILES:
            changed = packed(in_order(mutated_files(files, kind, rng)))
        else:
            changed = ARCHIVES[kind](data, files, rng)
        if changed != data:
            return changed


# --- where a bundle lies ---------------------------------------------------------------------------------------


def put(files: Files, path: Path, before: Files) -> None:
    """Make of a folder that holds `before` one that holds `files`."""
    for name in before.keys() - files.keys():
        (path / name).unlink()
        for folder in (path / name).relative_to(path).parents:
            if folder.parts and not any((path / folder).iterdir()):
                (path / folder).rmdir()
    for name, data in files.items():
        if before.get(name) != data:
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)


def mutated_in_place(path: Path, files: Files, count: int, rng: Rng) -> Iterator[str]:
    """Change the bundle at `path`, a folder or a ZIP file that holds `files`, `count` times, each kind in turn.

    Yields the kind while the bundle is changed; afterwards it is as it was.
    """
    archive = path.is_file()
    kinds = [*FILES, *(ARCHIVES if archive else ())]
    for i in range(count):
        kind = kinds[i % len(kinds)]
        if archive:
            path.write_bytes(mutated_archive(files, kind, rng))
            yield kind
        else:
            changed = mutated_files(files, kind, rng)
            put(changed, path, files)
            yield kind
            put(files, path, changed)
    if archive:
        path.write_bytes(packed(in_order(files)))
