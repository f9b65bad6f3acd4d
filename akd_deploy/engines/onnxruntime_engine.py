"""ONNX Runtime: CPU, CUDA and TensorRT execution providers."""

from __future__ import annotations

import functools
import importlib.util
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import onnx

from akd_deploy.device import DeviceFingerprint, cpu_fingerprint
from akd_deploy.engines.base import BuiltEngine, Engine, Progress, random_feeds
from akd_deploy.engines.declared_float32 import declared_float32
from akd_deploy.engines.denormals import with_denormals
from akd_deploy.engines.nvidia import gpu_fingerprint, why_no_gpu
from akd_deploy.engines.onnx_file import copy_onnx, external_files, node_names, nodes_using, read_onnx
from akd_deploy.engines.onnxruntime_kernels import MATRIX_OPS, ProfileEvent, kernels_from_profile, read_profile
from akd_deploy.engines.onnxruntime_session import OnnxRuntimeSession
from akd_deploy.engines.precision_audit import Layer, audited_precision
from akd_deploy.errors import AkdError, BuildError, MismatchError, MissingRuntimeError, UnknownNameError, UsageError
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.target import OptionValue, Target

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_LEVELS = {
    "all": "ORT_ENABLE_ALL",
    "extended": "ORT_ENABLE_EXTENDED",
    "basic": "ORT_ENABLE_BASIC",
    "disabled": "ORT_DISABLE_ALL",
}
# Larger weights go to a file of their own when the optimised graph is read back: only its shapes are needed.
_INLINE_WEIGHT_BYTES = "1024"


