"""A typed variant of a float32 ONNX network: float16, bfloat16, fp8, or int8 by ONNX Runtime's quantiser."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import onnx
from onnx import inliner

from akd_deploy.errors import (
    BuildError,
    MissingRuntimeError,
    UnknownNameError,
    UsageError,
)
from akd_deploy.export.calibration import check_calibration
from akd_deploy.export.cast import cast_model
from akd_deploy.export.divergence import activation_peaks
from akd_deploy.export.fp8 import fp8_model
from akd_deploy.export.int8_ranges import calibration_method, write_ranges
from akd_deploy.export.int8_settings import Int8Settings, int8_settings
from akd_deploy.export.low_precision import LOW_PRECISIONS
from akd_deploy.export.onnx_file import name_nodes, read_onnx
from akd_deploy.export.operators import INT8_OPERATORS
from akd_deploy.export.parity import Arrays
from akd_deploy.storage import write_atomically

__all__ = ["MODES", "Int8Settings", "QuantizedModel", "int8_settings", "quantize_onnx"]

MODES = ("fp16", "bf16", "int8", "fp8")

FLOAT16_HEADROOM = 4.0
"""Activations may go this many times beyond their calibration peak before they overflow; picked by eye."""

FEW_SAMPLES = 32
"""Below this many calibration batches the result carries a note; picked by eye (vendors ask for 100 to 1,000)."""

PER_CHANNEL_OPSET = 13
"""The first opset whose QuantizeLinear has an axis."""


@dataclass(frozen=True)
class QuantizedModel:
    """What `quantize_onnx` wrote; `kept_float32` names the nodes that stay in float32, each with its reason."""

    path: Path
    mode: str
    sha256: str
    size_bytes: int
    op_counts: Mapping[str, int]
    kept_float32: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def quantize_onnx(
    model_path: Path,
    mode: str,
    calibration: Sequence[Arrays],
    out: Path,
    settings: Int8Settings | None = None,
    ranges: Path | None = None,
) -> QuantizedModel:
    """Write a typed variant of a float32 ONNX file; the same inputs give the same bytes.

    Inputs and outputs stay float32. int8 and fp8 need calibration batches; float16 uses them, where given, to keep
    nodes whose activations come near its largest value in float32.

    Args:
        model_path: a float32 ONNX file.
        mode: "fp16", "bf16", "int8" or "fp8".
        calibration: feeds of real samples, each input name → array.
        out: the file to write.
        settings: of int8; see `int8_settings`.
        ranges: a file for what calibration finds: read where it is, else written, so that the same network
            quantised again with other exclusions is not calibrated again.

    Raises:
        UnknownNameError: another mode.
        UsageError: calibration that is missing or does not fit the inputs; a network quantised already.
        BuildError: the network could not be converted, or nothing in it could.
        MissingRuntimeError: ONNX Runtime is not here (int8, and float16 with calibration).
    """
    if mode not in MODES:
        raise UnknownNameError("mode", mode, MODES)
    model = read_onnx(model_path)
    if model.functions:
        model = inliner.inline_local_functions(model)
    name_nodes(model)
    check_calibration(model, calibration)
    kept: Mapping[str, str] = {}
    notes: list[str] = []
    if mode in LOW_PRECISIONS:
        reasons = _near_overflow(model, calibration) if mode == "fp16" and calibration else {}
        result = cast_model(model, mode, reasons)
        typed, kept = result.model, result.kept_float32
        if kept:
            notes.append(f"{len(kept)} nodes stay in float32")
        if mode == "fp16" and not calibration:
            notes.append("NOT looked for: activations that overflow float16; give --samples, or run it on some")
        if mode == "bf16":
            notes.append("bfloat16 has float32's range: no activation overflows, so none was looked for")
    else:
        if mode == "fp8":
            typed, kept = _fp8_model(model, calibration)
        else:
            typed = _int8_model(model, calibration, settings or Int8Settings(), ranges)
        if len(calibration) < FEW_SAMPLES:
            notes.append(f"calibrated on {len(calibration)} batches only; {FEW_SAMPLES} or more cover the range better")
    data = typed.SerializeToString(deterministic=True)
    write_atomically(out, data)
    return QuantizedModel(
        path=out,
        mode=mode,
        sha256=hashlib.sha256(data).hexdigest(),
        size_bytes=len(data),
        op_counts=dict(sorted(Counter(node.op_type for node in typed.graph.node).items())),
        kept_float32=kept,
        notes=tuple(notes),
    )


def _near_overflow(model: onnx.ModelProto, calibration: Sequence[Arrays]) -> dict[str, str]:
    """Nodes that read or make a tensor near float16's largest value, each with its reason."""
    limit = LOW_PRECISIONS["fp16"].largest / FLOAT16_HEADROOM
    peaks = activation_peaks(model, calibration, _run_on_cpu)
    high = {name: peak for name, peak in peaks.items() if peak > limit}
    reasons = {}
    for node in model.graph.node:
        touched = [name for name in (*node.output, *node.input) if name in high]
        if touched and node.op_type != "Constant":
            reasons[node.name] = f"{touched[0]!r} reaches {high[touched[0]]:.3g} on calibration samples"
    return reasons


def _run_on_cpu(path: Path, feeds: Arrays) -> Arrays:
    onnxruntime = _onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, dict(feeds)), strict=True))


def _onnxruntime() -> ModuleType:
    try:
        import onnxruntime
        import onnxruntime.quantization
    except ImportError as error:
        raise MissingRuntimeError(
            asked="calibration on the CPU with ONNX Runtime",
            found=str(error),
            next="Install exactly one of akd-deploy[cpu] and akd-deploy[gpu].",
        ) from error
    return onnxruntime


