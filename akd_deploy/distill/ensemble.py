"""Ensembles of teachers: members that know different things, and how often so many of them are right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from akd_deploy.data import Dataset, Split
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.distill.teachers import TEACHER_SETTINGS, train_teacher
from akd_deploy.errors import UsageError
from akd_deploy.losses import correct_teachers
from akd_deploy.models.convnet import ConvNet, ConvNetSettings


def member_seed(seed: int, member: int) -> int:
    """The seed of a member's training; that of the first is the ensemble's own."""
    return seed if member == 0 else int(np.random.SeedSequence([seed, member]).generate_state(1)[0])


def favoured_classes(classes: int, members: int, seed: int) -> list[np.ndarray]:
    """For each member the classes that it favours: every class has one such member, and all about as many."""
    order = np.random.default_rng([seed, 23]).permutation(classes)
    return [np.sort(order[member::members]) for member in range(members)]


def member_split(split: Split, favoured: np.ndarray, skew: float, seed: int) -> Split:
    """What one member learns from: all images of its favoured classes and a share of 1 − `skew` of the others.

    Raises:
        UsageError: nothing is left.
    """
    draws = np.random.default_rng([seed, 29]).random(len(split))
    kept = np.flatnonzero(np.isin(split.labels, favoured) | (draws >= skew))
    if not len(kept):
        raise UsageError(
            asked=f"a teacher's share of {len(split)} images with a skew of {skew:g}",
            found="no image",
            next="Lower skew, give fewer members, or more images.",
        )
    return split.take(kept)


def train_member(
    dataset: Dataset,
    member: int,
    members: int,
    seed: int,
    skew: float = 0.0,
    settings: TrainingSettings = TEACHER_SETTINGS,
    network: ConvNetSettings | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
) -> ConvNet:
    """One of `members` networks that differ in their seeds and, the more the greater `skew` is, in what they know.

    Args:
        member: 0 to `members` − 1.
        seed: of the ensemble.
        skew: 0 to 1, see `member_split`: the knob of what is called epistemic diversity.

    Raises:
        UsageError: a number out of range.
        TrainingError: as `train_teacher`.
    """
    if not 0 <= member < members or not 0 <= skew <= 1:
        raise UsageError(
            asked=f"member {member} of {members} with skew {skew:g}",
            found="a number out of range",
            next="Count members from 0, and give a skew from 0 to 1.",
        )
    own = member_seed(seed, member)
    images = None
    if skew:
        images = member_split(
            dataset.teacher_train, favoured_classes(dataset.classes, members, seed)[member], skew, own
        )
    return train_teacher(dataset, own, settings, network, on_step, images)


@dataclass(frozen=True)
class EnsembleStatistics:
    """How often an ensemble is right, over some views; shares are 0 to 1.

    `members` has each one's accuracy; `mean_probability`, `mean_logit` and `majority_vote` are accuracies of the
    ensemble by its three rules (a tied vote is right as often as a draw among the tied); `oracle` is the share of views
    that some member is right about. `right[m]` is the share about which exactly m are (the row sums of the u-matrix of
    Kang et al. 2020), and `disagreement` that of views about which two members differ, over all pairs.
    """

    views: int
    members: tuple[float, ...]
    mean_probability: float
    mean_logit: float
    majority_vote: float
    oracle: float
    right: tuple[float, ...]
    disagreement: float

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def ensemble_statistics(teacher_logits: Tensor, labels: Tensor) -> EnsembleStatistics:
    """Statistics of (teachers, views, classes) logits against (views,) labels."""
    members, views, classes = teacher_logits.shape
    correct = correct_teachers(teacher_logits, labels)
    counts = torch.bincount(correct.sum(dim=0), minlength=members + 1)
    chosen = teacher_logits.argmax(dim=-1)
    votes = F.one_hot(chosen, classes).sum(dim=0)
    elected = votes == votes.amax(dim=-1, keepdim=True)
    voted_right = elected.gather(-1, labels.unsqueeze(-1)).squeeze(-1) / elected.sum(dim=-1)
    pairs = [(i, j) for i in range(members) for j in range(i)]
    differing = [float((chosen[i] != chosen[j]).double().mean()) for i, j in pairs]

    def accuracy(logits: Tensor) -> float:
        return float((logits.argmax(dim=-1) == labels).double().mean())

    return EnsembleStatistics(
        views=views,
        members=tuple(correct.double().mean(dim=1).tolist()),
        mean_probability=accuracy(F.softmax(teacher_logits.double(), dim=-1).mean(dim=0)),
        mean_logit=accuracy(teacher_logits.double().mean(dim=0)),
        majority_vote=float(voted_right.double().mean()),
        oracle=float(correct.any(dim=0).double().mean()),
        right=tuple((counts.double() / views).tolist()),
        disagreement=sum(differing) / len(differing) if differing else 0.0,
    )
