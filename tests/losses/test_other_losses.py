"""DKD, DIST and the hierarchical context loss."""

from math import log, sqrt

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.losses import (
    dist_loss,
    dkd_loss,
    hcl_loss,
    kd_loss,
    mse_loss,
    non_target_class_kd,
    pearson_correlation,
    target_class_kd,
)


def logits(seed: int, *shape: int) -> torch.Tensor:
    return torch.tensor(np.random.default_rng(seed).normal(0, 2, shape), dtype=torch.float64)


def test_dkd_computed_by_hand() -> None:
    # Teacher (1/2, 3/8, 1/8), student uniform, label 0. TCKD: (1/2, 1/2) against (1/3, 2/3);
    # NCKD: (3/4, 1/4) against (1/2, 1/2).
    teacher = torch.tensor([[0.5, 0.375, 0.125]], dtype=torch.float64).log()
    student, labels = torch.zeros(1, 3, dtype=torch.float64), torch.tensor([0])
    tckd = 0.5 * log(0.5 * 3) + 0.5 * log(0.5 * 3 / 2)
    nckd = 0.75 * log(1.5) + 0.25 * log(0.5)
    assert float(target_class_kd(student, teacher, labels, 1.0)) == pytest.approx(tckd)
    assert float(non_target_class_kd(student, teacher, labels, 1.0)) == pytest.approx(nckd)
    actual = dkd_loss(student, teacher, labels, 1.0, alpha=2.0, beta=5.0)
    assert float(actual) == pytest.approx(2 * tckd + 5 * nckd)


@given(seed=st.integers(0, 10_000), temperature=st.floats(0.5, 8))
def test_kd_is_tckd_plus_nckd_weighted_by_the_teachers_doubt(seed: int, temperature: float) -> None:
    student, teacher, labels = logits(seed, 1, 5), logits(seed + 1, 1, 5), torch.tensor([seed % 5])
    doubt = 1 - float(torch.softmax(teacher / temperature, 1)[0, seed % 5])
    recomposed = float(target_class_kd(student, teacher, labels, temperature)) + doubt * float(
        non_target_class_kd(student, teacher, labels, temperature)
    )
    assert recomposed == pytest.approx(float(kd_loss(student, teacher, temperature)), abs=1e-9)


def test_dkd_is_zero_at_the_teacher_scales_with_temperature_squared_and_gives_it_no_gradient() -> None:
    student, teacher, labels = logits(0, 4, 5), logits(1, 4, 5).requires_grad_(), torch.tensor([0, 1, 2, 4])
    assert float(dkd_loss(teacher.detach(), teacher, labels, 4.0)) == pytest.approx(0, abs=1e-9)
    hot = float(dkd_loss(student, teacher, labels, 4.0))
    assert hot == pytest.approx(16 * float(dkd_loss(student / 4, teacher / 4, labels, 1.0)))
    dkd_loss(student.requires_grad_(), teacher, labels, 4.0).backward()
    assert teacher.grad is None


def test_dkd_survives_a_certain_teacher() -> None:
    certain = torch.tensor([[1e4, 0.0, 0.0]])
    assert torch.isfinite(dkd_loss(-certain, certain, torch.tensor([0]), 1.0))


def test_pearson_correlation_computed_by_hand() -> None:
    a, b = torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 3.0, 2.0])
    assert float(pearson_correlation(a, b)) == pytest.approx(0.5)
    assert float(pearson_correlation(a, -a)) == pytest.approx(-1)
    assert float(pearson_correlation(a, torch.ones(3))) == 0


def test_dist_computed_from_numpys_correlation() -> None:
    student, teacher = logits(0, 6, 4), logits(1, 6, 4)
    q, p = torch.softmax(student, 1).numpy(), torch.softmax(teacher, 1).numpy()
    inter = 1 - np.mean([np.corrcoef(q[i], p[i])[0, 1] for i in range(6)])
    intra = 1 - np.mean([np.corrcoef(q[:, c], p[:, c])[0, 1] for c in range(4)])
    assert float(dist_loss(student, teacher, 1.0, beta=2.0, gamma=3.0)) == pytest.approx(2 * inter + 3 * intra)


def test_dist_is_zero_at_the_teacher_scales_with_temperature_squared_and_gives_it_no_gradient() -> None:
    student, teacher = logits(0, 6, 4), logits(1, 6, 4).requires_grad_()
    assert float(dist_loss(teacher.detach(), teacher, 2.0)) == pytest.approx(0, abs=1e-9)
    assert float(dist_loss(student, teacher, 2.0)) == pytest.approx(4 * float(dist_loss(student / 2, teacher / 2, 1.0)))
    dist_loss(student.requires_grad_(), teacher, 2.0).backward()
    assert teacher.grad is None


