"""Oracle distillation: only the teachers that are right teach."""

from math import log

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.losses import (
    correct_teachers,
    mean_kd_loss,
    oracle_kd_loss,
    relative_oracle_kd_loss,
    soft_oracle_kd_loss,
)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(0, 2, shape), dtype=torch.float64)


def slow_oracle(student: torch.Tensor, teachers: torch.Tensor, labels: torch.Tensor, temperature: float) -> float:
    """The published equation, one view and one teacher at a time."""
    total = 0.0
    for i, label in enumerate(labels.tolist()):
        right = [z[i] for z in teachers if int(z[i].argmax()) == label]
        if right:
            q = sum(torch.softmax(z / temperature, 0) for z in right) / len(right)
            s = torch.softmax(student[i] / temperature, 0)
            total += temperature**2 * float((q * (q / s).log()).sum())
        else:
            total += -float(torch.log_softmax(student[i], 0)[label])
    return total / len(labels)


def test_oracle_computed_by_hand() -> None:
    # View 0 (label 0): teacher 0 says (3/4, 1/4) and is right, teacher 1 says (1/4, 3/4) and is not heard.
    # View 1 (label 1): both are wrong, so cross-entropy with the label, ln 2 for an undecided student.
    teachers = torch.tensor([[[0.75, 0.25], [0.75, 0.25]], [[0.25, 0.75], [0.6, 0.4]]], dtype=torch.float64).log()
    labels = torch.tensor([0, 1])
    assert correct_teachers(teachers, labels).tolist() == [[True, False], [False, False]]
    expected = (0.75 * log(1.5) + 0.25 * log(0.5) + log(2)) / 2
    actual = oracle_kd_loss(torch.zeros(2, 2, dtype=torch.float64), teachers, labels, 1.0)
    assert float(actual) == pytest.approx(expected)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8), teachers=st.integers(1, 4))
def test_oracle_equals_the_slow_equation(seed: int, temperature: float, teachers: int) -> None:
    student, taught = logits(seed, 6, 3), logits(seed + 1, teachers, 6, 3)
    labels = torch.tensor(np.random.default_rng(seed).integers(0, 3, 6))
    fast = float(oracle_kd_loss(student, taught, labels, temperature))
    assert fast == pytest.approx(slow_oracle(student, taught, labels, temperature))


def test_oracle_is_mean_distillation_where_every_teacher_is_right() -> None:
    labels = torch.tensor([0, 1, 2])
    teachers = logits(1, 4, 3, 3) + 20 * F.one_hot(labels, 3)
    student = logits(0, 3, 3)
    expected = float(mean_kd_loss(student, teachers, 3.0))
    assert float(oracle_kd_loss(student, teachers, labels, 3.0)) == pytest.approx(expected)


def test_oracle_is_cross_entropy_where_no_teacher_is_right() -> None:
    labels = torch.tensor([0, 1, 2])
    teachers = logits(1, 4, 3, 3) - 20 * F.one_hot(labels, 3)
    student = logits(0, 3, 3).requires_grad_()
    loss = oracle_kd_loss(student, teachers, labels, 3.0)
    assert float(loss.detach()) == pytest.approx(float(F.cross_entropy(student.detach(), labels)))
    loss.backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_oracle_is_zero_at_a_teacher_that_is_right_and_gives_it_no_gradient() -> None:
    teacher = torch.tensor([[[2.0, 0.0], [0.0, 1.0]]]).requires_grad_()
    student = teacher.detach()[0].clone().requires_grad_()
    loss = oracle_kd_loss(student, teacher, torch.tensor([0, 1]), 2.0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0, abs=1e-6)
    assert teacher.grad is None


def test_correctness_is_that_of_the_view_not_of_the_image() -> None:
    # One image in two views; the teacher errs on the second, and there the label teaches.
    teachers = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
    assert correct_teachers(teachers, torch.tensor([0, 0])).tolist() == [[True, False]]


def slow_soft_oracle(student, teachers, labels, temperature: float, beta: float) -> float:
    """Ours, one view and one teacher at a time."""
    total = 0.0
    for i, label in enumerate(labels.tolist()):
        beliefs = [float(torch.softmax(z[i], 0)[label]) ** beta for z in teachers]
        q = sum(w * torch.softmax(z[i] / temperature, 0) for w, z in zip(beliefs, teachers, strict=True)) / sum(beliefs)
        s = torch.softmax(student[i] / temperature, 0)
        total += temperature**2 * float((q * (q / s).log()).sum())
    return total / len(labels)


def test_soft_oracle_computed_by_hand() -> None:
    # Label 0; the teachers give it 3/4 and 1/4, so that with β = 1 they weigh 3/4 and 1/4:
    # q = 3/4 (3/4, 1/4) + 1/4 (1/4, 3/4) = (5/8, 3/8).
    teachers = torch.tensor([[[0.75, 0.25]], [[0.25, 0.75]]], dtype=torch.float64).log()
    actual = soft_oracle_kd_loss(torch.zeros(1, 2, dtype=torch.float64), teachers, torch.tensor([0]), 1.0, 1.0)
    assert float(actual) == pytest.approx(5 / 8 * log(5 / 4) + 3 / 8 * log(3 / 4))


