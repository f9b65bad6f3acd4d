"""A student: the torch module of one architecture."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd_deploy.architecture import Architecture, architecture_from_dict
from akd_deploy.errors import AkdError, CorruptFileError, MismatchError, MissingFileError
from akd_deploy.search_space import SearchSpace, space_of
from akd_deploy.search_space.operations import INPUT, Operation, operations
from akd_deploy.storage import write_atomically

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
}


def _convolution(step: Operation) -> nn.Module:
    conv = nn.Conv2d(
        step.in_channels,
        step.out_channels,
        step.kernel_size,
        stride=step.stride,
        padding=step.kernel_size // 2,
        groups=step.groups,
        bias=not step.batch_norm,
    )
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    layers: dict[str, nn.Module] = {"conv": conv}
    if step.batch_norm:
        layers["norm"] = nn.BatchNorm2d(step.out_channels)
    module = nn.Sequential()
    for name, layer in layers.items():
        module.add_module(name, layer)
    return module


class Chain(nn.Module):
    """Runs a chain of operations: a whole network or a stretch of one.

    Maps (batch, in_channels, in_size, in_size) to what the last operation gives. Parameters are named after
    the operations: `b0.0.expand` lives at `steps.b0_0_expand`. Initialisation draws from torch's global
    generator: build under `torch.random.fork_rng`, as `student_from_architecture` does.
    """

    def __init__(self, steps: Sequence[Operation]) -> None:
        super().__init__()
        self.operations = tuple(steps)
        modules: dict[str, nn.Module] = {}
        for step in self.operations:
            if step.kind == "conv":
                modules[module_name(step)] = _convolution(step)
            elif step.kind == "linear":
                modules[module_name(step)] = nn.Linear(step.in_channels, step.out_channels)
        self.steps = nn.ModuleDict(modules)

    def forward(self, images: Tensor) -> Tensor:
        return self.every(images)[self.operations[-1].name]

    def every(self, images: Tensor) -> dict[str, Tensor]:
        """What each operation puts out, by its name, and the images themselves as `INPUT`."""
        tensors = {INPUT: images}
        for step in self.operations:
            tensors[step.name] = self._step(step, *(tensors[name] for name in step.inputs))
        return tensors

    def _step(self, step: Operation, x: Tensor, other: Tensor | None = None) -> Tensor:
        if step.kind == "conv":
            return activation_of(step)(self.steps[module_name(step)](x))
        if step.kind == "linear":
            return self.steps[module_name(step)](torch.flatten(x, 1))
        return without_weights(step, x, other)


class Student(Chain):
    """Maps images (batch, channels, height, width) to logits (batch, classes)."""

    def __init__(self, space: SearchSpace, architecture: Architecture) -> None:
        super().__init__(operations(space.layers(architecture)))
        self.architecture = architecture
        self.input_shape = space.input_shape


def without_weights(step: Operation, x: Tensor, other: Tensor | None = None) -> Tensor:
    """What an operation that has no weights makes of its inputs."""
    if step.kind == "pool":
        return F.avg_pool2d(x, 3, stride=step.stride, padding=1)
    if step.kind == "max_pool":
        return F.max_pool2d(x, 3, stride=step.stride, padding=1)
    if step.kind == "global_pool":
        return x.mean((2, 3), keepdim=True)
    assert other is not None, step
    if step.kind == "concat":
        return torch.cat([x, other], dim=1)
    return x + other if step.kind == "add" else x * other


def activation_of(step: Operation) -> Callable[[Tensor], Tensor]:
    """What an operation does to its result."""
    return _ACTIVATIONS[step.activation]


def module_name(step: Operation) -> str:
    """The key of an operation's module in `Student.steps`: torch allows no dots in it."""
    return step.name.replace(".", "_")


def student_from_architecture(architecture: Architecture, seed: int) -> Student:
    """A freshly initialised student; one seed gives one set of weights, and no global state is moved."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - inside fork_rng: nn.init knows no generator argument everywhere
        return Student(space_of(architecture), architecture)


def save_student(student: Student, path: Path) -> None:
    """Write weights and architecture to one `.safetensors` file (the architecture in its metadata)."""
    from safetensors.torch import save

    state = {name: tensor.detach().cpu().contiguous() for name, tensor in student.state_dict().items()}
    write_atomically(path, save(state, metadata={"architecture": student.architecture.text}))


def load_student(path: Path) -> Student:
    """Read what `save_student` wrote; the student is in evaluation mode.

    Raises:
        MissingFileError, CorruptFileError: the file is not there, or not such a file.
        MismatchError: its weights do not belong to its architecture.
    """
    import json

    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise MissingFileError(asked=f"the student {path}", found="no such file", next="Check the path.")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - safe_open is no dict
    except SafetensorError as error:
        raise CorruptFileError(
            asked=f"a student in {path}", found=f"no safetensors ({error})", next="Train or copy it again."
        ) from error
    if "architecture" not in metadata:
        raise CorruptFileError(
            asked=f"a student in {path}",
            found="weights without an architecture",
            next="Students are written by `akd-deploy distill`; for other networks use their ONNX.",
        )
    try:
        architecture = architecture_from_dict(json.loads(metadata["architecture"]), where=str(path))
        student = student_from_architecture(architecture, seed=0)
    except (AkdError, json.JSONDecodeError) as error:
        raise CorruptFileError(
            asked=f"the architecture of the student in {path}", found=str(error), next="Train or copy it again."
        ) from error
    shapes = {name: tuple(tensor.shape) for name, tensor in student.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    differing = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if differing:
        name = differing[0]
        raise MismatchError(
            asked=f"weights of architecture {architecture.digest} in {path}",
            found=f"{len(differing)} that differ, first {name}: {found.get(name, 'missing')} where its shape is "
            f"{shapes.get(name, 'none')}",
            next="Train or copy it again.",
        )
    student.load_state_dict(state)
    return student.eval()
