"""How a pathway's weight changes the loss on held-out images after a training step: the gradient that DistPro follows.

One step on L_train = CE + Σ_i ω_i D_i from w gives w' = w − η (∇L_train + decay · w + momentum). As L_train is linear
in ω, exactly

    ∂L_val(w') / ∂ω_i = −η ⟨∇_w D_i(w), v⟩   with   v = ∇L_val(w'):

(−η (1 + μ) with Nesterov's momentum μ, whose step has the gradient once more)

how far the step that pathway i asks for goes the way the held-out images do. All products together are one derivative
of (D_1 … D_P) along v, which forward mode computes without a backward pass. It need not pass through the connectors:
D_i sees the student at one place x_i only, the backward pass of L_train has ω_i ∂D_i/∂x_i there anyway, and what is
left is the derivative of x_i along v. DistPro (Deng et al. 2022, arXiv:2204.05547) and DARTS (Liu et al. 2019,
arXiv:1806.09055, equation 8) take a difference instead.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.overrides import TorchFunctionMode

from akd_deploy.distill.pathways import Pathways
from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.models.taps import tapped

Weights = Mapping[str, Tensor]
RADIUS = 1e-2
"""Of a finite difference, over the norm of what it differs along (DARTS)."""


class Taught(nn.Module):
    """A student with its pathways as one network: images and what the teacher says of them → logits, distances."""

    def __init__(self, student: nn.Module, pathways: Pathways) -> None:
        super().__init__()
        self.student = student
        self.pathways = pathways

    def inputs(self, images: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The student's logits, and what each pathway compares of it."""
        logits, features = tapped(self.student, images, self.pathways.student_points)
        return logits, self.pathways.inputs(logits, features)

    def forward(self, images: Tensor, taught: tuple[Tensor, Sequence[Tensor]]) -> tuple[Tensor, Tensor]:
        logits, features = tapped(self.student, images, self.pathways.student_points)
        return logits, self.pathways(logits, features, taught)


class _Inputs(nn.Module):
    """Images → what each pathway compares of the student."""

    def __init__(self, network: Taught) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.network.inputs(images)[1]


@dataclass(frozen=True, eq=False)
class TaughtBatch:
    """`images` (batch, C, H, W), `labels` (batch,), and the teacher's logits and features of them."""

    images: Tensor
    labels: Tensor
    taught: tuple[Tensor, Sequence[Tensor]]


@dataclass(frozen=True, eq=False)
class Step:
    """One step of SGD as torch makes it. With d = gradient + decay · w (no decay where `spared`) and the moving sum
    m ← μ m + d it is w' = w − rate · m, or with Nesterov's momentum w' = w − rate (d + μ m). `moving` has the m of
    before, of weights that have one."""

    rate: float
    momentum: float = 0.0
    weight_decay: float = 0.0
    moving: Mapping[str, Tensor] | None = None
    nesterov: bool = False
    spared: frozenset[str] = frozenset()

    @property
    def gain(self) -> float:
        """How far w' moves against the gradient's change."""
        return self.rate * (1 + self.momentum) if self.nesterov else self.rate

    def after(self, weights: Weights, gradients: Weights) -> dict[str, Tensor]:
        """The weights after the step."""
        moved = {}
        for name, weight in weights.items():
            d = gradients[name] if name in self.spared else gradients[name] + self.weight_decay * weight
            m = d if self.moving is None or name not in self.moving else self.momentum * self.moving[name] + d
            moved[name] = weight - self.rate * (d + self.momentum * m if self.nesterov else m)
        return moved


@contextmanager
def without_running_statistics(network: nn.Module) -> Iterator[None]:
    """Let batch norms use the batch's statistics and keep none: what a step looks ahead at is not what is trained."""
    norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    kept = [(norm, norm.running_mean, norm.running_var, norm.num_batches_tracked) for norm in norms]
    try:
        for norm in norms:
            norm.track_running_stats = False
            norm.running_mean = norm.running_var = norm.num_batches_tracked = None
        yield
    finally:
        for norm, mean, variance, count in kept:
            norm.track_running_stats = True
            norm.running_mean, norm.running_var, norm.num_batches_tracked = mean, variance, count


