"""Deterministic augmented views of images: one view of one image is the same for student and teacher."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from akd_deploy.errors import UsageError

if TYPE_CHECKING:
    from akd_deploy.data.dataset import Split


@dataclass(frozen=True)
class ViewSettings:
    """How a view differs from its image.

    `views` is the number of views per image in the bank. `noise` is the standard deviation of additive
    normal noise, in the scale of the images; `shift` the largest move in pixels, up, down, left and right
    (what moves in is 0); `flip` whether half of the views are mirrored left to right.
    """

    views: int = 64
    noise: float = 0.0
    shift: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        if self.views < 1 or self.noise < 0 or self.shift < 0:
            raise UsageError(
                asked=f"views {self.views}, noise {self.noise:g}, shift {self.shift}",
                found="a number out of range",
                next="Give at least 1 view, and noise and shift of 0 or more.",
            )


@dataclass(frozen=True, eq=False)
class ViewBank:
    """Every view of every image of a split, each a pure function of (seed, view, image).

    Nothing depends on the order of reading, so a batch can be made when it is needed, and the same views
    come back in another process.
    """

    split: Split
    settings: ViewSettings
    seed: int

    @property
    def views(self) -> int:
        """Number of views per image."""
        return self.settings.views

    def __len__(self) -> int:
        """Number of images (not of views)."""
        return len(self.split)

    @property
    def nbytes(self) -> int:
        """Bytes of all views together."""
        return self.views * self.split.images.nbytes

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the images, their labels, the settings and the seed: equal banks hold equal views."""
        digest = hashlib.sha256(json.dumps({**asdict(self.settings), "seed": self.seed}, sort_keys=True).encode())
        digest.update(repr(self.split.images.shape).encode())
        digest.update(self.split.images.tobytes())
        digest.update(self.split.labels.tobytes())
        return digest.hexdigest()

    def batch(self, view_ids: np.ndarray, image_ids: np.ndarray) -> np.ndarray:
        """(batch, C, H, W) float32: view `view_ids[k]` of image `image_ids[k]` for each k.

        A view number beyond `views` is a fresh view outside the bank.
        """
        return corrupted(self.split.images, view_ids, image_ids, self.settings, self.seed)

    def all(self) -> np.ndarray:
        """(views, n, C, H, W) float32, every view of the bank; made once, `nbytes` large."""
        return self._all

    @cached_property
    def _all(self) -> np.ndarray:
        n = len(self)
        flat = self.batch(np.repeat(np.arange(self.views), n), np.tile(np.arange(n), self.views))
        flat.setflags(write=False)
        return flat.reshape(self.views, *self.split.images.shape)


def corrupted(
    images: np.ndarray,
    view_ids: np.ndarray,
    image_ids: np.ndarray,
    settings: ViewSettings,
    seed: int,
    stream: int = 0,
) -> np.ndarray:
    """(batch, C, H, W) float32: the views of `images` (n, C, H, W) that `view_ids` and `image_ids` name.

    Each view draws from its own counter-based stream (Philox, Salmon et al. 2011), keyed by seed and
    `stream`, with the view and the image as counter: they never overlap and need no order. Views to learn from
    are of stream 0; a split that is scored has its own.
    """
    views, ids = np.asarray(view_ids), np.asarray(image_ids)
    channels, height, width = images.shape[1:]
    shift, random = settings.shift, bool(settings.shift or settings.flip or settings.noise)
    out = np.empty((len(ids), channels, height, width), np.float32)
    padded = np.zeros((channels, height + 2 * shift, width + 2 * shift), np.float32)
    for k, (view, image) in enumerate(zip(views.tolist(), ids.tolist(), strict=True)):
        if not random:
            out[k] = images[image]
            continue
        rng = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, view, image]))
        down, right = rng.integers(0, 2 * shift + 1, size=2) if shift else (0, 0)
        padded[:, shift : shift + height, shift : shift + width] = images[image]
        moved = padded[:, down : down + height, right : right + width]
        out[k] = moved[:, :, ::-1] if settings.flip and rng.random() < 0.5 else moved
        if settings.noise:
            out[k] += settings.noise * rng.standard_normal(out.shape[1:], dtype=np.float32)
    return out
