"""One kernel: a (fused) operator at one shape, as an engine executes it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, prod

Shape = tuple[int, ...]
AttributeValue = int | float | str | tuple[int, ...]

BYTES_PER_ELEMENT: Mapping[str, float] = {
    "float64": 8, "int64": 8, "uint64": 8,
    "float32": 4, "int32": 4, "uint32": 4,
    "float16": 2, "bfloat16": 2, "int16": 2, "uint16": 2,
    "int8": 1, "uint8": 1, "bool": 1, "float8e4m3": 1, "float8e5m2": 1,
    "float8e4m3fnuz": 1, "float8e5m2fnuz": 1, "float8e8m0": 1,
    "int4": 0.5, "uint4": 0.5, "float4e2m1": 0.5, "int2": 0.25, "uint2": 0.25,
}  # fmt: skip


def _plain(value: object) -> AttributeValue:
    """The one way to write a value: whole numbers as int (1.0 and True equal 1), sequences as tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(v) for v in value)  # type: ignore[misc]
    if isinstance(value, int | float) and isfinite(value):
        return int(value) if value == int(value) else float(value)
    if isinstance(value, str):
        return value
    raise ValueError(f"{value!r} is not a number, a text or a tuple of whole numbers")


LEAST_CONSTANT = 4096
"""Elements below which a constant operand is none worth telling of."""


def constant_operands(inputs: Sequence[Shape], constant: Iterable[int], *, is_convolution: bool) -> tuple[int, ...]:
    """Positions of the inputs that are weights though nothing else says so: the kernel's attribute `constants`.

    A convolution's weights and matrices of two dimensions are known for what they are. A constant of three or more,
    in a batched product or an elementwise operator, cannot be told from data by its shape.
    """
    return tuple(
        i
        for i in sorted(constant)
        if not is_convolution and i < len(inputs) and len(inputs[i]) > 2 and prod(inputs[i]) >= LEAST_CONSTANT
    )


@dataclass(frozen=True, order=True)
class Kernel:
    """One executed operator at one shape.

    `op` is the engine's own name for what runs ("Conv", "ReorderInput", "QLinearConv"), `inputs` and
    `outputs` the shapes of every tensor it reads and writes in order, weights included. `dtype` is
    the element type it computes in. `attributes` are the settings its cost can depend on
    (`kernel_size`, `strides`, `dilations`, `groups`, `activation`, `residual`, `constants` …), sorted by name.
    """

    op: str
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    dtype: str = "float32"
    attributes: tuple[tuple[str, AttributeValue], ...] = ()

    def __post_init__(self) -> None:
        if self.dtype not in BYTES_PER_ELEMENT:
            raise ValueError(f"kernel {self.op}: unknown dtype {self.dtype!r}; known: {sorted(BYTES_PER_ELEMENT)}")
        for shape in (*self.inputs, *self.outputs):
            if not isinstance(shape, tuple) or any(type(n) is not int or n < 0 for n in shape):
                raise ValueError(f"kernel {self.op}: shape {shape} is not made of whole numbers")
        values = {name: _plain(value) for name, value in self.attributes}
        if len(values) != len(self.attributes):
            raise ValueError(f"kernel {self.op}: an attribute is given twice in {self.attributes}")
        object.__setattr__(self, "attributes", tuple(sorted(values.items())))

    def attribute(self, name: str) -> AttributeValue | None:
        """The attribute's value, or None where the operator does not have it."""
        return dict(self.attributes).get(name)

    @property
    def signature(self) -> str:
        """Canonical one-line text; equal exactly when the kernels are equal. `kernel_from_signature` reads it."""
        return json.dumps(
            {
                "op": self.op,
                "in": self.inputs,
                "out": self.outputs,
                "dtype": self.dtype,
                "attr": dict(self.attributes),
            },
            separators=(",", ":"),
        )

    @property
    def traffic_bytes(self) -> float:
        """Bytes read and written once each: every input and output tensor."""
        return BYTES_PER_ELEMENT[self.dtype] * sum(prod(s) for s in (*self.inputs, *self.outputs))

    @property
    def output_elements(self) -> int:
        """Elements of all outputs together."""
        return sum(prod(s) for s in self.outputs)


def kernel_from_signature(text: str) -> Kernel:
    """Read back `Kernel.signature`.

    Raises:
        ValueError: the text is not a kernel signature.
    """
    try:
        fields = json.loads(text)
        if not isinstance(fields["op"], str):
            raise TypeError("op is no text")
        return Kernel(
            op=fields["op"],
            inputs=tuple(tuple(s) for s in fields["in"]),
            outputs=tuple(tuple(s) for s in fields["out"]),
            dtype=fields["dtype"],
            attributes=tuple(fields["attr"].items()),
        )
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"not a kernel signature: {text[:120]!r} ({error})") from error


@dataclass(frozen=True)
class ExecutedKernel:
    """A kernel at its place in a network: `name` as the engine calls it, `nodes` the ONNX nodes it came from."""

    kernel: Kernel
    name: str
    nodes: tuple[str, ...] = ()
