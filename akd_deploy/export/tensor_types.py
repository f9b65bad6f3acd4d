"""Which element type each tensor of an executed kernel has: a kernel has one, mixed ones (Q/DQ, casts) read another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx
from onnx import TensorProto

from akd_deploy.engines.tensorrt_inspect import EngineLayer
from akd_deploy.kernel import BYTES_PER_ELEMENT, ExecutedKernel, Kernel, Shape

_NAMES = {
    "FLOAT": "float32", "DOUBLE": "float64", "FLOAT8E4M3FN": "float8e4m3", "FLOAT8E4M3FNUZ": "float8e4m3fnuz",
}  # fmt: skip
"""ONNX's names of types where ours are not the same in lower case."""


LAYOUT_ALONE = frozenset({"nchwc.ReorderInput", "nchwc.ReorderOutput", "Transpose"})
"""Kernels that runtimes put in for another layout: they write the type they read, whatever node they stand at."""


@dataclass(frozen=True)
class KernelTypes:
    """The element type of each input and output, in the kernel's order; None where it is not known."""

    inputs: tuple[str | None, ...]
    outputs: tuple[str | None, ...]

    @property
    def known(self) -> bool:
        return None not in (*self.inputs, *self.outputs)


def unknown_types(kernel: Kernel) -> KernelTypes:
    """Nothing known beside the type it computes in."""
    return KernelTypes((None,) * len(kernel.inputs), (None,) * len(kernel.outputs))


def traffic_bytes(kernel: Kernel, types: KernelTypes) -> float:
    """Bytes read and written once each, every tensor in its type; in the kernel's where that is not known."""
    tensors = zip((*kernel.inputs, *kernel.outputs), (*types.inputs, *types.outputs), strict=True)
    return sum(BYTES_PER_ELEMENT[dtype or kernel.dtype] * prod(shape) for shape, dtype in tensors)


def total_traffic_bytes(kernels: Sequence[ExecutedKernel], types: Sequence[KernelTypes]) -> float:
    """Of all kernels together."""
    return sum(traffic_bytes(executed.kernel, known) for executed, known in zip(kernels, types, strict=True))


def types_from_layer(layer: EngineLayer) -> KernelTypes:
    """As the engine's inspector tells them; its constants follow the inputs, as in the kernel."""
    return KernelTypes(tuple(t.dtype for t in (*layer.inputs, *layer.constants)), tuple(t.dtype for t in layer.outputs))


def types_from_graph(executed: Sequence[ExecutedKernel], model: onnx.ModelProto) -> tuple[KernelTypes, ...]:
    """By the shapes of the tensors that go into and come out of the ONNX nodes in each kernel.

    A tensor that an engine made itself (a reorder's, one of another layout) is found where its size is, else not known.

    Args:
        model: with inferred shapes, its nodes named as the kernels name them.
    """
    graph = model.graph
    nodes = {node.name: node for node in graph.node}
    values = {v.name: v.type.tensor_type for v in (*graph.input, *graph.value_info, *graph.output)}
    typed: dict[str, tuple[Shape, str]] = {
        name: (tuple(dim.dim_value for dim in t.shape.dim), _name(t.elem_type)) for name, t in values.items()
    }
    typed |= {t.name: (tuple(t.dims), _name(t.data_type)) for t in graph.initializer}
    result = []
    for one in executed:
        if one.kernel.op in LAYOUT_ALONE:
            dtype = one.kernel.dtype
            result.append(KernelTypes((dtype,) * len(one.kernel.inputs), (dtype,) * len(one.kernel.outputs)))
            continue
        inside = [nodes[name] for name in one.nodes if name in nodes]
        made = [name for node in inside for name in node.output if name]
        read = [name for node in inside for name in node.input if name]
        inputs = [typed[name] for name in dict.fromkeys(read) if name not in made and name in typed]
        # What is read by its own nodes alone stays inside; without readers told apart, the last ones are meant.
        outer = [name for name in made if name not in read] or made
        outputs = [typed[name] for name in outer if name in typed]
        result.append(KernelTypes(_matched(one.kernel.inputs, inputs), _matched(one.kernel.outputs, outputs)))
    return tuple(result)


def _matched(shapes: Sequence[Shape], tensors: Sequence[tuple[Shape, str]]) -> tuple[str | None, ...]:
    """Each shape's type: of a tensor of that shape, else of one with the same sizes in another order; None for neither.

    Where tensors of one shape have several types, they are given in order, and every one once.
    """
    left = list(tensors)
    found: list[str | None] = [None] * len(shapes)
    for same in (lambda a, b: a == b, lambda a, b: sorted(a) == sorted(b)):
        for i, shape in enumerate(shapes):
            match = next((t for t in left if same(t[0], shape)), None) if found[i] is None else None
            if match is not None:
                left.remove(match)
                found[i] = match[1]
    return tuple(found)


def _name(element: int) -> str:
    name = TensorProto.DataType.Name(element)
    return _NAMES.get(name, name.lower())
