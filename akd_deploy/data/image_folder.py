"""A folder of your own images: root/train/<class>/*.png or .jpg, root/val/<class>/…, perhaps root/test/<class>/…"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from akd_deploy.data.dataset import Dataset, Split, normalised, stratified_parts
from akd_deploy.data.views import ViewSettings
from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, UsageError
from akd_deploy.storage import file_sha256

SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True)
class ImageFolderSettings:
    """`root` holds train/ and val/, and perhaps test/, each with one folder per class.

    Images become `resolution`² RGB: the shorter side is resized to `resolution / crop_fraction`, then the
    middle is cut out. `reward_fraction` of train/ scores the search; with a test/ folder val/ is the tuning
    split, without one val/ is the test split and `tuning_fraction` of train/ is held out for tuning. Students
    learn from `labelled` of what is left (0: all). `mean` and `std` (ImageNet's) normalise pixels of 0 to 1.
    The images are held in memory: more than `max_gib` of them is refused.
    """

    root: str
    resolution: int = 224
    crop_fraction: float = 0.875
    labelled: int = 0
    reward_fraction: float = 0.1
    tuning_fraction: float = 0.1
    shift: int = 0
    flip: bool = True
    views: int = 8
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    max_gib: float = 16.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resolution < 1 or not 0 < self.crop_fraction <= 1:
            raise UsageError(
                asked=f"resolution {self.resolution}, crop_fraction {self.crop_fraction:g}",
                found="a number out of range",
                next="Give a resolution of at least 1 and a crop_fraction above 0, at most 1.",
            )
        if not (0 < self.reward_fraction < 1 and 0 < self.tuning_fraction < 1):
            raise UsageError(
                asked=f"reward_fraction {self.reward_fraction:g}, tuning_fraction {self.tuning_fraction:g}",
                found="a fraction that is not between 0 and 1",
                next="Hold out a part of train/, such as 0.1, for each.",
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, self.resolution, self.resolution)

    @property
    def classes(self) -> None:
        """The folders in `root` tell."""


def _listed(folder: Path) -> dict[str, list[Path]]:
    """Class name → its image files, both sorted.

    Raises:
        MissingFileError: the folder or a class's images are missing.
        UsageError: a class folder holds a file that is no PNG or JPEG.
    """
    if not folder.is_dir():
        raise MissingFileError(
            asked=f"images in {folder}",
            found="no such folder",
            next="Make train/ and val/ (and test/ if there is one), each with one folder per class.",
        )
    classes: dict[str, list[Path]] = {}
    for class_folder in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        files = sorted(p for p in class_folder.iterdir() if p.is_file() and not p.name.startswith("."))
        others = [p for p in files if p.suffix.lower() not in SUFFIXES]
        if others:
            raise UsageError(
                asked=f"PNG and JPEG images in {class_folder}",
                found=f"{others[0].name}" + (f" and {len(others) - 1} more such files" if len(others) > 1 else ""),
                next="Convert them, or move them elsewhere.",
            )
        if not files:
            raise MissingFileError(
                asked=f"images of class {class_folder.name} in {class_folder}",
                found="no image",
                next="Add images, or remove the class from every split.",
            )
        classes[class_folder.name] = files
    if not classes:
        raise MissingFileError(
            asked=f"one folder per class in {folder}", found="none", next="Sort the images into class folders."
        )
    return classes


def read_image(path: Path, resolution: int, crop_fraction: float) -> np.ndarray:
    """(3, resolution, resolution) uint8: shorter side resized (bilinear, antialiased), the middle cut out.

    The orientation that a camera noted down is applied first.

    Raises:
        MissingFileError, CorruptFileError: the file is not there, or no whole image; both name it.
    """
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file).convert("RGB")
    except FileNotFoundError as error:
        raise MissingFileError(asked=f"the image {path}", found="no such file", next="Restore it.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptFileError(
            asked=f"an image in {path}",
            found=f"no whole PNG or JPEG ({error})",
            next="Restore or remove the file.",
        ) from error
    width, height = image.size
    scale = resolution / crop_fraction / min(width, height)
    resized = image.resize(
        (max(resolution, round(width * scale)), max(resolution, round(height * scale))), Image.Resampling.BILINEAR
    )
    left, top = (resized.width - resolution) // 2, (resized.height - resolution) // 2
    cropped = resized.crop((left, top, left + resolution, top + resolution))
    return np.asarray(cropped, np.uint8).transpose(2, 0, 1)


def load_image_folder(settings: ImageFolderSettings) -> Dataset:
    """Read every image of the folder.

    Raises:
        MissingFileError, CorruptFileError: names the file or folder.
        MismatchError: the splits do not have the same classes.
        UsageError: the images need more memory than `max_gib`, or the fractions leave a split empty.
    """
    root = Path(settings.root)
    names = ["train", "val", *(["test"] if (root / "test").is_dir() else [])]
    listed = {name: _listed(root / name) for name in names}
    class_names = tuple(listed["train"])
    for name in names[1:]:
        if tuple(listed[name]) != class_names:
            differing = sorted(set(listed[name]) ^ set(class_names))
            raise MismatchError(
                asked=f"the {len(class_names)} classes of {root / 'train'} in {root / name}",
                found=f"{len(listed[name])} classes; only in one of them: {', '.join(differing[:5])}",
                next="Give every split the same class folders.",
            )
    files = [(name, path, label) for name in names
             for label, paths in enumerate(listed[name].values()) for path in paths]  # fmt: skip
    # uint8 while reading, float32 after, and once more for the teacher's copy of the training images.
    gib = len(files) * 3 * settings.resolution**2 * 9 / 2**30
    if gib > settings.max_gib:
        raise UsageError(
            asked=f"{len(files):,} images at {settings.resolution}² in memory",
            found=f"about {gib:.1f} GiB, more than max_gib = {settings.max_gib:g}",
            next="Lower the resolution, use fewer images, or raise max_gib where the machine has the memory.",
        )
    pixels = np.stack([read_image(path, settings.resolution, settings.crop_fraction) for _, path, _ in files])
    labels = np.array([label for _, _, label in files], np.int64)
    folder_of = np.array([name for name, _, _ in files])

    train = np.flatnonzero(folder_of == "train")
    held_out = {"reward_val": settings.reward_fraction}
    if "test" not in names:
        held_out["tuning_val"] = settings.tuning_fraction
    sizes = {name: max(1, round(fraction * len(train))) for name, fraction in held_out.items()}
    learners = len(train) - sum(sizes.values())
    sizes["train"] = settings.labelled or max(learners, 1)
    parts = stratified_parts(labels[train], sizes, np.random.default_rng(settings.seed), str(root / "train"))
    positions = {name: train[part] for name, part in parts.items()}
    positions["teacher_train"] = np.sort(np.concatenate([positions["train"], positions.pop("rest")]))
    if "test" in names:
        positions["tuning_val"] = np.flatnonzero(folder_of == "val")
    positions["test"] = np.flatnonzero(folder_of == names[-1])

    def split(at: np.ndarray) -> Split:
        return Split(normalised(pixels[at], settings.mean, settings.std), labels[at], at)

    splits = {name: split(at) for name, at in positions.items() if name != "teacher_train"}
    same = len(positions["teacher_train"]) == len(positions["train"])
    splits["teacher_train"] = splits["train"] if same else split(positions["teacher_train"])
    return Dataset(
        name="image_folder",
        **splits,
        class_names=class_names,
        views=ViewSettings(views=settings.views, shift=settings.shift, flip=settings.flip),
        mean=settings.mean,
        std=settings.std,
        provenance={
            "name": "image_folder",
            "settings": {key: value for key, value in asdict(settings).items() if key != "root"},
            "files": {name: _folder_sha256(root, name, listed[name]) for name in names},
            "splits": {name: len(split) for name, split in splits.items()},
            "seed": settings.seed,
        },
    )


def _folder_sha256(root: Path, name: str, classes: dict[str, list[Path]]) -> str:
    """SHA-256 over the sorted relative paths of a split and the SHA-256 of each file."""
    lines = [
        [path.relative_to(root / name).as_posix().replace(os.sep, "/"), file_sha256(path)]
        for paths in classes.values()
        for path in paths
    ]
    return hashlib.sha256(json.dumps(sorted(lines)).encode()).hexdigest()
