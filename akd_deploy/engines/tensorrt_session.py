"""Run a TensorRT plan on buffers that torch allocates; the runtime's module is handed in as `trt`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from akd_deploy.engines.base import Session, TensorSpec
from akd_deploy.engines.feeds import checked_feeds
from akd_deploy.engines.tensorrt_callbacks import message_log
from akd_deploy.engines.tensorrt_precision import dtype_name
from akd_deploy.errors import AkdError, CorruptFileError, MismatchError


def deserialised(trt: Any, plan: bytes, where: str) -> tuple[Any, Any]:
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


def inspected(trt: Any, plan: bytes, where: str) -> str:
    """The engine inspector's JSON about a plan; needs a GPU."""
    runtime, engine = deserialised(trt, plan, where)
    text = str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))
    del engine, runtime
    return text


class TensorRtSession(Session):
    """An execution context with one buffer for each input and output.

    `stream` has `cuda_stream` (its handle) and `synchronize()`; `device` is where torch allocates.
    A bound call leaves its inputs on the device: it times enqueueing and computing, no transfers.
    """

    def __init__(self, trt: Any, plan: bytes, where: str, batch: int, *, device: str, stream: Any) -> None:
        import torch

        self._torch, self._trt, self._stream = torch, trt, stream
        self._runtime, self._engine = deserialised(trt, plan, where)
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise self._failure(f"an execution context for {where}")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        reads = {n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT}
        for name in names:
            if name in reads:
                shape = tuple(self._engine.get_tensor_shape(name))
                if not self._context.set_input_shape(name, (batch, *shape[1:]) if shape[:1] == (-1,) else shape):
                    raise self._failure(f"batch {batch} for input {name!r} of shape {shape} in {where}")
        unresolved = self._context.infer_shapes()
        if unresolved:
            raise self._failure(f"the output shapes of {where}", f"inputs without a shape: {', '.join(unresolved)}")
        specs = {name: self._spec(name) for name in names}
        self.inputs = tuple(specs[n] for n in names if n in reads)
        self.outputs = tuple(specs[n] for n in names if n not in reads)
        self._buffers: dict[str, Any] = {}
        for name, spec in specs.items():
            buffer = torch.empty(spec.shape, dtype=getattr(torch, spec.dtype), device=device)
            if not self._context.set_tensor_address(name, buffer.data_ptr()):
                raise self._failure(f"a buffer for {name!r} of {where}")
            self._buffers[name] = buffer

    def _spec(self, name: str) -> TensorSpec:
        shape = tuple(self._context.get_tensor_shape(name))
        dtype = dtype_name(self._engine.get_tensor_dtype(name))
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
        for name, array in checked_feeds(self.inputs, feeds).items():
            # A copy, since torch warns about arrays that may not be written to.
            self._buffers[name].copy_(self._torch.from_numpy(np.array(array)))

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            raise self._failure("one inference")
        self._stream.synchronize()

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._write_inputs(feeds)
        self._execute()
        return self.bound_outputs()

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        self._write_inputs(feeds)
        return self._execute

    def bound_outputs(self) -> dict[str, np.ndarray]:
        """The outputs of the latest call, copied to the host."""
        return {spec.name: np.array(self._buffers[spec.name].cpu().numpy()) for spec in self.outputs}

    def close(self) -> None:
        """Free the context, the engine and the buffers, in the order TensorRT needs."""
        self._context = self._engine = self._runtime = None
        self._buffers = {}