def test_dist_of_constant_outputs_has_a_finite_gradient() -> None:
    student = torch.zeros(3, 4, requires_grad=True)
    dist_loss(student, logits(1, 3, 4).float(), 1.0).backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


def test_hcl_computed_by_hand_on_a_two_by_two_map() -> None:
    # Full size: mean of (1, 0, 0, 0) squared = 1/4. Pooled to 1×1: (1/4)² = 1/16, weight 1/2. Sum over 3/2.
    student = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert float(hcl_loss(student, torch.zeros(1, 1, 2, 2))) == pytest.approx((1 / 4 + 1 / 32) / 1.5)


def test_hcl_weights_its_four_levels_one_half_quarter_eighth() -> None:
    # A constant difference d is d² at every level, whatever the weights.
    assert float(hcl_loss(torch.full((2, 3, 8, 8), sqrt(2)), torch.zeros(2, 3, 8, 8))) == pytest.approx(2)
    # A difference that cancels in 2×2 patches is seen at full size alone: weight 1 of 1.875.
    checks = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(4, 4)[None, None]
    assert float(hcl_loss(checks, torch.zeros(1, 1, 8, 8))) == pytest.approx(1 / 1.875)


@pytest.mark.parametrize("size", [(32, 32), (16, 8), (12, 12), (7, 7), (6, 6), (5, 9), (4, 4), (3, 8), (2, 2), (1, 1)])
def test_hcl_is_the_equation_at_every_size(size: tuple[int, int]) -> None:
    """Even bins or not: each level pools both maps by itself."""
    student, teacher = logits(0, 2, 3, *size), logits(1, 2, 3, *size)
    terms, weights = [F.mse_loss(student, teacher)], [1.0]
    for level in (4, 2, 1):
        if level < min(size):
            pooled = (F.adaptive_avg_pool2d(x, level) for x in (student, teacher))
            terms.append(F.mse_loss(*pooled))
            weights.append(weights[-1] / 2)
    expected = sum(w * t for w, t in zip(weights, terms, strict=True)) / sum(weights)
    assert float(hcl_loss(student, teacher)) == pytest.approx(float(expected), rel=1e-6)


COARSER = [((16, 16), (32, 32)), ((8, 4), (32, 32)), ((4, 4), (8, 16)), ((2, 2), (8, 8)), ((6, 6), (12, 12)),
           ((3, 3), (9, 9)), ((1, 1), (4, 4)), ((2, 4), (2, 4))]  # fmt: skip


@pytest.mark.parametrize("loss", [hcl_loss, mse_loss])
@pytest.mark.parametrize(("size", "its"), COARSER)
def test_a_coarser_map_counts_as_repeated(loss, size: tuple[int, int], its: tuple[int, int]) -> None:
    student, teacher = logits(0, 2, 3, *size).requires_grad_(), logits(1, 2, 3, *its)
    found, expected = loss(student, teacher), loss(F.interpolate(student, its, mode="nearest"), teacher)
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    gradients = [torch.autograd.grad(one, student)[0] for one in (found, expected)]
    assert torch.allclose(*gradients, atol=1e-6)


@pytest.mark.parametrize("loss", [hcl_loss, mse_loss])
def test_maps_far_from_zero_are_compared_as_well_in_float32(loss) -> None:
    student, teacher = 100 + 0.01 * logits(0, 2, 3, 8, 8), 100 + 0.01 * logits(1, 2, 3, 16, 16)
    expected = float(loss(student, teacher))
    assert float(loss(student.float(), teacher.float())) == pytest.approx(expected, rel=0.2, abs=1e-4)
    assert float(loss(student.float(), teacher.float())) >= 0


@pytest.mark.parametrize("loss", [hcl_loss, mse_loss])
@pytest.mark.parametrize("shape", [(1, 2, 8, 8), (1, 3, 3, 4), (2, 3, 8, 8), (1, 3, 16, 16)])
def test_maps_that_cannot_be_compared_are_refused(loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="feature maps differ"):
        loss(torch.zeros(*shape), torch.zeros(1, 3, 8, 8))


def test_hcl_is_zero_at_the_teacher_and_gives_it_no_gradient() -> None:
    teacher = logits(1, 2, 3, 8, 8).requires_grad_()
    assert float(hcl_loss(teacher.detach(), teacher)) == 0
    hcl_loss(logits(0, 2, 3, 8, 8).requires_grad_(), teacher).backward()
    assert teacher.grad is None
