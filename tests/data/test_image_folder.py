"""A folder of images, written here in small."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from akd_deploy.data import known_shape, load_dataset
from akd_deploy.data.image_folder import read_image
from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, UsageError

SETTINGS = {"resolution": 8, "crop_fraction": 1.0, "mean": [0, 0, 0], "std": [1, 1, 1]}
COLOURS = {"blue": (0, 0, 255), "red": (255, 0, 0)}


def write(root: Path, split: str, count: int, suffix: str = "png") -> None:
    for name, colour in COLOURS.items():
        folder = root / split / name
        folder.mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (10 + i, 8), colour).save(folder / f"{i}.{suffix}")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path, "train", 10)
    write(tmp_path, "val", 3, "jpg")
    return tmp_path


def test_classes_are_the_folders_and_images_the_files(root: Path) -> None:
    dataset = load_dataset("image_folder", {"root": str(root), **SETTINGS})
    assert dataset.class_names == ("blue", "red")
    assert dataset.input_shape == (3, 8, 8)
    assert known_shape("image_folder", {"root": "nowhere", **SETTINGS}) == (dataset.input_shape, None)
    for split in dataset.splits.values():
        dominant = np.where(split.images.mean(axis=(2, 3)).argmax(axis=1) == 2, 0, 1)
        assert np.array_equal(dominant, split.labels)


def test_without_a_test_folder_val_is_the_test_and_tuning_is_held_out_of_train(root: Path) -> None:
    dataset = load_dataset("image_folder", {"root": str(root), **SETTINGS, "labelled": 6})
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 6, "teacher_train": 16, "reward_val": 2, "tuning_val": 2, "test": 6,
    }  # fmt: skip
    originals = {name: set(split.originals.tolist()) for name, split in dataset.splits.items()}
    separate = [originals[name] for name in ("teacher_train", "reward_val", "tuning_val", "test")]
    assert sum(map(len, separate)) == len(set.union(*separate)) == 26


def test_with_a_test_folder_val_is_the_tuning_split(root: Path) -> None:
    write(root, "test", 4)
    dataset = load_dataset("image_folder", {"root": str(root), **SETTINGS})
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 18, "teacher_train": 18, "reward_val": 2, "tuning_val": 6, "test": 8,
    }  # fmt: skip


def test_the_middle_is_cut_out_of_an_image_resized_by_its_shorter_side(tmp_path: Path) -> None:
    wide = np.zeros((4, 12, 3), np.uint8)
    wide[:, 4:8] = 200
    Image.fromarray(wide).save(tmp_path / "wide.png")
    assert np.array_equal(read_image(tmp_path / "wide.png", 4, 1.0), np.full((3, 4, 4), 200))


def test_grey_palette_and_transparent_images_become_rgb(tmp_path: Path) -> None:
    for mode in ("L", "P", "RGBA", "LA", "1"):
        path = tmp_path / f"{mode}.png"
        Image.new(mode, (9, 9)).save(path)
        assert read_image(path, 8, 1.0).shape == (3, 8, 8)


def test_the_orientation_a_camera_noted_is_applied(tmp_path: Path) -> None:
    upright = np.zeros((8, 8, 3), np.uint8)
    upright[:4] = 255
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(upright).save(tmp_path / "turned.png", exif=exif)
    assert read_image(tmp_path / "turned.png", 8, 1.0)[0, 0, 0] == 0


@pytest.mark.parametrize("keep", [0, 20, 60])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_named(root: Path, keep: int, suffix: str) -> None:
    path = root / "train" / "red" / f"broken.{suffix}"
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:keep] if keep < 60 else path.read_bytes()[:-60])
    with pytest.raises(CorruptFileError, match=rf"broken\.{suffix}"):
        load_dataset("image_folder", {"root": str(root), **SETTINGS})


def test_a_damaged_image_is_named(root: Path) -> None:
    path = root / "train" / "red" / "0.png"
    data = bytearray(path.read_bytes())
    data[40:50] = b"\xff" * 10
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"red.0\.png"):
        load_dataset("image_folder", {"root": str(root), **SETTINGS})


def test_a_file_that_is_no_image_is_named(root: Path) -> None:
    (root / "train" / "red" / "labels.csv").write_text("a,b")
    with pytest.raises(UsageError, match=r"labels\.csv"):
        load_dataset("image_folder", {"root": str(root), **SETTINGS})


def test_missing_folders_and_empty_classes_are_named(root: Path, tmp_path: Path) -> None:
    (root / "train" / "green").mkdir()
    with pytest.raises(MissingFileError, match="green"):
        load_dataset("image_folder", {"root": str(root), **SETTINGS})
    with pytest.raises(MissingFileError, match="train"):
        load_dataset("image_folder", {"root": str(root / "train"), **SETTINGS})


def test_splits_of_different_classes_are_refused(root: Path) -> None:
    (root / "val" / "red").rename(root / "val" / "crimson")
    with pytest.raises(MismatchError, match="crimson, red"):
        load_dataset("image_folder", {"root": str(root), **SETTINGS})


def test_more_images_than_memory_allows_are_refused_before_any_is_read(root: Path) -> None:
    (root / "train" / "red" / "0.png").write_bytes(b"not read")
    with pytest.raises(UsageError, match="max_gib"):
        load_dataset("image_folder", {"root": str(root), **SETTINGS, "resolution": 4096, "max_gib": 0.1})


def test_settings_out_of_range_are_refused(root: Path) -> None:
    for wrong in ({"crop_fraction": 0.0}, {"reward_fraction": 1.0}, {"labelled": 100}, {"std": [1, 1, 0]}):
        with pytest.raises(UsageError):
            load_dataset("image_folder", {"root": str(root), **SETTINGS, **wrong})


def test_the_hash_changes_with_any_image_and_not_with_the_place(
    root: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def files(folder: Path) -> object:
        return load_dataset("image_folder", {"root": str(folder), **SETTINGS}).provenance["files"]

    before = files(root)
    moved = tmp_path_factory.mktemp("elsewhere") / "data"
    root.rename(moved)
    assert files(moved) == before
    Image.new("RGB", (9, 9), (1, 2, 3)).save(moved / "val" / "red" / "0.jpg")
    after = files(moved)
    assert after != before
