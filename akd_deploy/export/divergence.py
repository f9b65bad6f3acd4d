"""Find the first tensor in which two versions of one ONNX network differ."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from akd_deploy.errors import BuildError, MismatchError, UsageError
from akd_deploy.export.parity import Arrays, OutputParity, output_parity

Evaluate = Callable[[Path, Arrays], Arrays]
"""Runs the ONNX file on one batch: output name → array. With an engine: `engine.load(path).run(feeds)`."""

NEGLIGIBLE = 16.0
"""Below the largest value: e⁻¹⁶ is 10⁻⁷, and float32 tells no less beside 1."""
SOFTMAX_OPSET = 13
"""Before it a Softmax is over all dimensions from its axis on, by default the second."""
DEQUANTIZE_OPSET = 19
"""The first that the reference evaluator has DequantizeLinear for."""
TENSORS_PER_RUN = 64
"""Tensors exposed at once: few enough that a large network's activations fit in memory, many enough to be quick."""


@dataclass(frozen=True)
class Exponents:
    """How a Softmax goes over its input: along an axis or, in old opsets, over all from that axis on together."""

    axis: int
    flat: bool

    def largest(self, values: np.ndarray) -> np.ndarray:
        """What is largest where values are normalised together, to broadcast beside them."""
        axis = self.axis % values.ndim
        return np.asarray(values.max(tuple(range(axis, values.ndim)) if self.flat else axis, keepdims=True))


@dataclass(frozen=True)
class Divergence:
    """The first tensor that differs, the node that makes it in the second network, and by how much.

    `by_quantising` where the node makes it as it should be, and what is read of it after quantising differs.
    """

    tensor: str
    node: str
    op: str
    max_abs: float
    max_rel: float
    agreeing_tensors: int
    cosine: float = 1.0
    by_quantising: bool = False

    def as_dict(self) -> dict[str, object]:
        """JSON types; what is not finite becomes None."""
        return {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in asdict(self).items()}

    def __str__(self) -> str:
        return (
            f"node {self.node!r} ({self.op}), whose {self.tensor!r} {'once quantised ' if self.by_quantising else ''}"
            f"differs by {self.max_rel:.3g} of its largest value, cosine {self.cosine:.4f}"
        )


def first_divergence(
    model_a: Path,
    model_b: Path,
    feeds: Arrays,
    max_rel: float | None,
    evaluate: Evaluate | None = None,
    *,
    min_cosine: float | None = None,
    evaluate_b: Evaluate | None = None,
) -> Divergence | None:
    """The first tensor, in the second network's order, that differs by more than `max_rel` of its largest value.

    Compares the tensors that both networks name alike; where the second quantises one, what its other nodes read of
    it, after quantising and back: a quantiser drops a Relu where the quantised range cuts off what is below zero, and
    before that the tensor is another. Of what a Softmax reads, what is so far below the largest value that it counts
    for nothing, as behind a mask, is left out: beside −10⁴ no difference of the others would be seen. All tensors are
    looked at in order, not by halving: a difference may vanish again further on (a clip hides it), so halving could
    step over the first. Exposing a tensor as an output stops the runtime from fusing across it; a fault that only the
    fused form has shows no divergence here.

    Args:
        model_a, model_b: the source and its conversion.
        feeds: one batch.
        max_rel: None where single values are not judged, as in int8.
        evaluate: what runs a file; the ONNX reference evaluator (slow, exact) by default.
        min_cosine: of a sample's values in a tensor; below it, the tensor differs too.
        evaluate_b: what runs the second network, where that is something else.

    Returns:
        None where every shared tensor agrees.

    Raises:
        MismatchError: the networks share no tensor, or a shared one has two shapes.
    """
    evaluate = evaluate or reference_evaluate
    evaluate_b = evaluate_b or evaluate
    network_a, network_b = (onnx.load(path, format="protobuf") for path in (model_a, model_b))
    known_a = {name for node in network_a.graph.node for name in node.output}
    makers = {name: node for node in network_b.graph.node for name in node.output if name in known_a}
    shared = [name for name in makers if name]
    if not shared:
        raise MismatchError(
            asked="the first tensor that diverges",
            found="no tensor that both networks name alike",
            next="Compare a network with a conversion that keeps its names.",
        )
    back, exponents = _dequantised(network_b), _softmax_inputs(network_a)
    all_makers = {name: node for node in network_b.graph.node for name in node.output}

    def judge(name: str, a: np.ndarray, b: np.ndarray) -> OutputParity | None:
        """How far a tensor is off, where that is too far."""
        parity = output_parity(name, [_that_count(a, b, exponents[name]) if name in exponents else (a, b)])
        too_far = max_rel is not None and not parity.max_rel <= max_rel
        turned = min_cosine is not None and not parity.cosine >= min_cosine
        return parity if too_far or turned or parity.non_finite else None

    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(shared), TENSORS_PER_RUN):
            names = shared[start : start + TENSORS_PER_RUN]
            values_a = evaluate(_saved_exposed(network_a, names, Path(folder) / "a.onnx"), feeds)
            read = [back.get(name, name) for name in names]
            values_b = evaluate_b(_saved_exposed(network_b, read, Path(folder) / "b.onnx"), feeds)
            for i, (name, read_as) in enumerate(zip(names, read, strict=True)):
                parity = judge(name, values_a[name], values_b[read_as])
                if parity is None:
                    continue
                by_quantising = False
                if read_as != name:
                    itself = evaluate_b(_saved_exposed(network_b, [name], Path(folder) / "b.onnx"), feeds)
                    by_quantising = judge(name, values_a[name], itself[name]) is None
                node, size = _computing(makers[name], all_makers), (parity.max_abs, parity.max_rel)
                return Divergence(name, node.name, node.op_type, *size, start + i, parity.cosine, by_quantising)
    return None