def student_weights(network: Taught) -> dict[str, Tensor]:
    """Name → the student's trainable weights; the connectors have no part in what is held out."""
    return {name: p.detach() for name, p in network.student.named_parameters() if p.requires_grad}


def _distances(network: Taught, batch: TaughtBatch) -> Callable[[Weights], Tensor]:
    """(pathways,) distances as a function of the student's weights."""

    def of(weights: Weights) -> Tensor:
        state = {f"student.{name}": weight for name, weight in weights.items()}
        distances: Tensor = functional_call(network, state, (batch.images, batch.taught))[1]
        return distances

    return of


LEAST_WEIGHT = 1e-6
"""Of a pathway, from which its part of a backward pass tells what it would be at weight 1."""


def sensitivities(
    pathways: Pathways, inputs: Sequence[Tensor], taught: tuple[Tensor, Sequence[Tensor]], omega: Tensor
) -> list[Tensor]:
    """∂D_i/∂x_i at each pathway's input, after a backward pass of Σ_i ω_i D_i to which the inputs retained their grad.

    A pathway of (nearly) no weight left nothing there; its distance is computed and differentiated again.
    """
    found = []
    for i, (compared, weight) in enumerate(zip(inputs, omega.tolist(), strict=True)):
        if compared.grad is not None and abs(weight) >= LEAST_WEIGHT:
            found.append(compared.grad / weight)
        else:
            leaf = compared.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(pathways.distance(i, leaf, taught), leaf)
            found.append(gradient)
    return found


