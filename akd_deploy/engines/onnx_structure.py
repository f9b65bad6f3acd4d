"""Read the structure of a network in an ONNX file: everything but the values of its weights, which stay on the disk.

A hundred megabytes of weights are jumped over in milliseconds. Tensors whose values are left out keep name, dims and
element type. Small ones keep their values: shapes, axes, scales and bounds are among them; so do masks of attention,
on whose values latency depends.
"""

from __future__ import annotations

import functools
import hashlib
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx.external_data_helper import ExternalDataInfo

from akd_deploy.engines.denormals import added_masks
from akd_deploy.engines.onnx_file import (
    check_network,
    corrupt_network,
    no_network,
    require_file,
    tensors_of,
)
from akd_deploy.engines.protobuf_wire import (
    FIXED32,
    FIXED64,
    LENGTH,
    LONGEST_VARINT,
    MOST_LEVELS,
    VARINT,
    Field,
    WireError,
    WireFile,
    encoded_varint,
)

LARGEST_KEPT_BYTES = 1024
LARGEST_KEPT_VALUES_BYTES = 4 * 1024
"""For floats, where values matter; of larger tensors only those that are one number everywhere are kept."""
LARGEST_KEPT_MESSAGE_BYTES = 16 * 1024
"""For nodes: smaller ones are copied as they are, with whatever tensors there are among their attributes."""
LARGEST_KEPT_WHOLE_BYTES = 32 * 1024
"""For whole numbers, of which shapes are made: as many as rules of fusion ever look at."""

_TYPES = onnx.TensorProto
_WHOLE = frozenset({
    _TYPES.INT8, _TYPES.INT16, _TYPES.INT32, _TYPES.INT64,
    _TYPES.UINT8, _TYPES.UINT16, _TYPES.UINT32, _TYPES.UINT64, _TYPES.BOOL,
})  # fmt: skip
_SHAPE_MAKING = frozenset({_TYPES.INT32, _TYPES.INT64, _TYPES.BOOL})
"""Types whose values can decide what is executed, however many there are: left out, they still count in the digest."""

_FLOATS = frozenset({_TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.BFLOAT16, _TYPES.DOUBLE})

_FIXED_BYTES: Mapping[str, int] = {"float_data": 4, "double_data": 8}
_NUMBERS = frozenset({"int32_data", "int64_data", "uint64_data"})
_PAYLOADS = (*_FIXED_BYTES, *sorted(_NUMBERS), "string_data", "raw_data")
"""The fields that hold values."""
_NAMES = {_TYPES.DESCRIPTOR.fields_by_name[name].number: name for name in _PAYLOADS}
_UNPACKED = {"float_data": FIXED32, "double_data": FIXED64, **dict.fromkeys(_NUMBERS, VARINT)}
"""How one value is written; usually many are written together."""

_BITS = {
    _TYPES.DataType.Value(name): bits
    for name, bits in (("UINT4", 4), ("INT4", 4), ("FLOAT4E2M1", 4), ("UINT2", 2), ("INT2", 2))
    if name in _TYPES.DataType.keys()  # noqa: SIM118 - no mapping
}
"""Elements that share a byte."""
_SIZES = {
    kind: 1 if kind in _BITS else onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
    for kind in _TYPES.DataType.values()
    if kind not in (_TYPES.UNDEFINED, _TYPES.STRING)
}
"""Bytes in `raw_data` of an element, or of those that share one."""


@dataclass(frozen=True)
class Structure:
    """A network without the values of its large tensors, as `read_onnx` gives it otherwise.

    `digest` is the SHA-256 of the file's structure, other ones for any other batch. `external` says how many bytes the
    network expects of the weights files beside it, `has_external_values` whether some of those bytes are in `model`.
    """

    model: onnx.ModelProto
    digest: str
    external: Mapping[str, int]
    has_external_values: bool = False


