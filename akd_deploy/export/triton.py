"""The configuration with which a Triton inference server serves a bundle's network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import onnx
from onnx import TensorProto

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.errors import UsageError
from akd_deploy.export.manifest import Manifest
from akd_deploy.export.onnx_file import read_onnx
from akd_deploy.target import Target

_TYPES = {
    TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16", TensorProto.BFLOAT16: "TYPE_BF16",
    TensorProto.DOUBLE: "TYPE_FP64", TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.INT8: "TYPE_INT8", TensorProto.INT16: "TYPE_INT16", TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64", TensorProto.UINT8: "TYPE_UINT8", TensorProto.UINT16: "TYPE_UINT16",
    TensorProto.UINT32: "TYPE_UINT32", TensorProto.UINT64: "TYPE_UINT64",
}  # fmt: skip

_MODEL_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


_OPENVINO_TYPES = frozenset(_TYPES) - {TensorProto.BFLOAT16, TensorProto.DOUBLE}
"""What Triton's OpenVINO backend passes on (ConvertFromOpenVINOElement in its openvino_utils.cc)."""

_BFLOAT16_ISA = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
"""Features of a CPU on which OpenVINO computes in bfloat16 unless it is told not to."""


@dataclass(frozen=True)
class TritonPlatform:
    """Triton's name of the runtime, the file it looks for, and the bundle's file that becomes it.

    `parts` are the bundle's files that lie beside it → what they are called there; `is_backend`: the name is that of a
    backend, which newer runtimes have instead of a platform.
    """

    name: str
    model_file: str
    served_file: str
    parts: Mapping[str, str] = field(default_factory=dict)
    is_backend: bool = False

    @property
    def files(self) -> dict[str, str]:
        """The bundle's name → the server's name of everything that it serves."""
        return {self.served_file: self.model_file, **self.parts}


_WHY_NOT = {
    "tensorrt-rtx": "Triton's TensorRT backend loads plans of TensorRT itself, and none of TensorRT-RTX, which has "
    "neither its library nor its format",
    "torch": "Triton's PyTorch backend loads TorchScript, and no archive of torch.export",
}


def triton_platform(manifest: Manifest) -> TritonPlatform:
    """How a bundle's target is served.

    ONNX Runtime gets the ONNX file and optimises it on the server: a graph it optimised elsewhere fits only
    that hardware. TensorRT gets the plan, OpenVINO its network and weights.

    Raises:
        UsageError: an engine that Triton has no runtime for, or one that it would run otherwise than it was measured,
            or not exactly one file to serve.
    """
    engine = manifest.facts.target.engine
    roles = {"onnxruntime": "onnx", "tensorrt": "engine", "openvino": "engine"}
    if engine not in roles:
        raise UsageError(
            asked=f"a Triton model of target {manifest.facts.target.name}",
            found=f"engine {engine!r}: {_WHY_NOT.get(engine, 'Triton has no runtime for it')}",
            next=f"Package it as dir or zip, or build it for a target of {', '.join(roles)}, which are served.",
        )
    served = manifest.with_role(roles[engine])
    if len(served) != 1 or len(manifest.with_role("onnx")) != 1:
        raise UsageError(
            asked="a Triton model",
            found=f"{len(served)} files of role {roles[engine]!r}, {len(manifest.with_role('onnx'))} of role 'onnx'",
            next="Bundle exactly one of each.",
        )
    if engine == "onnxruntime":
        return TritonPlatform("onnxruntime_onnx", "model.onnx", served[0])
    if engine == "tensorrt":
        return TritonPlatform("tensorrt_plan", "model.plan", served[0])
    weights = manifest.with_role("engine_part")
    if PurePosixPath(served[0]).suffix != ".xml" or [PurePosixPath(name).suffix for name in weights] != [".bin"]:
        raise UsageError(
            asked="a Triton model for OpenVINO",
            found=f"{', '.join((*served, *weights))} as engine and parts",
            next="Bundle what `akd-deploy build` wrote: one .xml, and one .bin with its weights.",
        )
    _check_openvino_precision(manifest)
    return TritonPlatform("openvino", "model.xml", served[0], {weights[0]: "model.bin"}, is_backend=True)


