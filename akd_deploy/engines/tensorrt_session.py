"""Run a TensorRT plan on buffers that torch allocates; the runtime's module is handed in as `trt`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from akd_deploy.engines.base import Session, TensorSpec, Timings
from akd_deploy.engines.device_timing import timed_parts
from akd_deploy.engines.feeds import checked_feeds
from akd_deploy.engines.tensorrt_api import TensorRt, device_memory_bytes
from akd_deploy.engines.tensorrt_callbacks import message_log
from akd_deploy.engines.tensorrt_precision import dtype_name
from akd_deploy.engines.tensorrt_profiles import Profile, ShapeRange, profile_for
from akd_deploy.errors import AkdError, CorruptFileError, MismatchError
from akd_deploy.kernel import Shape

if TYPE_CHECKING:
    import tensorrt_rtx as api


def deserialised(trt: TensorRt, plan: bytes, where: str) -> tuple[api.Runtime, api.ICudaEngine]:
    """The runtime and the engine in `plan`; keep the runtime as long as the engine.

    A plan is native code: bytes of unknown origin are checked against their manifest before they come
    here. Plans that bring host code of their own are refused.

    Raises:
        CorruptFileError: an empty file.
        MismatchError: TensorRT refused it: another version, another GPU, or damage.
    """
    if not plan:
        raise CorruptFileError(asked=f"a TensorRT plan in {where}", found="an empty file", next="Build it again.")
    log = message_log(trt)
    log.records.clear()
    runtime = trt.Runtime(log)
    runtime.engine_host_code_allowed = False
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise MismatchError(
            asked=f"the engine in {where} on {trt.__name__} {trt.__version__}",
            found="; ".join(log.errors()) or "refused without a reason",
            next="A plan runs on the TensorRT version and GPUs it was built for. Build it again here.",
        )
    return runtime, engine


@dataclass(frozen=True)
class LoadedFacts:
    """What only a loaded engine tells: its inspector's JSON, and the scratch memory of one context on the device."""

    layers_json: str
    device_memory_bytes: int


def loaded_facts(trt: TensorRt, plan: bytes, where: str) -> LoadedFacts:
    """Load a plan for what it tells; needs a GPU. Errors as `deserialised`."""
    runtime, engine = deserialised(trt, plan, where)
    text = str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    facts = LoadedFacts(text, device_memory_bytes(engine))
    del engine, runtime
    return facts


