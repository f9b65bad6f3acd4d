"""Students are a function of architecture and seed, and survive the disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from random_students import SPACES, trained_like
from safetensors.torch import load_file, save_file

from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError
from akd_deploy.models.student import Student, load_student, save_student, student_from_architecture
from akd_deploy.search_space import load_space

SPACE = SPACES["digits 12×12"]


@pytest.fixture
def student() -> Student:
    return trained_like(SPACE.sample(np.random.default_rng(3)), seed=1)


def test_images_become_logits(student: Student) -> None:
    assert student(torch.zeros(5, *SPACE.input_shape)).shape == (5, SPACE.classes)
    assert student.input_shape == SPACE.input_shape


def test_one_seed_gives_one_set_of_weights_and_moves_no_global_state() -> None:
    architecture = SPACE.sample(np.random.default_rng(0))
    before = torch.random.get_rng_state()
    first, again, other = (student_from_architecture(architecture, seed).state_dict() for seed in (7, 7, 8))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_every_weight_gets_a_gradient() -> None:
    student = student_from_architecture(SPACE.sample(np.random.default_rng(1)), 0)
    student(torch.randn(4, *SPACE.input_shape, generator=torch.Generator().manual_seed(0))).square().sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in student.parameters())


def test_a_saved_student_loads_as_it_was_in_evaluation_mode(student: Student, tmp_path: Path) -> None:
    path = tmp_path / "deep" / "student.safetensors"
    save_student(student.train(), path)
    before = torch.random.get_rng_state()
    again = load_student(path)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert again.architecture == student.architecture
    assert not again.training
    images = torch.randn(3, *SPACE.input_shape, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.equal(again(images), student.eval()(images))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"nowhere\.safetensors"):
        load_student(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named(keep: int, student: Student, tmp_path: Path) -> None:
    path = tmp_path / "torn.safetensors"
    save_student(student, path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=r"torn\.safetensors"):
        load_student(path)


def test_weights_of_something_else_are_told_apart_from_a_student(tmp_path: Path) -> None:
    path = tmp_path / "foreign.safetensors"
    save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(CorruptFileError, match="without an architecture"):
        load_student(path)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("{", "Expecting"),
        ("[]", "list"),
        ('{"space": "mobil", "settings": {}, "choices": {}}', "mobil"),
        ('{"space": "mobile", "settings": {}, "choices": {"b9.op": "conv"}}', "b9.op"),
    ],
)
def test_an_architecture_nobody_can_build_is_named_with_its_file(text: str, found: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    save_file({"weight": torch.zeros(3)}, path, metadata={"architecture": text})
    with pytest.raises(CorruptFileError, match=found) as caught:
        load_student(path)
    assert "odd.safetensors" in str(caught.value)


@pytest.mark.parametrize("change", ["missing", "extra", "shape"])
def test_weights_of_another_architecture_are_named(change: str, student: Student, tmp_path: Path) -> None:
    path = tmp_path / "mixed.safetensors"
    save_student(student, path)
    state = load_file(path)
    name = "steps.head_classifier.weight"
    if change == "missing":
        del state[name]
    elif change == "extra":
        name = "steps.stranger.weight"
        state[name] = torch.zeros(1)
    else:
        state[name] = state[name][:-1].contiguous()
    save_file(state, path, metadata={"architecture": student.architecture.text})
    with pytest.raises(MismatchError, match=name) as caught:
        load_student(path)
    assert "mixed.safetensors" in str(caught.value)


def test_a_student_of_other_classes_does_not_pass_for_this_one(tmp_path: Path) -> None:
    seven = load_space("mobile", {"classes": 7})
    architecture = seven.sample(np.random.default_rng(0))
    path = tmp_path / "seven.safetensors"
    save_student(student_from_architecture(architecture, 0), path)
    assert load_student(path)(torch.zeros(1, 1, 12, 12)).shape == (1, 7)
