"""CIFAR-10 and CIFAR-100, read from their published binary version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import ClassVar

import numpy as np

from akd_deploy.data.dataset import Dataset, Split, normalised, stratified_parts
from akd_deploy.data.views import ViewSettings
from akd_deploy.errors import CorruptFileError, MissingFileError, UsageError
from akd_deploy.storage import file_sha256

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class CifarSettings:
    """`root` is the extracted folder (or the one that holds it).

    `reward_images` and `tuning_images` are held out of the 50,000 training images; of the rest the student
    learns from `labelled` (0: all of them), the teacher from all. `mean` and `std` normalise pixels of 0 to 1.
    `published_size` off accepts files with fewer records than were published, as a subset has.
    """

    root: str
    labelled: int = 0
    reward_images: int = 5_000
    tuning_images: int = 5_000
    shift: int = 4
    flip: bool = True
    views: int = 16
    mean: tuple[float, float, float] = (0.4914, 0.4822, 0.4465)
    std: tuple[float, float, float] = (0.2470, 0.2435, 0.2616)
    published_size: bool = True
    seed: int = 0

    input_shape: ClassVar[tuple[int, int, int]] = (3, 32, 32)


@dataclass(frozen=True)
class Cifar10Settings(CifarSettings):
    """Of CIFAR-10."""

    classes: ClassVar[int] = 10


@dataclass(frozen=True)
class Cifar100Settings(CifarSettings):
    """Of CIFAR-100."""

    classes: ClassVar[int] = 100


@dataclass(frozen=True)
class _Format:
    """The layout of one published version: a record is `label_bytes` labels, the last of them ours, and a 3×32×32
    image, red plane first."""

    name: str
    folder: str
    archive: str
    train_files: tuple[str, ...]
    test_file: str
    names_file: str
    label_bytes: int
    classes: int
    python_folder: str
    python_files: tuple[str, ...]


_FORMATS: Mapping[str, _Format] = MappingProxyType(
    {
        "cifar10": _Format(
            "CIFAR-10", "cifar-10-batches-bin", "cifar-10-binary.tar.gz",
            tuple(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin", "batches.meta.txt", 1, 10,
            "cifar-10-batches-py", ("data_batch_1", "batches.meta"),
        ),
        "cifar100": _Format(
            "CIFAR-100", "cifar-100-binary", "cifar-100-binary.tar.gz",
            ("train.bin",), "test.bin", "fine_label_names.txt", 2, 100,
            "cifar-100-python", ("train", "meta"),
        ),
    }
)  # fmt: skip


def _folder(layout: _Format, root: Path) -> Path:
    """The folder with the binary files.

    Raises:
        MissingFileError: it is not there; says so where the Python version or the packed archive is.
    """
    for folder in (root, root / layout.folder):
        if (folder / layout.test_file).is_file() or (folder / layout.train_files[0]).is_file():
            return folder
    asked = f"{layout.name} (binary version) in {root}"
    for folder in (root, root / layout.python_folder):
        if all((folder / name).is_file() for name in layout.python_files):
            raise MissingFileError(
                asked=asked,
                found=f"the Python version in {folder}, which is a pickle and could run any code when read",
                next=f"Download {layout.archive}, the binary version, from the dataset's page and extract it.",
            )
    if (root / layout.archive).is_file():
        raise MissingFileError(
            asked=asked,
            found=f"{layout.archive}, still packed",
            next=f"Extract it there: tar -xzf {layout.archive}.",
        )
    raise MissingFileError(
        asked=asked,
        found="no such folder" if not root.is_dir() else f"no {layout.train_files[0]}",
        next=f"Point root at the folder extracted from {layout.archive}.",
    )


def _records(path: Path, layout: _Format, published: int | None) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 32, 32) uint8 pixels and (n,) int64 labels of one file."""
    asked = f"{layout.name} records in {path}"
    if not path.is_file():
        raise MissingFileError(asked=asked, found="no such file", next=f"Extract {layout.archive} again.")
    data = np.fromfile(path, np.uint8)
    length = layout.label_bytes + _PIXELS
    whole, left_over = divmod(len(data), length)
    if left_over or not whole or (published is not None and whole != published):
        expected = f"{published:,} records of {length} bytes" if published else f"records of {length} bytes"
        raise CorruptFileError(
            asked=f"{asked}: {expected}",
            found=f"{len(data):,} bytes: {whole:,} whole records and {left_over} bytes more",
            next=f"The file is truncated or of another format; extract {layout.archive} again.",
        )
    records = data.reshape(whole, length)
    labels = records[:, layout.label_bytes - 1].astype(np.int64)
    wrong = np.flatnonzero(labels >= layout.classes)
    if len(wrong):
        raise CorruptFileError(
            asked=f"{asked} with labels 0 to {layout.classes - 1}",
            found=f"label {labels[wrong[0]]} in record {wrong[0]}",
            next=f"The file is damaged or of another format; extract {layout.archive} again.",
        )
    return records[:, layout.label_bytes :].reshape(whole, 3, 32, 32), labels


