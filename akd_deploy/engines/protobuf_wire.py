"""Walk a protobuf message in a file field by field, reading only what is asked for.

The format is that of protobuf's "Encoding" page: a field is a tag (its number and wire type), then its value.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

VARINT, FIXED64, LENGTH, START_GROUP, END_GROUP, FIXED32 = range(6)
_WINDOW_BYTES = 4096
"""Read at a time: most fields of a network are smaller, and the large ones are jumped over."""
LONGEST_VARINT = 10
"""Bytes of a number."""
MOST_LEVELS = 100
"""Messages within messages, as many as protobuf's own readers follow."""


class WireError(ValueError):
    """Bytes that are no protobuf message, with the place in the file."""


class Field(NamedTuple):
    """One field: where it begins with its tag, where its value does, and where it ends."""

    number: int
    wire_type: int
    start: int
    value: int
    end: int

    @property
    def size(self) -> int:
        """Bytes of the value."""
        return self.end - self.value


class WireFile:
    """An open file read by position. Files may shrink meanwhile: what is missing is a `WireError`."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size
        self._window = b""
        self._start = 0

    def read(self, start: int, end: int) -> bytes:
        """The bytes between two positions."""
        if self._start <= start and end <= self._start + len(self._window):
            return self._window[start - self._start : end - self._start]
        content = b"".join(self._chunks(start, end))
        if len(content) < end - start:
            raise WireError(f"an end at byte {start + len(content)}, {end} bytes were promised")
        return content

    def _chunks(self, start: int, end: int) -> Iterator[bytes]:
        """A read may give less than it is asked for, always so beyond two gigabytes."""
        while start < end and (chunk := os.pread(self._descriptor, end - start, start)):
            start += len(chunk)
            yield chunk

    def varint(self, position: int, end: int) -> tuple[int, int]:
        """A number of seven bits a byte, lowest first, and the position behind it."""
        i = position - self._start
        window = self._window
        if not 0 <= i < len(window) - LONGEST_VARINT:
            window = self._window = os.pread(self._descriptor, _WINDOW_BYTES, position)
            self._start, i = position, 0
        value = shift = 0
        for byte in window[i : i + min(LONGEST_VARINT, end - position)]:
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
            shift += 7
        raise WireError(f"a number without an end at byte {position}")

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """The fields of the message between two positions.

        Raises:
            WireError: they are no message, or one that ends too early.
        """
        position = start
        while position < end:
            begins = position
            tag, position = self.varint(position, end)
            number, wire_type, value = tag >> 3, tag & 7, position
            if wire_type == LENGTH:
                size, value = self.varint(position, end)
                position = value + size
            elif wire_type == VARINT:
                _, position = self.varint(position, end)
            elif wire_type in (FIXED32, FIXED64):
                position += 4 if wire_type == FIXED32 else 8
            elif wire_type == START_GROUP:
                position = self._behind_group(number, position, end)
            else:
                raise WireError(f"wire type {wire_type} at byte {begins}")
            if number == 0 or position > end:
                raise WireError(f"field {number} at byte {begins}, which ends at {position} in a message up to {end}")
            yield Field(number, wire_type, begins, value, position)

    def _behind_group(self, number: int, position: int, end: int) -> int:
        """Groups are protobuf's oldest way to nest; they end with a tag of the same number."""
        opened = [number]
        while opened:
            tag, behind = self.varint(position, end)
            if tag & 7 == END_GROUP and tag >> 3 == opened[-1]:
                opened.pop()
                position = behind
            elif tag & 7 == START_GROUP and len(opened) < MOST_LEVELS:
                opened.append(tag >> 3)
                position = behind
            elif tag & 7 in (START_GROUP, END_GROUP):
                raise WireError(f"a group without its end at byte {position}")
            else:
                position = next(self.fields(position, end)).end
        return position


def encoded_varint(value: int) -> bytes:
    """A whole number ≥ 0 as `WireFile.varint` reads it."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
