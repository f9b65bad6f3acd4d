"""Small networks, images and teachers: twelve 4×4 images of three classes."""

import numpy as np
import torch
from torch import nn

from akd_deploy.data import Split
from akd_deploy.models.teacher import Teacher, teacher_from_module

SHAPE = (1, 4, 4)
CLASSES = 3


def small_network(seed: int, classes: int = CLASSES) -> nn.Sequential:
    """Linear, norm, ReLU, linear; one seed gives one set of weights."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, classes))
    generator = torch.Generator().manual_seed(seed)
    for parameter in net.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.4, generator=generator)
    for layer in (net[1], net[4]):
        nn.init.zeros_(layer.bias)
    return net


def small_split(n: int = 12, seed: int = 0) -> Split:
    images = np.random.default_rng(seed).normal(size=(n, *SHAPE)).astype(np.float32)
    return Split(images, np.arange(n) % CLASSES, np.arange(n))


def small_teacher(seed: int, classes: int = CLASSES) -> Teacher:
    return teacher_from_module(small_network(seed, classes), SHAPE, classes, f"teacher {seed}")