def _class_names(path: Path, layout: _Format) -> tuple[str, ...]:
    if not path.is_file():
        raise MissingFileError(
            asked=f"the class names of {layout.name} in {path}",
            found="no such file",
            next=f"Extract {layout.archive} again.",
        )
    names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    if len(names) != layout.classes:
        raise CorruptFileError(
            asked=f"{layout.classes} class names in {path}",
            found=f"{len(names)} lines",
            next=f"Extract {layout.archive} again.",
        )
    return names


def _load(kind: str, settings: CifarSettings) -> Dataset:
    layout = _FORMATS[kind]
    folder = _folder(layout, Path(settings.root))
    class_names = _class_names(folder / layout.names_file, layout)
    per_file = 50_000 // len(layout.train_files) if settings.published_size else None
    read = [_records(folder / name, layout, per_file) for name in layout.train_files]
    pixels = np.concatenate([part for part, _ in read])
    labels = np.concatenate([part for _, part in read])
    test_pixels, test_labels = _records(folder / layout.test_file, layout, 10_000 if settings.published_size else None)

    rng = np.random.default_rng(settings.seed)
    held_out = settings.reward_images + settings.tuning_images
    if min(settings.reward_images, settings.tuning_images) < 1 or held_out >= len(labels):
        raise UsageError(
            asked=f"{settings.reward_images} reward and {settings.tuning_images} tuning images held out",
            found=f"{len(labels)} training images",
            next="Hold out at least 1 for each and leave some to learn from.",
        )
    learners = len(labels) - held_out
    labelled = settings.labelled or learners
    sizes = {"reward_val": settings.reward_images, "tuning_val": settings.tuning_images, "train": labelled}
    parts = stratified_parts(labels, sizes, rng, layout.name)

    def split(positions: np.ndarray) -> Split:
        return Split(normalised(pixels[positions], settings.mean, settings.std), labels[positions], positions)

    train = split(parts["train"])
    splits = {
        "train": train,
        "teacher_train": split(np.sort(np.concatenate([parts["train"], parts["rest"]])))
        if len(parts["rest"])
        else train,
        "reward_val": split(parts["reward_val"]),
        "tuning_val": split(parts["tuning_val"]),
        "test": Split(
            normalised(test_pixels, settings.mean, settings.std),
            test_labels,
            len(labels) + np.arange(len(test_labels)),
        ),
    }
    files = (*layout.train_files, layout.test_file, layout.names_file)
    return Dataset(
        name=kind,
        **splits,
        class_names=class_names,
        views=ViewSettings(views=settings.views, shift=settings.shift, flip=settings.flip),
        mean=settings.mean,
        std=settings.std,
        provenance={
            "name": kind,
            "settings": {key: value for key, value in asdict(settings).items() if key != "root"},
            "files": {name: file_sha256(folder / name) for name in files},
            "splits": {name: len(split) for name, split in splits.items()},
            "seed": settings.seed,
        },
    )


def load_cifar10(settings: CifarSettings) -> Dataset:
    """CIFAR-10 from `data_batch_1.bin` … `test_batch.bin`.

    Raises:
        MissingFileError: a file, or the whole binary version, is not there.
        CorruptFileError: a file is truncated or holds a label outside 0 to 9.
    """
    return _load("cifar10", settings)


def load_cifar100(settings: CifarSettings) -> Dataset:
    """CIFAR-100 with its 100 fine labels, from `train.bin` and `test.bin`.

    Raises:
        MissingFileError: a file, or the whole binary version, is not there.
        CorruptFileError: a file is truncated or holds a label outside 0 to 99.
    """
    return _load("cifar100", settings)
