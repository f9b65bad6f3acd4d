"""Trains the teacher where the user brings none."""

from __future__ import annotations

from collections.abc import Callable

import torch

from akd_deploy.data import Dataset, Split, ViewBank
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.distill.trainer import train
from akd_deploy.models.convnet import ConvNet, ConvNetSettings, convnet, default_widths

TEACHER_SETTINGS = TrainingSettings(steps=400, batch_size=64, learning_rate=0.1, fresh_views=True)
"""For the digits bed, where it reaches about 96 % on noisy images (chosen on the tuning split)."""


def train_teacher(
    dataset: Dataset,
    seed: int,
    settings: TrainingSettings = TEACHER_SETTINGS,
    network: ConvNetSettings | None = None,
    on_step: Callable[[int, int, float], None] | None = None,
    images: Split | None = None,
) -> ConvNet:
    """A plain convolutional network trained by cross-entropy on `images`: all of `dataset.teacher_train` where None.

    `seed` decides initial weights, batches and views: another seed gives another member of an ensemble. The
    network's size follows the images' unless `network` says otherwise.

    Raises:
        TrainingError: the loss became NaN or infinite.
    """
    channels, height, width = dataset.input_shape
    sizes = network or ConvNetSettings(channels, dataset.classes, default_widths(max(height, width)))
    generator = torch.Generator().manual_seed(seed)
    teacher = convnet(sizes, generator)
    views = ViewBank(images or dataset.teacher_train, dataset.views, seed)
    train(teacher, views, settings, generator, method="ce", on_step=on_step)
    return teacher
