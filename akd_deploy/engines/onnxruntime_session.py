"""A network loaded in ONNX Runtime: run it, or bind its buffers and call it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from akd_deploy.engines.base import Session, TensorSpec, random_feeds
from akd_deploy.engines.feeds import aligned_copy, checked_feeds
from akd_deploy.errors import UsageError

_NUMPY_DTYPES = {
    "tensor(float)": "float32", "tensor(double)": "float64", "tensor(float16)": "float16", "tensor(bool)": "bool",
    "tensor(int8)": "int8", "tensor(uint8)": "uint8", "tensor(int16)": "int16", "tensor(uint16)": "uint16",
    "tensor(int32)": "int32", "tensor(uint32)": "uint32", "tensor(int64)": "int64", "tensor(uint64)": "uint64",
}  # fmt: skip
"""ONNX Runtime's tensor types that numpy has too."""


class OnnxRuntimeSession(Session):
    """`session` is ONNX Runtime's own, `runtime` its module, `device` where buffers are bound: "cpu" or "cuda".

    On a GPU the host's clock is the only one: a bound call is timed until the outputs are there on the device (boundary
    "host"), `run` from host arrays to host arrays ("end-to-end"). `Timings` are the device's own, and there are none.
    """

    why_no_timings = (
        "sessions of ONNX Runtime compute on a stream of its own, in which no events are recorded: only the host's "
        "clock sees them"
    )

    def __init__(self, session: Any, runtime: ModuleType, device: str) -> None:
        self._session = session
        self._runtime = runtime
        self._device = device
        self._binding: Any = None
        self.inputs = tuple(_spec(value, value.shape) for value in session.get_inputs())
        self.outputs = ()
        shapes = [tuple(value.shape) for value in session.get_outputs()]
        if not all(isinstance(n, int) for shape in shapes for n in shape):
            # A shape that inference could not tell is told by one run.
            arrays = session.run(None, random_feeds(self, np.random.default_rng(0)))
            shapes = [array.shape for array in arrays]
        self.outputs = tuple(_spec(value, shape) for value, shape in zip(session.get_outputs(), shapes, strict=True))

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        names = [spec.name for spec in self.outputs]
        return dict(zip(names, self._session.run(names, checked_feeds(self.inputs, feeds)), strict=True))

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        value = self._runtime.OrtValue
        binding = self._session.io_binding()
        for name, array in checked_feeds(self.inputs, feeds).items():
            binding.bind_ortvalue_input(name, value.ortvalue_from_numpy(aligned_copy(array), self._device, 0))
        for spec in self.outputs:
            output = value.ortvalue_from_shape_and_type(spec.shape, np.dtype(spec.dtype).type, self._device, 0)
            binding.bind_ortvalue_output(spec.name, output)
        self._binding = binding
        # The session's public method adds half a microsecond of checks to kernels that take a few.
        run = functools.partial(self._session._sess.run_with_iobinding, binding._iobinding, self._runtime.RunOptions())
        if self._device == "cpu":
            return run

        def run_and_wait() -> None:
            run()
            binding.synchronize_outputs()

        return run_and_wait

    def bound_outputs(self) -> dict[str, np.ndarray]:
        """Output name → what the call made by the last `bind` computed when it was last called."""
        arrays = self._binding.copy_outputs_to_cpu()
        return {spec.name: np.array(array) for spec, array in zip(self.outputs, arrays, strict=True)}

    def end_profiling(self) -> Path:
        """Write the profile of a session made with profiling on; its path."""
        return Path(self._session.end_profiling())

    def close(self) -> None:
        self._binding = None
        self._session = None


def _spec(value: Any, shape: Any) -> TensorSpec:
    dtype = _NUMPY_DTYPES.get(value.type)
    if dtype is None:
        raise UsageError(
            asked=f"input or output {value.name!r} as a numpy array",
            found=f"the type {value.type}",
            next=f"Export the network with one of {', '.join(_NUMPY_DTYPES.values())} there.",
        )
    return TensorSpec(value.name, tuple(shape), dtype)
