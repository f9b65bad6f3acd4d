"""The bank of teachers' logits: right, cached, and never another's."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from akd_deploy.data import Split, ViewBank, ViewSettings
from akd_deploy.distill import teacher_bank
from akd_deploy.errors import CorruptFileError, MismatchError, StorageError, TrainingError, UsageError
from akd_deploy.models.teacher import Teacher, TeacherProvenance


class Counting:
    """A teacher of two classes, (sum, −sum) × `scale`, that counts the images it has seen."""

    def __init__(self, name: str = "sum", scale: float = 1.0) -> None:
        self.seen = 0
        self.scale = scale
        self.teacher = Teacher(self._forward, (1, 4, 4), 2, TeacherProvenance(name, f"sha of {name}", 0))

    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        total = images.sum((1, 2, 3))
        return self.scale * torch.stack([total, -total], 1)


def test_the_bank_holds_each_teachers_logits_of_each_view(views: ViewBank) -> None:
    one, other = Counting(), Counting("double", scale=2.0)
    bank = teacher_bank([one.teacher, other.teacher], views)
    assert bank.logits.shape == (2, 2, 12, 2)
    assert bank.logits.dtype == np.float32
    for v, view in enumerate(views.all()):
        for i, image in enumerate(view):
            assert bank.logits[0, v, i] == pytest.approx([image.sum(), -image.sum()], abs=1e-5)
            assert bank.logits[1, v, i, 0] == pytest.approx(2 * image.sum(), abs=1e-5)


def test_half_precision_halves_the_bank_and_stays_close(views: ViewBank) -> None:
    teacher = Counting().teacher
    full, half = teacher_bank([teacher], views), teacher_bank([teacher], views, dtype="float16")
    assert half.logits.nbytes * 2 == full.logits.nbytes
    assert np.allclose(half.logits, full.logits, atol=0.01)


def test_a_second_call_reads_the_file_and_asks_the_teacher_for_a_check_alone(views: ViewBank, tmp_path: Path) -> None:
    counting = Counting()
    first = teacher_bank([counting.teacher], views, cache_dir=tmp_path)
    assert counting.seen == 24
    second = teacher_bank([counting.teacher], views, cache_dir=tmp_path)
    assert counting.seen == 24 + 8
    assert np.array_equal(first.logits, second.logits)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "changed",
    [
        lambda views: ViewBank(views.split, views.settings, 1),
        lambda views: ViewBank(views.split, replace(views.settings, noise=0.31), 0),
        lambda views: ViewBank(views.split.take(np.arange(11, -1, -1)), views.settings, 0),
    ],
)
def test_other_views_are_computed_again(
    views: ViewBank, tmp_path: Path, changed: Callable[[ViewBank], ViewBank]
) -> None:
    counting = Counting()
    first = teacher_bank([counting.teacher], views, cache_dir=tmp_path)
    second = teacher_bank([counting.teacher], changed(views), cache_dir=tmp_path)
    assert counting.seen == 48
    assert not np.array_equal(first.logits, second.logits)


def test_another_teacher_or_dtype_is_computed_again(views: ViewBank, tmp_path: Path) -> None:
    teacher_bank([Counting().teacher], views, cache_dir=tmp_path)
    other = Counting("other")
    teacher_bank([other.teacher], views, cache_dir=tmp_path)
    assert other.seen == 24
    teacher_bank([other.teacher], views, cache_dir=tmp_path, dtype="float16")
    assert other.seen == 48
    assert len(list(tmp_path.iterdir())) == 3


def test_a_teacher_whose_code_changed_under_the_same_weights_is_computed_again(views: ViewBank, tmp_path: Path) -> None:
    counting = Counting()
    teacher_bank([counting.teacher], views, cache_dir=tmp_path)
    counting.scale = -1.0
    bank = teacher_bank([counting.teacher], views, cache_dir=tmp_path)
    assert bank.logits[0, 0, 0, 0] == pytest.approx(-views.all()[0, 0].sum(), abs=1e-5)


@pytest.mark.parametrize("keep", [0, 20, -8])
def test_a_torn_file_is_named(views: ViewBank, tmp_path: Path, keep: int) -> None:
    teacher_bank([Counting().teacher], views, cache_dir=tmp_path)
    [path] = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError, match=rf"{path.name}.*Delete it"):
        teacher_bank([Counting().teacher], views, cache_dir=tmp_path)


def test_a_place_that_cannot_be_written_is_reported(views: ViewBank, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError):
        teacher_bank([Counting().teacher], views, cache_dir=tmp_path / "file")


def test_logits_that_are_not_finite_are_reported_with_their_image(views: ViewBank) -> None:
    images = views.split.images.copy()
    images[5] = np.nan
    plain = ViewSettings(views=2)
    with pytest.raises(TrainingError, match="view 0 of image 5"):
        teacher_bank([Counting().teacher], ViewBank(Split(images, views.split.labels, np.arange(12)), plain, 0))
    large = Counting(scale=1e6).teacher
    teacher_bank([large], views)
    with pytest.raises(TrainingError, match=r"float16.*float32"):
        teacher_bank([large], views, dtype="float16")


def test_no_teacher_unknown_dtypes_and_differing_classes_are_refused(views: ViewBank) -> None:
    with pytest.raises(UsageError, match="nothing to compute"):
        teacher_bank([], views)
    with pytest.raises(UsageError, match="int8"):
        teacher_bank([Counting().teacher], views, dtype="int8")
    three = Teacher(lambda x: x.sum((1, 2, 3))[:, None].repeat(1, 3), (1, 4, 4), 3, TeacherProvenance("3", "", 0))
    with pytest.raises(MismatchError, match=r"\[2, 3\]"):
        teacher_bank([Counting().teacher, three], views)
