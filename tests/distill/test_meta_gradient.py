"""The meta-gradient: by hand, against autograd through the step, and its kinds against each other."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call

from akd_deploy.distill import TrainingSettings
from akd_deploy.distill.meta_gradient import (
    GRADIENTS,
    Step,
    Taught,
    TaughtBatch,
    meta_gradient,
    multi_step_gradient,
    student_weights,
    without_running_statistics,
)
from akd_deploy.distill.pathways import Pathways, enumerate_pathways
from akd_deploy.distill.process_training import _step_of
from akd_deploy.distill.trainer import optimiser_for
from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.models.taps import feature_points

CLASSES = 3


def convolutional(seed: int, width: int) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.Tanh(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.Tanh(),
        nn.Flatten(), nn.Linear(width * 9, CLASSES),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4, generator=generator)
    return net.double()


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def setting(seed: int = 0):
    """A network, a training batch, a held-out one, weights of pathways, and a step with momentum and decay."""
    teacher, student = convolutional(seed, 5).eval(), convolutional(seed + 1, 3)
    example = torch.zeros(2, 1, 6, 6, dtype=torch.float64)
    pathways = enumerate_pathways(["2", "5"], ["2", "5"], transforms=("linear", "attention"))
    generator = torch.Generator().manual_seed(seed)
    network = Taught(student, Pathways(pathways, teacher, student, example, generator).double())
    network.train()
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    images = draw(seed + 2, 6, 1, 6, 6)
    batch = TaughtBatch(images, labels, network.pathways.taught(teacher, images))
    omega = draw(seed + 3, len(pathways)).abs()
    moving = {name: 0.1 * draw(i, *w.shape) for i, (name, w) in enumerate(student_weights(network).items())}
    return network, batch, (draw(seed + 4, 6, 1, 6, 6), labels), omega, Step(0.3, 0.9, 1e-2, moving)


def loss_of(network, weights, batch, omega):
    state = {f"student.{name}": weight for name, weight in weights.items()}
    logits, distances = functional_call(network, state, (batch.images, batch.taught))
    return F.cross_entropy(logits, batch.labels) + (omega * distances).sum()


def through_the_step(network, batch, held_out, omega, step):
    """Autograd through the step itself, with nothing but torch."""
    omega = omega.clone().requires_grad_()
    weights = {name: w.clone().requires_grad_() for name, w in student_weights(network).items()}
    found = torch.autograd.grad(loss_of(network, weights, batch, omega), list(weights.values()), create_graph=True)
    moved = {
        name: w - step.rate * (g + step.weight_decay * w + step.momentum * step.moving[name])
        for (name, w), g in zip(weights.items(), found, strict=True)
    }
    loss = F.cross_entropy(functional_call(network.student, moved, (held_out[0],)), held_out[1])
    return torch.autograd.grad(loss, omega)[0]


def gradients_of(network, batch, omega):
    weights = {name: w.clone().requires_grad_() for name, w in student_weights(network).items()}
    found = torch.autograd.grad(loss_of(network, weights, batch, omega), list(weights.values()))
    return dict(zip(weights, found, strict=True))


@given(st.integers(0, 10_000))
@settings(max_examples=8, deadline=None)
def test_the_exact_one_is_autograds_through_the_step(seed: int) -> None:
    network, batch, held_out, omega, step = setting(seed)
    expected = through_the_step(network, batch, held_out, omega, step)
    found = meta_gradient(network, batch, held_out, gradients_of(network, batch, omega), step)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-12)
    assert expected.abs().max() > 1e-6


def after_backward(network, batch, omega):
    """∇L_train and what each pathway compared, as a training's one backward pass leaves them."""
    network.student.zero_grad()
    logits, inputs = network.inputs(batch.images)
    for compared in inputs:
        compared.retain_grad()
    distances = network.pathways.compared(inputs, batch.taught)
    (F.cross_entropy(logits, batch.labels) + (omega * distances).sum()).backward()
    return {name: p.grad.clone() for name, p in network.student.named_parameters()}, (inputs, omega)


@pytest.mark.parametrize("kind", ["exact", "current"])
@given(seed=st.integers(0, 10_000), zeros=st.sets(st.integers(0, 6)))
@settings(max_examples=8, deadline=None)
def test_it_is_the_same_from_what_the_training_has_computed_whatever_has_no_weight(seed, zeros, kind) -> None:
    network, batch, held_out, omega, step = setting(seed)
    for i, tiny in zip(zeros, (0.0, 1e-9, 0.0, 1e-300, 0.0, 0.0, 0.0), strict=False):
        omega[i] = tiny
    gradients, compared = after_backward(network, batch, omega)
    expected = meta_gradient(network, batch, held_out, gradients, step, kind)
    if kind == "exact":
        assert torch.allclose(expected, through_the_step(network, batch, held_out, omega, step), rtol=1e-6, atol=1e-12)
    assert torch.allclose(meta_gradient(network, batch, held_out, gradients, step, kind, compared), expected, rtol=1e-9)


