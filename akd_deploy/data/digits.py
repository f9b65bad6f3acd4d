"""The handwritten digits bundled with scikit-learn, as a small noisy bed with few labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from akd_deploy.data.dataset import Dataset, Split, stratified_parts
from akd_deploy.data.views import ViewSettings, corrupted
from akd_deploy.errors import UsageError
from akd_deploy.storage import file_sha256

SIDE = 12
"""The 8×8 digits are padded to 12×12, so that a shift loses no ink."""


@dataclass(frozen=True)
class DigitsSettings:
    """The bed of the 1,797 digits (8×8, 16 grey levels, padded to 12×12).

    The teacher learns from `teacher_images` of them, the student from `labelled` of those; `reward_images`
    and `tuning_images` are held out of both for the two validation splits, the rest is the test split. Views
    have normal `noise` (the ink is 0 to 1) and move by up to `shift` pixels; each held-out image is scored in
    `corruptions` fixed views.
    """

    labelled: int = 200
    teacher_images: int = 1_000
    reward_images: int = 250
    tuning_images: int = 200
    noise: float = 0.2
    shift: int = 1
    corruptions: int = 4
    views: int = 64
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.labelled <= self.teacher_images:
            raise UsageError(
                asked=f"{self.labelled} labelled of {self.teacher_images} teacher images",
                found="not between 1 and the teacher's",
                next="Lower labelled or raise teacher_images.",
            )
        if min(self.reward_images, self.tuning_images, self.corruptions) < 1 or self.seed < 0:
            raise UsageError(
                asked="reward_images, tuning_images and corruptions of at least 1, and a seed of at least 0",
                found=f"{self.reward_images}, {self.tuning_images}, {self.corruptions}, {self.seed}",
                next="Raise the one that is too low.",
            )

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (1, SIDE, SIDE)

    @property
    def classes(self) -> int:
        return 10


def load_digits(settings: DigitsSettings) -> Dataset:
    """The bed; one seed gives one bed.

    Raises:
        UsageError: the splits ask for more than 1,797 images, or leave none for the test.
    """
    import sklearn.datasets

    bunch = sklearn.datasets.load_digits()
    margin = (SIDE - bunch.images.shape[1]) // 2
    ink = np.pad(bunch.images / 16, ((0, 0), (margin, margin), (margin, margin))).astype(np.float32)[:, None]
    labels = bunch.target.astype(np.int64)

    rng = np.random.default_rng(settings.seed)
    sizes = {
        "train": settings.labelled,
        "teacher only": settings.teacher_images - settings.labelled,
        "reward_val": settings.reward_images,
        "tuning_val": settings.tuning_images,
    }
    parts = stratified_parts(labels, sizes, rng, "the digits")
    if not len(parts["rest"]):
        raise UsageError(
            asked=f"{sum(sizes.values())} digits outside the test split",
            found=f"{len(labels)} digits in all",
            next="Leave some for the test: lower teacher_images, reward_images or tuning_images.",
        )
    views = ViewSettings(views=settings.views, noise=settings.noise, shift=settings.shift)

    def clean(positions: np.ndarray) -> Split:
        return Split(ink[positions], labels[positions], positions)

    def scored(positions: np.ndarray, stream: int) -> Split:
        repeated = np.repeat(positions, settings.corruptions)
        view_ids = np.tile(np.arange(settings.corruptions), len(positions))
        return Split(corrupted(ink, view_ids, repeated, views, settings.seed, stream), labels[repeated], repeated)

    splits = {
        "train": clean(parts["train"]),
        "teacher_train": clean(np.sort(np.concatenate([parts["train"], parts["teacher only"]]))),
        "reward_val": scored(parts["reward_val"], 1),
        "tuning_val": scored(parts["tuning_val"], 2),
        "test": scored(parts["rest"], 3),
    }
    source = Path(sklearn.datasets.__file__).parent / "data" / "digits.csv.gz"
    return Dataset(
        name="digits",
        **splits,
        class_names=tuple(str(name) for name in bunch.target_names),
        views=views,
        mean=(0.0,),
        std=(1.0,),
        provenance={
            "name": "digits",
            "settings": asdict(settings),
            "files": {source.name: file_sha256(source)},
            "splits": {name: len(split) for name, split in splits.items()},
            "seed": settings.seed,
        },
    )
