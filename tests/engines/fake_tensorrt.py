"""A stand-in for TensorRT's module, as 10.x and as 11.x have it: it parses, "times", builds, loads and runs.

Its plans compute y = 2 x + 1 on float32 of shape (batch, 3), in this process's memory; its kernels are "timed" once and
then found in the timing cache. What 11 took away is not there, what a version misnames is misnamed.
"""

from __future__ import annotations

import ctypes
import json
import math
from enum import Enum, IntEnum
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx

GOLDEN = Path(__file__).parents[1] / "golden"
_FLAGS = "REFIT TF32 SPARSE_WEIGHTS VERSION_COMPATIBLE ERROR_ON_TIMING_CACHE_MISS"
_LAYERS = {"Conv": "CONVOLUTION", "MatMul": "MATRIX_MULTIPLY"}


class FakeTensorRt:
    """The module. `flags` are its builder's; `io` the shapes of input and output, -1 where open."""

    TensorIOMode = Enum("TensorIOMode", "NONE INPUT OUTPUT")
    DataType = Enum("DataType", "FLOAT HALF BF16")
    LayerType = Enum("LayerType", "CONVOLUTION MATRIX_MULTIPLY ACTIVATION SHUFFLE IDENTITY DEQUANTIZE")
    LayerInformationFormat = Enum("LayerInformationFormat", "ONELINE JSON")
    MemoryPoolType = Enum("MemoryPoolType", "WORKSPACE")
    ProfilingVerbosity = Enum("ProfilingVerbosity", "LAYER_NAMES_ONLY DETAILED")
    Dims = tuple

    class ILogger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING")

    class IProgressMonitor:
        pass

    class IProfiler:
        pass

    def __init__(
        self,
        version: str = "11.0.1",
        *,
        dtype: str = "FLOAT",
        batch: int = -1,
        fails: bool = False,
        unresolved: tuple = (),
        profiles: tuple = (((1, 3), (2, 3), (4, 3)),),
        flags: str | None = None,
        table: str = "",
    ) -> None:
        self.__name__, self.__version__ = "tensorrt", version
        self.is_10 = version.startswith("10.")
        self.dtype, self.batch, self.fails, self.unresolved = self.DataType[dtype], batch, fails, unresolved
        self.profiles, self.table = profiles, table
        self.BuilderFlag = IntEnum("BuilderFlag", flags or (_FLAGS + " FP16 INT8" if self.is_10 else _FLAGS))
        creation = "EXPLICIT_BATCH STRONGLY_TYPED" if self.is_10 else "STRONGLY_TYPED"
        self.NetworkDefinitionCreationFlag = IntEnum("NetworkDefinitionCreationFlag", creation, start=0)
        self.runtimes: list[FakeRuntime] = []
        self.configs: list[FakeConfig] = []
        self.network_flags: list[int] = []
        self.contexts: list[FakeContext] = []

    def Runtime(self, log) -> FakeRuntime:  # noqa: N802
        self.runtimes.append(FakeRuntime(self, log))
        return self.runtimes[-1]

    def Builder(self, log) -> FakeBuilder:  # noqa: N802
        return FakeBuilder(self, log)

    def OnnxParser(self, network, log) -> FakeParser:  # noqa: N802
        return FakeParser(self, network)


# --- building -----------------------------------------------------------------------------------------------------


class FakeParser:
    num_errors = 0

    def __init__(self, trt: FakeTensorRt, network: SimpleNamespace) -> None:
        self.trt, self.network = trt, network

    def parse(self, data: bytes, path: str) -> bool:
        model = onnx.shape_inference.infer_shapes(onnx.load_from_string(data))
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.output)}
        names = {onnx.TensorProto.FLOAT: "FLOAT", onnx.TensorProto.FLOAT16: "HALF"}
        layers = []
        for node in model.graph.node:
            out = SimpleNamespace(name=node.output[0], dtype=self.trt.DataType[names[kinds[node.output[0]]]])
            layers.append(
                SimpleNamespace(
                    name=node.name,
                    type=self.trt.LayerType[_LAYERS.get(node.op_type, "ACTIVATION")],
                    metadata=f"[ONNX Layer: {node.name}]",
                    num_outputs=1,
                    num_inputs=1,
                    get_output=lambda i, out=out: out,
                )
            )
        self.network.num_layers, self.network.get_layer = len(layers), layers.__getitem__
        return True


class FakeBuilder:
    def __init__(self, trt: FakeTensorRt, log) -> None:
        self.trt, self.log = trt, log

    def create_network(self, flags: int) -> SimpleNamespace:
        self.trt.network_flags.append(flags)
        return SimpleNamespace()

    def create_builder_config(self) -> FakeConfig:
        self.trt.configs.append(FakeConfig(self.trt))
        return self.trt.configs[-1]

    def create_optimization_profile(self) -> FakeProfile:
        return FakeProfile()

    def build_serialized_network(self, network, config: FakeConfig) -> bytes | None:
        config.progress_monitor.phase_start("Building engine", None, 2)
        layers = {f"{network.get_layer(i).type.name}@{config.builder_optimization_level}" for i in range(2)}
        known = set() if config.cache is None else config.cache.keys
        if "ERROR_ON_TIMING_CACHE_MISS" in {flag.name for flag in config.on} and not layers <= known:
            self.log.log(self.trt.ILogger.Severity.ERROR, f"timing cache miss: {sorted(layers - known)}")
            return None
        config.timed = layers - known
        if config.cache is not None:
            config.cache.keys |= layers
        config.progress_monitor.step_complete("Building engine", 0)
        config.progress_monitor.phase_finish("Building engine")
        for message in ("Total Activation Memory: 640 bytes", "Total Weights Memory: 160 bytes", self.trt.table):
            self.log.log(self.trt.ILogger.Severity.WARNING, message)
        return b"plan"


