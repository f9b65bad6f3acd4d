"""Run an exported torch program for one batch: eagerly, compiled, or replayed from a CUDA graph."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx
from torch.export import ExportedProgram
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from akd_deploy.engines.base import Session, TensorSpec, Timings
from akd_deploy.engines.device_timing import timed_parts
from akd_deploy.engines.feeds import checked_feeds
from akd_deploy.engines.torch_graph import dtype_name
from akd_deploy.errors import BuildError, UsageError
from akd_deploy.kernel import Shape

# Calls before a capture: cuDNN and cuBLAS choose algorithms and allocate their workspaces in the first ones.
_WARM_UP_CALLS = 3


class TorchSession(Session):
    """A program on a device. A bound call leaves its inputs there, and returns when the device has finished.

    Inputs are named as in the exported graph; outputs by the keys of a dictionary the module returns,
    else "output", or "output_0", "output_1" … where there are several.
    """

    def __init__(
        self, program: ExportedProgram, batch: int, *, mode: str, device: str, channels_last: bool, where: str
    ) -> None:
        self._where, self._device = where, torch.device(device)
        self._channels_last = channels_last
        if self._device.type == "cuda":
            program = move_to_device_pass(program, str(self._device))
        self.inputs = input_specs(program, batch, where)
        in_spec, out_spec = program.call_spec.in_spec, program.call_spec.out_spec
        assert in_spec is not None
        assert out_spec is not None
        self._in_spec, self._output_names = in_spec, _output_names(out_spec)
        self.module = graph_module(program)
        if channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        # `forward` instead of a call: the module's hooks check shapes again, which `checked_feeds` has done.
        self._forward: Callable[..., Any] = self.module.forward
        self._static: list[torch.Tensor] = []
        self._graph: Any = None
        self._latest: list[torch.Tensor] = []
        self._replayed: list[torch.Tensor] = []
        leaves = self._placed({s.name: np.zeros(s.shape, s.dtype) for s in self.inputs})
        try:
            with warnings.catch_warnings():
                # torch.compile imports parts of torch that warn about each other.
                warnings.filterwarnings("ignore", category=DeprecationWarning, message=r"`torch\.jit\.")
                if mode == "compile":
                    self._forward = torch.compile(self._forward)
                self._run_once(leaves)
            if mode == "cuda_graph":
                self._capture(leaves)
        except RuntimeError as error:
            raise BuildError(
                asked=f"one inference of {where} on {device} ({mode}, batch {batch})",
                found=str(error).strip().splitlines()[0],
                next="Check that the graph runs at this batch, memory layout and device.",
            ) from error
        self.outputs = tuple(
            TensorSpec(name, tuple(tensor.shape), _numpy_name(tensor.dtype, name, where))
            for name, tensor in zip(self._output_names, self._latest, strict=True)
        )

    def _placed(self, arrays: Mapping[str, np.ndarray]) -> list[torch.Tensor]:
        # Copies: torch warns about arrays that may not be written to, and callers may reuse theirs.
        tensors = [torch.from_numpy(np.array(arrays[spec.name])).to(self._device) for spec in self.inputs]
        if self._channels_last:
            tensors = [t.contiguous(memory_format=torch.channels_last) if t.ndim == 4 else t for t in tensors]
        return tensors

    def _run_once(self, leaves: Sequence[torch.Tensor]) -> None:
        args, kwargs = pytree.tree_unflatten(list(leaves), self._in_spec)
        with torch.inference_mode():
            self._latest = pytree.tree_leaves(self._forward(*args, **kwargs))
        self._synchronise()

    def _synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _capture(self, leaves: list[torch.Tensor]) -> None:
        """Record one inference on buffers that stay; warmed up on a side stream, as capture demands."""
        args, kwargs = pytree.tree_unflatten(list(leaves), self._in_spec)
        side = torch.cuda.Stream(self._device)
        side.wait_stream(torch.cuda.current_stream(self._device))
        with torch.inference_mode():
            with torch.cuda.stream(side):
                for _ in range(_WARM_UP_CALLS):
                    self._forward(*args, **kwargs)
            torch.cuda.current_stream(self._device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self._latest = pytree.tree_leaves(self._forward(*args, **kwargs))
        self._graph, self._static, self._replayed = graph, leaves, self._latest

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.bind(feeds)()
        return self.bound_outputs()

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], None]:
        leaves = self._placed(checked_feeds(self.inputs, feeds))
        if self._graph is not None:
            with torch.inference_mode():
                for static, leaf in zip(self._static, leaves, strict=True):
                    static.copy_(leaf)
            return self._replay
        args, kwargs = pytree.tree_unflatten(leaves, self._in_spec)
        forward, leaves_of, synchronise = self._forward, pytree.tree_leaves, self._synchronise

        def call() -> None:
            with torch.inference_mode():
                self._latest = leaves_of(forward(*args, **kwargs))
            synchronise()

        return call

    def _replay(self) -> None:
        self._graph.replay()
        self._synchronise()
        self._latest = self._replayed

    def timings(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], Timings] | None:
        """On a GPU, from and to pinned memory, with CUDA events; None on the CPU."""
        if self._device.type != "cuda":
            return None
        arrays = checked_feeds(self.inputs, feeds)
        device = self._static if self._graph is not None else self._placed(arrays)
        host = [torch.from_numpy(np.array(arrays[spec.name])).pin_memory() for spec in self.inputs]
        self.bind(feeds)()  # so that there are outputs to make room for
        received = [torch.empty(t.shape, dtype=t.dtype, device="cpu").pin_memory() for t in self._latest]
        args, kwargs = pytree.tree_unflatten(device, self._in_spec)

        def copy_in() -> None:
            with torch.inference_mode():
                for there, here in zip(device, host, strict=True):
                    there.copy_(here, non_blocking=True)

        def launch() -> None:
            if self._graph is not None:
                self._graph.replay()
                self._latest = self._replayed
                return
            with torch.inference_mode():
                self._latest = pytree.tree_leaves(self._forward(*args, **kwargs))

        def copy_out() -> None:
            with torch.inference_mode():
                for here, there in zip(received, self._latest, strict=True):
                    here.copy_(there, non_blocking=True)

        return timed_parts(copy_in, launch, copy_out, lambda: torch.cuda.Event(enable_timing=True))

    def bound_outputs(self) -> dict[str, np.ndarray]:
        """The outputs of the latest call, copied to the host."""
        return {n: np.array(t.cpu().numpy()) for n, t in zip(self._output_names, self._latest, strict=True)}

    def example_leaves(self) -> list[torch.Tensor]:
        """Zeros for every input, on the device."""
        return self._placed({s.name: np.zeros(s.shape, s.dtype) for s in self.inputs})

    def __enter__(self) -> TorchSession:
        return self

    def close(self) -> None:
        """Drop the graph, the weights and the buffers."""
        self._graph, self._static, self._latest, self._replayed = None, [], [], []
        self._forward = _closed
        self.__dict__.pop("module", None)


def _closed(*_args: Any, **_kwargs: Any) -> Any:
    raise UsageError(asked="an inference", found="a closed session", next="Load the engine again.")


def graph_module(program: ExportedProgram) -> fx.GraphModule:
    """The program's module; newer versions of torch put guards into it unless told not to."""
    if "check_guards" in inspect.signature(program.module).parameters:
        return program.module(check_guards=False)
    return program.module()


