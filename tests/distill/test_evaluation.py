"""Scores computed by hand."""

from math import log

import numpy as np
import pytest
import torch
from small_bed import small_network, small_split
from torch import nn

from akd_deploy.data import Split
from akd_deploy.distill import agreement, evaluate, evaluate_logits, logits_of
from akd_deploy.distill.evaluation import expected_calibration_error
from akd_deploy.errors import MismatchError


def test_accuracy_and_loss_computed_by_hand() -> None:
    probabilities = torch.tensor([[0.5, 0.5], [0.75, 0.25], [0.25, 0.75], [0.9, 0.1]])
    result = evaluate_logits(probabilities.log(), np.array([0, 0, 0, 1]))
    assert result.accuracy == 0.5
    assert result.loss == pytest.approx(-(log(0.5) + log(0.75) + log(0.25) + log(0.1)) / 4, rel=1e-5)
    assert result.images == 4


def test_calibration_error_computed_by_hand() -> None:
    # Two bins: (0, ½] holds one image of confidence ½, wrong; (½, 1] two of 0.8, one of them right.
    probabilities = torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1], [0.8, 0.1, 0.1]], dtype=torch.float64)
    error = expected_calibration_error(probabilities.log(), np.array([1, 0, 1]), bins=2)
    assert error == pytest.approx((0.5 + 2 * 0.3) / 3)


def test_a_certain_and_right_network_is_perfectly_calibrated() -> None:
    logits = torch.tensor([[100.0, 0.0], [0.0, 100.0]])
    assert expected_calibration_error(logits, np.array([0, 1])) == pytest.approx(0)
    assert expected_calibration_error(logits, np.array([1, 0])) == pytest.approx(1)


def test_agreement_computed_by_hand() -> None:
    teacher = torch.tensor([[0.75, 0.25], [0.25, 0.75]]).log()
    student = torch.tensor([[0.5, 0.5], [0.75, 0.25]]).log()
    result = agreement(student, teacher)
    first = 0.75 * log(1.5) + 0.25 * log(0.5)
    second = 0.25 * log(1 / 3) + 0.75 * log(3)
    assert result.mean_kl == pytest.approx((first + second) / 2, rel=1e-5)
    assert result.top1 == 0.5
    assert agreement(teacher, teacher).top1 == 1
    assert agreement(teacher, teacher).mean_kl == pytest.approx(0)


def test_logits_do_not_depend_on_the_batch_size_and_the_mode_is_restored() -> None:
    network, split = small_network(0), small_split()
    network.train()
    assert torch.allclose(logits_of(network, split.images, 5), logits_of(network, split.images), atol=1e-6)
    assert network.training
    statistics = network[2].running_mean
    assert torch.equal(statistics, torch.zeros_like(statistics))


def test_evaluate_scores_a_network_on_a_split() -> None:
    images = np.zeros((2, 1, 1, 2), np.float32)
    images[0, ..., 0] = images[1, ..., 1] = 1

    class Flat(nn.Flatten):
        pass

    network = nn.Sequential(Flat(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        network[1].weight.copy_(torch.eye(2))
    assert evaluate(network, Split(images, np.array([0, 0]), np.arange(2))).accuracy == 0.5


def test_a_label_beyond_the_classes_is_refused() -> None:
    with pytest.raises(MismatchError, match=r"labels up to 4.*2 classes"):
        evaluate_logits(torch.zeros(1, 2), np.array([4]))
