"""ZIP archives of uncompressed files with exactly one possible sequence of bytes for their contents.

Reading accepts that one sequence only: no compression (so no bombs), no ZIP64, no comments, extra fields,
gaps or second names for a file. Whatever bit of an archive changes, it is no longer one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from akd_deploy.errors import CorruptFileError, UsageError
from akd_deploy.export.manifest import MAX_FILES, MAX_NAME_BYTES, UNLISTED

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_VERSION = 10  # of the ZIP specification: plain stored files
_MADE_BY = (3 << 8) | 20  # on Unix, so that unpackers set the mode below
_MODE = 0o100644 << 16
_DOS_TIME, _DOS_DATE = 0, (1 << 5) | 1  # 1980-01-01 00:00, the earliest there is

MAX_ARCHIVE_BYTES = (1 << 32) - 1
"""Offsets have 32 bits without ZIP64, which only some unpackers of devices know."""

MAX_MEMBERS = MAX_FILES + len(UNLISTED)
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class StoredMember:
    """One file in an archive: its bytes are the `size_bytes` from `data_offset` on."""

    name: str
    size_bytes: int
    crc32: int
    header_offset: int

    @property
    def data_offset(self) -> int:
        return self.header_offset + _LOCAL.size + len(self.name)

    @property
    def end(self) -> int:
        return self.data_offset + self.size_bytes

    def local_header(self) -> bytes:
        name = self.name.encode("ascii")
        sizes = (self.crc32, self.size_bytes, self.size_bytes)
        return _LOCAL.pack(b"PK\x03\x04", _VERSION, 0, 0, _DOS_TIME, _DOS_DATE, *sizes, len(name), 0) + name

    def central_header(self) -> bytes:
        name = self.name.encode("ascii")
        times = (_DOS_TIME, _DOS_DATE, self.crc32, self.size_bytes, self.size_bytes)
        head = (b"PK\x01\x02", _MADE_BY, _VERSION, 0, 0, *times, len(name), 0, 0, 0, 0, _MODE, self.header_offset)
        return _CENTRAL.pack(*head) + name


def _trailer(members: Sequence[StoredMember]) -> bytes:
    directory = b"".join(member.central_header() for member in members)
    start = members[-1].end if members else 0
    count = len(members)
    return directory + _END.pack(b"PK\x05\x06", 0, 0, count, count, len(directory), start, 0)


def write_stored_zip(archive: BinaryIO, files: Sequence[tuple[str, Path]]) -> None:
    """Write files (name in the archive, source) in the order given.

    Raises:
        UsageError: more than `MAX_ARCHIVE_BYTES`.
    """
    members: list[StoredMember] = []
    for name, source in files:
        size, crc = 0, 0
        for chunk in file_chunks(source):
            size, crc = size + len(chunk), zlib.crc32(chunk, crc)
        member = StoredMember(name, size, crc, members[-1].end if members else 0)
        if member.end > MAX_ARCHIVE_BYTES:
            raise UsageError(
                asked="a bundle as one ZIP file",
                found=f"more than {MAX_ARCHIVE_BYTES} bytes",
                next="Package it as a directory.",
            )
        members.append(member)
        archive.write(member.local_header())
        for chunk in file_chunks(source):
            archive.write(chunk)
    archive.write(_trailer(members))


def read_stored_zip(archive: BinaryIO, size_bytes: int) -> list[StoredMember]:
    """The members of an archive that `write_stored_zip` wrote; their contents and CRCs are not looked at here.

    Raises:
        CorruptFileError: any other sequence of bytes, with the offset.
    """
    if size_bytes > MAX_ARCHIVE_BYTES:
        raise _corrupt(f"{size_bytes} bytes, more than {MAX_ARCHIVE_BYTES}")
    members: list[StoredMember] = []
    offset = 0
    while True:
        archive.seek(offset)
        header = archive.read(_LOCAL.size)
        if len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
            break
        *_, crc, size, _, name_length, _ = _LOCAL.unpack(header)
        raw_name = archive.read(name_length) if name_length <= MAX_NAME_BYTES else b""
        if not raw_name or len(raw_name) < name_length or not raw_name.isascii():
            raise _corrupt(f"a file's name at byte {offset} that is not ASCII of at most {MAX_NAME_BYTES} bytes")
        member = StoredMember(raw_name.decode("ascii"), size, crc, offset)
        if member.local_header() != header + raw_name:
            raise _corrupt(f"a header at byte {offset} with flags, a date, compression or sizes of its own")
        if member.end > size_bytes:
            raise _corrupt(f"a file at byte {offset} that ends beyond the archive")
        members.append(member)
        if len(members) > MAX_MEMBERS:
            raise _corrupt(f"more than {MAX_MEMBERS} files")
        offset = member.end
    trailer = _trailer(members)
    archive.seek(offset)
    if size_bytes - offset != len(trailer) or archive.read(len(trailer)) != trailer:
        raise _corrupt(f"a directory at byte {offset} that does not list exactly the files before it")
    return members


def member_chunks(archive: BinaryIO, member: StoredMember) -> Iterator[bytes]:
    """The member's bytes, a MiB at a time.

    Raises:
        CorruptFileError: its CRC does not fit.
    """
    archive.seek(member.data_offset)
    left, crc = member.size_bytes, 0
    while left:
        chunk = archive.read(min(CHUNK_BYTES, left))
        if not chunk:
            raise _corrupt(f"an end of the archive inside {member.name!r}")
        left, crc = left - len(chunk), zlib.crc32(chunk, crc)
        yield chunk
    if crc != member.crc32:
        raise _corrupt(f"a CRC of {member.name!r} that does not fit")


def file_chunks(path: Path) -> Iterator[bytes]:
    """A file's bytes, a MiB at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _corrupt(found: str) -> CorruptFileError:
    return CorruptFileError(asked="a packaged ZIP archive", found=found, next="Package the bundle again.")
