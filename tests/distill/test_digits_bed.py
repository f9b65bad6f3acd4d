"""The digits bed shows what it was chosen to show, at a small size."""

import numpy as np
import torch

from akd_deploy.data import ViewBank, load_dataset
from akd_deploy.distill import TrainingSettings, evaluate, teacher_bank, train, train_teacher
from akd_deploy.models.convnet import ConvNetSettings, convnet
from akd_deploy.models.teacher import state_sha256, teacher_from_module

QUICK = TrainingSettings(steps=240, batch_size=64, learning_rate=0.2, fresh_views=True)


def test_with_few_labels_a_distilled_student_beats_one_trained_on_labels() -> None:
    dataset = load_dataset("digits", {"labelled": 100, "views": 16})
    network = train_teacher(dataset, 0, QUICK, ConvNetSettings(widths=(16, 32, 64), depth=1))
    taught = evaluate(network, dataset.tuning_val).accuracy
    assert taught > 0.85
    teacher = teacher_from_module(network, dataset.input_shape, dataset.classes, "digits")
    views = ViewBank(dataset.train, dataset.views, 0)
    bank = teacher_bank([teacher], views)
    accuracy: dict[str, list[float]] = {"ce": [], "kd": []}
    for method, scores in accuracy.items():
        for seed in range(3):
            generator = torch.Generator().manual_seed(seed)
            student = convnet(ConvNetSettings(widths=(8, 16, 32), depth=1), generator)
            train(student, views, TrainingSettings(steps=240), generator, method=method, teacher=bank)
            scores.append(evaluate(student, dataset.reward_val).accuracy)
    assert np.mean(accuracy["kd"]) > np.mean(accuracy["ce"]) + 0.015


def test_one_seed_gives_one_teacher_and_another_seed_another() -> None:
    dataset = load_dataset("digits")
    small, short = ConvNetSettings(widths=(4, 8), depth=1), TrainingSettings(steps=3, fresh_views=True)
    one, again, other = (state_sha256(train_teacher(dataset, seed, short, small)) for seed in (1, 1, 2))
    assert one == again != other