def _held_out_gradient(network: Taught, weights: Weights, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """∇L_val at some weights."""
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    loss = F.cross_entropy(functional_call(network.student, leaves, (images,)), labels)
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    return {
        name: torch.zeros_like(leaf) if gradient is None else gradient
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }


GRADIENTS = ("exact", "finite-difference", "current")
"""How `meta_gradient` is computed: in forward mode; by DARTS's difference, for which two forward passes are enough, as
∇_ω L_train are the distances themselves; and in forward mode with v at the weights before the step, which saves
that."""


def meta_gradient(
    network: Taught,
    batch: TaughtBatch,
    held_out: tuple[Tensor, Tensor],
    gradients: Weights,
    step: Step,
    kind: str = "exact",
    compared: tuple[Sequence[Tensor], Tensor] | None = None,
) -> Tensor:
    """(pathways,) ∂L_val(w') / ∂ω.

    Args:
        network: in training mode, at w; it is left as it is, running statistics too.
        held_out: images and labels that the training does not learn from.
        gradients: ∇L_train(w) of the student's weights, by name.
        step: the optimiser's rule.
        kind: one of `GRADIENTS`.
        compared: what each pathway compared in the pass that gave `gradients`, its grad retained, and ω; without it
            forward mode goes through the connectors too. Of no use to the finite difference.

    Raises:
        UnknownNameError: no such kind.
    """
    if kind not in GRADIENTS:
        raise UnknownNameError("meta-gradient", kind, GRADIENTS)
    weights = student_weights(network)
    with without_running_statistics(network):
        ahead = weights if kind == "current" else step.after(weights, gradients)
        v = _held_out_gradient(network, ahead, *held_out)
        distances = _distances(network, batch)
        if kind in ("exact", "current"):
            if compared is not None:
                told = sensitivities(network.pathways, compared[0], batch.taught, compared[1])
                return -step.gain * _products(network, batch.images, told, weights, v)
            return -step.gain * _derivative_along(distances, weights, v)
        radius = RADIUS / (float(torch.stack([g.square().sum() for g in v.values()]).sum().sqrt()) + 1e-12)
        up, down = ({name: w + sign * radius * v[name] for name, w in weights.items()} for sign in (1, -1))
        with torch.no_grad():
            return -step.gain * (distances(up) - distances(down)) / (2 * radius)


@contextmanager
def _forward_mode() -> Iterator[None]:
    """Forward mode, without torch's warning about what it compiles for itself when it is first entered."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)
        with forward_ad.dual_level():
            yield


def _derivative_along(distances: Callable[[Weights], Tensor], weights: Weights, v: Weights) -> Tensor:
    """(pathways,) derivatives of the distances along v, in forward mode."""
    with _forward_mode():
        dual = {name: forward_ad.make_dual(weight, v[name]) for name, weight in weights.items()}
        along = forward_ad.unpack_dual(distances(dual)).tangent
    # Where no distance depends on the weights there is no tangent at all.
    return torch.zeros(()) if along is None else along.detach()


def _products(network: Taught, images: Tensor, told: Sequence[Tensor], weights: Weights, v: Weights) -> Tensor:
    """(pathways,) ⟨∂D_i/∂x_i, derivative of x_i along v⟩."""
    found = []
    with _forward_mode():
        dual = {f"network.student.{name}": forward_ad.make_dual(w, v[name]) for name, w in weights.items()}
        inputs = functional_call(_Inputs(network), dual, (images,))
        for compared, sensitivity in zip(inputs, told, strict=True):
            tangent = forward_ad.unpack_dual(compared).tangent
            found.append(sensitivity.new_zeros(()) if tangent is None else (sensitivity * tangent).sum())
    return torch.stack(found).detach()


class TwiceDifferentiable(TorchFunctionMode):
    """Within it functions whose second derivative torch lacks are made of such that have one: hard sigmoids."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _HARD_SIGMOIDS:
            return F.relu6((args[0] if args else kwargs["input"]) + 3) / 6
        return func(*args, **(kwargs or {}))


_HARD_SIGMOIDS = (F.hardsigmoid, torch._C._nn.hardsigmoid)


@contextmanager
def twice_differentiable(what: str) -> Iterator[None]:
    """Look ahead of steps that are differentiated.

    Raises:
        UsageError: a function of the network whose derivative has none.
    """
    try:
        with TwiceDifferentiable():
            yield
    except RuntimeError as error:
        if "is not implemented" not in str(error):
            raise
        raise UsageError(
            asked=f"{what} through the network",
            found=str(error).splitlines()[0],
            next="Use another activation, or a gradient that looks one step ahead, as exact.",
        ) from error


def multi_step_gradient(
    network: Taught,
    batches: Sequence[TaughtBatch],
    held_out: tuple[Tensor, Tensor],
    omega: Tensor,
    rate: float,
    ce_weight: float = 1.0,
) -> Tensor:
    """(pathways,) ∂L_val(w_K) / ∂ω after K plain gradient steps with the same weights ω, by reverse mode through all.

    Costs a graph of all steps: for a look further than one step, at K + 1 times its price.
    """
    omega = omega.detach().requires_grad_()
    weights: dict[str, Tensor] = {name: w.requires_grad_() for name, w in student_weights(network).items()}
    with without_running_statistics(network), twice_differentiable("a look several steps ahead"):
        for batch in batches:
            state = {f"student.{name}": weight for name, weight in weights.items()}
            logits, distances = functional_call(network, state, (batch.images, batch.taught))
            loss = ce_weight * F.cross_entropy(logits, batch.labels) + (omega * distances).sum()
            gradients = torch.autograd.grad(loss, list(weights.values()), create_graph=True, allow_unused=True)
            weights = {
                name: weight if gradient is None else weight - rate * gradient
                for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
            }
        loss = F.cross_entropy(functional_call(network.student, weights, (held_out[0],)), held_out[1])
        (found,) = torch.autograd.grad(loss, omega)
    return found.detach()
