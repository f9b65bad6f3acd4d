"""Are two images of the same class, one that no training has seen? What face recognition asks of a network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from sklearn.metrics import roc_curve

from akd_deploy.models.student import Student
from benchmarks.seed_systems.students import dataset_of, trained_student

UNSEEN = {
    "labelled": 48, "teacher_images": 48, "reward_images": 48, "tuning_images": 48, "test_images": 1_920, "shapes": 6,
    "seed": 1, "views": 1,
}  # fmt: skip
"""Glyphs of all shapes, half of which are none of the beds': the classes whose pairs are judged."""
FALSE_ACCEPTS = 0.01


def verify_student(job: Mapping[str, Any]) -> dict[str, Any]:
    """Train a student as `train_student` does, and judge by its embeddings pairs of images of unseen classes."""
    student, _ = trained_student(job)
    test = dataset_of(UNSEEN).test
    unseen = test.labels >= 1 + test.labels.max() // 2  # the later shapes
    return verification(embeddings(student, test.images[unseen]), test.labels[unseen])


def embeddings(student: Student, images: np.ndarray) -> np.ndarray:
    """(n, channels): what the classifier reads of each image, at length 1."""
    (before,) = student.operations[-1].inputs
    with torch.no_grad():
        found = torch.cat([student.every(part)[before].flatten(1) for part in torch.tensor(images).split(256)])
    result: np.ndarray = torch.nn.functional.normalize(found, dim=1).numpy()
    return result


def verification(embedded: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Over all pairs of images, alike by the cosine of their embeddings: `auc`, the chance that a pair of one class is
    more alike than one of two, and `accepted`, the share of pairs of one class that a threshold accepts which accepts
    `FALSE_ACCEPTS` of the others."""
    first, second = np.triu_indices(len(labels), 1)
    alike = (embedded @ embedded.T)[first, second]
    wrong, right, _ = roc_curve(labels[first] == labels[second], alike)
    return {"auc": float(np.trapezoid(right, wrong)), "accepted": float(np.interp(FALSE_ACCEPTS, wrong, right))}
