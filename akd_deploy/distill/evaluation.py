"""Scores a classifier on a split: accuracy, likelihood, calibration, agreement with its teacher."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from akd_deploy.data import Split
from akd_deploy.errors import MismatchError

CALIBRATION_BINS = 15
"""Bins of the expected calibration error, as in Guo et al. 2017 (arXiv:1706.04599)."""


@dataclass(frozen=True)
class Evaluation:
    """`accuracy` 0 to 1, `loss` the mean cross-entropy in nats, `calibration_error` 0 to 1, of `images` images."""

    accuracy: float
    loss: float
    calibration_error: float
    images: int


@dataclass(frozen=True)
class Agreement:
    """How a student's outputs compare with its teacher's.

    `top1` is the share of images on which both choose one class, 0 to 1; `mean_kl` the mean
    KL(teacher || student) at temperature 1, in nats.
    """

    top1: float
    mean_kl: float


def logits_of(network: nn.Module, images: np.ndarray, batch_size: int = 512) -> Tensor:
    """(n, classes) float32 on the CPU for (n, C, H, W) images, in evaluation mode; the mode is restored."""
    device = next(network.parameters()).device
    training = network.training
    network.eval()
    try:
        with torch.no_grad():
            parts = [network(batch.to(device)).float().cpu() for batch in torch.tensor(images).split(batch_size)]
    finally:
        network.train(training)
    return torch.cat(parts)


def evaluate(network: nn.Module, split: Split) -> Evaluation:
    """Score a network on a split."""
    return evaluate_logits(logits_of(network, split.images), split.labels)


def evaluate_logits(logits: Tensor, labels: np.ndarray) -> Evaluation:
    """Score (n, classes) logits against (n,) labels.

    Raises:
        MismatchError: there is a label beyond the classes.
    """
    targets = torch.tensor(labels)
    if logits.shape[1] <= int(targets.max()):
        raise MismatchError(
            asked=f"logits for labels up to {int(targets.max())}",
            found=f"{logits.shape[1]} classes",
            next="Give the network as many classes as the dataset has.",
        )
    return Evaluation(
        accuracy=float((logits.argmax(dim=1) == targets).double().mean()),
        loss=float(F.cross_entropy(logits, targets)),
        calibration_error=expected_calibration_error(logits, labels),
        images=len(targets),
    )


def expected_calibration_error(logits: Tensor, labels: np.ndarray, bins: int = CALIBRATION_BINS) -> float:
    """Mean gap between confidence and accuracy over equal bins of confidence, weighted by their images, 0 to 1.

    (Guo et al. 2017, arXiv:1706.04599, equation 3.)
    """
    confidence, predicted = F.softmax(logits.double(), dim=1).max(dim=1)
    correct = (predicted == torch.tensor(labels)).double()
    # Bins are open below and closed above, as in the source: (0, 1/15], (1/15, 2/15] …
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = torch.zeros(bins, dtype=torch.double).index_add_(0, place, correct - confidence)
    return float(gap.abs().sum() / len(confidence))


def agreement(student_logits: Tensor, teacher_logits: Tensor) -> Agreement:
    """Compare (n, classes) logits of a student with its teacher's on the same images."""
    kl = F.kl_div(
        F.log_softmax(student_logits.double(), dim=1),
        F.log_softmax(teacher_logits.double(), dim=1),
        reduction="batchmean",
        log_target=True,
    )
    top1 = (student_logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).double().mean()
    return Agreement(top1=float(top1), mean_kl=float(kl))