class OnnxRuntimeEngine(Engine):
    """`provider` is cpu, cuda or tensorrt; `graph_optimization` all, extended, basic or disabled.

    `threads` are those of one operator (operators run one after another); with `spinning` they wait for
    work busily. With `denormal_as_zero` numbers below the least normal one count as zero: attention masked with a large
    negative number makes many, and a product of them takes up to 90 times as long (seen: Swin on x86).
    """

    name = "onnxruntime"
    suffix = ".onnx"
    extra = "cpu"
    options: Mapping[str, OptionValue] = MappingProxyType(
        {"provider": "cpu", "graph_optimization": "all", "threads": 1, "spinning": True, "denormal_as_zero": False}
    )

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        where = f"target {target.name}"
        self._provider = str(self.option("provider"))
        if self._provider not in _PROVIDERS:
            raise UnknownNameError("provider", self._provider, _PROVIDERS, where)
        level = str(self.option("graph_optimization"))
        if level not in _LEVELS:
            raise UnknownNameError("graph_optimization", level, _LEVELS, where)
        if int(self.option("threads")) < 1:  # type: ignore[arg-type]
            raise UsageError(
                asked=f"threads of {where}", found=str(self.option("threads")), next="Write a whole number ≥ 1."
            )
        self._on_gpu = self._provider != "cpu"
        if (self._on_gpu and target.device == "cpu") or (not self._on_gpu and target.device == "gpu"):
            raise UsageError(
                asked=f"device {target.device!r} of {where}",
                found=f"provider {self._provider!r}",
                next='Write provider = "cpu" for a CPU and "cuda" or "tensorrt" for a GPU.',
            )
        if self._on_gpu:
            self.extra = "gpu"

    # --- what is here ---------------------------------------------------------------------------------------

    def why_not(self) -> str | None:
        if importlib.util.find_spec("onnxruntime") is None:
            return "the package onnxruntime is not installed"
        try:
            available = _import_runtime().get_available_providers()
        except (ImportError, AttributeError) as error:
            return f"the package onnxruntime does not import ({error}); two of its flavours may be installed at once"
        if _PROVIDERS[self._provider] not in available:
            return f"this build of ONNX Runtime has no {self._provider} provider (it has {', '.join(available)})"
        return why_no_gpu() if self._on_gpu else None

    def version(self) -> str:
        return str(self._runtime().__version__)

    def fingerprint(self) -> DeviceFingerprint:
        return gpu_fingerprint() if self._on_gpu else cpu_fingerprint()

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
        model = read_onnx(model_path, self.target.batch)
        kernels, events = self._profiled(model, model_path)
        precision, notes = audited_precision(
            self.target.precision,
            [Layer(", ".join(k.nodes) or k.name, k.kernel.dtype, k.kernel.op in MATRIX_OPS, k.nodes) for k in kernels],
            asked=f"{model_path.name} in {self.target.precision} for target {self.target.name}",
            allowed=declared_float32(model, model_path.name),
        )
        providers = Counter(event.provider for event in events)
        elsewhere = sum(n for provider, n in providers.items() if provider != _PROVIDERS[self._provider])
        if elsewhere:
            notes += (f"{elsewhere} of {len(events)} kernels run on another provider than {self._provider}",)
        files = copy_onnx(model_path, out_dir)
        return BuiltEngine(
            path=files[0],
            files=files,
            seconds=time.perf_counter() - start,
            size_bytes=sum(file.stat().st_size for file in files),
            precision=precision,
            engine_version=str(runtime.__version__),
            notes=notes,
            details={"providers": dict(providers)},
        )

    def load(self, engine_path: Path) -> OnnxRuntimeSession:
        self._runtime()
        model = read_onnx(engine_path, self.target.batch)
        return self._session(model, engine_path, self._session_options())

    def executed_kernels(self, model_path: Path) -> tuple[ExecutedKernel, ...]:
        """The nodes of ONNX Runtime's optimised graph, with the shapes of one profiled run.

        Raises:
            BuildError: the provider compiles the graph into something it does not show (TensorRT), or the
                network has control flow.
        """
        self._runtime()
        return self._profiled(read_onnx(model_path, self.target.batch), model_path)[0]

    # --- inside ---------------------------------------------------------------------------------------------

    def session_settings(self) -> dict[str, Any]:
        """Everything that a session is made with, as JSON types: also what a bundle's runner sets."""
        wanted = _PROVIDERS[self._provider]
        providers: list[Any] = [wanted]
        if self._provider == "cuda":
            providers = [[wanted, {"use_tf32": str(int(self.target.precision == "tf32"))}]]
        elif self._provider == "tensorrt":
            providers = [wanted, _PROVIDERS["cuda"]]
        return {
            "graph_optimization_level": _LEVELS[str(self.option("graph_optimization"))],
            "execution_mode": "ORT_SEQUENTIAL",
            "intra_op_num_threads": self.option("threads"),
            "inter_op_num_threads": 1,
            "log_severity_level": 4,  # fatal: what fails is raised, and said once
            "entries": self._session_entries(),
            "providers": providers,
        }

    def _session_entries(self) -> dict[str, str]:
        entries = {"session.intra_op.allow_spinning": str(int(bool(self.option("spinning"))))}
        if self.option("denormal_as_zero"):
            entries["session.set_denormal_as_zero"] = "1"
        return entries

    def _session_options(self) -> Any:
        runtime, settings = _import_runtime(), self.session_settings()
        options = runtime.SessionOptions()
        options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, settings["graph_optimization_level"])
        options.execution_mode = getattr(runtime.ExecutionMode, settings["execution_mode"])
        for name in ("intra_op_num_threads", "inter_op_num_threads", "log_severity_level"):
            setattr(options, name, settings[name])
        for key, value in settings["entries"].items():
            options.add_session_config_entry(key, value)
        return options

    def _session(self, model: onnx.ModelProto, path: Path, options: Any) -> OnnxRuntimeSession:
        """Create a session and make sure that it runs where it was asked to."""
        runtime = _import_runtime()
        if external_files(model, path):
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(path.parent.resolve())
            )
        wanted = _PROVIDERS[self._provider]
        providers = [tuple(p) if isinstance(p, list) else p for p in self.session_settings()["providers"]]
        try:
            session = runtime.InferenceSession(
                model.SerializeToString(), options, providers=providers, enable_fallback=0
            )
        except _runtime_errors() as error:
            raise self._build_error(model, path, error) from error
        if self.option("denormal_as_zero") and np.float32(1e-40) * np.float32(0.5) != 0:
            raise MismatchError(
                asked=f"denormal_as_zero for target {self.target.name}",
                found="a session without it earlier in this process: ONNX Runtime decides once per process",
                next="Load this engine first, or in a process of its own.",
            )
        found = session.get_providers()
        if not found or found[0] != wanted:
            raise MissingRuntimeError(
                asked=f"{wanted} for target {self.target.name}",
                found=f"a session that fell back to {', '.join(found) or 'nothing'}",
                next="Its libraries did not load: check the CUDA, cuDNN and TensorRT versions this build of ONNX "
                "Runtime needs.",
            )
        try:
            return OnnxRuntimeSession(session, runtime, "cuda" if self._on_gpu else "cpu")
        except _runtime_errors() as error:
            raise self._build_error(model, path, error) from error

    def _profiled(self, model: onnx.ModelProto, path: Path) -> tuple[tuple[ExecutedKernel, ...], list[ProfileEvent]]:
        """Kernels and profile of one run, from a session made for nothing else."""
        if self._provider == "tensorrt":
            raise BuildError(
                asked=f"the kernels and the precision of {path.name} in ONNX Runtime's TensorRT provider",
                found="one compiled node that it does not show",
                next='Use engine = "tensorrt", whose engines can be inspected.',
            )
        with tempfile.TemporaryDirectory(prefix="akd-onnxruntime-") as folder:
            optimised_path = Path(folder, "optimised.onnx")
            options = self._session_options()
            options.optimized_model_filepath = str(optimised_path)
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_file_name", "optimised.weights"
            )
            options.add_session_config_entry(
                "session.optimized_model_external_initializers_min_size_in_bytes", _INLINE_WEIGHT_BYTES
            )
            options.enable_profiling = True
            options.profile_file_prefix = str(Path(folder, "profile"))
            session = self._session(model, path, options)
            try:
                feeds = random_feeds(session, np.random.default_rng(0))
                session.run(feeds)
                events = read_profile(session.end_profiling())
                session.close()
            except _runtime_errors() as error:
                raise self._build_error(model, path, error) from error
            optimised = onnx.load(str(optimised_path), load_external_data=False)
        shapes = {name: array.shape for name, array in feeds.items()}
        # Shape inference may have run twice (once for the outputs' shapes): one run's events are enough.
        runs = max(1, len(events) // max(1, len(optimised.graph.node)))
        kernels = kernels_from_profile(model.graph, optimised.graph, events[: len(events) // runs], shapes)
        if self.option("denormal_as_zero") or self._provider != "cpu":
            return kernels, events
        return with_denormals(kernels, model.graph, path.parent), events

    def _build_error(self, model: onnx.ModelProto, path: Path, error: Exception) -> AkdError:
        message = " ".join(str(error).split())
        operators = {node.op_type for node in model.graph.node if f"{node.op_type}(" in message}
        operators |= {node.op_type for node in model.graph.node if f" {node.op_type} " in message}
        named = [n for n in node_names(model.graph) if f'"{n}"' in message or f"'{n}'" in message]
        nodes = nodes_using(model, operators)
        where = ", ".join(n for n in nodes if n.split(" ")[0] in named) or ", ".join(nodes[:8])
        return BuildError(
            asked=f"{path.name} in ONNX Runtime for target {self.target.name}",
            found=(f"a refusal at {where}: " if where else "a refusal: ") + message,
            next="Replace that operator in the network, or choose another engine.",
            operators=sorted(
                f"{node.domain}.{node.op_type}" if node.domain else node.op_type
                for node in {node.op_type: node for node in model.graph.node}.values()
                if node.op_type in operators
            ),
        )


@functools.cache
def _import_runtime() -> ModuleType:
    import onnxruntime

    onnxruntime.set_default_logger_severity(4)
    onnxruntime.disable_telemetry_events()
    return onnxruntime


@functools.cache
def _runtime_errors() -> tuple[type[Exception], ...]:
    """Everything ONNX Runtime raises: its exceptions share no class of their own."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = [kind for kind in vars(state).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    return (*own, RuntimeError)
