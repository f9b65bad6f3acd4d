"""The bed of procedural images."""

import os
from pathlib import Path

import numpy as np
import pytest

from akd_deploy.data import Dataset, glyphs, known_shape, load_dataset
from akd_deploy.data.glyphs import GlyphsSettings, draw_glyphs
from akd_deploy.errors import UnknownNameError, UsageError

SMALL = {"labelled": 48, "teacher_images": 96, "reward_images": 48, "tuning_images": 48, "test_images": 72}


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AKD_DEPLOY_HOME", str(tmp_path / "home"))


def bed(**settings: object) -> Dataset:
    return load_dataset("glyphs", {**SMALL, **settings})


def test_images_are_normalised_coloured_and_evenly_labelled() -> None:
    dataset = bed()
    assert dataset.input_shape == (3, 32, 32)
    assert dataset.classes == len(set(dataset.class_names)) == 24
    assert known_shape("glyphs", SMALL) == (dataset.input_shape, dataset.classes)
    assert known_shape("glyphs", {"side": 20, "colours": 4}) == ((3, 20, 20), 48)
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 48, "teacher_train": 96, "reward_val": 48, "tuning_val": 48, "test": 72,
    }  # fmt: skip
    for split in dataset.splits.values():
        assert (np.bincount(split.labels, minlength=24) == len(split) // 24).all()
        assert split.images.dtype == np.float32
        assert split.images.min() >= -2
        assert split.images.max() <= 2
    assert 0.5 < dataset.teacher_train.images.std() < 1.5
    assert np.ptp(dataset.train.images.mean((0, 2, 3))) < 1.0


def test_students_learn_from_the_first_of_the_teachers_images_and_no_image_is_in_two_splits() -> None:
    dataset = bed()
    assert np.array_equal(dataset.train.images, dataset.teacher_train.images[:48])
    separate = [dataset.teacher_train, dataset.reward_val, dataset.tuning_val, dataset.test]
    originals = np.concatenate([split.originals for split in separate])
    images = np.concatenate([split.images for split in separate]).reshape(len(originals), -1)
    assert len(set(originals.tolist())) == len(originals)
    assert len(np.unique(images, axis=0)) == len(images)


@pytest.mark.parametrize("counts", [(5, 1100), (512, 600), (513, 514)])
def test_the_first_images_are_the_same_however_many_are_drawn(counts: tuple[int, int]) -> None:
    few, many = (draw_glyphs(GlyphsSettings(), 0, count) for count in counts)
    assert np.array_equal(few[0], many[0][: counts[0]])
    assert np.array_equal(few[1], many[1][: counts[0]])


def test_seeds_and_streams_give_other_images() -> None:
    settings = GlyphsSettings(), GlyphsSettings(seed=1)
    drawn = [draw_glyphs(settings[0], 0, 24)[0], draw_glyphs(settings[1], 0, 24)[0], draw_glyphs(settings[0], 1, 24)[0]]
    assert not any(np.array_equal(drawn[i], drawn[j]) for i, j in [(0, 1), (0, 2), (1, 2)])


def test_without_nuisance_a_class_is_one_image_and_each_another() -> None:
    pixels, labels = draw_glyphs(GlyphsSettings(nuisance=0.0, shapes=6, textures=3, orientations=2, colours=4), 0, 288)
    first, second = pixels[np.argsort(labels[:144])], pixels[144:][np.argsort(labels[144:])]
    assert np.array_equal(first, second)
    far = np.abs(first[:, None].astype(np.int16) - first[None]).mean((2, 3, 4)) + 255 * np.eye(144)
    assert far.min() > 0.5, "every attribute changes the image"


def test_within_a_class_images_differ_more_than_classes_do_from_each_other() -> None:
    pixels, labels = draw_glyphs(GlyphsSettings(), 0, 960)
    flat = pixels.reshape(len(pixels), -1).astype(np.float64)
    means = np.stack([flat[labels == c].mean(0) for c in range(24)])
    test, truth = draw_glyphs(GlyphsSettings(), 3, 480)
    near = ((test.reshape(480, -1)[:, None] - means[None]) ** 2).mean(2).argmin(1)
    assert (near == truth).mean() < 0.4, "no template tells the classes"


def test_label_noise_is_in_the_labels_to_learn_from_alone() -> None:
    noisy, clean = bed(label_noise=0.3, teacher_images=2400), bed(teacher_images=2400)
    wrong = noisy.teacher_train.labels != clean.teacher_train.labels
    assert wrong.mean() == pytest.approx(0.3, abs=0.03)
    assert np.array_equal(noisy.train.labels, noisy.teacher_train.labels[:48])
    assert set(noisy.teacher_train.labels.tolist()) == set(range(24))
    for name in ("reward_val", "tuning_val", "test"):
        assert np.array_equal(noisy.splits[name].labels, clean.splits[name].labels)


def test_a_bed_is_drawn_once_and_again_where_its_file_is_torn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, draw = [], glyphs.draw_glyphs
    monkeypatch.setattr(glyphs, "draw_glyphs", lambda *args: calls.append(args) or draw(*args))
    first = bed()
    assert len(calls) == 4
    again = bed(label_noise=0.1, noise=0.5, views=3)
    assert len(calls) == 4, "what does not change the pixels draws nothing"
    assert np.array_equal(first.test.images, again.test.images)
    files = sorted((Path(os.environ["AKD_DEPLOY_HOME"]) / "glyphs").glob("*.npz"))
    assert len(files) == 4
    for file in files:
        file.write_bytes(file.read_bytes()[:100])
    assert np.array_equal(bed().test.images, first.test.images)
    assert len(calls) == 8


def test_a_home_that_cannot_be_written_to_costs_nothing_but_time(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AKD_DEPLOY_HOME", str(tmp_path / "file"))
    assert len(bed().test) == 72


def test_files_of_old_beds_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs, "KEPT_FILES", 5)
    for seed in range(3):
        bed(seed=seed)
    assert len(list((Path(os.environ["AKD_DEPLOY_HOME"]) / "glyphs").glob("*.npz"))) == 5


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"labelled": 97}, "labelled"), ({"side": 8}, "side"), ({"shapes": 7}, "shapes"),
        ({"nuisance": 1.5}, "nuisance"), ({"label_noise": 1.0}, "label_noise"),
        ({"orientations": 0}, "orientations"), ({"test_images": 0}, "test_images"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(settings: dict[str, object], named: str) -> None:
    with pytest.raises(UsageError) as error:
        bed(**settings)
    assert named in error.value.asked


def test_one_class_is_no_bed() -> None:
    with pytest.raises(UsageError, match="single class"):
        bed(shapes=1, textures=1, orientations=1, colours=1)


def test_unknown_settings_are_answered_with_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match="label_noise"):
        bed(labelnoise=0.1)
