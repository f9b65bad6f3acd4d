"""L2T-ww: the matching by hand, the look ahead's gradient against differences, what its meta-networks learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_process_training import bank, generator, small
from torch import nn

from akd_deploy.distill import TrainingSettings
from akd_deploy.distill.what_and_where import (
    Matched,
    WhatAndWhere,
    WhatAndWhereSettings,
    loss_ahead,
    train_what_and_where,
)
from akd_deploy.errors import TrainingError, UsageError
from akd_deploy.models.taps import tapped
from akd_deploy.models.teacher import state_sha256

SETTINGS = TrainingSettings(steps=10, batch_size=8, learning_rate=0.05)
POINTS = ["2", "5"]
EXAMPLE = torch.zeros(2, 1, 8, 8)


def matched(student: nn.Module, teacher: nn.Module, points=POINTS) -> Matched:
    return Matched(student, teacher, points, POINTS, EXAMPLE, generator())


def test_at_first_all_channels_are_alike_and_every_pair_counts_once() -> None:
    network = matched(small(1, 4), small(0, 6))
    told = WhatAndWhere(network.channels, network.pairs)([torch.randn(3, 6, 8, 8), torch.randn(3, 6, 4, 4)])
    assert network.pairs == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for what, where in told:
        assert torch.allclose(what, torch.full((3, 6), 1 / 6))
        assert where.tolist() == [1.0, 1.0, 1.0]


def test_weights_of_channels_add_up_to_one_and_those_of_pairs_stay_between_0_and_6() -> None:
    meta = WhatAndWhere([6], [(0, 0)])
    for parameter in meta.parameters():
        nn.init.normal_(parameter, std=20.0, generator=generator())
    with torch.no_grad():
        ((what, where),) = meta([torch.randn(64, 6, 4, 4, generator=generator())])
    assert torch.allclose(what.sum(1), torch.ones(64))
    assert (float(where.min()), float(where.max())) == (0.0, 6.0)
    assert what.std() > 0.1


def test_the_matching_by_hand() -> None:
    """Two images, one pair of layers of other sizes, weights that differ by image and channel."""
    teacher, student = small(0, 6).eval(), small(1, 4)
    network = Matched(student, teacher, ["2"], ["5"], EXAMPLE, generator()).eval()
    images = torch.randn(2, 1, 8, 8, generator=generator(1))
    with torch.no_grad():
        its, mine = tapped(teacher, images, ["2"])[1][0], tapped(student, images, ["5"])[1][0]
        what = torch.tensor([[1.0, 0, 0, 0, 0, 0], [0, 0.5, 0, 0, 0, 0.5]])
        where = torch.tensor([2.0, 3.0])
        logits, found = network(images, [its], [(what, where)])
        # A map of 8 by 8 becomes one of 4 by 4: with its middles between two, a bilinear mean of four.
        small_map = F.avg_pool2d(its, 2)
        gap = (network.connectors[0](mine) - small_map).square().mean((2, 3))
        expected = (2 * gap[0, 0] + 3 * (gap[1, 1] + gap[1, 5]) / 2) / 2
        assert torch.allclose(found, expected)
        assert torch.equal(logits, student(images))


@pytest.mark.parametrize("steps", [1, 2])
def test_the_gradient_of_the_look_ahead_is_that_of_its_differences(steps: int) -> None:
    teacher, student = small(0, 6).eval().double(), small(1, 4).double()
    for network in (teacher, student):  # kinks of rectifiers would be in the way of differences
        network[2], network[5] = nn.Tanh(), nn.Tanh()
    network = Matched(student, teacher, POINTS, POINTS, EXAMPLE.double(), generator()).double().train()
    meta = WhatAndWhere(network.channels, network.pairs).double()
    for parameter in meta.parameters():
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator(4), dtype=torch.float64)
    images = torch.randn(6, 1, 8, 8, generator=generator(1), dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        taught = tapped(teacher, images, POINTS)[1]
    before = state_sha256(network)

    def ahead() -> torch.Tensor:
        return loss_ahead(network, meta, images, labels, taught, 0.1, steps)

    ahead().backward(inputs=list(meta.parameters()))
    for parameter in meta.parameters():
        place = int(parameter.grad.abs().argmax())
        value, step = parameter.data.view(-1)[place].item(), 1e-5
        differences = []
        for sign in (1, -1):
            parameter.data.view(-1)[place] = value + sign * step
            differences.append(float(ahead().detach()))
        parameter.data.view(-1)[place] = value
        expected = (differences[0] - differences[1]) / (2 * step)
        assert float(parameter.grad.view(-1)[place]) == pytest.approx(expected, rel=1e-5, abs=1e-10)
        assert expected != 0
    assert state_sha256(network) == before


def test_a_look_ahead_of_no_matching_is_one_step_on_the_labels() -> None:
    """With every pair's weight 0 the matching moves nothing."""
    teacher, student = small(0, 6).eval(), small(1, 4).train()
    network = matched(student, teacher).train()
    meta = WhatAndWhere(network.channels, network.pairs)
    for module in meta.where:
        nn.init.constant_(module.bias, -1.0)
    images, labels = torch.randn(6, 1, 8, 8, generator=generator(1)), torch.tensor([0, 1, 2, 0, 1, 2])
    with torch.no_grad():
        taught = tapped(teacher, images, POINTS)[1]
    found = loss_ahead(network, meta, images, labels, taught, 0.1, 2)
    loss = F.cross_entropy(student(images), labels)
    with torch.no_grad():
        for parameter, gradient in zip(
            student.parameters(), torch.autograd.grad(loss, list(student.parameters())), strict=True
        ):
            parameter -= 0.1 * gradient
    assert torch.allclose(found, F.cross_entropy(student(images), labels), atol=1e-6)