def _softmax_inputs(model: onnx.ModelProto) -> dict[str, Exponents]:
    """Tensors that Softmaxes alone read, whatever their shape is changed to on the way there."""
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), SOFTMAX_OPSET)
    inferred = onnx.shape_inference.infer_shapes(model).graph
    lasts = {
        value.name: value.type.tensor_type.shape.dim[-1].dim_value
        for value in (*inferred.value_info, *inferred.input, *inferred.output)
        if value.type.tensor_type.shape.dim
    }
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in _reads(node):
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in model.graph.output}
    found: dict[str, Exponents] = {}
    for node in reversed(model.graph.node):
        for name in node.output:
            read_by = readers.get(name, [])
            kinds = {_as_read(reader, found, lasts, opset) for reader in read_by}
            if name not in outputs and len(kinds) == 1 and (kind := kinds.pop()) is not None:
                found[name] = kind
    return found


def _as_read(
    reader: onnx.NodeProto, found: Mapping[str, Exponents], lasts: Mapping[str, int], opset: int
) -> Exponents | None:
    """What a reader's input is, if its values are exponents; None where they are not."""
    if reader.op_type in ("Softmax", "LogSoftmax"):
        flat = opset < SOFTMAX_OPSET
        return Exponents(next((int(a.i) for a in reader.attribute if a.name == "axis"), 1 if flat else -1), flat)
    behind = found.get(reader.output[0])
    if reader.op_type in ("Identity", "Cast"):
        return behind
    if reader.op_type == "Reshape" and behind == Exponents(-1, False):  # rows stay rows
        sizes = [lasts.get(name, 0) for name in (reader.input[0], reader.output[0])]
        return behind if sizes[0] and sizes[0] == sizes[1] else None
    return None


def _that_count(a: np.ndarray, b: np.ndarray, exponents: Exponents) -> tuple[np.ndarray, np.ndarray]:
    """Both, with 0 where either's exponential is nothing beside the largest one's."""
    if a.shape != b.shape or a.ndim == 0 or a.size == 0:
        return a, b
    far = [values < exponents.largest(values) - NEGLIGIBLE for values in (a, b)]
    both = far[0] & far[1]
    return np.where(both, 0, a), np.where(both, 0, b)


