"""The parts of a graph: nodes, the types of tensors, constants."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import helper, numpy_helper

from akd_deploy.errors import UsageError
from akd_deploy.kernel import Shape

DTYPES: Mapping[int, str] = {
    number: {"float": "float32", "double": "float64", "float8e4m3fn": "float8e4m3"}.get(name.lower(), name.lower())
    for name, number in onnx.TensorProto.DataType.items()
}
"""ONNX's element types → the names kernels carry."""


FLOAT = onnx.TensorProto.FLOAT
MICROSOFT = "com.microsoft"
"""The domain of the runtime's own operators."""

_PAYLOADS = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")


@dataclass(frozen=True)
class TensorType:
    """Element type (ONNX's number) and shape of a tensor."""

    element: int
    shape: Shape

    @property
    def dtype(self) -> str:
        return DTYPES[self.element]


class Constant:
    """A tensor known before the network runs; its value is read, or computed, when a rule asks for it."""

    def __init__(self, type_: TensorType, value: Callable[[], np.ndarray]) -> None:
        self.type = type_
        self._value = value

    @cached_property
    def value(self) -> np.ndarray:
        return self._value()

    @property
    def scalar(self) -> float | None:
        """The one number it holds, None where it holds several."""
        return float(self.value.reshape(-1)[0]) if int(np.prod(self.type.shape)) == 1 else None


class Node:
    """One operator; attributes stay as ONNX wrote them."""

    __slots__ = ("alive", "attributes", "domain", "inputs", "name", "op", "outputs")

    def __init__(
        self,
        op: str,
        inputs: Iterable[str],
        outputs: Iterable[str],
        name: str,
        domain: str = "",
        attributes: Mapping[str, onnx.AttributeProto] | None = None,
        **more: object,
    ) -> None:
        self.op = op
        self.domain = domain
        self.name = name
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.attributes = dict(attributes or {})
        self.alive = True
        for key, value in more.items():
            self.set(key, value)

    def __repr__(self) -> str:
        return f"{self.name} ({self.domain + '.' if self.domain else ''}{self.op})"

    @property
    def output(self) -> str:
        return self.outputs[0]

    def get(self, name: str, default: object = None) -> object:
        """An attribute as a Python value: whole numbers, texts and lists of them."""
        attribute = self.attributes.get(name)
        if attribute is None:
            return default
        value = helper.get_attribute_value(attribute)
        return value.decode() if isinstance(value, bytes) else value

    def integer(self, name: str, default: int = 0) -> int:
        attribute = self.attributes.get(name)
        return default if attribute is None else int(attribute.i)

    def number(self, name: str, default: float) -> float:
        attribute = self.attributes.get(name)
        return default if attribute is None else float(attribute.f)

    def text(self, name: str, default: str = "") -> str:
        attribute = self.attributes.get(name)
        return default if attribute is None else attribute.s.decode()

    def integers(self, name: str) -> tuple[int, ...] | None:
        attribute = self.attributes.get(name)
        return None if attribute is None else tuple(attribute.ints)

    def set(self, name: str, value: object) -> None:
        self.attributes[name] = helper.make_attribute(name, value)

    def is_a(self, *ops: str, domain: str = "") -> bool:
        return self.op in ops and self.domain == domain


def constant_from(tensor: onnx.TensorProto) -> Constant:
    """A tensor of the file. Asked for a value that is not there, the constant raises UsageError."""

    def value() -> np.ndarray:
        is_here = tensor.data_location != onnx.TensorProto.EXTERNAL and any(len(getattr(tensor, f)) for f in _PAYLOADS)
        if not is_here and math.prod(tensor.dims):
            raise UsageError(
                asked="the kernels of a network by fusion rules",
                found=f"tensor {tensor.name!r}, whose values decide something and were not read",
                next="Read the kernels off the runtime.",
            )
        return numpy_helper.to_array(tensor)

    return Constant(TensorType(tensor.data_type, tuple(tensor.dims)), value)
