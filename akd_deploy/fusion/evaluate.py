"""Compute one operator on constants: numpy for what shape arithmetic is made of, ONNX's reference for the rest."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx
from onnx import helper

from akd_deploy.fusion.node import Constant, TensorType

_Arrays = Sequence[np.ndarray]

_SIMPLE: Mapping[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Equal": np.equal, "Greater": np.greater, "Less": np.less,
}  # fmt: skip


def evaluate(
    proto: onnx.NodeProto, sources: Sequence[Constant | TensorType | None], opset: int
) -> tuple[np.ndarray, ...]:
    """Outputs of a node for constant inputs; `Shape` and `Size` are given their input's type."""
    attributes = {a.name: helper.get_attribute_value(a) for a in proto.attribute}
    if isinstance(sources[0] if sources else None, TensorType):
        shape = sources[0].shape  # type: ignore[union-attr]
        if proto.op_type == "Size":
            return (np.asarray(np.prod(shape, dtype=np.int64)),)
        return (np.asarray(shape[attributes.get("start", 0) : attributes.get("end")], np.int64),)
    arrays = [source.value if isinstance(source, Constant) else None for source in sources]
    known = [array for array in arrays if array is not None]
    if len(known) == len(arrays):
        found = _by_numpy(proto.op_type, known, attributes)
        if found is not None:
            return (found,)
    from onnx.reference import ReferenceEvaluator

    feeds = {name: array for name, array in zip(proto.input, arrays, strict=True) if array is not None}
    graph = helper.make_graph(
        [proto],
        "constant",
        [helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape) for n, a in feeds.items()],
        [helper.make_value_info(name, onnx.TypeProto()) for name in proto.output if name],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    results = iter(ReferenceEvaluator(model).run(None, feeds))
    return tuple(np.asarray(next(results)) if name else np.empty(0) for name in proto.output)


def _by_numpy(op: str, arrays: _Arrays, attributes: Mapping[str, object]) -> np.ndarray | None:
    """What the shape arithmetic of exported networks needs; None for everything else."""
    x = arrays[0] if arrays else None
    if x is None:
        return None
    if op in _SIMPLE:
        return _SIMPLE[op](arrays[0], arrays[1])
    if op == "Gather":
        return np.take(x, arrays[1], axis=int(attributes.get("axis", 0)))  # type: ignore[call-overload]
    if op == "Concat":
        return np.concatenate(arrays, axis=int(attributes["axis"]))  # type: ignore[call-overload]
    if op == "Identity":
        return x
    if op == "Cast":
        kind = helper.tensor_dtype_to_np_dtype(int(attributes["to"]))  # type: ignore[call-overload]
        return x.astype(kind) if kind.kind in "fiub" else None
    if op in ("Unsqueeze", "Squeeze"):
        axes = attributes.get("axes", arrays[1].tolist() if len(arrays) > 1 else None)
        if op == "Squeeze":
            return np.squeeze(x, None if axes is None else tuple(axes))  # type: ignore[arg-type]
        return np.expand_dims(x, tuple(axes))  # type: ignore[arg-type]
    return None