def _computing(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> onnx.NodeProto:
    """The node whose result a node only brings back from few bits: quantisers may give its name to what they add."""
    while node.op_type in ("DequantizeLinear", "QuantizeLinear") and node.input[0] in makers:
        node = makers[node.input[0]]
    return node


def _dequantised(model: onnx.ModelProto) -> dict[str, str]:
    """Tensor → what it is after it was quantised and dequantised, where the network does that."""
    dequantised = {node.input[0]: node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    return {
        node.input[0]: dequantised[node.output[0]]
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.output[0] in dequantised
    }


def exposed(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """The network with these tensors as its only outputs, and only the nodes that they need.

    Raises:
        UsageError: a name that no node makes.
    """
    makers = {name: i for i, node in enumerate(model.graph.node) for name in node.output if name}
    unknown = [name for name in names if name not in makers]
    if unknown:
        raise UsageError(asked=f"tensors {unknown}", found="no node that makes them", next="Name outputs of nodes.")
    needed, wanted = set(), list(names)
    while wanted:
        name = wanted.pop()
        if name in makers and makers[name] not in needed:
            needed.add(makers[name])
            wanted.extend(_reads(model.graph.node[makers[name]]))
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(model.graph.node[i] for i in sorted(needed))
    del result.graph.output[:]
    inferred = onnx.shape_inference.infer_shapes(model).graph.value_info
    types = {v.name: v for v in (*inferred, *model.graph.output)}
    result.graph.output.extend(types.get(name, onnx.ValueInfoProto(name=name)) for name in names)
    return result


def _reads(node: onnx.NodeProto) -> list[str]:
    """Names a node reads, those captured by its subgraphs included."""
    inner = [a.g for a in node.attribute if a.type == onnx.AttributeProto.GRAPH]
    inner += [g for a in node.attribute if a.type == onnx.AttributeProto.GRAPHS for g in a.graphs]
    return [*node.input, *(name for graph in inner for child in graph.node for name in _reads(child))]


def _saved_exposed(model: onnx.ModelProto, names: Sequence[str], path: Path) -> Path:
    path.write_bytes(exposed(model, names).SerializeToString(deterministic=True))
    return path


def reference_evaluate(path: Path, feeds: Arrays) -> Mapping[str, np.ndarray]:
    """Run a file with the ONNX reference evaluator, in plain numpy.

    It adds in the type of the tensors, where engines add in float32: a pool or mean over many 16-bit values
    (a thousand, in bfloat16) diverges here alone. Judge those with the engine.
    """
    from onnx.reference import ReferenceEvaluator
    from onnx.reference.op_run import OpRun

    class DequantizeLinear(OpRun):
        """The evaluator has none for opsets before 19: (x − zero point) × scale, of a tensor or along an axis."""

        op_domain = ""

        def _run(
            self, values: np.ndarray, scale: np.ndarray, zero: np.ndarray | None = None, axis: int = 1, **_: Any
        ) -> tuple[np.ndarray]:
            shape = [1] * values.ndim
            if scale.size > 1:
                shape[axis] = -1
            less = 0 if zero is None else zero.reshape(shape).astype(np.int64)
            return (((values.astype(np.int64) - less) * scale.reshape(shape)).astype(scale.dtype),)

    class Softmax(OpRun):
        """The evaluator takes what it has for opset 13 for the ones before, which normalise all from an axis on."""

        op_domain = ""

        def _run(self, values: np.ndarray, **_: Any) -> tuple[np.ndarray]:
            axis = next((a.i for a in self.onnx_node.attribute if a.name == "axis"), 1)
            flat = values.reshape(int(np.prod(values.shape[: axis % values.ndim])), -1)
            shifted = flat - flat.max(1, keepdims=True)
            logarithm = shifted - np.log(np.exp(shifted).sum(1, keepdims=True))
            found = logarithm if self.onnx_node.op_type == "LogSoftmax" else np.exp(logarithm)
            return (found.reshape(values.shape).astype(values.dtype),)

    class LogSoftmax(Softmax):
        pass

    try:
        model = onnx.load(path)
        opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), DEQUANTIZE_OPSET)
        own = [DequantizeLinear] if opset < DEQUANTIZE_OPSET else []
        own += [Softmax, LogSoftmax] if opset < SOFTMAX_OPSET else []
        evaluator = ReferenceEvaluator(model, new_ops=own)
        with np.errstate(all="ignore"):  # an overflow is a result here: it is what is looked for
            outputs = evaluator.run(None, dict(feeds))
    except (NotImplementedError, RuntimeError, TypeError) as error:
        raise BuildError(
            asked="the network in plain numpy", found=f"{type(error).__name__}: {error}", next="Run it with an engine."
        ) from error
    return dict(zip(evaluator.output_names, outputs, strict=True))


def activation_peaks(model: onnx.ModelProto, inputs: Sequence[Arrays], evaluate: Evaluate) -> dict[str, float]:
    """Largest |value| of each floating tensor that a node makes, over the inputs; infinite where it is not finite."""
    names = [name for node in model.graph.node for name in node.output if name]
    peaks: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for start in range(0, len(names), TENSORS_PER_RUN):
            path = _saved_exposed(model, names[start : start + TENSORS_PER_RUN], Path(folder) / "exposed.onnx")
            for feeds in inputs:
                for name, value in evaluate(path, feeds).items():
                    if value.dtype.kind == "f":
                        peak = float(np.abs(value).max(initial=0.0)) if np.isfinite(value).all() else np.inf
                        peaks[name] = max(peaks.get(name, 0.0), peak)
    return peaks
