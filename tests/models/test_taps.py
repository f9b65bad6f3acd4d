"""Features of students and of networks that nobody here wrote."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from random_students import SPACES
from torch import nn
from user_networks import INPUT_SHAPE, network

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.models.gated_network import GatedNetwork
from akd_deploy.models.part import Part
from akd_deploy.models.student import student_from_architecture
from akd_deploy.models.taps import MOST_POINTS, feature_points, points_of, tapped


def test_taps_give_what_layers_put_out_and_leave_the_output_alone() -> None:
    net = network("ResNet", 0)
    x = torch.randn(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, (stem, last) = tapped(net, x, ["stem", "blocks.2"])
        assert torch.equal(output, net(x))
        assert torch.equal(stem, net.stem(x))
        assert torch.equal(last, net.blocks(torch.relu(net.stem(x))))
    assert not any(module._forward_hooks for module in net.modules())


def test_what_works_in_place_afterwards_does_not_change_what_was_tapped() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 36, 2))
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    _, (features,) = tapped(net, x, ["0"])
    assert torch.equal(features, net[0](x))


def test_students_are_tapped_at_their_operations() -> None:
    space = SPACES["digits 12×12"]
    student = student_from_architecture(space.sample(np.random.default_rng(0)), 0).eval()
    x = torch.randn(2, *space.input_shape, generator=torch.Generator().manual_seed(0))
    points = [points_of(student)[0], points_of(student)[-2]]
    logits, features = tapped(student, x, points)
    assert torch.equal(logits, student(x))
    assert [len(f) for f in features] == [2, 2]
    with pytest.raises(UnknownNameError, match="stem"):
        tapped(student, x, ["stemm"])


@pytest.mark.parametrize("kind", ["ResNet", "VGG", "MobileNet", "DenseNet", "ConvNeXt"])
def test_points_are_the_last_of_each_resolution_in_order(kind: str) -> None:
    net = network(kind, 0)
    points = feature_points(net, INPUT_SHAPE)
    _, features = tapped(net, torch.zeros(2, *INPUT_SHAPE), points)
    sizes = [feature.shape[-1] for feature in features]
    assert 1 <= len(points) <= MOST_POINTS
    assert sizes == sorted(set(sizes), reverse=True)


def test_a_part_is_tapped_where_its_teacher_is_behind_sums_and_functions_too() -> None:
    net = network("ResNet", 0)
    gated = GatedNetwork(net, INPUT_SHAPE)
    part = Part(gated, np.ones(len(gated.units), bool)).eval()
    x = torch.randn(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    points = feature_points(net, INPUT_SHAPE), feature_points(part, INPUT_SHAPE)
    with torch.no_grad():
        (output, its), (same, mine) = tapped(net, x, points[0]), tapped(part, x, points[1])
    assert torch.allclose(output, same, atol=1e-5)
    assert len(its) == len(mine) == 2
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(its, mine, strict=True))
    # Without its branches too, what was tapped is behind what is left.
    bare = Part(gated, np.array([unit.branch is None for unit in gated.units])).train()
    _, features = tapped(bare, x, feature_points(bare, INPUT_SHAPE))
    features[-1].square().sum().backward()
    convolutions = [module for module in bare.modules() if isinstance(module, nn.Conv2d)]
    assert all(module.weight.grad is not None for module in convolutions)
    with pytest.raises(UnknownNameError, match="relu"):
        tapped(part, x, ["reluu"])


class Negated(nn.Module):
    """Holds a graph under a name that a part of a teacher has, and does more than it."""

    def __init__(self, graph: nn.Module) -> None:
        super().__init__()
        self.network = graph

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return -self.network(x)


def test_a_network_that_only_holds_a_graph_is_run_itself() -> None:
    graph = torch.fx.symbolic_trace(network("ResNet", 0))
    x = torch.randn(2, *INPUT_SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        output, (stem,) = tapped(Negated(graph), x, ["network.stem.0"])
        assert torch.equal(output, -graph(x))
        assert torch.equal(stem, graph.stem.get_submodule("0")(x))


def test_networks_without_maps_and_points_without_tensors_are_refused() -> None:
    with pytest.raises(UsageError, match="feature maps"):
        feature_points(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), INPUT_SHAPE)
    net = nn.Sequential(nn.Flatten(), nn.Linear(768, 4))
    with pytest.raises(UnknownNameError, match="point"):
        tapped(net, torch.zeros(1, *INPUT_SHAPE), ["nowhere"])
    with pytest.raises(UsageError, match="did not run"):
        tapped(_Unused(), torch.zeros(1, *INPUT_SHAPE), ["spare"])


class _Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spare, self.used = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x)