def read_structure(path: Path, batch: int, *, by_values: bool = False) -> Structure:
    """The structure of the network in `path` for one batch size.

    Args:
        by_values: keep the values of more floats, whole tensors of zeros or ones among them, also from weights files.

    Raises:
        MissingFileError: the file, or a weights file beside it, is not there.
        CorruptFileError: it is no ONNX network, a tensor has more or fewer values than its dims say, or a weights file
            is too short.
        UsageError: an input has dynamic dimensions other than the batch, or a fixed batch that is not `batch`.
    """
    require_file(path)
    descriptor = os.open(path, os.O_RDONLY)
    hasher = hashlib.sha256(f"batch {batch}".encode())
    try:
        wire = WireFile(descriptor)
        copy = _Copy(wire, hasher, by_values)
        content = copy.message(0, wire.size, onnx.ModelProto.DESCRIPTOR)
        model = onnx.ModelProto.FromString(content)
        masks = [mask for _, those in added_masks(model.graph) for mask in those]
        for mask in masks:
            copy.put_back(mask)
    except (WireError, DecodeError, UnicodeDecodeError) as error:
        raise no_network(path, error) from error
    finally:
        os.close(descriptor)
    hasher.update(content)
    try:
        for tensor in tensors_of(model.graph):
            _check_kept(tensor)
    except WireError as error:
        raise corrupt_network(path, str(error)) from error
    external = check_network(model, path, batch)
    outside = [mask for mask in masks if mask.data_location == _TYPES.EXTERNAL and mask.data_type in _FLOATS]
    for mask in outside:
        info = ExternalDataInfo(mask)
        with (path.parent / info.location).open("rb") as file:
            file.seek(info.offset or 0)
            mask.raw_data = file.read(_SIZES[mask.data_type] * math.prod(mask.dims))
        mask.data_location = _TYPES.DEFAULT
        hasher.update(mask.raw_data)
    if by_values and external:
        for tensor in tensors_of(model.graph):
            if tensor.data_location == _TYPES.EXTERNAL and tensor.data_type in _SIZES and tensor.data_type not in _BITS:
                _load_telling(tensor, path.parent)
                hasher.update(tensor.raw_data)
    return Structure(model, hasher.hexdigest(), external, by_values or bool(outside))


class _Copy:
    """Copies messages without large payloads; what is left out and yet matters is added to `hasher`."""

    def __init__(self, file: WireFile, hasher: hashlib._Hash, by_values: bool) -> None:
        self._file = file
        self._hasher = hasher
        self._by_values = by_values
        self._left_out: dict[str, tuple[int, int]] = {}

    def put_back(self, tensor: onnx.TensorProto) -> None:
        """Fill in the values of a tensor that were left out, if they were; they count in the digest."""
        place = self._left_out.get(tensor.name)
        if place is not None and not tensor.raw_data:
            content = self._file.read(*place)
            self._hasher.update(content)
            tensor.CopyFrom(onnx.TensorProto.FromString(content))

    def message(self, start: int, end: int, kind: object, level: int = 0) -> bytes:
        """The message between two positions, large payloads of the tensors in it left out."""
        if level > MOST_LEVELS:
            raise WireError(f"more than {MOST_LEVELS} messages within each other")
        within = _messages_within(kind)
        pieces, copied = [], start
        for field in self._file.fields(start, end):
            inner = within.get(field.number)
            is_tensor = inner is onnx.TensorProto.DESCRIPTOR
            largest = LARGEST_KEPT_BYTES if is_tensor else LARGEST_KEPT_MESSAGE_BYTES
            if inner is None or field.wire_type != LENGTH or field.size <= largest:
                continue
            pieces.append(self._file.read(copied, field.start))
            if is_tensor:
                content = self._tensor(field.value, field.end)
            else:
                content = self.message(field.value, field.end, inner, level + 1)
            pieces += [encoded_varint(field.number << 3 | LENGTH), encoded_varint(len(content)), content]
            copied = field.end
        pieces.append(self._file.read(copied, end))
        return b"".join(pieces)

    def _tensor(self, start: int, end: int) -> bytes:
        payload: list[Field] = []
        pieces, copied = [], start
        for field in self._file.fields(start, end):
            name = _NAMES.get(field.number)
            if name is not None and field.wire_type in (LENGTH, _UNPACKED.get(name, LENGTH)):
                pieces.append(self._file.read(copied, field.start))
                payload.append(field)
                copied = field.end
        pieces.append(self._file.read(copied, end))
        content = b"".join(pieces)
        tensor = onnx.TensorProto.FromString(content)
        largest = LARGEST_KEPT_WHOLE_BYTES if tensor.data_type in _WHOLE else LARGEST_KEPT_BYTES
        if sum(field.size for field in payload) <= largest:
            return self._file.read(start, end)
        if self._by_values and tensor.data_type in _FLOATS and len(payload) == 1 and self._tells(tensor, payload[0]):
            return self._file.read(start, end)
        self._check_left_out(tensor, payload)
        self._left_out[tensor.name] = start, end
        if tensor.data_type in _SHAPE_MAKING:
            for field in payload:
                self._hasher.update(self._file.read(field.value, field.end))
        return content

    def _tells(self, tensor: onnx.TensorProto, field: Field) -> bool:
        """Whether a tensor of floats is small, or the same number everywhere."""
        if field.wire_type != LENGTH or field.size <= LARGEST_KEPT_VALUES_BYTES:
            return True
        head = self._file.read(field.value, field.value + LARGEST_KEPT_VALUES_BYTES)
        size = _SIZES[tensor.data_type]
        return _is_uniform(head, size) and _is_uniform(self._file.read(field.value, field.end), size)

    def _check_left_out(self, tensor: onnx.TensorProto, payload: list[Field]) -> None:
        counts: dict[str, int] = {}
        for field in payload:
            name = _NAMES[field.number]
            if name == "raw_data":
                counts[name] = field.size  # what comes last counts
            else:
                counts[name] = counts.get(name, 0) + self._count(name, field)
        _check_counts(tensor, counts)

    def _count(self, name: str, field: Field) -> int:
        """How many values there are in a field."""
        if name == "string_data" or field.wire_type == VARINT:
            return 1
        if name in _FIXED_BYTES:
            count, rest = divmod(field.size, _FIXED_BYTES[name])
        else:
            # The last byte of a number is the one without the highest bit.
            written = np.frombuffer(self._file.read(field.value, field.end), np.uint8)
            ends = np.flatnonzero(written < 0x80)
            count, rest = len(ends), field.size - 1 - int(ends[-1] if len(ends) else -1)
            if np.diff(ends, prepend=-1).max(initial=0) > LONGEST_VARINT:
                raise WireError(f"a number without an end after byte {field.value}")
        if rest:
            raise WireError(f"a value that is cut off at byte {field.end}")
        return count


