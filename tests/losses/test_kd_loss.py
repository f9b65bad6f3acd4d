"""Ordinary and ensemble distillation."""

from math import log

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.losses import kd_loss, majority_vote_kd_loss, mean_kd_loss, mean_logit_kd_loss


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(0, 3, shape), dtype=torch.float64)


def test_kd_loss_is_the_divergence_computed_by_hand() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2): 3/4 ln(3/2) + 1/4 ln(1/2).
    teacher = torch.tensor([[log(3.0), 0.0]], dtype=torch.float64)
    expected = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert float(kd_loss(torch.zeros(1, 2, dtype=torch.float64), teacher, 1.0)) == pytest.approx(expected)


def test_kd_loss_averages_over_the_batch() -> None:
    student, teacher = logits(0, 4, 5), logits(1, 4, 5)
    each = [float(kd_loss(student[i : i + 1], teacher[i : i + 1], 2.0)) for i in range(4)]
    assert float(kd_loss(student, teacher, 2.0)) == pytest.approx(np.mean(each))


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 10))
def test_kd_loss_is_zero_when_student_equals_teacher_and_positive_otherwise(seed: int, temperature: float) -> None:
    student, teacher = logits(seed, 3, 6), logits(seed + 1, 3, 6)
    assert float(kd_loss(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-12)
    assert float(kd_loss(student, teacher, temperature)) > 0


def test_kd_loss_is_scaled_by_the_square_of_the_temperature() -> None:
    student, teacher = logits(0, 3, 6), logits(1, 3, 6)
    assert float(kd_loss(student, teacher, 4.0)) == pytest.approx(16 * float(kd_loss(student / 4, teacher / 4, 1.0)))


def test_kd_gradient_keeps_its_size_as_the_temperature_grows() -> None:
    def size(temperature: float) -> float:
        student = logits(0, 8, 6).requires_grad_()
        kd_loss(student, logits(1, 8, 6), temperature).backward()
        assert student.grad is not None
        return float(student.grad.norm())

    assert size(400.0) == pytest.approx(size(200.0), rel=0.02)


def test_kd_loss_gives_the_teacher_no_gradient() -> None:
    student, teacher = logits(0, 3, 6).requires_grad_(), logits(1, 3, 6).requires_grad_()
    kd_loss(student, teacher, 2.0).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_kd_loss_survives_very_confident_logits() -> None:
    confident = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert torch.isfinite(kd_loss(-confident, confident, 1.0))


def test_mean_kd_of_one_teacher_is_kd() -> None:
    student, teacher = logits(0, 3, 6), logits(1, 3, 6)
    assert float(mean_kd_loss(student, teacher[None], 3.0)) == pytest.approx(float(kd_loss(student, teacher, 3.0)))


def test_mean_kd_averages_probabilities_not_logits() -> None:
    # Two teachers, certain of opposite classes: their mean is undecided, and so is the student.
    teachers = torch.tensor([[[50.0, 0.0]], [[0.0, 50.0]]], dtype=torch.float64)
    assert float(mean_kd_loss(torch.zeros(1, 2, dtype=torch.float64), teachers, 1.0)) == pytest.approx(0, abs=1e-12)
    # (0.9, 0.1) and (0.5, 0.5) average to (0.7, 0.3).
    teachers = torch.tensor([[[0.9, 0.1]], [[0.5, 0.5]]], dtype=torch.float64).log()
    expected = 0.7 * log(0.7 / 0.5) + 0.3 * log(0.3 / 0.5)
    assert float(mean_kd_loss(torch.zeros(1, 2, dtype=torch.float64), teachers, 1.0)) == pytest.approx(expected)


def test_mean_kd_gives_the_teachers_no_gradient() -> None:
    teachers = logits(1, 2, 3, 6).requires_grad_()
    mean_kd_loss(logits(0, 3, 6).requires_grad_(), teachers, 2.0).backward()
    assert teachers.grad is None


def test_mean_logits_are_the_geometric_mean_of_probabilities() -> None:
    # (4/5, 1/5) and (1/2, 1/2): their geometric mean is 2 : 1, an undecided student is ln 2 − H(2/3) away.
    teachers = torch.tensor([[[log(4.0), 0.0]], [[0.0, 0.0]]], dtype=torch.float64)
    expected = 2 / 3 * log(4 / 3) + 1 / 3 * log(2 / 3)
    student = torch.zeros(1, 2, dtype=torch.float64)
    assert float(mean_logit_kd_loss(student, teachers, 1.0)) == pytest.approx(expected)
    assert float(mean_logit_kd_loss(student, teachers[:1], 3.0)) == pytest.approx(
        float(kd_loss(student, teachers[0], 3.0))
    )


def test_a_vote_is_for_the_class_of_most_teachers_and_even_where_it_is_tied() -> None:
    # View 0: classes 0, 0, 1 win 0; view 1: classes 0, 1, 2 are tied, which an undecided student agrees with.
    teachers = 5 * torch.eye(3, dtype=torch.float64)[torch.tensor([[0, 0], [0, 1], [1, 2]])]
    student = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    loss = majority_vote_kd_loss(student, teachers)
    assert float(loss.detach()) == pytest.approx(log(3) / 2)
    loss.backward()
    assert student.grad is not None
    assert student.grad[1] == pytest.approx(0)
    assert (student.grad[0] > 0).tolist() == [False, True, True]
