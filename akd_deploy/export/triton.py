"""The configuration with which a Triton inference server serves a bundle's network."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import TensorProto

from akd_deploy.engines import load_engine
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


@dataclass(frozen=True)
class TritonPlatform:
    """Triton's name of the runtime, the file it looks for, and the bundle's file that becomes it."""

    name: str
    model_file: str
    served_file: str


def triton_platform(manifest: Manifest) -> TritonPlatform:
    """How a bundle's target is served.

    ONNX Runtime gets the ONNX file and optimises it on the server: a graph it optimised elsewhere fits only
    that hardware. TensorRT gets the plan.

    Raises:
        UsageError: an engine that Triton has no runtime for, or not exactly one file to serve.
    """
    engine = manifest.facts.target.engine
    roles = {"onnxruntime": "onnx", "tensorrt": "engine"}
    if engine not in roles:
        raise UsageError(
            asked=f"a Triton model of target {manifest.facts.target.name}",
            found=f"engine {engine!r}",
            next="Package it as dir or zip; onnxruntime and tensorrt targets are served (TensorRT-RTX plans are not).",
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
    return TritonPlatform("tensorrt_plan", "model.plan", served[0])


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
    inputs = [_tensor(value, target) for value in graph.input if value.name not in weights]
    outputs = [_tensor(value, target) for value in graph.output]
    lines = [f'name: "{model_name}"', f'platform: "{platform.name}"', "max_batch_size: 0"]
    lines += ["input [", ",\n".join(inputs), "]", "output [", ",\n".join(outputs), "]"]
    lines += _execution(platform, target)
    return "\n".join(lines) + "\n"


def _execution(platform: TritonPlatform, target: Target) -> list[str]:
    """Where and how the server runs it: as it was measured, not by the server's own defaults."""
    if platform.name == "tensorrt_plan":
        return ["instance_group [ { count: 1 kind: KIND_GPU } ]"]
    engine = load_engine(target)
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


def _tensor(value: onnx.ValueInfoProto, target: Target) -> str:
    tensor_type = value.type.tensor_type
    if tensor_type.elem_type not in _TYPES or '"' in value.name or "\\" in value.name:
        raise UsageError(
            asked=f"tensor {value.name!r} in a Triton model",
            found=f"ONNX type {tensor_type.elem_type}",
            next="Export it with a numeric type and a plain name.",
        )
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor_type.shape.dim]
    if dims and dims[0] == -1:
        dims[0] = target.batch
    # Triton has no tensors without dimensions: a scalar is one element, reshaped.
    shape = f"dims: [ {', '.join(map(str, dims))} ]" if dims else "dims: [ 1 ] reshape { shape: [ ] }"
    return f'  {{ name: "{value.name}" data_type: {_TYPES[tensor_type.elem_type]} {shape} }}'
