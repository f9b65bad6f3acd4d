"""Oracle-KD's search of add-ons: limits kept, weights trained, controls at equal cost."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from akd_deploy.data import ViewBank, load_dataset
from akd_deploy.distill import TrainingSettings, teacher_bank
from akd_deploy.errors import InfeasibleBudgetError, UsageError
from akd_deploy.models.convnet import ConvNetSettings, convnet
from akd_deploy.models.teacher import teacher_from_module
from akd_deploy.recipes.oracle_kd import (
    AddOnBed,
    choose_beta,
    memory_bytes,
    memory_limit,
    mixed_batches,
    random_add_ons,
    search_add_ons,
    wider_backbone,
)
from akd_deploy.search.shared_weights import Limit, SharedSearchSettings
from akd_deploy.search_space import load_space, space_of
from akd_deploy.search_space.augmented import AugmentedSpace
from akd_deploy.search_space.operations import operations

SPACE = AugmentedSpace({"widths": [8, 12], "strides": [1, 2], "depths": [1, 1], "stem_width": 4})
BACKBONE_BYTES = memory_bytes(SPACE, SPACE.backbone())
TRAINING = TrainingSettings(steps=12, batch_size=16, learning_rate=0.05)
SETTINGS = SharedSearchSettings(rounds=3, trained=4, judged=4, derived=4)


@pytest.fixture(scope="module")
def bed() -> AddOnBed:
    digits = load_dataset("digits", {"labelled": 60, "views": 4})
    views = ViewBank(digits.train, digits.views, 0)
    teachers = [
        teacher_from_module(
            convnet(ConvNetSettings(widths=(4,), depth=1), torch.Generator().manual_seed(i)), (1, 12, 12), 10, f"t{i}"
        )
        for i in range(2)
    ]
    return AddOnBed(views, teacher_bank(teachers, views), digits.reward_val)


def search(bed: AddOnBed, limits, method="oracle", seed=0, **more):
    return search_add_ons(SPACE, bed, method, TRAINING, limits, SETTINGS, seed, **more)


def test_memory_is_what_the_weights_take_in_float32() -> None:
    assert BACKBONE_BYTES == 4 * ((4 * 9 + 4) + (8 * 4 * 9 + 8) + (12 * 8 * 9 + 12) + (10 * 12 + 10))


def test_a_search_keeps_its_limit_trains_its_weights_and_repeats(bed: AddOnBed) -> None:
    limits, rounds = [memory_limit(SPACE, 1.6 * BACKBONE_BYTES)], []
    result, shared = search(bed, limits, on_round=lambda done, total: rounds.append((done, total)))
    assert rounds == [(1, 3), (2, 3), (3, 3)]
    assert all(one.costs["memory"] <= 1.6 * BACKBONE_BYTES for one in result.judged)
    assert all(0 <= one.accuracy <= 1 for one in result.judged)
    again, same = search(bed, limits)
    assert [one.architecture for one in again.judged] == [one.architecture for one in result.judged]
    assert all(torch.equal(shared.weights[name], same.weights[name]) for name in shared.weights)
    other, _ = search(bed, limits, method="ce")
    assert [one.accuracy for one in other.judged] != [one.accuracy for one in result.judged]


def test_the_last_candidates_are_judged_on_the_whole_reward_split(bed: AddOnBed) -> None:
    images, labels = torch.tensor(bed.reward_split.images), torch.tensor(bed.reward_split.labels)
    result, shared = search(bed, [], reward_batch=len(labels))
    for one in result.last:
        with torch.no_grad():
            right = shared(images, one.architecture).argmax(dim=1) == labels
        assert one.accuracy == pytest.approx(float(right.double().mean()), abs=2 / len(labels))  # other sums, ties
    shares = [one.accuracy * 64 % 1 for one in search(bed, [], reward_batch=64)[0].judged]
    assert not any(shares[: -SETTINGS.derived])
    assert any(shares[-SETTINGS.derived :])


def test_batches_of_a_split_hold_every_image_once_and_are_mixed_and_of_about_one_size() -> None:
    batches = mixed_batches(1000, 256, np.random.default_rng(0))
    assert sorted(np.concatenate(batches)) == list(range(1000))
    assert [len(batch) for batch in batches] == [250] * 4
    assert all(abs(batch.mean() - 499.5) < 60 for batch in batches)  # four standard errors
    assert [len(batch) for batch in mixed_batches(10, 256, np.random.default_rng(0))] == [10]


def test_a_search_may_begin_with_the_weights_of_its_backbone(bed: AddOnBed) -> None:
    def after(steps: int) -> float:
        """Loss of the backbone, to which no layer with weights may be added, on what it learned from."""
        images, labels = torch.tensor(bed.views.split.images), torch.tensor(bed.views.split.labels)
        first = replace(TRAINING, steps=steps) if steps else None
        _, shared = search(bed, [memory_limit(SPACE, BACKBONE_BYTES)], method="ce", backbone=first)
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(shared(images, SPACE.backbone()), labels))

    assert after(300) < after(0) - 0.3
    with pytest.raises(UsageError, match="space mobile that begins with its backbone"):
        search_add_ons(load_space("mobile"), bed, "ce", TRAINING, [], SETTINGS, 0, backbone=TRAINING)


def test_several_limits_hold_together(bed: AddOnBed) -> None:
    def layers(architecture) -> float:
        return float(len(SPACE.layers(architecture)))

    limits = [memory_limit(SPACE, 1.6 * BACKBONE_BYTES), Limit("layers", layers, 5.0)]
    result, _ = search(bed, limits, strategy="random")
    assert all(layers(one.architecture) <= 5 for one in result.judged)


def test_the_wider_backbone_is_the_widest_that_fits() -> None:
    wide = wider_backbone(SPACE, 2.0 * BACKBONE_BYTES)
    assert memory_bytes(space_of(wide), wide) <= 2.0 * BACKBONE_BYTES
    (family,) = SPACE.hand_shrunk()
    more = [memory_bytes(space_of(a), a) for a in family]
    assert sorted({size for size in more if size > memory_bytes(space_of(wide), wide)})[0] > 2.0 * BACKBONE_BYTES
    assert all(not layer.name.startswith("a") for layer in space_of(wide).layers(wide))
    with pytest.raises(InfeasibleBudgetError, match="narrowest"):
        wider_backbone(SPACE, 10.0)


def test_random_add_ons_are_different_networks_of_about_the_same_cost() -> None:
    limits = [memory_limit(SPACE, 2 * BACKBONE_BYTES)]
    found = random_add_ons(SPACE, limits, 0.7, 6, np.random.default_rng(0))
    assert len({SPACE.network_digest(one) for one in found}) == 6
    assert all(1.4 * BACKBONE_BYTES <= memory_bytes(SPACE, one) <= 2 * BACKBONE_BYTES for one in found)
    with pytest.raises(InfeasibleBudgetError, match="random networks"):
        random_add_ons(SPACE, [memory_limit(SPACE, 10.0)], 0.5, 1, np.random.default_rng(0))


def test_beta_is_the_least_of_the_best_on_seeds_of_its_own() -> None:
    asked = []

    def score(settings: TrainingSettings, seed: int) -> float:
        asked.append((settings.oracle_beta, seed))
        return {0.0: 0.5, 1.0: 0.8, 4.0: 0.8, 16.0: 0.6}[settings.oracle_beta] + seed / 100

    beta, means = choose_beta(score, TRAINING, seeds=(3, 5))
    assert beta == 1.0
    assert means[16.0] == pytest.approx(0.64)
    assert sorted(asked) == [(b, s) for b in (0.0, 1.0, 4.0, 16.0) for s in (3, 5)]


def test_parameters_are_counted_as_they_are_shipped() -> None:
    rng = np.random.default_rng(1)
    for _ in range(5):
        architecture = SPACE.sample(rng)
        steps = operations(SPACE.layers(architecture))
        assert memory_bytes(SPACE, architecture) == 4 * sum(step.parameters for step in steps)
