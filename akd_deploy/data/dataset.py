"""A dataset as a value: splits that share no image, class names, and where it all came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from akd_deploy.data.views import ViewSettings
from akd_deploy.errors import UsageError


@dataclass(frozen=True, eq=False)
class Split:
    """Some images with their labels.

    `images` is float32 (n, channels, height, width), already scaled; `labels` int64 (n,). `originals` int64
    (n,) says which image of the source each came from: several corruptions of one image share its number.
    """

    images: np.ndarray
    labels: np.ndarray
    originals: np.ndarray

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.float32:
            raise ValueError(f"images must be float32 (n, C, H, W), not {self.images.dtype} {self.images.shape}")
        if not len(self.images) == len(self.labels) == len(self.originals) or not len(self.images):
            raise ValueError(f"{len(self.images)} images, {len(self.labels)} labels, {len(self.originals)} originals")
        for name in ("images", "labels", "originals"):
            array = getattr(self, name) if name == "images" else getattr(self, name).astype(np.int64)
            array = array.view()
            array.setflags(write=False)
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        return len(self.images)

    def take(self, indices: np.ndarray) -> Split:
        """The split of these positions, in this order."""
        return Split(self.images[indices], self.labels[indices], self.originals[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a student and its teacher learn from, and what they are scored on.

    `train` are the labelled images students learn from, `teacher_train` those teachers learn from (it may
    hold `train`). The other three share no source image with these or with each other: `reward_val` scores
    candidates during the search, `tuning_val` chooses between finalists and tunes settings, `test` is read
    once, for the report. `mean` and `std` (one per channel) are what pixels of 0 to 1 were normalised with:
    a deployed network expects the same. `provenance` holds JSON types alone.
    """

    name: str
    train: Split
    teacher_train: Split
    reward_val: Split
    tuning_val: Split
    test: Split
    class_names: tuple[str, ...]
    views: ViewSettings
    mean: tuple[float, ...]
    std: tuple[float, ...]
    provenance: Mapping[str, object]

    def __post_init__(self) -> None:
        object.__setattr__(self, "provenance", MappingProxyType(dict(self.provenance)))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @property
    def splits(self) -> dict[str, Split]:
        """Name → split, all five."""
        return {
            "train": self.train,
            "teacher_train": self.teacher_train,
            "reward_val": self.reward_val,
            "tuning_val": self.tuning_val,
            "test": self.test,
        }


def stratified_parts(
    labels: np.ndarray, sizes: Mapping[str, int], rng: np.random.Generator, where: str
) -> dict[str, np.ndarray]:
    """Disjoint random positions for each named size, classes as evenly represented as in `labels`.

    Positions are put in an order in which every stretch holds the classes in nearly equal shares of their
    numbers, then cut. Positions left over are returned as "rest".

    Raises:
        UsageError: the sizes add up to more than there are labels.
    """
    wanted = sum(sizes.values())
    if wanted > len(labels) or any(size < 0 for size in sizes.values()):
        raise UsageError(
            asked=f"{wanted} images of {where} ({', '.join(f'{k} {v}' for k, v in sizes.items())})",
            found=f"{len(labels)} images",
            next="Ask for fewer images in some split, none below 0.",
        )
    place = np.empty(len(labels))
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        # Evenly spaced along 0 to 1, jittered within each gap: a stretch of the order is a stratified draw.
        place[rng.permutation(members)] = (np.arange(len(members)) + rng.random(len(members))) / len(members)
    order = np.argsort(place, kind="stable")
    parts, start = {}, 0
    for name, size in sizes.items():
        parts[name] = np.sort(order[start : start + size])
        start += size
    parts["rest"] = np.sort(order[start:])
    return parts


def normalised(pixels: np.ndarray, mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """(n, C, H, W) uint8 pixels as float32 (pixel / 255 − mean) / std, channel by channel."""
    channels = pixels.shape[1]
    if len(mean) != channels or len(std) != channels or any(s <= 0 for s in std):
        raise UsageError(
            asked=f"mean {mean} and std {std}",
            found=f"{channels} channels",
            next="Give one mean and one std above 0 per channel.",
        )
    images = pixels.astype(np.float32)
    scale = np.array([1 / (255 * s) for s in std], np.float32)[:, None, None]
    shift = np.array([m / s for m, s in zip(mean, std, strict=True)], np.float32)[:, None, None]
    images *= scale
    images -= shift
    return images
