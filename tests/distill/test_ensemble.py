"""Ensembles: members that know different things, and statistics of who is right."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from small_bed import small_split, small_teacher

from akd_deploy.data import load_dataset
from akd_deploy.distill import TrainingSettings, ensemble_statistics, train_member, train_teacher
from akd_deploy.distill.ensemble import favoured_classes, member_seed, member_split
from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.models.convnet import ConvNetSettings
from akd_deploy.models.teacher import Teacher, TeacherProvenance, ensemble_of, state_sha256

SHORT = TrainingSettings(steps=3, batch_size=8, fresh_views=True)
SMALL = ConvNetSettings(widths=(4,), depth=1)


@pytest.mark.parametrize(("classes", "members"), [(24, 5), (10, 3), (3, 5)])
def test_every_class_is_favoured_by_one_member_and_members_by_about_as_many(classes: int, members: int) -> None:
    favoured = favoured_classes(classes, members, seed=4)
    assert sorted(np.concatenate(favoured).tolist()) == list(range(classes))
    sizes = [len(one) for one in favoured]
    assert max(sizes) - min(sizes) <= 1


def test_a_member_sees_all_of_its_classes_and_a_share_of_the_others() -> None:
    split = small_split(3000)
    seen = member_split(split, np.array([1]), skew=0.8, seed=0)
    counts = np.bincount(seen.labels, minlength=3)
    assert counts[1] == 1000
    assert counts[[0, 2]] == pytest.approx(200, abs=40)
    assert set(seen.originals.tolist()) <= set(split.originals.tolist())
    assert len(member_split(split, np.array([1]), skew=1.0, seed=0)) == 1000
    with pytest.raises(UsageError, match="no image"):
        member_split(split, np.array([], int), skew=1.0, seed=0)


def test_members_differ_and_the_first_of_an_ensemble_without_skew_is_the_teacher_alone() -> None:
    digits = load_dataset("digits", {"teacher_images": 200, "labelled": 50})
    assert member_seed(7, 0) == 7
    assert len({member_seed(seed, member) for seed in range(20) for member in range(20)}) == 400
    alone = state_sha256(train_teacher(digits, 7, SHORT, SMALL))
    members = [state_sha256(train_member(digits, i, 2, 7, 0.0, SHORT, SMALL)) for i in range(2)]
    assert members[0] == alone
    assert members[1] != alone
    assert state_sha256(train_member(digits, 0, 2, 7, 0.9, SHORT, SMALL)) != alone
    for member, skew in ((2, 0.0), (-1, 0.0), (0, 1.5)):
        with pytest.raises(UsageError, match="out of range"):
            train_member(digits, member, 2, 7, skew, SHORT, SMALL)


def test_statistics_by_hand() -> None:
    # Three members, four views of label 0; the chosen classes:
    chosen = torch.tensor([[0, 0, 1, 1], [0, 1, 1, 2], [0, 0, 0, 0]])
    logits = 4 * torch.eye(3)[chosen]
    logits[2, 3] *= 3  # a third member so sure of itself that its logits outweigh the others'
    found = ensemble_statistics(logits, torch.zeros(4, dtype=torch.long))
    assert found.members == (0.5, 0.25, 1.0)
    assert found.right == (0.0, 0.5, 0.25, 0.25)
    assert found.oracle == 1.0
    # The vote: 0, 0, 1, and a tie of three, which is right one time in three.
    assert found.majority_vote == pytest.approx((1 + 1 + 0 + 1 / 3) / 4)
    assert found.mean_logit == 0.75
    assert found.mean_probability == 0.75
    assert found.disagreement == pytest.approx((0.5 + 0.5 + 0.75) / 3)
    assert found.views == 4


def test_an_ensemble_gives_the_mean_of_probabilities_and_says_what_it_is_made_of() -> None:
    teachers = [small_teacher(seed) for seed in (1, 2, 3)]
    together, images = ensemble_of(teachers), torch.tensor(small_split().images)
    mean = torch.stack([teacher.logits(images).softmax(1) for teacher in teachers]).mean(0)
    assert torch.allclose(together.logits(images).softmax(1), mean, atol=1e-6)
    assert together.provenance.parameters == 3 * teachers[0].provenance.parameters
    assert together.provenance.sha256 != ensemble_of(teachers[:2]).provenance.sha256
    assert together.provenance.source == "an ensemble of 3: teacher 1, teacher 2, teacher 3"
    assert together.module is not None
    assert not together.module.training
    assert ensemble_of(teachers[:1]) is teachers[0]


def test_teachers_that_make_no_ensemble_are_refused() -> None:
    one = small_teacher(1)
    file = Teacher(one.forward, one.input_shape, one.classes, TeacherProvenance("t.onnx", "0", 0))
    with pytest.raises(UsageError, match="1 torch networks"):
        ensemble_of([one, file])
    with pytest.raises(UsageError, match="0 teachers"):
        ensemble_of([])
    with pytest.raises(MismatchError, match="teacher 2"):
        ensemble_of([one, small_teacher(2, classes=4)])
