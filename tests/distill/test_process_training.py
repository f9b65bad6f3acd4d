"""Trainings along pathways: what they follow, what they leave, and what a search finds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from akd_deploy.data import Split, ViewBank, ViewSettings
from akd_deploy.distill import TrainingSettings, process_training
from akd_deploy.distill.pathways import LOGITS, Pathway, Pathways, enumerate_pathways
from akd_deploy.distill.process import Process, constant_process
from akd_deploy.distill.process_training import (
    SEARCH_GRADIENTS,
    ProcessSearchSettings,
    search_process,
    train_by_process,
)
from akd_deploy.errors import MismatchError, TrainingError, UnknownNameError, UsageError
from akd_deploy.losses import hcl_loss, kd_loss
from akd_deploy.models.connectors import TRANSFORMS, connector, resized
from akd_deploy.models.teacher import state_sha256

SETTINGS = TrainingSettings(steps=10, batch_size=8, learning_rate=0.05)


def small(seed: int, width: int) -> nn.Sequential:
    net = nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4, generator=generator)
    for layer in (net[0], net[3], net[8]):
        nn.init.zeros_(layer.bias)
    return net


def bank(seed: int, n: int = 24) -> ViewBank:
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = rng.normal(size=(n, 1, 8, 8)) + labels[:, None, None, None]
    return ViewBank(Split(images.astype(np.float32), labels, np.arange(n)), ViewSettings(views=2, noise=0.1), seed)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def paths(teacher: nn.Module, student: nn.Module, rule: str = "up", transforms=("linear",), **more) -> Pathways:
    found = enumerate_pathways(["2", "5"], ["2", "5"], rule, transforms)
    return Pathways(found, teacher, student, torch.zeros(2, 1, 8, 8), generator(), **more)


@pytest.mark.parametrize(("rule", "count"), [("up", 3), ("all", 4), ("diagonal", 2)])
def test_rules_say_which_point_teaches_which(rule: str, count: int) -> None:
    found = enumerate_pathways(["a", "b"], ["x", "y"], rule, ("linear", "complex"))
    assert len(found) == 2 * count + 1
    assert found[-1] == Pathway(LOGITS, LOGITS)
    assert (Pathway("b", "x", "linear") in found) == (rule == "all")
    assert len({pathway.name for pathway in found}) == len(found)
    assert len(enumerate_pathways(["a"], ["x"], logits=False)) == 1
    with pytest.raises(UnknownNameError, match="diagonal"):
        enumerate_pathways(["a"], ["x"], "diag")
    with pytest.raises(UnknownNameError, match="complex"):
        enumerate_pathways(["a"], ["x"], transforms=("complexe",))


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_connectors_bring_any_map_to_any_shape(transform: str) -> None:
    for inside, outside, size in ((3, 8, (4, 4)), (8, 3, (7, 5)), (4, 4, (8, 8))):
        made = connector(transform, inside, outside, size, generator())
        coarse = transform == "linear" and size == (8, 8)
        assert made(torch.randn(2, inside, 4, 4, generator=generator())).shape == (
            2,
            outside,
            *((4, 4) if coarse else size),
        )
    first, again = (connector(transform, 3, 4, (4, 4), generator(1)).state_dict() for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


@pytest.mark.parametrize("size", [(8, 8), (16, 16), (24, 8), (12, 8), (4, 4), (5, 7), (2, 16)])
def test_resizing_is_by_the_nearest_position_forwards_and_backwards(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 8, 8, generator=generator(), requires_grad=True)
    towards = torch.randn(2, 3, *size, generator=generator(1))
    found, expected = resized(x, size), nn.functional.interpolate(x, size, mode="nearest")
    assert torch.equal(found, expected)
    gradients = [torch.autograd.grad((one * towards).sum(), x)[0] for one in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-6)


def test_distances_are_those_of_connected_features_and_of_logits() -> None:
    teacher, student = small(0, 6).eval(), small(1, 4).eval()
    pathways = paths(teacher, student, temperature=2.0).eval()
    x = torch.randn(5, 1, 8, 8, generator=generator())
    taught = pathways.taught(teacher, x)
    with torch.no_grad():
        features = [student[:3](x), student[:6](x)]
        found = pathways(student(x), features, taught)
        expected = [
            hcl_loss(connect(features[int(p.student == "5")]), taught[1][int(p.teacher == "5")])
            for p, connect in zip(pathways.pathways[:-1], pathways.connectors, strict=False)
        ]
        expected.append(kd_loss(student(x), teacher(x), 2.0))
    assert torch.allclose(found, torch.stack(expected), atol=1e-6)
    squared = paths(teacher, student, distance="mse")
    assert squared(student(x), features, taught)[0] != found[0]
    with pytest.raises(UnknownNameError, match="hcl"):
        paths(teacher, student, distance="l2")


def test_points_without_maps_and_no_pathways_at_all_are_refused() -> None:
    teacher, student = small(0, 6), small(1, 4)
    with pytest.raises(UsageError, match="maps of features at 8 of the teacher"):
        Pathways([Pathway("8", "2", "linear")], teacher, student, torch.zeros(2, 1, 8, 8), generator())
    with pytest.raises(UsageError, match="none"):
        Pathways([], teacher, student, torch.zeros(2, 1, 8, 8), generator())


def trained(process: Process | None = None, seed: int = 0, **more) -> tuple[nn.Module, Pathways]:
    teacher, student = small(0, 6), small(1, 4)
    pathways = paths(teacher, student)
    names = [pathway.name for pathway in pathways.pathways]
    process = process or constant_process(dict.fromkeys(names, 1.0))
    train_by_process(student, teacher, pathways, process, bank(0), SETTINGS, generator(seed), **more)
    return student, pathways


def test_a_training_follows_its_process_repeats_and_leaves_the_teacher_alone() -> None:
    teacher, student = small(0, 6), small(1, 4)
    before = state_sha256(teacher)
    pathways = paths(teacher, student)
    names = tuple(pathway.name for pathway in pathways.pathways)
    steps: list[int] = []
    result = train_by_process(
        student, teacher, pathways, constant_process(dict.fromkeys(names, 1.0)), bank(0), SETTINGS, generator(),
        on_step=lambda done, total, loss: steps.append(done),
    )  # fmt: skip
    assert steps == list(range(1, 11))
    assert not student.training
    assert state_sha256(teacher) == before
    assert result.losses[-1] < result.losses[0]
    same, other = trained()[0], trained(seed=1)[0]
    assert state_sha256(student) == state_sha256(same) != state_sha256(other)
    # Another course in time is another training.
    half = np.ones((2, len(names)))
    half[0] = 0
    assert state_sha256(trained(Process(half, names))[0]) != state_sha256(trained(Process(half[::-1], names))[0])


def test_without_weights_it_is_a_training_on_labels() -> None:
    from akd_deploy.distill import train

    _, pathways = trained()
    names = [pathway.name for pathway in pathways.pathways]
    student, _ = trained(constant_process(dict.fromkeys(names, 0.0)))
    alone = small(1, 4)
    train(alone, bank(0), SETTINGS, generator(), method="ce")
    for name, tensor in alone.state_dict().items():
        assert torch.allclose(student.state_dict()[name].float(), tensor.float(), atol=1e-4), name


def test_a_process_of_other_pathways_is_refused() -> None:
    with pytest.raises(MismatchError, match="linear"):
        trained(constant_process({"a": 1.0}))


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    teacher, student = small(0, 6), small(1, 4)
    pathways = paths(teacher, student)
    names = [pathway.name for pathway in pathways.pathways]
    with torch.no_grad():
        student[8].weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="step 1 of 10"):
        train_by_process(
            student, teacher, pathways, constant_process(dict.fromkeys(names, 1.0)), bank(0), SETTINGS, generator()
        )


@pytest.mark.parametrize("gradient", SEARCH_GRADIENTS)
def test_a_search_writes_down_the_weights_of_every_step_and_repeats(gradient: str) -> None:
    def searched(seed: int):
        teacher, student = small(0, 6), small(1, 4)
        pathways = paths(teacher, student)
        return search_process(
            student, teacher, pathways, bank(0), bank(9), SETTINGS, ProcessSearchSettings(gradient=gradient),
            generator(seed),
        ), student  # fmt: skip

    (found, student), (again, same), (other, _) = searched(0), searched(0), searched(1)
    assert found.process.weights.shape == (SETTINGS.steps, 4)
    assert found.process.weights[0] == pytest.approx(1 / 5)  # four pathways and the constant, all alike
    assert (found.process.weights[-1] != found.process.weights[0]).all()
    assert np.array_equal(found.process.weights, again.process.weights)
    assert state_sha256(student) == state_sha256(same)
    assert not np.array_equal(found.process.weights, other.process.weights)


class Misleading(nn.Module):
    """A teacher whose logits are of the wrong class, and sure of it."""

    def __init__(self, wrong: bool) -> None:
        super().__init__()
        self.wrong = wrong
        self.unused = nn.Linear(1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        label = x.mean((1, 2, 3)).round().clamp(0, 2).long()
        return 8 * torch.eye(3)[(label + self.wrong) % 3]


def test_a_pathway_that_misleads_loses_weight_and_one_that_helps_keeps_more() -> None:
    final = {}
    for wrong in (False, True):
        teacher, student = Misleading(wrong), small(1, 4)
        pathways = Pathways([Pathway(LOGITS, LOGITS)], teacher, student, torch.zeros(2, 1, 8, 8), generator())
        longer = TrainingSettings(steps=40, batch_size=16, learning_rate=0.05)
        found = search_process(
            student, teacher, pathways, bank(0, 48), bank(9, 48), longer, ProcessSearchSettings(), generator()
        )
        final[wrong] = float(found.process.weights[-1, 0])
    assert final[True] < 0.25 < final[False]


@pytest.mark.parametrize("changes", [{"held_out": 0}, {"ahead": 0}, {"learning_rate": 0.0}, {"kd_weight": 0.0}])
def test_settings_of_a_search_are_checked(changes) -> None:
    with pytest.raises(UsageError, match="above 0"):
        ProcessSearchSettings(**changes)
    with pytest.raises(UnknownNameError, match="softmax"):
        ProcessSearchSettings(normalisation="soft")


def test_a_search_that_looks_further_asks_the_teacher_about_batches_of_their_own(monkeypatch) -> None:
    teacher, student = small(0, 6).eval(), small(1, 4)
    pathways, asked, given = paths(teacher, student), [], []
    real = process_training.multi_step_gradient

    def watched(network, batches, held_out, omega, rate):
        given.append((len(batches), omega.clone(), rate))
        before = state_sha256(network)
        found = real(network, batches, held_out, omega, rate)
        assert state_sha256(network) == before
        return found

    monkeypatch.setattr(process_training, "multi_step_gradient", watched)
    teacher.register_forward_hook(lambda *_: asked.append(1))
    search = ProcessSearchSettings(gradient="multi-step", ahead=2, held_out=8)
    found = search_process(student, teacher, pathways, bank(0), bank(1), SETTINGS, search, generator())
    assert len(asked) == 3 * SETTINGS.steps
    assert [number for number, _, _ in given] == [3] * SETTINGS.steps
    assert [rate for _, _, rate in given] == [SETTINGS.learning_rate_at(step) for step in range(SETTINGS.steps)]
    for step, (_, omega, _) in enumerate(given):
        assert omega.numpy() == pytest.approx(found.process.weights[step])


def test_an_exact_search_runs_each_connector_once_a_step() -> None:
    teacher, student = small(0, 6).eval(), small(1, 4)
    pathways = paths(teacher, student)
    calls: list[int] = []
    pathways.connectors[0].register_forward_hook(lambda *_: calls.append(1))
    search = ProcessSearchSettings(normalisation="softmax", held_out=8)
    search_process(student, teacher, pathways, bank(0), bank(1), SETTINGS, search, generator())
    assert len(calls) == SETTINGS.steps
