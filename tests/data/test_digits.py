"""The digits bed."""

import subprocess
import sys

import numpy as np
import pytest

from akd_deploy.data import Dataset, known_shape, load_dataset
from akd_deploy.errors import UnknownNameError, UsageError


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return load_dataset("digits")


def test_images_are_padded_scaled_and_labelled(digits: Dataset) -> None:
    assert digits.input_shape == (1, 12, 12)
    assert digits.classes == 10
    assert known_shape("digits") == (digits.input_shape, digits.classes)
    assert digits.class_names == tuple("0123456789")
    images = digits.train.images
    assert images.dtype == np.float32
    assert digits.train.labels.dtype == np.int64
    assert images.min() == 0
    assert images.max() == 1
    assert not images[:, :, [0, 1, -2, -1]].any()
    assert not images[..., [0, 1, -2, -1]].any()


def test_sizes_are_those_of_the_low_label_bed(digits: Dataset) -> None:
    assert {name: len(split) for name, split in digits.splits.items()} == {
        "train": 200,
        "teacher_train": 1_000,
        "reward_val": 250 * 4,
        "tuning_val": 200 * 4,
        "test": (1_797 - 1_000 - 450) * 4,
    }


@pytest.mark.parametrize("seed", [0, 1, 5])
def test_no_scored_image_is_learned_from_or_scored_twice(seed: int) -> None:
    splits = load_dataset("digits", {"seed": seed, "labelled": 50, "corruptions": 2}).splits
    originals = {name: set(split.originals.tolist()) for name, split in splits.items()}
    assert originals["train"] < originals["teacher_train"]
    separate = ["teacher_train", "reward_val", "tuning_val", "test"]
    for i, one in enumerate(separate):
        for other in separate[i + 1 :]:
            assert not originals[one] & originals[other], (one, other)
    assert set.union(*originals.values()) == set(range(1_797))


def test_scored_images_are_corrupted_as_the_bed_says(digits: Dataset) -> None:
    clean = load_dataset("digits", {"noise": 0.0, "shift": 0})
    assert np.array_equal(clean.test.originals, digits.test.originals)
    # What is left of a noisy image after its best shift is taken off is the noise: σ = 0.2.
    residuals = []
    for noisy, ink in zip(digits.test.images[:200, 0], clean.test.images[:200, 0], strict=True):
        shifted = [np.roll(ink, (dy, dx), (0, 1)) for dy in (-1, 0, 1) for dx in (-1, 0, 1)]
        residuals.append(min(float(np.std(noisy - s)) for s in shifted))
    assert np.mean(residuals) == pytest.approx(0.2, abs=0.01)
    first, second = digits.test.images[0], digits.test.images[1]
    assert digits.test.originals[0] == digits.test.originals[1]
    assert not np.array_equal(first, second)


def test_classes_are_evenly_represented(digits: Dataset) -> None:
    for split in digits.splits.values():
        share = np.bincount(split.labels, minlength=10) / len(split)
        assert np.allclose(share, 0.1, atol=0.015)


def test_one_seed_gives_one_bed_and_another_seed_another() -> None:
    one, again, other = (load_dataset("digits", {"seed": seed}) for seed in (3, 3, 4))
    for name, split in one.splits.items():
        assert np.array_equal(split.images, again.splits[name].images)
        assert np.array_equal(split.labels, again.splits[name].labels)
    assert not np.array_equal(one.train.originals, other.train.originals)


def test_more_labels_keep_the_scored_splits_their_size() -> None:
    few, many = (load_dataset("digits", {"labelled": n}) for n in (100, 1_000))
    assert len(few.test) == len(many.test)
    assert len(few.train) == 100
    assert np.array_equal(many.train.originals, many.teacher_train.originals)


def test_provenance_names_source_settings_and_sizes(digits: Dataset) -> None:
    assert digits.provenance["name"] == "digits"
    assert digits.provenance["seed"] == 0
    files = digits.provenance["files"]
    assert isinstance(files, dict)
    assert [len(sha) for sha in files.values()] == [64]
    assert digits.provenance["splits"] == {name: len(split) for name, split in digits.splits.items()}


def test_splits_cannot_be_written_to(digits: Dataset) -> None:
    with pytest.raises(ValueError, match="read-only"):
        digits.train.images[0] = 1


def test_unknown_datasets_and_settings_list_the_known_ones() -> None:
    with pytest.raises(UnknownNameError, match=r"image_folder"):
        load_dataset("imagenet")
    with pytest.raises(UnknownNameError, match=r"Did you mean 'labelled'"):
        load_dataset("digits", {"labeled": 100})


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"labelled": "many"}, "labelled"),
        ({"labelled": 0}, "0 labelled of 1000"),
        ({"labelled": 1_100}, "1100 labelled"),
        ({"teacher_images": 1_700}, "1797 images"),
        ({"teacher_images": 1_347}, "outside the test split"),
        ({"noise": -1.0}, "noise"),
        ({"corruptions": 0}, "corruptions"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, object], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_dataset("digits", settings)


def test_loading_needs_no_torch() -> None:
    code = (
        "import sys; from akd_deploy.data import ViewBank, load_dataset\n"
        "d = load_dataset('digits'); ViewBank(d.train, d.views, 0).batch([0], [0])\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