def _is_uniform(values: bytes, size: int) -> bool:
    """Whether elements of so many bytes are all the same."""
    return len(values) % size == 0 and values == values[:size] * (len(values) // size)


def _load_telling(tensor: onnx.TensorProto, folder: Path) -> None:
    """Load a tensor of a weights file that is small or the same number everywhere."""
    info = ExternalDataInfo(tensor)
    size, count = _SIZES[tensor.data_type], math.prod(tensor.dims)
    with (folder / info.location).open("rb") as file:
        file.seek(info.offset or 0)
        values = file.read(min(LARGEST_KEPT_VALUES_BYTES, size * count))
        if len(values) < size * count and _is_uniform(values, size):
            values += file.read(size * count - len(values))
    if len(values) == size * count and (len(values) <= LARGEST_KEPT_VALUES_BYTES or _is_uniform(values, size)):
        tensor.raw_data = values
        tensor.data_location = _TYPES.DEFAULT


@functools.cache
def _messages_within(kind: object) -> dict[int, object]:
    """Field number → kind of message, of the fields that are messages."""
    fields = kind.fields_by_number  # type: ignore[attr-defined]
    return {number: field.message_type for number, field in fields.items() if field.message_type is not None}


def _check_kept(tensor: onnx.TensorProto) -> None:
    counts = {name: len(getattr(tensor, name)) for name in _NAMES.values()}
    if any(counts.values()):
        _check_counts(tensor, counts)


def _check_counts(tensor: onnx.TensorProto, counts: Mapping[str, int]) -> None:
    """Whether there are as many values as the dims say.

    Raises:
        WireError: there are not.
    """
    kind, elements = tensor.data_type, math.prod(tensor.dims)
    if kind in _BITS:
        elements = -(-elements * _BITS[kind] // 8)
    pairs = 2 if kind in (_TYPES.COMPLEX64, _TYPES.COMPLEX128) else 1
    for name, count in counts.items():
        expected = pairs * elements
        if name == "raw_data":
            if kind not in _SIZES:
                continue  # a type of tomorrow, or none: whoever looks at the values will say so
            expected = elements * _SIZES[kind]
        if count and count != expected:
            raise WireError(f"{count} of {expected} expected in the {name} of tensor {tensor.name!r}")
