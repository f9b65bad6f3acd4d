"""Searching a student inside its teacher: proximal steps, budgets, controls."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from akd_deploy.data import ViewBank, load_dataset
from akd_deploy.distill import TrainingSettings, train
from akd_deploy.errors import InfeasibleBudgetError, UsageError
from akd_deploy.losses import kd_loss
from akd_deploy.models.convnet import ConvNetSettings, convnet
from akd_deploy.models.teacher import teacher_from_module
from akd_deploy.recipes.better_students import (
    GateSearchSettings,
    gated_copy,
    jaccard,
    kept_shares,
    norm_order,
    proximal_step,
    random_order,
    search_gates,
    slim,
    student_of,
    uniform_depth,
    uniform_width,
    unit_costs,
    within_budget,
)

SHAPE = (1, 12, 12)
TRAINING = TrainingSettings(steps=60, batch_size=16, learning_rate=0.05)


@pytest.fixture(scope="module")
def network():
    return convnet(ConvNetSettings(widths=(8, 12), depth=2), torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def views() -> ViewBank:
    digits = load_dataset("digits", {"labelled": 60, "views": 4})
    return ViewBank(digits.train, digits.views, 0)


@pytest.fixture(scope="module")
def taught(views) -> torch.nn.Module:
    """A network with something to teach: gates fall evenly where they make a difference."""
    made = convnet(ConvNetSettings(widths=(8, 12), depth=2), torch.Generator().manual_seed(0))
    train(made, views, TrainingSettings(steps=200, batch_size=16), torch.Generator().manual_seed(0), method="ce")
    return made


def test_a_proximal_step_by_hand() -> None:
    gates, velocity = torch.tensor([1.0, 0.05, 0.0, 0.5]), torch.tensor([0.0, 0.0, 0.0, 0.2])
    gradient, penalties = torch.tensor([1.0, 0.0, -0.5, 0.0]), torch.tensor([2.0, 1.0, 1.0, 1.0])
    moved, following = proximal_step(gates, velocity, gradient, penalties, rate=0.1, momentum=0.5)
    # z: 0.9 − 0.2, 0.05 − 0.1 cut to 0, 0.05 − 0.1 cut to 0, 0.4; v = z − g + v/2; g = z + v/2.
    assert moved.tolist() == pytest.approx([0.7 - 0.15, 0.0, 0.0, 0.4], abs=1e-6)
    assert following.tolist() == pytest.approx([-0.3, 0.0, 0.0, 0.0], abs=1e-6)


def test_a_cut_gate_comes_back_where_its_gradient_outweighs_the_penalty() -> None:
    gates, velocity = torch.zeros(2), torch.zeros(2)
    moved, _ = proximal_step(gates, velocity, torch.tensor([-3.0, -0.5]), torch.ones(2), rate=0.1, momentum=0.0)
    assert moved.tolist() == pytest.approx([0.2, 0.0])


def test_units_cost_what_leaving_them_out_saves(network) -> None:
    gated = gated_copy(network, SHAPE)
    costs = unit_costs(gated, lambda mask: float(gated.macs(mask)))
    assert costs.mean() == pytest.approx(1)
    by_layer = {unit.layer: cost for unit, cost in zip(gated.units, costs, strict=True)}
    # The first layer's channels are read by the second at full resolution; the last ones by the classifier alone.
    assert by_layer["features.0"] > by_layer["features.9"]
    with pytest.raises(UsageError, match="no unit changes"):
        unit_costs(gated, lambda mask: 1.0)


@given(share=st.floats(0.15, 1.0), seed=st.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_a_budget_is_met_within_one_unit_and_never_exceeded(share: float, seed: int) -> None:
    gated = gated_copy(convnet(ConvNetSettings(widths=(8, 12), depth=2), torch.Generator().manual_seed(0)), SHAPE)
    order, budget = random_order(gated, np.random.default_rng(seed)), share * gated.macs()
    mask = within_budget(gated, order, lambda mask: float(gated.macs(mask)), budget)
    assert gated.macs(mask) <= budget
    missing = [i for i in order if not mask[i]]
    if missing:
        mask[missing[0]] = True
        assert gated.macs(mask) > budget
    gated.check_mask(mask)


def test_what_does_not_fit_is_left_out_for_what_does() -> None:
    from residual_network import resnet

    gated = gated_copy(resnet(), (3, 16, 16))
    branches = [i for i, unit in enumerate(gated.units) if unit.branch is not None]
    channels = [i for i in range(len(gated.units)) if i not in branches]
    # Between the narrowest plan with all channels that come first, and one branch more, is more than a channel.
    order = np.array([*channels[:30], *branches, *channels[30:]])
    left_out = 0
    for share in np.linspace(0.3, 0.9, 13):
        budget = share * gated.macs()
        mask = within_budget(gated, order, lambda mask: float(gated.macs(mask)), budget)
        assert gated.macs(mask) <= budget
        for i in np.flatnonzero(~mask):
            more = mask.copy()
            more[i] = True
            assert gated.macs(mask) >= 0.99 * budget or gated.macs(more) > budget
        kept = mask[order].astype(int)
        left_out += bool((np.diff(kept) > 0).any())
    assert left_out > 3


def test_budgets_below_one_unit_a_layer_are_refused(network) -> None:
    gated = gated_copy(network, SHAPE)
    with pytest.raises(InfeasibleBudgetError, match="one unit in every layer"):
        within_budget(gated, uniform_width(gated), lambda mask: float(gated.macs(mask)), 10.0)


@pytest.mark.parametrize("changes", [{}, {"reverse": True}, {"kd_weight": 0.0, "ce_weight": 1.0}])
def test_a_search_ends_at_the_budget_with_gates_that_are_exactly_zero(taught, views, changes) -> None:
    before = {name: tensor.clone() for name, tensor in taught.state_dict().items()}
    teacher = teacher_from_module(taught, SHAPE, 10, "t")
    gated = gated_copy(taught, SHAPE)
    budget = 0.4 * gated.macs()
    longer = TrainingSettings(steps=400, batch_size=16, learning_rate=0.02)
    found = search_gates(
        gated, teacher, views, lambda mask: float(gated.macs(mask)), budget, longer,
        GateSearchSettings(**changes), torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert len(found.costs) == len(found.losses) == longer.steps
    assert found.costs[0] == gated.macs()
    # Evenly down on the way, at the budget from `closing` on, within a unit and never above.
    halfway = np.mean(found.costs[120:160])
    assert budget < halfway < 0.95 * gated.macs()
    assert len(set(found.costs[240:])) == 1
    assert 0.9 * budget < found.costs[-1] <= budget
    mask = within_budget(gated, found.order, lambda mask: float(gated.macs(mask)), budget)
    assert np.array_equal(mask, found.gates > 0)
    assert np.array_equal(found.gates == 0, ~mask)
    # The teacher itself was not touched.
    assert all(torch.equal(before[name], tensor) for name, tensor in taught.state_dict().items())


def test_what_a_search_keeps_has_learned_to_do_without_the_rest(taught, views) -> None:
    teacher, gated = teacher_from_module(taught, SHAPE, 10, "t"), gated_copy(taught, SHAPE)

    def cost(mask: np.ndarray) -> float:
        return float(gated.macs(mask))

    longer = TrainingSettings(steps=400, batch_size=16, learning_rate=0.02)
    found = search_gates(
        gated, teacher, views, cost, 0.4 * gated.macs(), longer, GateSearchSettings(), torch.Generator().manual_seed(0)
    )
    mask, images = within_budget(gated, found.order, cost, 0.4 * gated.macs()), torch.tensor(views.split.images)
    with torch.no_grad():
        searched, as_it_was = (
            float(kd_loss(student_of(one, mask, None)(images), teacher.logits(images), 4.0))
            for one in (gated, gated_copy(taught, SHAPE))
        )
    assert searched < 0.3 * as_it_was


def test_one_seed_gives_one_search(network, views) -> None:
    teacher = teacher_from_module(network, SHAPE, 10, "t")

    def order(seed: int) -> list[int]:
        gated = gated_copy(network, SHAPE)
        short = TrainingSettings(steps=12, batch_size=16, learning_rate=0.05)
        found = search_gates(
            gated, teacher, views, lambda mask: float(gated.macs(mask)), 0.4 * gated.macs(), short,
            GateSearchSettings(), torch.Generator().manual_seed(seed),
        )  # fmt: skip
        return found.order.tolist()

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_controls_take_what_their_names_say(network) -> None:
    from residual_network import resnet

    gated = gated_copy(resnet(), (3, 16, 16))
    cost, half = (lambda mask: float(gated.macs(mask))), 0.5 * gated.macs()
    wide = within_budget(gated, uniform_width(gated), cost, half)
    shares = kept_shares(gated, wide)
    channels = [
        share for layer, share in shares.items() if any(u.layer == layer and u.branch is None for u in gated.units)
    ]
    assert max(channels) - min(channels) < 0.3
    deep = within_budget(gated, uniform_depth(gated), cost, 0.8 * gated.macs())
    dropped = [unit.branch is not None for unit, kept in zip(gated.units, deep, strict=True) if not kept]
    assert dropped
    assert all(dropped)
    one, other = (random_order(gated, np.random.default_rng(seed)) for seed in (0, 1))
    assert one.tolist() != other.tolist()
    by_norm = norm_order(gated)
    assert sorted(by_norm.tolist()) == list(range(len(gated.units)))
    assert all(gated.units[i].branch is not None for i in by_norm[: sum(u.branch is not None for u in gated.units)])
    assert jaccard(gated, wide, wide) == 1


def test_what_is_in_a_dropped_branch_counts_as_dropped() -> None:
    from residual_network import resnet

    gated = gated_copy(resnet(), (3, 16, 16))
    whole = np.ones(len(gated.units), bool)
    (branch, *_) = [i for i, unit in enumerate(gated.units) if unit.branch is not None]
    without = whole.copy()
    without[branch] = False
    shares, inner = kept_shares(gated, without), "blocks.0.first"
    assert shares[gated.units[branch].layer] == 0
    assert shares[inner] == 0
    assert shares["blocks.1.first"] == kept_shares(gated, whole)[inner] == 1
    # Which of its channels are kept makes two masks no more unlike.
    fewer = without.copy()
    fewer[[i for i, unit in enumerate(gated.units) if unit.layer == inner][1:]] = False
    assert jaccard(gated, without, fewer) == 1
    assert gated.macs(without) == gated.macs(fewer)
    assert jaccard(gated, whole, without) < 1


def test_slimming_pulls_scales_to_zero_and_keeps_those_that_labels_need(network, views) -> None:
    def scales(pull: float) -> np.ndarray:
        gated = gated_copy(network, SHAPE)
        longer = TrainingSettings(steps=120, batch_size=16, learning_rate=0.02)
        slim(gated, views, longer, torch.Generator().manual_seed(0), pull)
        norms = [m for m in gated.network.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        found = torch.cat([norm.weight.detach() for norm in norms]).numpy()
        by_scale = norm_order(gated)
        kept = within_budget(gated, by_scale, lambda mask: float(mask.sum()), 20)
        assert found[kept].min() >= found[~kept].max(), "one unit a channel here, in the order of layers"
        hooked = [norm.weight._backward_hooks for norm in norms]
        assert not any(hooked)
        assert bool((gated.gates == 1).all()), "gates that learned would hide what scales are worth"
        assert gated.gates.requires_grad
        return found

    before, free, pulled = np.ones(40), scales(0.0), scales(1.0)
    assert abs(free.mean() - before.mean()) < 0.1
    assert pulled.mean() < 0.6 * free.mean()
    assert pulled.std() / pulled.mean() > 5 * free.std() / free.mean()


def test_slimming_without_scales_is_refused(views) -> None:
    bare = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(400, 10))
    with pytest.raises(UsageError, match="no scales"):
        slim(gated_copy(bare, SHAPE), views, TRAINING, torch.Generator().manual_seed(0))


def test_depth_goes_from_every_stage_and_from_the_longest_first() -> None:
    from benchmarks.seed_systems.residual_network import residual_network

    gated = gated_copy(residual_network(5, 0), (3, 32, 32))
    branches = [gated.units[i].layer for i in uniform_depth(gated) if gated.units[i].branch is not None]
    # Two in the first stage, one in each of the others, whose first blocks have a convolution around them.
    assert branches == ["add", "add_3", "add_5", "add_1"]


def test_students_inherit_weights_or_begin_afresh(network) -> None:
    gated = gated_copy(network, SHAPE)
    mask = within_budget(gated, uniform_width(gated), lambda mask: float(gated.macs(mask)), 0.5 * gated.macs())
    inherited, fresh, again, other = (student_of(gated, mask, seed) for seed in (None, 1, 1, 2))
    first = [next(student.parameters()) for student in (inherited, fresh, again, other)]
    kept = np.flatnonzero([mask[gated.unit_of[int(r)]] for r in gated.graph.roots(gated.graph.of["features_0"].labels)])
    assert torch.equal(first[0], network.features[0].weight[kept])
    assert torch.equal(first[1], first[2])
    assert not torch.equal(first[1], first[3])


@pytest.mark.parametrize("changes", [{"growth": 1.0}, {"closing": 0.0}, {"gate_rate": 0.0}, {"kd_weight": 0.0}])
def test_settings_out_of_range_are_named(changes) -> None:
    with pytest.raises(UsageError, match="search for gates"):
        GateSearchSettings(**changes)