def test_a_search_asks_no_connector_again(monkeypatch) -> None:
    network, batch, held_out, omega, step = setting()
    gradients, compared = after_backward(network, batch, omega + 0.1)
    calls: list[int] = []
    for connect in network.pathways.connectors:
        connect.register_forward_hook(lambda *_: calls.append(1))
    meta_gradient(network, batch, held_out, gradients, step, "exact", compared)
    assert not calls
    meta_gradient(network, batch, held_out, gradients, step, "exact")
    assert len(calls) == len(omega) - 1


def test_darts_difference_is_near_it() -> None:
    network, batch, held_out, omega, step = setting()
    gradients = gradients_of(network, batch, omega)
    exact = meta_gradient(network, batch, held_out, gradients, step)
    found = meta_gradient(network, batch, held_out, gradients, step, "finite-difference")
    assert torch.allclose(found, exact, rtol=1e-2, atol=1e-6)


def test_the_cheaper_one_takes_the_held_out_gradient_where_the_weights_are() -> None:
    network, batch, held_out, omega, step = setting()
    gradients = gradients_of(network, batch, omega)
    found = meta_gradient(network, batch, held_out, gradients, step, "current")
    standing = meta_gradient(network, batch, held_out, gradients, Step(0.0))
    assert standing.abs().max() == 0
    weights = {name: w.clone().requires_grad_() for name, w in student_weights(network).items()}
    v = torch.autograd.grad(
        F.cross_entropy(functional_call(network.student, weights, (held_out[0],)), held_out[1]), list(weights.values())
    )
    for i in range(len(omega)):
        state = {f"student.{name}": weight for name, weight in weights.items()}
        distance = functional_call(network, state, (batch.images, batch.taught))[1][i]
        own = torch.autograd.grad(distance, list(weights.values()), allow_unused=True)
        along = sum(float((a * b).sum()) for a, b in zip(own, v, strict=True) if a is not None)
        assert float(found[i]) == pytest.approx(-step.rate * along, rel=1e-6, abs=1e-12)


