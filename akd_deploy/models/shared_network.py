"""One set of weights for every network of a search space: a candidate is judged without a training of its own.

Weights are shared by place and operator (Pham et al. 2018, arXiv:1802.03268): each window of one size has one tensor,
made for the widest network, of which narrower ones use the first channels (Cai et al. 2020, arXiv:1908.09791).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from akd_deploy.architecture import Architecture
from akd_deploy.errors import UsageError
from akd_deploy.models.student import Student, activation_of, module_name, student_from_architecture, without_weights
from akd_deploy.search_space import Layer, SearchSpace
from akd_deploy.search_space.operations import INPUT, Operation, operations


class SharedNetwork(nn.Module):
    """Runs any network of a space on images (batch, C, H, W) → logits (batch, classes).

    Batch norms normalise by the statistics of the batch they see, in evaluation too: running ones would be a mixture
    over networks. One seed gives one set of weights.
    """

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__()
        self.space = space
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.ParameterDict()
        for key, steps in sorted(_shared_operations(space).items()):
            out = max(step.out_channels for step in steps)
            inside = max(step.in_channels // step.groups for step in steps)
            step = steps[0]
            if step.kind == "linear":
                weight = torch.empty(out, inside)
                nn.init.normal_(weight, std=inside**-0.5, generator=generator)
            else:
                weight = torch.empty(out, inside, step.kernel_size, step.kernel_size)
                nn.init.kaiming_normal_(weight, mode="fan_out", nonlinearity="relu", generator=generator)
            self.weights[f"{key}_weight"] = nn.Parameter(weight)
            self.weights[f"{key}_bias"] = nn.Parameter(torch.zeros(out))
            if step.batch_norm:
                self.weights[f"{key}_scale"] = nn.Parameter(torch.ones(out))

    def forward(self, images: Tensor, architecture: Architecture) -> Tensor:
        """Logits of one network of the space.

        Raises:
            MismatchError: an architecture of another space.
        """
        tensors = {INPUT: images}
        keyed = keyed_operations(self.space.layers(architecture))
        for key, step in keyed:
            tensors[step.name] = self._step(key, step, *(tensors[name] for name in step.inputs))
        return tensors[keyed[-1][1].name]

    def _step(self, key: str, step: Operation, x: Tensor, other: Tensor | None = None) -> Tensor:
        if step.kind not in ("conv", "linear"):
            return without_weights(step, x, other)
        part = self.sliced(key, step)
        if step.kind == "linear":
            return F.linear(torch.flatten(x, 1), part["weight"], part["bias"])
        bias = None if step.batch_norm else part["bias"]
        x = F.conv2d(x, part["weight"], bias, step.stride, step.kernel_size // 2, groups=step.groups)
        if step.batch_norm:
            x = F.batch_norm(x, None, None, part["scale"], part["bias"], training=True)
        return activation_of(step)(x)

    def sliced(self, key: str, step: Operation) -> dict[str, Tensor]:
        """The part of a shared tensor that an operation uses: "weight", "bias" (the norm's where there is one) and the
        norm's "scale"."""
        out, inside = step.out_channels, step.in_channels // step.groups
        part = {"weight": self.weights[f"{key}_weight"][:out, :inside], "bias": self.weights[f"{key}_bias"][:out]}
        if step.batch_norm:
            part["scale"] = self.weights[f"{key}_scale"][:out]
        return part

    def student(self, architecture: Architecture, batches: Iterable[Tensor]) -> Student:
        """A network of its own with the shared weights, in evaluation mode; running statistics are those of `batches`.

        Raises:
            UsageError: no batch.
        """
        student = student_from_architecture(architecture, seed=0)
        with torch.no_grad():
            for key, step in keyed_operations(self.space.layers(architecture)):
                if step.kind not in ("conv", "linear"):
                    continue
                part = self.sliced(key, step)
                module: Any = student.steps[module_name(step)]
                target = module if step.kind == "linear" else module.conv
                target.weight.copy_(part["weight"])
                if step.batch_norm:
                    module.norm.weight.copy_(part["scale"])
                    module.norm.bias.copy_(part["bias"])
                else:
                    target.bias.copy_(part["bias"])
        _calibrate(student, batches)
        return student.eval()


def keyed_operations(layers: Iterable[Layer]) -> list[tuple[str, Operation]]:
    """A network's operations in order, each with the name of the tensor it shares with those of other networks that
    have the same operator and window in its place."""
    source, found = INPUT, []
    for layer in layers:
        steps = operations([layer], source)
        found += [(f"{module_name(step)}_{layer.op}{layer.expansion}_{step.kernel_size}", step) for step in steps]
        source = steps[-1].name
    return found


def _shared_operations(space: SearchSpace) -> dict[str, list[Operation]]:
    """Key → every operation of the space's networks that has weights and this key."""
    layers = {}
    for segment in space.segments:
        for values in itertools.product(*(space.choices[name] for name in segment.choices)):
            found = space.segment_layers(segment, dict(zip(segment.choices, values, strict=True)))
            layers.update(dict.fromkeys(found))
    shared: dict[str, list[Operation]] = {}
    for layer in layers:
        for key, step in keyed_operations([layer]):
            if step.kind in ("conv", "linear"):
                shared.setdefault(key, []).append(step)
    return shared


def _calibrate(student: Student, batches: Iterable[Tensor]) -> None:
    """Give batch norms the mean statistics of some batches."""
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's name for a plain mean over batches
    student.train()
    seen = 0
    with torch.no_grad():
        for batch in batches:
            student(batch)
            seen += 1
    for norm in norms:
        norm.momentum = 0.1
    if not seen:
        raise UsageError(
            asked="a student with shared weights", found="no batch of images", next="Give at least one batch."
        )


class SampledNetwork(nn.Module):
    """A shared network that is another candidate's at every call: what a training of the shared weights trains.

    The candidates are taken in turn, over and over.
    """

    def __init__(self, shared: SharedNetwork, candidates: Sequence[Architecture]) -> None:
        super().__init__()
        if not candidates:
            raise UsageError(asked="candidates to train shared weights on", found="none", next="Give at least one.")
        self.shared = shared
        self._turns = itertools.cycle(candidates)

    def forward(self, images: Tensor) -> Tensor:
        return self.shared(images, next(self._turns))
