"""Put FP8 (E4M3) quantise and dequantise nodes around a network's matrix products, scaled by what calibration saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from akd_deploy.errors import BuildError, UsageError
from akd_deploy.export.divergence import Evaluate, activation_peaks
from akd_deploy.export.parity import Arrays

FP8_OPSET = 19
"""The first opset whose QuantizeLinear has float8; older networks are converted to it."""
FP8_IR_VERSION = 9
"""The format version that goes with that opset (the ONNX specification's table of versions)."""

E4M3_LARGEST = 448.0
"""The largest finite E4M3 value (Micikevicius et al. 2022, arXiv:2209.05433, table 1)."""
SMALLEST_SCALE = 1e-30
"""Of tensors that are all zero, whose scale does not matter but must not be zero."""

_MATRIX = ("Conv", "Gemm", "MatMul")
_E4M3 = TensorProto.FLOAT8E4M3FN
_E4M3_NUMPY = helper.tensor_dtype_to_np_dtype(_E4M3)


@dataclass(frozen=True)
class Fp8Model:
    """A quantised network, and the matrix products left in float32 with the reason of each."""

    model: onnx.ModelProto
    kept_float32: Mapping[str, str]


def fp8_model(model: onnx.ModelProto, calibration: Sequence[Arrays], evaluate: Evaluate) -> Fp8Model:
    """Quantise both operands of every Conv, Gemm and MatMul: one scale for a tensor, zero in the middle.

    A scale maps the largest value that calibration saw to E4M3's largest. Weights are stored in E4M3, biases stay.

    Args:
        model: float32, nodes named, batch norms folded.
        calibration: real samples.
        evaluate: runs a file on one of them.

    Raises:
        UsageError: no calibration samples, or a network quantised already.
        BuildError: it cannot be brought to the opset, or nothing in it could be quantised.
    """
    if not calibration:
        raise UsageError(
            asked="fp8", found="no calibration samples", next="Give a few hundred real, preprocessed samples."
        )
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise UsageError(asked="fp8", found="Q/DQ nodes already", next="Quantise the float32 network it came from.")
    model = _at_opset(model)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    peaks = {**activation_peaks(model, calibration, evaluate), **_input_peaks(calibration)}
    placed = _Placed(model, weights, peaks)
    kept = {}
    for node in model.graph.node:
        reason = _reason_to_keep(node, weights, peaks) if node.op_type in _MATRIX else ""
        if reason:
            kept[node.name] = reason
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        if reason is None:
            for i in (0, 1):
                copy.input[i] = placed.dequantised(node.input[i])
        placed.nodes.append(copy)
    if not placed.scales:
        raise BuildError(
            asked="the network in fp8",
            found="; ".join(f"{name}: {why}" for name, why in kept.items()) or "no convolution and no matrix product",
            next="Keep it in fp16.",
        )
    return Fp8Model(placed.finished(), kept)


def _at_opset(model: onnx.ModelProto) -> onnx.ModelProto:
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if opset < FP8_OPSET:
        try:
            model = onnx.version_converter.convert_version(model, FP8_OPSET)
        except (onnx.version_converter.ConvertError, RuntimeError) as error:
            raise BuildError(
                asked=f"the network in opset {FP8_OPSET}, which has fp8",
                found=str(error),
                next=f"Export it with opset {FP8_OPSET} or later.",
            ) from error
        model.ir_version = max(model.ir_version, FP8_IR_VERSION)
    return model


def _input_peaks(calibration: Sequence[Arrays]) -> dict[str, float]:
    """Largest |value| of each of the network's inputs."""
    return {name: max(float(np.abs(feeds[name]).max(initial=0.0)) for feeds in calibration) for name in calibration[0]}


def _reason_to_keep(node: onnx.NodeProto, weights: Mapping[str, TensorProto], peaks: Mapping[str, float]) -> str | None:
    """Why a matrix product stays in float32, or None."""
    group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
    if node.op_type == "Conv" and group > 1:
        return "a grouped convolution, which engines have no fp8 kernels for"
    for name in node.input[:2]:
        if name in weights:
            if weights[name].data_type != TensorProto.FLOAT:
                return f"weight {name!r} is not float32"
        elif not np.isfinite(peaks.get(name, np.inf)):
            return f"{name!r} is not finite on calibration samples"
    return None


class _Placed:
    """The graph under construction: which tensors have been quantised, once each however often they are read."""

    def __init__(self, model: onnx.ModelProto, weights: Mapping[str, TensorProto], peaks: Mapping[str, float]) -> None:
        self.model, self.weights, self.peaks = model, weights, peaks
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.scales: dict[str, str] = {}

    def dequantised(self, name: str) -> str:
        """The name of a tensor as read back from fp8; its nodes are added the first time."""
        result = f"{name}__fp8_dq"
        if name in self.scales:
            return result
        values = numpy_helper.to_array(self.weights[name]) if name in self.weights else None
        peak = self.peaks[name] if values is None else float(np.abs(values).max(initial=0.0))
        scale = np.float32(max(peak / E4M3_LARGEST, SMALLEST_SCALE))
        self.scales[name] = f"{name}__fp8_scale"
        self.initializers.append(numpy_helper.from_array(np.asarray(scale), self.scales[name]))
        quantised = f"{name}__fp8"
        if values is not None:
            low = np.clip(values / scale, -E4M3_LARGEST, E4M3_LARGEST).astype(_E4M3_NUMPY)
            self.initializers.append(helper.make_tensor(quantised, _E4M3, values.shape, low.tobytes(), raw=True))
        else:
            zero = f"{name}__fp8_zero"
            self.initializers.append(helper.make_tensor(zero, _E4M3, [], b"\0", raw=True))
            arguments = [name, self.scales[name], zero]
            self.nodes.append(helper.make_node("QuantizeLinear", arguments, [quantised], f"{quantised}__q"))
        self.nodes.append(
            helper.make_node("DequantizeLinear", [quantised, self.scales[name]], [result], f"{quantised}__dq")
        )
        return result

    def finished(self) -> onnx.ModelProto:
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input} | {value.name for value in graph.output}
        result = onnx.ModelProto()
        result.CopyFrom(self.model)
        del result.graph.node[:]
        result.graph.node.extend(self.nodes)
        del result.graph.initializer[:]
        result.graph.initializer.extend([t for t in graph.initializer if t.name in used] + self.initializers)
        inputs = [value for value in graph.input if value.name not in self.weights]
        del result.graph.input[:]
        result.graph.input.extend(inputs)
        onnx.checker.check_model(result, full_check=True)
        return result