def _numpy_name(dtype: torch.dtype, name: str, where: str) -> str:
    if dtype in (torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2):
        raise UsageError(
            asked=f"tensor {name!r} of {where} in a dtype that numpy has",
            found=dtype_name(dtype),
            next="Cast inside the module: keep its inputs and outputs in fp32 or fp16.",
        )
    return dtype_name(dtype)


def input_specs(program: ExportedProgram, batch: int, where: str) -> tuple[TensorSpec, ...]:
    """The inputs with their batch resolved.

    Raises:
        UsageError: a dimension other than the batch is dynamic, or the batch is fixed at another number.
    """
    placeholders = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    specs: list[TensorSpec] = []
    fixed: list[int] = []
    for name in program.graph_signature.user_inputs:
        value = placeholders.get(str(name))
        if not isinstance(value, torch.Tensor):
            raise UsageError(asked=f"tensors as inputs of {where}", found=f"{name!r}: {value!r}", next="Export again.")
        shape: Shape = tuple(
            n if isinstance(n, int) else batch if axis == 0 else -1 for axis, n in enumerate(value.shape)
        )
        if -1 in shape:
            raise UsageError(
                asked=f"input {name!r} of {where} with no dynamic dimension but the batch",
                found=f"shape {tuple(value.shape)}",
                next="Latency depends on every dimension: export the module with a fixed shape.",
            )
        fixed += shape[:1]
        specs.append(TensorSpec(str(name), shape, _numpy_name(value.dtype, str(name), where)))
    # A network of fixed batch may fold it into another dimension but never lose it.
    if fixed and not any(first % batch == 0 for first in fixed):
        raise UsageError(
            asked=f"{where} at the target's batch of {batch}",
            found=f"a program of fixed batch {fixed[0]}",
            next="Export it with a dynamic batch, or change the target's batch.",
        )
    return tuple(specs)


def _output_names(out_spec: pytree.TreeSpec) -> list[str]:
    structure = pytree.tree_unflatten(list(range(out_spec.num_leaves)), out_spec)
    if isinstance(structure, dict) and all(isinstance(index, int) for index in structure.values()):
        return [str(key) for key in sorted(structure, key=lambda key: structure[key])]
    if out_spec.num_leaves == 1:
        return ["output"]
    return [f"output_{index}" for index in range(out_spec.num_leaves)]