class FakeProfile:
    def __init__(self) -> None:
        self.shapes: dict[str, tuple] = {}

    def set_shape(self, name: str, low, opt, high) -> None:
        self.shapes[name] = (low, opt, high)


class FakeConfig:
    def __init__(self, trt: FakeTensorRt) -> None:
        self.on = {trt.BuilderFlag["TF32"]} if "TF32" in trt.BuilderFlag.__members__ else set()
        self.cache: FakeTimingCache | None = None
        self.pools: dict = {}
        self.profiles: list[FakeProfile] = []
        self.timed: set[str] = set()

    def set_flag(self, flag) -> None:
        self.on.add(flag)

    def clear_flag(self, flag) -> None:
        self.on.discard(flag)

    def set_memory_pool_limit(self, pool, size: int) -> None:
        self.pools[pool.name] = size

    def add_optimization_profile(self, profile: FakeProfile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def create_timing_cache(self, content: bytes) -> FakeTimingCache | None:
        if content and not content.startswith(b"timings "):
            return None
        return FakeTimingCache(set(json.loads(content[8:])) if content else set())

    def set_timing_cache(self, cache: FakeTimingCache, ignore_mismatch: bool) -> bool:
        self.cache = cache
        return not ignore_mismatch

    def get_timing_cache(self) -> FakeTimingCache | None:
        return self.cache


class FakeTimingCache:
    def __init__(self, keys: set[str]) -> None:
        self.keys = keys

    def serialize(self) -> bytes:
        return b"timings " + json.dumps(sorted(self.keys)).encode()

    def combine(self, other: FakeTimingCache, ignore_mismatch: bool) -> bool:
        self.keys |= other.keys
        return not ignore_mismatch


# --- running ------------------------------------------------------------------------------------------------------


class FakeRuntime:
    engine_host_code_allowed = True

    def __init__(self, trt: FakeTensorRt, log) -> None:
        self.trt, self.log = trt, log

    def deserialize_cuda_engine(self, plan: bytes) -> FakeEngine | None:
        if plan != b"plan":
            self.log.log(self.trt.ILogger.Severity.ERROR, "Version tag does not match.")
            return None
        return FakeEngine(self.trt)


class FakeEngine:
    num_io_tensors = 2

    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt, self.num_optimization_profiles = trt, len(trt.profiles)
        if trt.is_10:
            self.device_memory_size = 4096
        else:
            self.device_memory_size_v2 = 8192

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str):
        return self.trt.TensorIOMode.INPUT if name == "x" else self.trt.TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, int]:
        return (self.trt.batch, 3)

    def get_tensor_profile_shape(self, name: str, profile: int) -> tuple:
        return self.trt.profiles[profile]

    def get_tensor_dtype(self, name: str):
        return self.trt.dtype

    def create_execution_context(self) -> FakeContext:
        self.trt.contexts.append(FakeContext(self.trt))
        return self.trt.contexts[-1]

    def create_engine_inspector(self) -> SimpleNamespace:
        text = (GOLDEN / f"inspector_{10 if self.trt.is_10 else 11}.json").read_text(encoding="utf-8")
        return SimpleNamespace(get_engine_information=lambda format: text)


class FakeContext:
    enqueue_emits_profile = True

    def __init__(self, trt: FakeTensorRt) -> None:
        self.trt, self.shape, self.profile, self.profiler = trt, None, 0, None
        self.addresses: dict[str, int] = {}
        self.calls: list[str] = []

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self.calls.append(f"profile {index}")
        self.profile, self.shape = index, None
        return True

    def set_input_shape(self, name: str, shape: tuple) -> bool:
        self.calls.append(f"shape {shape}")
        low, _, high = self.trt.profiles[self.profile] if self.trt.batch == -1 else (shape,) * 3
        fits = all(a <= n <= b for a, n, b in zip(low, shape, high, strict=True))
        self.shape = shape if fits else None
        return fits

    def infer_shapes(self) -> list[str]:
        return list(self.trt.unresolved)

    def get_tensor_shape(self, name: str):
        return self.shape

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        def view(name: str) -> np.ndarray:
            pointer = ctypes.cast(self.addresses[name], ctypes.POINTER(ctypes.c_float))
            return np.ctypeslib.as_array(pointer, shape=(math.prod(self.shape),))

        if not self.trt.fails:
            view("y")[:] = 2 * view("x") + 1
        self.calls.append("execute")
        return not self.trt.fails

    def report_to_profiler(self) -> bool:
        assert self.calls[-1] == "execute"
        if self.profiler is None or self.enqueue_emits_profile:
            return False
        self.profiler.report_layer_time("double", 0.25)
        self.profiler.report_layer_time("add one", 0.5)
        return True


class CountingStream:
    cuda_stream = 0

    def __init__(self) -> None:
        self.waits = 0

    def synchronize(self) -> None:
        self.waits += 1