def test_soft_oracle_goes_from_the_mean_to_the_teacher_that_is_surest_of_the_label() -> None:
    student, taught, labels = logits(0, 5, 3), logits(1, 4, 5, 3), torch.tensor([0, 1, 2, 0, 1])
    mean = float(mean_kd_loss(student, taught, 2.0))
    assert float(soft_oracle_kd_loss(student, taught, labels, 2.0, 0.0)) == pytest.approx(mean)
    surest = torch.log_softmax(taught, -1)[:, torch.arange(5), labels].argmax(0)
    alone = float(mean_kd_loss(student, taught[surest, torch.arange(5)][None], 2.0))
    assert float(soft_oracle_kd_loss(student, taught, labels, 2.0, 1e4)) == pytest.approx(alone)


def slow_relative_oracle(student, teachers, labels, temperature: float, beta: float) -> float:
    """Ours, one view and one teacher at a time."""
    total = 0.0
    for i, label in enumerate(labels.tolist()):
        near = [float(torch.softmax(z[i], 0)[label] / torch.softmax(z[i], 0).max()) ** beta for z in teachers]
        q = sum(w * torch.softmax(z[i] / temperature, 0) for w, z in zip(near, teachers, strict=True)) / sum(near)
        s = torch.softmax(student[i] / temperature, 0)
        total += max(near) * temperature**2 * float((q * (q / s).log()).sum())
        total -= (1 - max(near)) * float(torch.log_softmax(student[i], 0)[label])
    return total / len(labels)


def test_relative_oracle_computed_by_hand() -> None:
    # Label 0. Of the first view one teacher is right (r = 1), the other gives it a third of its favourite's chance:
    # with β = 1 they weigh 3/4 and 1/4, q = 3/4 (3/4, 1/4) + 1/4 (1/4, 3/4) = (5/8, 3/8), and the label has no part.
    # Of the second both are wrong, r = 1/3: they weigh the same, q = (1/4, 3/4), and the label teaches for 2/3.
    teachers = torch.tensor([[[0.75, 0.25], [0.25, 0.75]], [[0.25, 0.75], [0.25, 0.75]]], dtype=torch.float64).log()
    labels, student = torch.tensor([0, 0]), torch.zeros(2, 2, dtype=torch.float64)
    first = 5 / 8 * log(5 / 4) + 3 / 8 * log(3 / 4)
    second = (1 / 4 * log(1 / 2) + 3 / 4 * log(3 / 2)) / 3 + 2 / 3 * log(2)
    actual = relative_oracle_kd_loss(student, teachers, labels, 1.0, 1.0)
    assert float(actual) == pytest.approx((first + second) / 2)


@pytest.mark.parametrize(
    ("loss", "slow"), [(soft_oracle_kd_loss, slow_soft_oracle), (relative_oracle_kd_loss, slow_relative_oracle)]
)
@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8), teachers=st.integers(1, 4), beta=st.floats(0, 20))
def test_a_loss_between_mean_and_oracle_equals_its_slow_equation(loss, slow, seed, temperature, teachers, beta) -> None:
    student, taught = logits(seed, 6, 3), logits(seed + 1, teachers, 6, 3)
    labels = torch.tensor(np.random.default_rng(seed).integers(0, 3, 6))
    fast = float(loss(student, taught, labels, temperature, beta))
    assert fast == pytest.approx(slow(student, taught, labels, temperature, beta))


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8), teachers=st.integers(1, 4))
def test_relative_oracle_contains_the_mean_and_the_oracle(seed: int, temperature: float, teachers: int) -> None:
    student, taught = logits(seed, 6, 3), logits(seed + 1, teachers, 6, 3)
    labels = torch.tensor(np.random.default_rng(seed).integers(0, 3, 6))
    mean, oracle = mean_kd_loss(student, taught, temperature), oracle_kd_loss(student, taught, labels, temperature)
    assert float(relative_oracle_kd_loss(student, taught, labels, temperature, 0.0)) == pytest.approx(float(mean))
    assert float(relative_oracle_kd_loss(student, taught, labels, temperature, 1e9)) == pytest.approx(float(oracle))


@pytest.mark.parametrize("loss", [soft_oracle_kd_loss, relative_oracle_kd_loss])
def test_a_loss_between_mean_and_oracle_gives_its_teachers_no_gradient(loss) -> None:
    teachers, student = logits(0, 2, 3, 3).requires_grad_(), logits(1, 3, 3).requires_grad_()
    loss(student, teachers, torch.tensor([0, 1, 2]), 2.0, 1.0).backward()
    assert teachers.grad is None
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
