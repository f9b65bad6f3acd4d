"""The operators that an exported torch graph runs, with the shapes they see."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import fx
from torch._subclasses.fake_tensor import FakeTensorMode

from akd_deploy.engines.precision_audit import Layer
from akd_deploy.errors import UncoveredOperatorError
from akd_deploy.kernel import BYTES_PER_ELEMENT, AttributeValue, ExecutedKernel, Kernel

_MATRIX = ("conv", "linear", "mm", "bmm", "matmul", "einsum", "scaled_dot_product")
# The arguments that an operator's cost can depend on, under this project's names.
_ATTRIBUTES = {
    "kernel_size": "kernel_size",
    "stride": "strides",
    "dilation": "dilations",
    "groups": "groups",
    "transposed": "transposed",
    "dim": "dim",
    "dims": "dim",
    "keepdim": "keepdim",
    "is_causal": "is_causal",
}


def dtype_name(dtype: torch.dtype) -> str:
    """This project's name of a torch element type.

    Raises:
        UncoveredOperatorError: an element type that kernels do not have here (complex, 4-bit).
    """
    name = str(dtype).removeprefix("torch.")
    name = {"float8_e4m3fn": "float8e4m3", "float8_e5m2": "float8e5m2"}.get(name, name)
    if name not in BYTES_PER_ELEMENT:
        raise UncoveredOperatorError(
            [name], asked="the element types of a graph", next=f"Known: {', '.join(BYTES_PER_ELEMENT)}."
        )
    return name


def _tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, list | tuple):
        return [tensor for item in value for tensor in _tensors(item)]
    return []


def _attribute(value: Any) -> AttributeValue | None:
    if isinstance(value, int):
        return int(value)
    if isinstance(value, list | tuple) and value and all(isinstance(item, int) for item in value):
        return tuple(int(item) for item in value)
    return None


def _attributes(
    target: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]
) -> dict[str, AttributeValue]:
    attributes: dict[str, AttributeValue] = {}
    operator = str(target.overloadpacket)
    for position, argument in enumerate(target._schema.arguments):
        value = args[position] if position < len(args) else kwargs.get(argument.name, argument.default_value)
        if argument.name == "weight" and operator.startswith("aten.conv") and isinstance(value, torch.Tensor):
            attributes["kernel_size"] = tuple(value.shape[2:])
        name, told = _ATTRIBUTES.get(argument.name), _attribute(value)
        if name is not None and told is not None:
            attributes[name] = told
    if "kernel_size" in attributes and "pool" in operator:
        attributes.setdefault("strides", attributes["kernel_size"])  # a pool without strides steps by its window
    return attributes


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps what every operator read and wrote."""

    def __init__(self, module: fx.GraphModule, keep_views: bool, mode: FakeTensorMode) -> None:
        super().__init__(module)
        self.keep_views, self.mode = keep_views, mode
        self.kernels: list[ExecutedKernel] = []

    def fetch_attr(self, target: str) -> Any:
        value = super().fetch_attr(target)
        return self.mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    def run_node(self, n: fx.Node) -> Any:
        if n.op != "call_function" or not isinstance(n.target, torch._ops.OpOverload):
            return super().run_node(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        result = super().run_node(n)
        outputs = _tensors(result)
        inputs = _tensors([*args, *kwargs.values()])
        if outputs and (self.keep_views or not _is_view(n.target, inputs, outputs)):
            kernel = Kernel(
                op=str(n.target.overloadpacket),
                inputs=tuple(tuple(tensor.shape) for tensor in inputs),
                outputs=tuple(tuple(tensor.shape) for tensor in outputs),
                dtype=dtype_name((inputs or outputs)[0].dtype),
                attributes=tuple(_attributes(n.target, args, kwargs).items()),
            )
            modules = [path for path, _ in n.meta.get("nn_module_stack", {}).values() if path]
            self.kernels.append(ExecutedKernel(kernel, n.name, tuple(modules[-1:])))
        return result


def _is_view(target: torch._ops.OpOverload, inputs: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> bool:
    """Whether the outputs are other views of what the inputs hold, so that the device has nothing to do."""
    if any(argument.alias_info is not None and argument.alias_info.is_write for argument in target._schema.arguments):
        return False  # it works in place
    held = {tensor.untyped_storage()._cdata for tensor in inputs}
    return all(tensor.untyped_storage()._cdata in held for tensor in outputs)


def recorded_kernels(
    module: fx.GraphModule, inputs: Sequence[torch.Tensor], *, keep_views: bool
) -> tuple[ExecutedKernel, ...]:
    """List the graph's operators in order, from a run that computes shapes only.

    `nodes` is the path of the submodule each came from.

    Operators that make no tensor (sizes, assertions) are left out.

    Args:
        keep_views: list operators that only look at memory in another shape too: the host calls them in eager
            mode, and nothing is left of them in a CUDA graph.
    """
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        recorder = _Recorder(module, keep_views, mode)
        recorder.run(*(mode.from_tensor(x) for x in inputs), enable_io_processing=False)
    return tuple(recorder.kernels)


def layers(kernels: Iterable[ExecutedKernel]) -> list[Layer]:
    """The same operators for the precision audit."""
    return [
        Layer(
            name=executed.name,
            dtype=executed.kernel.dtype,
            is_matrix=any(part in executed.kernel.op.removeprefix("aten.") for part in _MATRIX),
        )
        for executed in kernels
    ]
