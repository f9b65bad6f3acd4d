"""CIFAR's binary version, written here in small."""

from pathlib import Path

import numpy as np
import pytest

from akd_deploy.data import known_shape, load_dataset
from akd_deploy.errors import CorruptFileError, MissingFileError, UsageError

SMALL = {"published_size": False, "reward_images": 10, "tuning_images": 10}


def records(n: int, label_bytes: int, classes: int, seed: int) -> np.ndarray:
    """(n, label bytes + 3072) uint8, the last label byte below `classes`."""
    rng = np.random.default_rng(seed)
    data = rng.integers(0, 256, (n, label_bytes + 3072), dtype=np.uint8)
    data[:, label_bytes - 1] = np.arange(n) % classes
    if label_bytes == 2:
        data[:, 0] = 19  # the coarse label, which is not ours
    return data


@pytest.fixture
def cifar10(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(1, 6):
        records(20, 1, 10, i).tofile(folder / f"data_batch_{i}.bin")
    records(30, 1, 10, 9).tofile(folder / "test_batch.bin")
    (folder / "batches.meta.txt").write_text("\n".join(f"class {i}" for i in range(10)) + "\n\n")
    return folder


@pytest.fixture
def cifar100(tmp_path: Path) -> Path:
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    records(200, 2, 100, 1).tofile(folder / "train.bin")
    records(100, 2, 100, 2).tofile(folder / "test.bin")
    (folder / "fine_label_names.txt").write_text("\n".join(f"fine {i}" for i in range(100)))
    return folder


def test_a_record_is_read_as_the_format_page_says(cifar10: Path) -> None:
    # Record: label, then 1024 red, 1024 green, 1024 blue bytes, row by row.
    data = np.zeros((20, 3073), np.uint8)
    data[:, 0] = np.arange(20) % 10
    data[:, 1 + 1024 + 32 + 5] = 255  # green, row 1, column 5
    data.tofile(cifar10 / "test_batch.bin")
    plain = {"mean": [0, 0, 0], "std": [1, 1, 1]}
    test = load_dataset("cifar10", {"root": str(cifar10), **SMALL, **plain}).test
    assert test.labels.tolist() == [i % 10 for i in range(20)]
    assert np.argwhere(test.images[0]).tolist() == [[1, 1, 5]]
    assert test.images[0, 1, 1, 5] == pytest.approx(1)


def test_cifar10_is_split_without_overlap_and_normalised(cifar10: Path) -> None:
    dataset = load_dataset("cifar10", {"root": str(cifar10), **SMALL, "labelled": 40})
    assert {name: len(split) for name, split in dataset.splits.items()} == {
        "train": 40, "teacher_train": 80, "reward_val": 10, "tuning_val": 10, "test": 30,
    }  # fmt: skip
    originals = {name: set(split.originals.tolist()) for name, split in dataset.splits.items()}
    assert originals["train"] < originals["teacher_train"]
    separate = [originals[name] for name in ("teacher_train", "reward_val", "tuning_val", "test")]
    assert sum(map(len, separate)) == len(set.union(*separate)) == 130
    assert dataset.class_names[3] == "class 3"
    assert dataset.input_shape == (3, 32, 32)
    i = int(dataset.train.originals[0])
    raw = records(20, 1, 10, i // 20 + 1)[i % 20, 1:].reshape(3, 32, 32)
    mean, std = np.array(dataset.mean)[:, None, None], np.array(dataset.std)[:, None, None]
    assert np.allclose(dataset.train.images[0], (raw / 255 - mean) / std, atol=1e-5)


def test_cifar100_takes_the_fine_label_and_the_parent_folder_serves_too(cifar100: Path) -> None:
    dataset = load_dataset("cifar100", {"root": str(cifar100.parent), **SMALL})
    assert dataset.test.labels.tolist() == list(range(100))
    assert dataset.classes == 100
    assert np.array_equal(dataset.train.originals, dataset.teacher_train.originals)


def test_provenance_holds_the_hash_of_every_file_but_no_path(cifar100: Path) -> None:
    dataset = load_dataset("cifar100", {"root": str(cifar100), **SMALL})
    files = dataset.provenance["files"]
    assert isinstance(files, dict)
    assert sorted(files) == ["fine_label_names.txt", "test.bin", "train.bin"]
    assert str(cifar100) not in repr(dict(dataset.provenance))


def test_a_truncated_file_is_named(cifar10: Path) -> None:
    path = cifar10 / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorruptFileError, match=r"data_batch_3\.bin.*19 whole records and 2973 bytes"):
        load_dataset("cifar10", {"root": str(cifar10), **SMALL})


def test_a_file_cut_at_a_record_is_noticed_by_its_published_size(cifar10: Path) -> None:
    with pytest.raises(CorruptFileError, match=r"10,000 records.*20 whole records"):
        load_dataset("cifar10", {"root": str(cifar10)})


def test_an_impossible_label_is_named(cifar10: Path) -> None:
    data = records(20, 1, 10, 0)
    data[7, 0] = 12
    data.tofile(cifar10 / "data_batch_2.bin")
    with pytest.raises(CorruptFileError, match=r"label 12 in record 7"):
        load_dataset("cifar10", {"root": str(cifar10), **SMALL})


@pytest.mark.parametrize("name", ["data_batch_4.bin", "batches.meta.txt", "test_batch.bin"])
def test_a_missing_file_is_named(cifar10: Path, name: str) -> None:
    (cifar10 / name).unlink()
    with pytest.raises(MissingFileError, match=name):
        load_dataset("cifar10", {"root": str(cifar10), **SMALL})


def test_too_few_class_names_are_refused(cifar10: Path) -> None:
    (cifar10 / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(CorruptFileError, match="2 lines"):
        load_dataset("cifar10", {"root": str(cifar10), **SMALL})


def test_the_python_version_is_recognised_and_the_binary_one_asked_for(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in ("data_batch_1", "batches.meta"):
        (folder / name).write_bytes(b"\x80\x02}")
    for root in (tmp_path, folder):
        with pytest.raises(MissingFileError, match=r"Python version.*pickle.*cifar-10-binary\.tar\.gz"):
            load_dataset("cifar10", {"root": str(root)})


def test_a_packed_archive_is_recognised(tmp_path: Path) -> None:
    (tmp_path / "cifar-100-binary.tar.gz").touch()
    with pytest.raises(MissingFileError, match="still packed"):
        load_dataset("cifar100", {"root": str(tmp_path)})


def test_a_wrong_root_and_a_missing_root_are_told_apart_from_nothing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such folder"):
        load_dataset("cifar10", {"root": str(tmp_path / "nowhere")})
    with pytest.raises(UsageError, match=r"'root'.*none"):
        load_dataset("cifar10", {})


def test_holding_out_everything_is_refused(cifar10: Path) -> None:
    with pytest.raises(UsageError, match="100 training images"):
        load_dataset("cifar10", {"root": str(cifar10), "published_size": False})


def test_what_is_known_without_the_files_is_what_they_hold(cifar10: Path, cifar100: Path) -> None:
    for name, root, held_out in (("cifar10", cifar10, 10), ("cifar100", cifar100, 50)):
        sizes = {"published_size": False, "reward_images": held_out, "tuning_images": held_out}
        dataset = load_dataset(name, {"root": str(root), **sizes})
        assert known_shape(name, {"root": "nowhere"}) == (dataset.input_shape, dataset.classes)