def trained(seed: int = 0, **settings):
    teacher, student = small(0, 6), small(1, 4)
    network = matched(student, teacher)
    result, meta = train_what_and_where(
        network, teacher, bank(0), SETTINGS, WhatAndWhereSettings(**settings), generator(seed)
    )
    return student, teacher, result, meta


def test_a_training_repeats_and_leaves_the_teacher_alone() -> None:
    (student, teacher, result, meta), (same, *_), (other, *_) = trained(), trained(), trained(1)
    assert state_sha256(student) == state_sha256(same) != state_sha256(other)
    assert state_sha256(teacher) == state_sha256(small(0, 6))
    assert not student.training
    assert len(result.losses) == SETTINGS.steps
    assert result.losses[-1] < result.losses[0]
    assert any(bool((module.weight != 0).any()) for module in meta.what)
    assert state_sha256(trained(weight=2.0)[0]) != state_sha256(student)
    assert state_sha256(trained(matching_steps=1)[3]) != state_sha256(meta)


class Telling(nn.Module):
    """A teacher one of whose layers says what the image shows, and the other nothing but noise."""

    def __init__(self) -> None:
        super().__init__()
        self.label, self.noise = nn.Identity(), nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        label = x.mean((1, 2, 3)).round().clamp(0, 2).long()
        self.label((4 * torch.eye(3)[label])[:, :, None, None].expand(-1, -1, 4, 4).clone())
        self.noise(4 * torch.randn(len(x), 3, 4, 4, generator=torch.Generator().manual_seed(int(1e4 * x.abs().sum()))))
        return torch.eye(3)[label]


def test_a_layer_that_tells_the_label_comes_to_count_for_more_than_one_of_noise() -> None:
    student, teacher = small(1, 4), Telling()
    network = Matched(student, teacher, ["label", "noise"], ["5"], EXAMPLE, generator())
    longer = TrainingSettings(steps=60, batch_size=16, learning_rate=0.05)
    settings = WhatAndWhereSettings(learning_rate=0.05)
    _, meta = train_what_and_where(network, teacher, bank(0, 48), longer, settings, generator())
    images = torch.tensor(bank(0, 48).all()[0])
    with torch.no_grad():
        (_, label), (_, noise) = meta(tapped(teacher, images, ["label", "noise"])[1])
    assert float(label.mean()) > 1.2 * float(noise.mean())


def test_a_loss_that_is_not_finite_names_the_step() -> None:
    teacher, student = small(0, 6), small(1, 4)
    with torch.no_grad():
        student[8].weight.fill_(float("inf"))
    with pytest.raises(TrainingError, match="step 1 of 10"):
        train_what_and_where(matched(student, teacher), teacher, bank(0), SETTINGS, WhatAndWhereSettings(), generator())


def test_a_look_ahead_that_is_not_finite_is_no_silent_one() -> None:
    teacher, student = small(0, 6), small(1, 4)
    fast = TrainingSettings(steps=10, batch_size=8, learning_rate=1e30, warmup=0)
    with pytest.raises(TrainingError, match="looking ahead, step 1 of 10"):
        train_what_and_where(matched(student, teacher), teacher, bank(0), fast, WhatAndWhereSettings(), generator())


def test_points_without_maps_and_settings_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="maps of features at 8 of the teacher"):
        matched(small(1, 4), small(0, 6), ["8"])
    with pytest.raises(UsageError, match="none"):
        matched(small(1, 4), small(0, 6), [])
    for name, value in (("weight", 0.0), ("matching_steps", 0), ("learning_rate", 0.0), ("weight_decay", -1.0)):
        with pytest.raises(UsageError, match=name):
            WhatAndWhereSettings(**{name: value})
    assert np.isfinite(WhatAndWhereSettings().weight)