class TensorRtSession(Session):
    """An execution context with one buffer for each input and output.

    `stream` has `cuda_stream` (its handle) and `synchronize()`; `device` is where torch allocates.
    A bound call leaves its inputs on the device: it times enqueueing and computing, no transfers.

    `inputs` and `outputs` are those of the shapes last fed: at first `batch`, or of an engine with dynamic shapes
    what its first profile is optimised for. Other shapes within a profile may be fed at any time.
    """

    def __init__(self, trt: TensorRt, plan: bytes, where: str, batch: int, *, device: str, stream: Any) -> None:
        import torch

        self._torch, self._trt, self._stream, self._device, self._where = torch, trt, stream, device, where
        runtime, engine = deserialised(trt, plan, where)
        context = engine.create_execution_context()
        if context is None:
            raise self._failure(f"an execution context for {where}")
        self._loaded: tuple[api.Runtime, api.ICudaEngine, api.IExecutionContext] | None = (runtime, engine, context)
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        self._reads = [n for n in names if engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._writes = [n for n in names if n not in self._reads]
        self.device_memory_bytes = device_memory_bytes(engine)
        self._profiles = self._profiles_of(engine, batch)
        self._profile = 0
        self._buffers: dict[str, Any] = {}
        self._resolve({name: shapes.opt for name, shapes in self._profiles[0].items()})

    @property
    def _context(self) -> api.IExecutionContext:
        if self._loaded is None:
            raise AkdError(asked="one inference", found="a session that was closed", next="Load the engine again.")
        return self._loaded[2]

    def _profiles_of(self, engine: api.ICudaEngine, batch: int) -> tuple[Profile, ...]:
        """The engine's profiles; the one of an engine of fixed shapes, or with nothing but the batch open."""
        declared = {name: tuple(engine.get_tensor_shape(name)) for name in self._reads}
        if not any(-1 in shape for shape in declared.values()):
            return ({name: ShapeRange(shape, shape, shape) for name, shape in declared.items()},)
        profiles = []
        for i in range(engine.num_optimization_profiles):
            told = {name: engine.get_tensor_profile_shape(name, i) for name in self._reads}
            profiles.append({name: ShapeRange(*(tuple(dims) for dims in shapes)) for name, shapes in told.items()})
        first = {name: (batch, *shapes.opt[1:]) for name, shapes in profiles[0].items()}
        if all(shape in profiles[0][name] for name, shape in first.items()):
            low = profiles[0]
            profiles[0] = {name: ShapeRange(low[name].min, shape, low[name].max) for name, shape in first.items()}
        return tuple(profiles)

    def _resolve(self, shapes: Mapping[str, Shape]) -> None:
        """Set the shapes of all inputs, and make the buffers that go with them."""
        context, where = self._context, self._where
        for name, shape in shapes.items():
            if not context.set_input_shape(name, shape):
                raise self._failure(f"shape {shape} for input {name!r} of {where}")
        unresolved = context.infer_shapes()
        if unresolved:
            raise self._failure(f"the output shapes of {where}", f"inputs without a shape: {', '.join(unresolved)}")
        specs = {name: self._spec(name) for name in (*self._reads, *self._writes)}
        for name, spec in specs.items():
            buffer = self._buffers.get(name)
            if buffer is None or tuple(buffer.shape) != spec.shape:
                buffer = self._torch.empty(spec.shape, dtype=getattr(self._torch, spec.dtype), device=self._device)
                if not context.set_tensor_address(name, buffer.data_ptr()):
                    raise self._failure(f"a buffer for {name!r} of {where}")
                self._buffers[name] = buffer
        self.inputs = tuple(specs[name] for name in self._reads)
        self.outputs = tuple(specs[name] for name in self._writes)

    def _fit(self, feeds: Mapping[str, np.ndarray]) -> None:
        """Make the shapes those of the feeds, in the profile that fits them best.

        Raises:
            UsageError: no profile holds them.
        """
        context = self._context
        shapes = {spec.name: np.shape(feeds[spec.name]) for spec in self.inputs if spec.name in feeds}
        dynamic = any(shapes.min != shapes.max for profile in self._profiles for shapes in profile.values())
        if not dynamic or all(shapes.get(spec.name, spec.shape) == spec.shape for spec in self.inputs):
            return
        complete = {spec.name: shapes.get(spec.name, spec.shape) for spec in self.inputs}
        chosen = profile_for(self._profiles, complete, self._where)
        if chosen != self._profile:
            if not context.set_optimization_profile_async(chosen, self._stream.cuda_stream):
                raise self._failure(f"profile {chosen} of {self._where}")
            self._stream.synchronize()
            self._profile = chosen
        self._resolve(complete)

    def _spec(self, name: str) -> TensorSpec:
        assert self._loaded is not None
        shape = tuple(self._context.get_tensor_shape(name))
        dtype = dtype_name(self._loaded[1].get_tensor_dtype(name))
        if -1 in shape or dtype in ("bfloat16", "float8e4m3"):
            raise MismatchError(
                asked=f"tensor {name!r} with a shape known beforehand and a numpy dtype",
                found=f"{dtype} {shape}",
                next="Export the model with fixed shapes, and with inputs and outputs in fp32 or fp16.",
            )
        return TensorSpec(name, shape, dtype)

    def _failure(self, asked: str, found: str | None = None) -> AkdError:
        log = "; ".join(message_log(self._trt).errors()[-3:])
        return AkdError(
            asked=asked,
            found=found or log or "a refusal without a reason",
            next="Check that the engine was built for this GPU and batch, and that memory is free.",
        )

    def _write_inputs(self, feeds: Mapping[str, np.ndarray]) -> None:
        self._fit(feeds)
        for name, array in checked_feeds(self.inputs, feeds).items():
            # A copy, since torch warns about arrays that may not be written to.
            self._buffers[name].copy_(self._torch.from_numpy(np.array(array)))

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise self._failure("one inference")

    def _execute(self) -> None:
        self._enqueue()
        self._stream.synchronize()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._write_inputs(feeds)
        self._execute()
        return self.bound_outputs()

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        self._write_inputs(feeds)
        return self._execute

    def timings(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], Timings]:
        """From and to pinned memory, with CUDA events on the stream that computes; until other shapes are fed."""
        torch, stream = self._torch, self._stream
        self._write_inputs(feeds)  # so that the buffers have the feeds' shapes
        arrays = checked_feeds(self.inputs, feeds)
        sent = [(self._buffers[name], torch.from_numpy(np.array(array)).pin_memory()) for name, array in arrays.items()]
        buffers = [self._buffers[spec.name] for spec in self.outputs]
        received = [(torch.empty(b.shape, dtype=b.dtype, device="cpu").pin_memory(), b) for b in buffers]

        def copy_all(pairs: list[tuple[Any, Any]]) -> None:
            for to, source in pairs:
                to.copy_(source, non_blocking=True)

        # Torch copies, and records events, on the stream that is current.
        with torch.cuda.stream(stream):
            timed = timed_parts(
                lambda: copy_all(sent),
                self._enqueue,
                lambda: copy_all(received),
                lambda: torch.cuda.Event(enable_timing=True),
            )

        def call() -> Timings:
            with torch.cuda.stream(stream):
                return timed()

        return call

    def bound_outputs(self) -> dict[str, np.ndarray]:
        """The outputs of the latest call, copied to the host."""
        return {spec.name: np.array(self._buffers[spec.name].cpu().numpy()) for spec in self.outputs}

    def layer_times_s(self, feeds: Mapping[str, np.ndarray]) -> tuple[tuple[str, float], ...]:
        """Each layer's seconds in one inference of its own, in order.

        Layers are timed apart from each other, which takes longer: their sum is not the latency.
        """
        base: Any = self._trt.IProfiler
        times: list[tuple[str, float]] = []

        class Times(base):
            def __init__(self) -> None:
                base.__init__(self)

            def report_layer_time(self, layer_name: str, ms: float) -> None:
                times.append((layer_name, ms / 1e3))

        self._write_inputs(feeds)
        context = self._context
        context.profiler = cast("api.IProfiler", Times())
        # Else every enqueue waits for the device, those of later calls too.
        context.enqueue_emits_profile = False
        self._execute()
        if not context.report_to_profiler():
            raise self._failure(f"the layers' times of {self._where}")
        return tuple(times)

    def close(self) -> None:
        """Free the context, the engine and the buffers, in the order TensorRT needs."""
        if self._loaded is not None:
            runtime, engine, context = self._loaded
            self._loaded = None
            del context
            del engine
            del runtime
        self._buffers = {}
