"""Training: reproducible, consistent views, methods by name, and failures that say where."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from small_bed import small_network, small_split, small_teacher
from torch import Tensor, nn

from akd_deploy.data import Split, ViewBank, ViewSettings
from akd_deploy.distill import METHODS, TrainingSettings, teacher_bank, train
from akd_deploy.distill.methods import method_for, training_loss
from akd_deploy.distill.trainer import draw_batches, optimiser_for
from akd_deploy.errors import MismatchError, TrainingError, UnknownNameError, UsageError
from akd_deploy.losses import (
    majority_vote_kd_loss,
    mean_kd_loss,
    mean_logit_kd_loss,
    oracle_kd_loss,
    relative_oracle_kd_loss,
    soft_oracle_kd_loss,
)
from akd_deploy.models.teacher import state_sha256

SETTINGS = TrainingSettings(steps=8, batch_size=5, learning_rate=0.05)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def trained(views: ViewBank, seed: int = 0, settings: TrainingSettings = SETTINGS, **arguments: object) -> nn.Module:
    student = small_network(seed)
    train(student, views, settings, generator(seed), **arguments)  # type: ignore[arg-type]
    return student


@pytest.mark.parametrize("method", sorted(METHODS))
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_one_seed_gives_one_student(views: ViewBank, method: str, optimiser: str) -> None:
    bank = teacher_bank([small_teacher(9)], views)
    settings = replace(SETTINGS, optimiser=optimiser)
    one, again, other = (
        state_sha256(trained(views, seed, settings, method=method, teacher=bank)) for seed in (1, 1, 2)
    )
    assert one == again != other


@pytest.mark.parametrize(
    ("method", "loss"),
    [
        ("kd", lambda s, t, y: mean_kd_loss(s, t, 3.0)),
        ("mean-logit", lambda s, t, y: mean_logit_kd_loss(s, t, 3.0)),
        ("majority-vote", lambda s, t, y: majority_vote_kd_loss(s, t)),
        ("oracle", lambda s, t, y: oracle_kd_loss(s, t, y, 3.0)),
        ("soft-oracle", lambda s, t, y: soft_oracle_kd_loss(s, t, y, 3.0, 1.5)),
        ("relative-oracle", lambda s, t, y: relative_oracle_kd_loss(s, t, y, 3.0, 1.5)),
    ],
)
def test_methods_of_ensembles_are_the_losses_that_they_are_called_by(method: str, loss: Callable[..., Tensor]) -> None:
    student, teachers = torch.randn(6, 4, generator=generator(1)), 2 * torch.randn(3, 6, 4, generator=generator(2))
    labels = torch.arange(6) % 4
    settings = TrainingSettings(temperature=3.0, oracle_beta=1.5, kd_weight=0.7)
    found = training_loss(method_for(method, 3), student, teachers, labels, settings)
    expected = 0.3 * F.cross_entropy(student, labels) + 0.7 * loss(student, teachers, labels)
    assert float(found) == pytest.approx(float(expected))


def test_the_bank_teaches_exactly_as_the_teachers_themselves(views: ViewBank) -> None:
    teachers = [small_teacher(8), small_teacher(9)]
    for method in ("kd", "oracle"):
        from_bank = trained(views, method=method, teacher=teacher_bank(teachers, views))
        from_teachers = trained(views, method=method, teacher=teachers)
        for a, b in zip(from_bank.parameters(), from_teachers.parameters(), strict=True):
            assert torch.allclose(a, b, atol=1e-5)


def test_views_made_batch_by_batch_train_exactly_as_views_in_memory(views: ViewBank) -> None:
    one = trained(views, method="ce")
    other = trained(views, settings=replace(SETTINGS, max_bank_bytes=0), method="ce")
    assert state_sha256(one) == state_sha256(other)


def test_student_and_teacher_see_the_same_view(views: ViewBank) -> None:
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}

    class Recording(nn.Module):
        def __init__(self, who: str, inner: nn.Module) -> None:
            super().__init__()
            self.who, self.inner = who, inner

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            seen[self.who].append(images.clone())
            return self.inner(images)

    teacher = small_teacher(9)
    recording = replace(teacher, forward=Recording("teacher", small_network(9).eval()))
    for fresh in (False, True):
        settings = replace(SETTINGS, fresh_views=fresh)
        train(Recording("student", small_network(0)), views, settings, generator(), teacher=[recording])
    assert len(seen["student"]) == 16
    assert all(torch.equal(a, b) for a, b in zip(seen["student"], seen["teacher"], strict=True))
    bank = {image.tobytes() for image in views.all().reshape(24, 1, 4, 4)}
    in_bank = [all(image.numpy().tobytes() in bank for image in batch) for batch in seen["student"]]
    assert in_bank == [True] * 8 + [False] * 8


@given(images=st.integers(1, 30), batch=st.integers(1, 12), steps=st.integers(1, 20), seed=st.integers(0, 99))
def test_every_image_comes_once_before_any_comes_twice(images: int, batch: int, steps: int, seed: int) -> None:
    drawn = draw_batches(images, 4, TrainingSettings(steps=steps, batch_size=batch), generator(seed))
    assert drawn.image_ids.shape == drawn.view_ids.shape == (steps, min(batch, images))
    order = drawn.image_ids.flatten()
    for start in range(0, len(order), images):
        epoch = order[start : start + images].tolist()
        assert len(set(epoch)) == len(epoch)
    assert int(drawn.view_ids.max()) < 4


def test_the_learning_rate_warms_up_linearly_and_falls_along_a_half_cosine() -> None:
    settings = TrainingSettings(steps=24, learning_rate=1.0, warmup=1 / 6)
    rates = [settings.learning_rate_at(step) for step in range(24)]
    assert rates[:4] == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert rates[4] == 1
    assert rates[14] == pytest.approx(0.5)
    assert rates[23] == pytest.approx(0.5 * (1 + math.cos(math.pi * 19 / 20)))
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_one_step_of_plain_sgd_is_the_step_computed_by_hand() -> None:
    views = ViewBank(small_split(4), ViewSettings(views=1), 0)
    student = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    nn.init.normal_(student[1].weight, generator=generator())
    teacher = small_teacher(9)
    before = [parameter.detach().clone() for parameter in student.parameters()]
    settings = TrainingSettings(
        steps=1, batch_size=4, learning_rate=0.5, momentum=0, weight_decay=0.1, warmup=0, temperature=2, kd_weight=0.7
    )
    images, labels = torch.tensor(views.split.images), torch.tensor(views.split.labels)
    weight, bias = (parameter.clone().requires_grad_() for parameter in before)
    logits = images.flatten(1) @ weight.T + bias
    p, log_q = F.softmax(teacher.logits(images) / 2, 1), F.log_softmax(logits / 2, 1)
    kl = 4 * (p * (p.log() - log_q)).sum(1).mean()
    (0.3 * F.cross_entropy(logits, labels) + 0.7 * kl).backward()
    assert weight.grad is not None
    assert bias.grad is not None
    train(student, views, settings, generator(), method="kd", teacher=[teacher])
    assert torch.allclose(student[1].weight, before[0] - 0.5 * (weight.grad + 0.1 * before[0]), atol=1e-5)
    assert torch.allclose(student[1].bias, before[1] - 0.5 * bias.grad, atol=1e-5)  # biases do not decay


def test_norms_and_biases_do_not_decay() -> None:
    student = small_network(0)
    decay = {
        id(parameter): group["weight_decay"]
        for group in optimiser_for(student, TrainingSettings(weight_decay=0.1)).param_groups
        for parameter in group["params"]
    }
    assert {name: decay[id(p)] for name, p in student.named_parameters()} == {
        "1.weight": 0.1, "1.bias": 0, "2.weight": 0, "2.bias": 0, "4.weight": 0.1, "4.bias": 0,
    }  # fmt: skip


def test_cross_entropy_ignores_the_teacher_and_pure_distillation_the_labels(views: ViewBank) -> None:
    bank = teacher_bank([small_teacher(9)], views)
    assert state_sha256(trained(views, method="ce", teacher=bank)) == state_sha256(trained(views, method="ce"))
    shuffled = Split(views.split.images, (views.split.labels + 1) % 3, views.split.originals)
    relabelled = ViewBank(shuffled, views.settings, views.seed)
    pure = replace(SETTINGS, kd_weight=1.0)
    assert state_sha256(trained(views, settings=pure, method="kd", teacher=[small_teacher(9)])) == state_sha256(
        trained(relabelled, settings=pure, method="kd", teacher=[small_teacher(9)])
    )


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"ce"}))
def test_every_method_brings_the_student_to_the_teacher(views: ViewBank, method: str) -> None:
    # Labels are the teacher's own, so that the oracle's teacher is always right.
    teacher = small_teacher(9)
    labels = teacher.logits(torch.tensor(views.split.images)).argmax(1).numpy()
    own = ViewBank(Split(views.split.images, labels, views.split.originals), ViewSettings(views=1), 0)
    student = small_network(0)
    settings = TrainingSettings(steps=150, batch_size=12, learning_rate=0.1, kd_weight=1.0)
    result = train(student, own, settings, generator(), method=method, teacher=teacher_bank([teacher], own))
    assert result.losses[-1] < 0.2 * result.losses[0]
    images = torch.tensor(own.split.images)
    with torch.no_grad():
        agreeing = (student(images).argmax(1) == torch.tensor(labels)).sum()
    assert agreeing >= 11


def test_the_result_records_every_loss_and_progress_is_reported(views: ViewBank) -> None:
    calls: list[tuple[int, int, float]] = []
    result = train(
        small_network(0), views, SETTINGS, generator(), method="ce", on_step=lambda *call: calls.append(call)
    )
    assert [call[:2] for call in calls] == [(step, 8) for step in range(1, 9)]
    assert tuple(call[2] for call in calls) == result.losses
    assert result.method == "ce"
    assert result.seconds > 0


def test_an_interruption_passes_through_and_leaves_a_usable_student(views: ViewBank) -> None:
    def interrupt(step: int, steps: int, loss: float) -> None:
        if step == 3:
            raise KeyboardInterrupt

    student = small_network(0)
    with pytest.raises(KeyboardInterrupt):
        train(student, views, SETTINGS, generator(), method="ce", on_step=interrupt)
    assert not student.training
    assert torch.isfinite(student(torch.tensor(views.split.images))).all()


def test_a_training_that_diverges_names_the_step(views: ViewBank) -> None:
    with pytest.raises(TrainingError, match=r"step \d+ of 50.*learning_rate \(now 1e\+30\)") as caught:
        train(
            small_network(0), views, TrainingSettings(steps=50, learning_rate=1e30, warmup=0), generator(), method="ce"
        )
    assert caught.value.as_dict()["step"] == 2


def test_weights_that_are_not_finite_fail_at_the_first_step(views: ViewBank) -> None:
    student = small_network(0)
    with torch.no_grad():
        student[4].bias[0] = float("nan")
    with pytest.raises(TrainingError, match=r"step 1 of 8.*nan"):
        train(student, views, SETTINGS, generator(), method="ce")


def test_a_bank_of_other_views_is_refused(views: ViewBank) -> None:
    other = ViewBank(views.split, views.settings, views.seed + 1)
    with pytest.raises(MismatchError, match="another bank of views"):
        trained(views, method="kd", teacher=teacher_bank([small_teacher(9)], other))


def test_what_does_not_go_together_is_refused(views: ViewBank) -> None:
    bank = teacher_bank([small_teacher(8), small_teacher(9)], views)
    with pytest.raises(
        UnknownNameError, match="kd, majority-vote, mean-logit, oracle, process, relative-oracle, soft-oracle"
    ):
        trained(views, method="hint", teacher=bank)
    with pytest.raises(UsageError, match="compares logits alone"):
        trained(views, method="process", teacher=bank)
    with pytest.raises(UsageError, match="no teacher"):
        trained(views, method="kd")
    for method in ("dkd", "dist"):
        with pytest.raises(UsageError, match=r"2 teachers.*kd, .*oracle"):
            trained(views, method=method, teacher=bank)
    with pytest.raises(UsageError, match="fresh views with a bank"):
        trained(views, settings=replace(SETTINGS, fresh_views=True), teacher=bank)
    with pytest.raises(MismatchError, match="labels up to 2"):
        train(small_network(0, classes=2), views, SETTINGS, generator(), method="ce")
    with pytest.raises(MismatchError, match=r"student's 3 classes.*5 classes"):
        trained(views, method="kd", teacher=[small_teacher(9, classes=5)])


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0}, {"batch_size": 0}, {"learning_rate": 0.0}, {"learning_rate": float("nan")}, {"momentum": 1.0},
        {"weight_decay": -1.0}, {"warmup": 1.0}, {"temperature": 0.0}, {"kd_weight": 1.1},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        TrainingSettings(**wrong)  # type: ignore[arg-type]


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(UnknownNameError, match="adamw, sgd"):
        TrainingSettings(optimiser="adam")


def test_the_global_random_state_is_neither_used_nor_moved(views: ViewBank) -> None:
    student, teacher = small_network(0), small_teacher(9)
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    train(student, views, SETTINGS, generator(), method="kd", teacher=[teacher])
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # noqa: NPY002
