"""OpenVINO on the CPU."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import onnx

from akd_deploy.device import DeviceFingerprint, cpu_fingerprint
from akd_deploy.engines.base import BuiltEngine, Engine, Progress
from akd_deploy.engines.declared_float32 import declared_float32
from akd_deploy.engines.onnx_file import external_locations, node_names, nodes_using, read_onnx
from akd_deploy.engines.openvino_kernels import MATRIX_LAYERS, ExecutedLayer, executed_layers, kernels_from_layers
from akd_deploy.engines.openvino_session import OpenVinoSession
from akd_deploy.engines.precision_audit import Layer, audited_precision
from akd_deploy.errors import BuildError, CorruptFileError, MissingFileError, StorageError, UnknownNameError, UsageError
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.target import OptionValue, Target

# OpenVINO computes in bfloat16 wherever the CPU can, unless told not to. Q/DQ layers are integer under any hint.
_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32"}

_TYPES = onnx.TensorProto
_COMMON_TYPES = frozenset({
    _TYPES.FLOAT, _TYPES.FLOAT16, _TYPES.BFLOAT16, _TYPES.DOUBLE, _TYPES.BOOL, _TYPES.INT8, _TYPES.INT16, _TYPES.INT32,
    _TYPES.INT64, _TYPES.UINT8,
})  # fmt: skip
"""Element types that OpenVINO reads without doubt; where it refuses some type it does not say which."""


class OpenVinoEngine(Engine):
    """`threads` are those of one inference; with `pinning` each stays on its core."""

    name = "openvino"
    suffix = ".xml"
    extra = "openvino"
    options: Mapping[str, OptionValue] = MappingProxyType({"threads": 1, "pinning": True})

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        where = f"target {target.name}"
        if target.precision not in _HINTS:
            raise UnknownNameError("precision of the openvino engine", target.precision, _HINTS, where)
        if int(self.option("threads")) < 1:  # type: ignore[arg-type]
            raise UsageError(
                asked=f"threads of {where}", found=str(self.option("threads")), next="Write a whole number ≥ 1."
            )
        if target.device == "gpu":
            raise UsageError(
                asked=f"device {target.device!r} of {where}",
                found="an engine that runs on CPUs",
                next='Write device = "cpu", or choose another engine.',
            )

    def why_not(self) -> str | None:
        if importlib.util.find_spec("openvino") is None:
            return "the package openvino is not installed"
        try:
            devices = _core().available_devices
        except (ImportError, RuntimeError) as error:
            return f"the package openvino does not work ({error})"
        return None if "CPU" in devices else "this build of OpenVINO has no CPU device"

    def version(self) -> str:
        return str(self._runtime().__version__).partition("-")[0]

    def fingerprint(self) -> DeviceFingerprint:
        return cpu_fingerprint()

    def _runtime(self) -> ModuleType:
        self.require(self.why_not())
        return _import_runtime()

    # --- build, load ----------------------------------------------------------------------------------------

    def build(
        self,
        model_path: Path,
        out_dir: Path,
        on_progress: Progress | None = None,  # noqa: ARG002 - done in a moment
    ) -> BuiltEngine:
        runtime = self._runtime()
        start = time.perf_counter()
        proto = read_onnx(model_path, self.target.batch)
        path = out_dir / f"{model_path.stem}{self.suffix}"
        with self._model_from_onnx(proto, model_path) as model:
            layers = self._layers(self._compile(model, model_path))
            precision, notes = audited_precision(
                self.target.precision,
                [
                    Layer(
                        ", ".join(layers[e].original_names) or layers[e].name,
                        layers[e].dtype,
                        is_matrix,
                        tuple(layers[e].original_names),
                    )
                    for e in executed_layers(layers)
                    if (is_matrix := layers[e].layer_type in MATRIX_LAYERS) or layers[e].layer_type != "Reorder"
                ],
                asked=f"{model_path.name} in {self.target.precision} for target {self.target.name}",
                allowed=declared_float32(proto, model_path.name),
            )
            try:
                out_dir.mkdir(parents=True, exist_ok=True)
                runtime.save_model(model, str(path), compress_to_fp16=False)
            except (OSError, RuntimeError) as error:
                raise StorageError(
                    asked=f"the engine {path}", found=str(error), next="Check the space and permissions."
                ) from error
        files = (path, path.with_suffix(".bin"))
        return BuiltEngine(
            path=path,
            files=files,
            seconds=time.perf_counter() - start,
            size_bytes=sum(file.stat().st_size for file in files),
            precision=precision,
            engine_version=self.version(),
            notes=notes,
        )

    def load(self, engine_path: Path) -> OpenVinoSession:
        runtime = self._runtime()
        if engine_path.suffix == ".onnx":
            proto = read_onnx(engine_path, self.target.batch)
            with self._model_from_onnx(proto, engine_path) as model:
                return OpenVinoSession(self._compile(model, engine_path), runtime)
        return OpenVinoSession(self._compile(self._model_from_ir(engine_path), engine_path), runtime)

    def executed_kernels(self, model_path: Path) -> tuple[ExecutedKernel, ...]:
        """The layers of OpenVINO's runtime model for an ONNX file."""
        self._runtime()
        if model_path.suffix == self.suffix:
            raise UsageError(
                asked=f"the kernels of {model_path}",
                found="an OpenVINO file, which does not keep the network's nodes",
                next="Give the ONNX file it was built from.",
            )
        proto = read_onnx(model_path, self.target.batch)
        with self._model_from_onnx(proto, model_path) as model:
            layers = self._layers(self._compile(model, model_path))
        return kernels_from_layers(proto.graph, layers)

    # --- inside ---------------------------------------------------------------------------------------------

    @contextmanager
    def _model_from_onnx(self, proto: onnx.ModelProto, path: Path) -> Iterator[Any]:
        """OpenVINO's model of the network as read; its weights may be mapped from files, hence the context."""
        with tempfile.TemporaryDirectory(prefix="akd-openvino-") as folder:
            copy = Path(folder, "network.onnx")
            copy.write_bytes(proto.SerializeToString())
            for location in external_locations(proto, path):
                weights = Path(folder, location)
                weights.parent.mkdir(parents=True, exist_ok=True)
                try:
                    weights.hardlink_to((path.parent / location).resolve())  # OpenVINO refuses symbolic links
                except OSError:
                    shutil.copyfile(path.parent / location, weights)
            try:
                model = _core().read_model(copy)
            except RuntimeError as error:
                raise self._build_error(proto, path, error) from error
            yield model

    def _model_from_ir(self, path: Path) -> Any:
        weights = path.with_suffix(".bin")
        for file in (path, weights):
            if not file.is_file():
                raise MissingFileError(
                    asked=f"the OpenVINO engine {path}", found=f"no file {file}", next="Build the engine again."
                )
        try:
            model = _core().read_model(path, weights)
        except RuntimeError as error:
            raise CorruptFileError(
                asked=f"an OpenVINO network in {path} with weights in {weights.name}",
                found=_message(error),
                next="Build the engine again.",
            ) from error
        first_dims = [port.get_partial_shape()[0].to_string() for port in model.inputs if len(port.get_partial_shape())]
        if first_dims and not any(n.isdigit() and int(n) % self.target.batch == 0 for n in first_dims):
            raise UsageError(
                asked=f"{path.name} at the target's batch of {self.target.batch}",
                found=f"an engine built for a batch of {', '.join(first_dims)}",
                next="Build the engine again for this target.",
            )
        return model

    def compile_settings(self) -> dict[str, Any]:
        """Everything that a network is compiled with, as JSON types: also what a bundle's runner sets."""
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _HINTS[self.target.precision],
            "INFERENCE_NUM_THREADS": self.option("threads"),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": self.option("pinning"),
        }

    def _compile(self, model: Any, path: Path) -> Any:
        """Compile for the target's precision and threads, and make sure that both were accepted."""
        threads = self.option("threads")
        try:
            compiled = _core().compile_model(model, "CPU", self.compile_settings())
        except RuntimeError as error:
            raise BuildError(
                asked=f"{path.name} in OpenVINO for target {self.target.name}",
                found=f"a refusal: {_message(error)}",
                next="Replace that operator in the network, or choose another engine.",
            ) from error
        applied = compiled.get_property("INFERENCE_NUM_THREADS")
        if applied != threads:
            raise UsageError(
                asked=f"{threads} threads for target {self.target.name}",
                found=f"{applied} that OpenVINO uses on this machine",
                next="Ask for no more threads than the machine has cores.",
            )
        return compiled

    def _layers(self, compiled: Any) -> list[ExecutedLayer]:
        ordered = sorted(compiled.get_runtime_model().get_ordered_ops(), key=lambda op: int(_told(op, "execOrder")))
        position = {op.get_friendly_name(): i for i, op in enumerate(ordered)}
        for op in ordered:
            if any(port.get_partial_shape().is_dynamic for port in (*op.inputs(), *op.outputs())):
                raise BuildError(
                    asked=f"the shapes of layer {_told(op, 'originalLayersNames') or op.get_friendly_name()!r} "
                    f"({_told(op, 'layerType')}) in OpenVINO for target {self.target.name}",
                    found="dimensions that only a run tells",
                    next="Latency depends on every dimension: export the network without results of unknown size.",
                )
        return [
            ExecutedLayer(
                name=op.get_friendly_name(),
                layer_type=_told(op, "layerType"),
                original_names=tuple(name for name in _told(op, "originalLayersNames").split(",") if name),
                precision=_told(op, "runtimePrecision"),
                output_precisions=tuple(_told(op, "outputPrecisions").split(",")),
                layout=_told(op, "outputLayouts"),
                inputs=tuple(tuple(port.get_shape()) for port in op.inputs()),
                outputs=tuple(tuple(port.get_shape()) for port in op.outputs()),
                sources=tuple(
                    position[port.get_source_output().get_node().get_friendly_name()] for port in op.inputs()
                ),
            )
            for op in ordered
        ]

    def _build_error(self, proto: onnx.ModelProto, path: Path, error: Exception) -> BuildError:
        message = _message(error)
        words = set(message.replace(",", " ").replace(".", " ").split())
        nodes = nodes_using(proto, {node.op_type for node in proto.graph.node} & words)
        if "Unsupported type" in message:
            values = (*proto.graph.input, *proto.graph.output, *proto.graph.value_info)
            rare = {value.name for value in values if value.type.tensor_type.elem_type not in _COMMON_TYPES}
            nodes += [
                f"{name} ({node.op_type})"
                for name, node in zip(node_names(proto.graph), proto.graph.node, strict=True)
                if not rare.isdisjoint((*node.input, *node.output))
            ]
        return BuildError(
            asked=f"{path.name} in OpenVINO for target {self.target.name}",
            found=(f"a refusal at {', '.join(nodes[:8])}: " if nodes else "a refusal: ") + message,
            next="Replace that operator in the network, or choose another engine.",
        )


def _told(op: Any, key: str) -> str:
    """One fact about a layer; the runtime model holds them as texts, in a wrapper in some versions."""
    value = op.get_rt_info()[key]
    return str(getattr(value, "value", value))


def _message(error: Exception) -> str:
    """OpenVINO's message without the places in its own source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("Exception from", "Check '")))


@functools.cache
def _import_runtime() -> ModuleType:
    import openvino

    return openvino


@functools.cache
def _core() -> Any:
    return _import_runtime().Core()
