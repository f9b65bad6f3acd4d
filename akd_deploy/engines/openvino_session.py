"""A network compiled by OpenVINO: run it, or bind its buffers and call it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from akd_deploy.engines.base import Session, TensorSpec
from akd_deploy.engines.feeds import aligned_copy, checked_feeds
from akd_deploy.errors import UsageError

# The ONNX reader calls a result after the tensor it returns, with this ending.
_RESULT_SUFFIX = "/sink_port_0"


class OpenVinoSession(Session):
    """`compiled` is OpenVINO's compiled model, `runtime` its module."""

    def __init__(self, compiled: Any, runtime: ModuleType) -> None:
        self._compiled = compiled
        self._runtime = runtime
        self._request = compiled.create_infer_request()
        self._bound: list[np.ndarray] = []
        self.inputs = tuple(_spec(port, port.get_any_name()) for port in compiled.inputs)
        self.outputs = tuple(_spec(port, _output_name(port)) for port in compiled.outputs)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        arrays = list(checked_feeds(self.inputs, feeds).values())
        results = self._request.infer(dict(enumerate(arrays)), share_inputs=True)
        return {spec.name: np.array(results[i]) for i, spec in enumerate(self.outputs)}

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        tensor = self._runtime.Tensor
        request = self._compiled.create_infer_request()
        inputs = [aligned_copy(array) for array in checked_feeds(self.inputs, feeds).values()]
        self._bound = [aligned_copy(np.zeros(spec.shape, spec.dtype)) for spec in self.outputs]
        for i, array in enumerate(inputs):
            request.set_input_tensor(i, tensor(array, shared_memory=True))
        for i, array in enumerate(self._bound):
            request.set_output_tensor(i, tensor(array, shared_memory=True))
        buffers = (inputs, self._bound)
        infer = functools.partial(request.infer, None, share_outputs=True, decode_strings=False)

        # The buffers must live as long as the call that uses them.
        def run_bound(_buffers: object = buffers) -> None:
            infer()

        return run_bound

    def bound_outputs(self) -> dict[str, np.ndarray]:
        """Output name → what the call made by the last `bind` computed when it was last called."""
        return {spec.name: array.copy() for spec, array in zip(self.outputs, self._bound, strict=True)}

    def close(self) -> None:
        self._request = None
        self._compiled = None


def _output_name(port: Any) -> str:
    name = str(port.get_node().get_friendly_name())
    return name.removesuffix(_RESULT_SUFFIX) if name.endswith(_RESULT_SUFFIX) else str(port.get_any_name())


def _spec(port: Any, name: str) -> TensorSpec:
    if port.get_partial_shape().is_dynamic:
        raise UsageError(
            asked=f"input or output {name!r} with a fixed shape",
            found=f"the shape {port.get_partial_shape()}",
            next="Latency depends on every dimension: export the network with a fixed shape.",
        )
    return TensorSpec(name, tuple(port.get_shape()), np.dtype(port.get_element_type().to_dtype()).name)
