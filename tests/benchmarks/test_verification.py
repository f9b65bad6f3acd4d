"""Pairs of images by their embeddings: by hand, and at the ends of the scale."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from akd_deploy.models.student import student_from_architecture
from akd_deploy.search_space import load_space
from benchmarks.seed_systems import verification as task
from benchmarks.seed_systems.students import dataset_of


def at(*degrees: float) -> np.ndarray:
    return np.stack([np.cos(np.radians(degrees)), np.sin(np.radians(degrees))], axis=1)


def test_by_hand() -> None:
    # Pairs of one class are 20° and 30° apart; of two 40°, 60°, 70° and 90°, and 25° where the last one comes nearer.
    assert task.verification(at(0, 20, 60, 90), np.array([0, 0, 1, 1])) == {"auc": 1.0, "accepted": 1.0}
    found = task.verification(at(0, 20, 45, 75), np.array([0, 0, 1, 1]))
    # Of 2 × 4 pairs of pairs one is in the wrong order: 30° within a class, 25° between two.
    assert found["auc"] == pytest.approx(7 / 8)
    assert found["accepted"] == pytest.approx(0.5)


def test_what_says_nothing_is_at_a_half() -> None:
    rng = np.random.default_rng(0)
    embedded = rng.normal(size=(400, 8))
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    found = task.verification(embedded, rng.integers(4, size=400))
    assert found["auc"] == pytest.approx(0.5, abs=0.02)
    assert found["accepted"] == pytest.approx(0.01, abs=0.005)


def test_embeddings_are_what_the_classifier_reads_at_length_one() -> None:
    space = load_space("mobile", {"widths": [8, 12, 16], "stem_width": 4})
    student = student_from_architecture(space.sample(np.random.default_rng(3)), 0).eval()
    images = torch.randn(3, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    found = task.embeddings(student, images.numpy())
    assert np.linalg.norm(found, axis=1) == pytest.approx(1)
    read = []
    student.steps["head_classifier"].register_forward_hook(lambda _module, inputs, _output: read.append(inputs[0]))
    with torch.no_grad():
        student(images)
    assert found == pytest.approx(torch.nn.functional.normalize(read[0], dim=1).numpy(), abs=1e-6)


def test_classes_that_are_judged_are_none_of_the_beds() -> None:
    every = dataset_of(task.UNSEEN)
    seen = set(dataset_of({**task.UNSEEN, "shapes": 3, "test_images": 48}).class_names)
    labels = every.test.labels
    judged = labels[labels >= 1 + labels.max() // 2]
    assert len(judged) == len(labels) // 2
    assert not seen & {every.class_names[label] for label in judged}