class Scaled(nn.Module):
    """Logits (w x, 0): one weight, so that everything can be done by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.w * x[:, 0], torch.zeros(len(x), dtype=torch.float64)], dim=1)


def test_it_can_be_computed_by_hand() -> None:
    # The one pathway is D = KL of logits at temperature 1. With the teacher's chances q = (1, 0) of an image x = 2,
    # D(w) = ln(1 + e^{−2w}), D'(w) = −2 / (1 + e^{2w}). Held out is x = 1 of class 1: L(w) = ln(1 + e^{w}),
    # L'(w) = e^w / (1 + e^w). "current": −η D'(1) L'(1).
    class Only(nn.Module):
        student_points: tuple[str, ...] = ()

        def forward(self, logits, features, taught):
            return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long))[None]

    student = Scaled()
    network = Taught(student, Only())  # type: ignore[arg-type]
    batch = TaughtBatch(torch.tensor([[2.0]], dtype=torch.float64), torch.tensor([0]), (torch.zeros(1, 2), []))
    held_out = torch.tensor([[1.0]], dtype=torch.float64), torch.tensor([1])
    e = float(torch.tensor(1.0, dtype=torch.float64).exp())
    expected = -0.5 * (-2 / (1 + e**2)) * (e / (1 + e))
    found = meta_gradient(network, batch, held_out, {"w": torch.tensor(0.0)}, Step(0.5), "current")
    assert float(found) == pytest.approx(expected, rel=1e-9)
    # With a gradient g the step goes to w' = 1 − η g before the held-out loss is asked: w' = 0.5 for g = 1.
    half = float(torch.tensor(0.5, dtype=torch.float64).exp())
    ahead = meta_gradient(network, batch, held_out, {"w": torch.tensor(1.0)}, Step(0.5))
    assert float(ahead) == pytest.approx(-0.5 * (-2 / (1 + e**2)) * (half / (1 + half)), rel=1e-9)


def test_it_leaves_the_network_as_it_was() -> None:
    network, batch, held_out, omega, step = setting()
    gradients = gradients_of(network, batch, omega)
    before = copy.deepcopy(network.state_dict())
    for kind in GRADIENTS:
        meta_gradient(network, batch, held_out, gradients, step, kind)
    after = network.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(m.track_running_stats for m in network.modules() if isinstance(m, nn.BatchNorm2d))


def test_several_steps_are_autograds_through_all_and_one_of_them_is_the_exact_one() -> None:
    network, batch, held_out, omega, _ = setting()
    plain = Step(0.3)
    one = multi_step_gradient(network, [batch], held_out, omega, plain.rate)
    exact = meta_gradient(network, batch, held_out, gradients_of(network, batch, omega), plain)
    assert torch.allclose(one, exact, rtol=1e-6, atol=1e-12)
    two = multi_step_gradient(network, [batch, batch], held_out, omega, plain.rate)

    def after_two(omega: torch.Tensor) -> float:
        weights = {name: w.clone().requires_grad_() for name, w in student_weights(network).items()}
        for _ in range(2):
            found = torch.autograd.grad(loss_of(network, weights, batch, omega), list(weights.values()))
            weights = {
                n: (w - 0.3 * g).detach().requires_grad_() for (n, w), g in zip(weights.items(), found, strict=True)
            }
        return float(F.cross_entropy(functional_call(network.student, weights, (held_out[0],)), held_out[1]).detach())

    for i in range(len(omega)):
        bump = torch.zeros_like(omega)
        bump[i] = 1e-5
        assert float(two[i]) == pytest.approx(
            (after_two(omega + bump) - after_two(omega - bump)) / 2e-5, rel=1e-3, abs=1e-8
        )


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("begun", [False, True])
def test_the_step_is_the_one_that_the_optimiser_of_a_training_makes(momentum: float, begun: bool) -> None:
    """Nesterov's momentum, and decay that spares norms and biases: by differences through `optimiser.step()` itself."""
    training = TrainingSettings(steps=10, learning_rate=0.3, momentum=momentum, weight_decay=1e-2, warmup=0)
    network, batch, held_out, omega, _ = setting(3)
    at_first = copy.deepcopy(network)

    def prepared(network):
        optimiser = optimiser_for(network.student, training)
        if begun:  # a step before this one, for the moving sums
            backward(network, omega)
            optimiser.step()
        return optimiser

    def backward(network, omega):
        network.student.zero_grad()
        logits, distances = network(batch.images, batch.taught)
        (F.cross_entropy(logits, batch.labels) + (omega * distances).sum()).backward()

    def after(omega: torch.Tensor) -> float:
        copied = copy.deepcopy(at_first)
        optimiser = prepared(copied)
        backward(copied, omega)
        optimiser.step()
        with torch.no_grad(), without_running_statistics(copied):
            return float(F.cross_entropy(copied.student(held_out[0]), held_out[1]))

    optimiser = prepared(network)
    backward(network, omega)
    gradients = {name: parameter.grad.clone() for name, parameter in network.student.named_parameters()}
    step = _step_of(optimiser, network.student, training, 0)
    found = meta_gradient(network, batch, held_out, gradients, step)
    for i in range(len(omega)):
        bump = torch.zeros_like(omega)
        bump[i] = 1e-5
        expected = (after(omega + bump) - after(omega - bump)) / 2e-5
        assert float(found[i]) == pytest.approx(expected, rel=1e-4, abs=1e-8)


def test_several_steps_go_through_hard_sigmoids_and_say_where_they_cannot_go() -> None:
    network, batch, held_out, omega, _ = setting()
    network.student[2] = nn.Hardsigmoid()
    with pytest.raises(RuntimeError, match="hardsigmoid"):
        through_two(network, batch, held_out, omega)
    found = multi_step_gradient(network, [batch, batch], held_out, omega, 0.3)
    assert torch.isfinite(found).all()
    assert found.abs().max() > 0
    network.student[2] = Unfinished()
    with pytest.raises(UsageError, match=r"several steps.*exact"):
        multi_step_gradient(network, [batch, batch], held_out, omega, 0.3)


def through_two(network, batch, held_out, omega):
    weights = {name: w.clone().requires_grad_() for name, w in student_weights(network).items()}
    found = torch.autograd.grad(
        loss_of(network, weights, batch, omega.clone().requires_grad_()), list(weights.values()), create_graph=True
    )
    sum(g.sum() for g in found).backward()


class Unfinished(nn.Module):
    """Its derivative has none."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return Broken.apply(x)


class Broken(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        raise RuntimeError("derivative for this is not implemented")


def test_unknown_kinds_are_named() -> None:
    network, batch, held_out, omega, step = setting()
    with pytest.raises(UnknownNameError, match="finite-difference"):
        meta_gradient(network, batch, held_out, gradients_of(network, batch, omega), step, "finite")


def test_points_are_the_last_of_each_resolution() -> None:
    net = convolutional(0, 3).float()
    assert feature_points(net, (1, 6, 6)) == ["2", "5"]