def _int8_model(
    model: onnx.ModelProto, calibration: Sequence[Arrays], settings: Int8Settings, ranges: Path | None
) -> onnx.ModelProto:
    if not calibration:
        raise UsageError(
            asked="int8", found="no calibration samples", next="Give a few hundred real, preprocessed samples."
        )
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise UsageError(asked="int8", found="Q/DQ nodes already", next="Quantise the float32 network it came from.")
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if settings.per_channel and opset < PER_CHANNEL_OPSET:
        raise UsageError(
            asked="int8 weights per channel",
            found=f"opset {opset}",
            next=f"Export with opset {PER_CHANNEL_OPSET} or later.",
        )
    onnxruntime = _onnxruntime()
    with tempfile.TemporaryDirectory() as folder:
        try:
            prepared = _prepared(onnxruntime, model, Path(folder))
            _check_excluded(settings.exclude, model, prepared)
            cache = ranges or Path(folder) / "ranges.json"
            result = _quantized(onnxruntime.quantization, prepared, calibration, settings, Path(folder), cache)
        except UnknownNameError:
            raise
        except _runtime_errors(onnxruntime) as error:
            raise BuildError(
                asked="the network in int8", found=f"{type(error).__name__}: {error}", next="Exclude the node it names."
            ) from error
    if not any(node.op_type == "QuantizeLinear" for node in result.graph.node):
        raise BuildError(
            asked="the network in int8",
            found="no operator that could be quantised",
            next="Exclude fewer nodes, or keep it in floating point.",
        )
    return result


def _fp8_model(model: onnx.ModelProto, calibration: Sequence[Arrays]) -> tuple[onnx.ModelProto, Mapping[str, str]]:
    with tempfile.TemporaryDirectory() as folder:
        prepared = _prepared(_onnxruntime(), model, Path(folder))
    name_nodes(prepared)
    made = fp8_model(_portable(prepared), calibration, _run_on_cpu)
    return made.model, made.kept_float32


_PREPARED = ("onnx.quant.pre_process", "onnxruntime.quant")
"""The mark with which ONNX Runtime's quantiser knows a network that was prepared for it."""


def _prepared(onnxruntime: ModuleType, model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """The network with BatchNorm folded into Conv, so that each layer has one scale, and every shape inferred.

    The runtime's basic optimisations give standard ONNX. Its own `quant_pre_process` does the same, but goes
    on without them where they fail.
    """
    source, optimised = folder / "source.onnx", folder / "prepared.onnx"
    source.write_bytes(model.SerializeToString(deterministic=True))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(optimised)
    options.intra_op_num_threads = 1
    onnxruntime.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return onnx.shape_inference.infer_shapes(onnx.load(optimised), data_prop=True)


def _check_excluded(names: Sequence[str], model: onnx.ModelProto, prepared: onnx.ModelProto) -> None:
    """Nodes may be named as in the network, or as what became of it when it was prepared."""
    there, left = ({node.name for node in m.graph.node} for m in (model, prepared))
    for name in names:
        if name not in there | left:
            raise UnknownNameError("node to exclude", name, there | left)
    gone = [name for name in names if name not in left]
    if gone:
        raise ValueError(f"{', '.join(gone)}: fused into another node, which is not excluded")


def _quantized(
    quantization: ModuleType,
    prepared: onnx.ModelProto,
    calibration: Sequence[Arrays],
    settings: Int8Settings,
    folder: Path,
    ranges: Path,
) -> onnx.ModelProto:
    op_types = _op_types(settings)
    if not ranges.is_file():
        network = folder / "to_calibrate.onnx"
        network.write_bytes(prepared.SerializeToString(deterministic=True))
        write_ranges(quantization, network, op_types, calibration, settings, ranges)
    mark = prepared.metadata_props.add()
    mark.key, mark.value = _PREPARED
    types = {"uint8": quantization.QuantType.QUInt8, "int8": quantization.QuantType.QInt8}
    quantization.quantize_static(
        prepared,
        folder / "int8.onnx",
        quant_format=quantization.QuantFormat.QDQ,
        op_types_to_quantize=op_types,
        per_channel=settings.per_channel,
        reduce_range=settings.reduce_range,
        activation_type=types[settings.activation],
        weight_type=quantization.QuantType.QInt8,
        nodes_to_exclude=list(settings.exclude),
        calibrate_method=calibration_method(quantization, settings),
        calibration_cache_path=ranges,
        extra_options={
            "ActivationSymmetric": settings.symmetric_activations,
            "WeightSymmetric": True,
            "QuantizeBias": settings.quantize_bias,
        },
    )
    return _portable(onnx.load(folder / "int8.onnx"))


def _portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """Without the quantiser's marks and the runtime's own operator domains, of which nothing is used."""
    kept = [prop for prop in model.metadata_props if prop.value != _PREPARED[1]]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    used = {"", *(node.domain for node in model.graph.node)}
    opsets = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(opsets)
    return model


def _op_types(settings: Int8Settings) -> list[str]:
    """Operators that are worth Q/DQ: the quantiser's own choice without those that the engine does not run on int8."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return sorted((INT8_OPERATORS & {*QDQRegistry, *QLinearOpsRegistry}) - settings.float_operators)


def _runtime_errors(onnxruntime: ModuleType) -> tuple[type[Exception], ...]:
    """What ONNX Runtime and its quantiser raise; the runtime's exceptions share no base but Exception."""
    state = onnxruntime.capi.onnxruntime_pybind11_state
    names = ("Fail", "InvalidArgument", "InvalidGraph", "InvalidProtobuf", "NotImplemented", "RuntimeException")
    return (*(getattr(state, name) for name in names), RuntimeError, ValueError, TypeError, KeyError)