def _check_openvino_precision(manifest: Manifest) -> None:
    """The backend can be told to compute in bfloat16 (HINT_BF16) and nothing else; otherwise the CPU decides."""
    target, isa = manifest.facts.target, manifest.facts.device.facts.get("isa")
    if target.precision == "bf16" or (
        target.precision in ("fp32", "int8") and isa is not None and _BFLOAT16_ISA.isdisjoint(isa.split())
    ):
        return
    found = "a CPU with bfloat16" if isa is not None else "a CPU of unknown features"
    raise UsageError(
        asked=f"a Triton model of target {target.name}",
        found=f"precision {target.precision}, measured on {found}: Triton's OpenVINO backend has no setting for it, "
        "and the server would compute in bfloat16 where the CPU can",
        next="Ship a bf16 target of openvino, or a target of onnxruntime; a dir or zip keeps the precision.",
    )


def triton_config(model_name: str, platform: TritonPlatform, onnx_file: Path, target: Target) -> str:
    """The text of config.pbtxt. Batches are as built: `max_batch_size` is 0 and every dimension is written out.

    Raises:
        UsageError: a name or tensor type that Triton does not know.
    """
    if not _MODEL_NAME.fullmatch(model_name):
        raise UsageError(
            asked=f"a Triton model named {model_name!r}",
            found="other signs than letters, digits and ._-",
            next="Rename it.",
        )
    graph = read_onnx(onnx_file).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [_tensor(value, target, platform) for value in graph.input if value.name not in weights]
    outputs = [_tensor(value, target, platform) for value in graph.output]
    runtime = "backend" if platform.is_backend else "platform"
    lines = [f'name: "{model_name}"', f'{runtime}: "{platform.name}"', "max_batch_size: 0"]
    lines += ["input [", ",\n".join(inputs), "]", "output [", ",\n".join(outputs), "]"]
    lines += _execution(platform, target)
    return "\n".join(lines) + "\n"


def _execution(platform: TritonPlatform, target: Target) -> list[str]:
    """Where and how the server runs it: as it was measured, not by the server's own defaults."""
    if platform.name == "tensorrt_plan":
        return ["instance_group [ { count: 1 kind: KIND_GPU } ]"]
    engine = load_engine(target)
    if platform.name == "openvino":
        return _openvino_execution(engine, target)
    provider, level = engine.option("provider"), engine.option("graph_optimization")
    spinning = bool(engine.option("spinning")) or engine.option("threads") == 1  # one thread waits for nobody
    if engine.option("denormal_as_zero"):
        raise UsageError(
            asked=f"a Triton model of target {target.name}",
            found="denormal_as_zero, which Triton's ONNX Runtime backend does not set",
            next="Certify a target without it for Triton.",
        )
    if provider not in ("cpu", "cuda") or level != "all" or not spinning:
        raise UsageError(
            asked=f"a Triton model of target {target.name}",
            found=f"provider {provider!r}, graph optimisation {level!r}, spinning {spinning}",
            next="The server would run it otherwise than it was measured: use provider cpu or cuda, level all and "
            "spinning.",
        )
    return [
        f"instance_group [ {{ count: 1 kind: {'KIND_CPU' if provider == 'cpu' else 'KIND_GPU'} }} ]",
        f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{engine.option("threads")}" }} }}',
    ]


def _openvino_execution(engine: Engine, target: Target) -> list[str]:
    if not engine.option("pinning"):
        raise UsageError(
            asked=f"a Triton model of target {target.name}",
            found="pinning False",
            next="The server pins its threads: measure with pinning, as it is by default.",
        )
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(engine.option("threads")),
    }
    if target.precision == "bf16":
        settings["HINT_BF16"] = "YES"
    return [
        "instance_group [ { count: 1 kind: KIND_CPU } ]",
        *(f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}' for key, value in settings.items()),
    ]


def _tensor(value: onnx.ValueInfoProto, target: Target, platform: TritonPlatform) -> str:
    tensor_type = value.type.tensor_type
    known = _OPENVINO_TYPES if platform.name == "openvino" else _TYPES
    if tensor_type.elem_type not in known or '"' in value.name or "\\" in value.name:
        raise UsageError(
            asked=f"tensor {value.name!r} in a Triton model",
            found=f"ONNX type {tensor_type.elem_type}",
            next="Export it with a numeric type and a plain name.",
        )
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor_type.shape.dim]
    if dims and dims[0] == -1:
        dims[0] = target.batch
    if not dims and platform.name == "openvino":
        raise UsageError(
            asked=f"tensor {value.name!r} in a Triton model for OpenVINO",
            found="a scalar, which that backend does not take",
            next="Export it with a dimension of 1.",
        )
    # Triton has no tensors without dimensions: a scalar is one element, reshaped.
    shape = f"dims: [ {', '.join(map(str, dims))} ]" if dims else "dims: [ 1 ] reshape { shape: [ ] }"
    return f'  {{ name: "{value.name}" data_type: {_TYPES[tensor_type.elem_type]} {shape} }}'
