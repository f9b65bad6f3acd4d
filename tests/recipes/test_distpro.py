"""DistPro as a composition: searches that are averaged, controls, transfer to another pair."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from akd_deploy.data import ViewBank, load_dataset
from akd_deploy.distill import TrainingSettings
from akd_deploy.distill.process import constant_process
from akd_deploy.distill.process_training import SEARCH_GRADIENTS, ProcessSearchSettings
from akd_deploy.distill.review import Review
from akd_deploy.distill.what_and_where import WhatAndWhereSettings
from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.models.convnet import ConvNetSettings, convnet
from akd_deploy.models.student import student_from_architecture
from akd_deploy.models.teacher import state_sha256
from akd_deploy.recipes.distpro import (
    MOMENTS,
    PathwaySettings,
    carried_over,
    controls_of,
    distill_by_process,
    distill_by_review,
    distill_by_what_and_where,
    fixed_processes,
    held_out_views,
    pathways_between,
    searched_process,
)
from akd_deploy.search_space import load_space

TRAINING = TrainingSettings(steps=MOMENTS, batch_size=8, learning_rate=0.05)
SPACE = load_space("mobile", {"widths": [8, 12, 16], "stem_width": 4})
PATHWAYS = PathwaySettings()


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", {"labelled": 50, "views": 2})


@pytest.fixture(scope="module")
def views(digits) -> ViewBank:
    return ViewBank(digits.train, digits.views, 0)


@pytest.fixture(scope="module")
def teacher():
    return convnet(ConvNetSettings(widths=(4, 8, 12), depth=1), torch.Generator().manual_seed(0)).eval()


def student(seed: int):
    return student_from_architecture(SPACE.sample(np.random.default_rng(3)), seed)


def test_images_that_weights_are_learnt_on_are_not_learnt_from(digits, views) -> None:
    learnt, held_out = held_out_views(digits, views, 0)
    one, other = (set(bank.split.originals.tolist()) for bank in (learnt, held_out))
    assert not one & other
    assert one | other == set(digits.train.originals.tolist())
    assert len(held_out) == 10
    assert held_out_views(digits, views, 1)[1].digest != held_out.digest


def test_searches_are_averaged_and_the_process_serves_a_student_that_a_search_has_just_found(
    digits, views, teacher
) -> None:
    process, each = searched_process(
        student, teacher, digits, views, PATHWAYS, TRAINING, ProcessSearchSettings(), seeds=(0, 1)
    )
    assert len(each) == 2
    assert process.weights == pytest.approx(np.mean([one.weights for one in each], axis=0))
    found = student_from_architecture(SPACE.sample(np.random.default_rng(9)), 1)
    result = distill_by_process(found, teacher, digits, views, process, PATHWAYS, TRAINING, 1)
    assert len(result.losses) == MOMENTS
    again = student_from_architecture(SPACE.sample(np.random.default_rng(9)), 1)
    distill_by_process(again, teacher, digits, views, process, PATHWAYS, TRAINING, 1)
    assert state_sha256(found) == state_sha256(again)


def test_fixed_processes_have_equal_totals_and_choose_what_they_are_called(teacher) -> None:
    between = pathways_between(teacher, student(0), (1, 12, 12), PATHWAYS, 0)
    fixed = fixed_processes(between.pathways, 2.0)
    assert all(process.weights.sum() == pytest.approx(2.0) for process in fixed.values())
    count = len(between.pathways)
    assert (fixed["uniform"].weights > 0).sum() == count == 7  # three points of each, up, and the logits
    assert (fixed["diagonal"].weights > 0).sum() == 4
    assert (fixed["logits"].weights > 0).sum() == 1
    alone = fixed_processes(between.pathways[:-1], 1.0)
    assert "logits" not in alone


def test_controls_keep_the_sum_of_weights() -> None:
    rng = np.random.default_rng(0)
    from akd_deploy.distill.process import Process

    process = Process(rng.random((5, 3)), ("a", "b", "c"))
    controls = controls_of(process, rng)
    assert set(controls) == {"time mean", "final", "reversed", "shuffled"}
    for name in controls:
        assert controls[name].weights.sum(1).mean() == pytest.approx(process.weights.sum(1).mean())


def test_a_process_goes_over_to_another_pair_of_as_many_pathways() -> None:
    from akd_deploy.distill.pathways import Pathway

    process = constant_process({"a": 1.0, "b": 2.0})
    moved = carried_over(process, [Pathway("x", "y", "linear"), Pathway("logits", "logits")])
    assert moved.pathways == ("x → y (linear)", "logits")
    assert moved.weights.tolist() == [[1.0, 2.0]]
    with pytest.raises(MismatchError, match="one of 2"):
        carried_over(process, [Pathway("x", "y", "linear")])


def test_reviewkd_trains_a_student_and_wants_as_many_points(digits, views, teacher) -> None:
    one = student(0)
    result = distill_by_review(one, teacher, digits, views, 1.0, TRAINING, 0)
    assert len(result.losses) == MOMENTS
    assert np.isfinite(result.losses).all()
    example = torch.zeros(2, 1, 12, 12)
    with pytest.raises(UsageError, match="2 of the teacher, 1 of the student"):
        Review(teacher, one, ["features.2", "features.5"], ["stem.conv"], example, torch.Generator().manual_seed(0))


def test_l2t_ww_trains_a_student_and_pairs_every_point_with_every_other(digits, views, teacher) -> None:
    one, again = student(0), student(0)
    result, meta = distill_by_what_and_where(one, teacher, digits, views, WhatAndWhereSettings(), TRAINING, 0)
    assert len(result.losses) == MOMENTS
    assert len(meta.pairs) == 9
    distill_by_what_and_where(again, teacher, digits, views, WhatAndWhereSettings(), TRAINING, 0)
    assert state_sha256(one) == state_sha256(again) != state_sha256(student(0))


def test_students_with_squeezes_learn_by_looks_ahead_too(digits, views, teacher) -> None:
    """Their hard sigmoids have no second derivative of torch's."""
    squeezed = next(
        one for one in map(SPACE.sample, map(np.random.default_rng, range(20)))
        if any(value for name, value in one.choices.items() if name.endswith(".se"))
    )  # fmt: skip
    short = TrainingSettings(steps=2, batch_size=8, learning_rate=0.05)

    def fresh(seed: int):
        return student_from_architecture(squeezed, seed)

    assert any("hardsigmoid" in step.activation for step in fresh(0).operations)
    result, _ = distill_by_what_and_where(fresh(0), teacher, digits, views, WhatAndWhereSettings(), short, 0)
    assert np.isfinite(result.losses).all()
    for gradient in SEARCH_GRADIENTS:
        search = ProcessSearchSettings(gradient=gradient)
        process, _ = searched_process(fresh, teacher, digits, views, PATHWAYS, short, search, seeds=(0,))
        assert np.isfinite(process.weights).all()


def test_reviewkd_fuses_from_the_deepest_point_on(teacher) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 1, 12, 12, generator=generator)
    points = ["features.2", "features.5"]
    review = Review(teacher, teacher, points, points, torch.zeros(2, 1, 12, 12), generator).eval()
    assert [fusion.weigh is not None for fusion in review.fusions] == [True, False]
    taught = review.taught(teacher, x)
    features = [f.clone().requires_grad_() for f in taught[1]]
    distance = review(taught[0], features, taught)
    assert distance.shape == (1,)
    distance.sum().backward()
    # The deepest features reach the loss of both depths, the shallow ones that of their own.
    assert all(f.grad is not None and f.grad.abs().sum() > 0 for f in features)
