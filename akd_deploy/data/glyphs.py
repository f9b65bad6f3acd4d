"""Procedural images of glyphs: fine-grained classes, any number of images, no file to fetch.

A class is a shape filled with a texture of one orientation in one colour; place, size, tilt, phase, background,
occlusion and sensor noise vary freely within it. All but the noise can be told apart, so that little of the error is
irreducible. One seed gives one bed, and a larger split begins with the smaller one's images.
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from types import MappingProxyType

import numpy as np

from akd_deploy.data.dataset import Dataset, Split, normalised
from akd_deploy.data.views import ViewSettings
from akd_deploy.errors import StorageError, UsageError
from akd_deploy.storage import write_atomically
from akd_deploy.target import user_data_dir

FORMAT_VERSION = 1
"""Another one whenever the same settings give other pixels."""
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
LEAST_SIDE = 16
"""Below this many pixels the textures' periods are no longer resolved."""
_CHUNK = 512
"""Images drawn at a time: a few megabytes for each intermediate array."""
_SOFTNESS = 0.06
"""Width of a glyph's edge, as a share of its radius: about a pixel."""
_PERIODS = 5.0
"""Of a texture across the image."""
KEPT_FILES = 32
"""Splits kept on the disk, tens of megabytes each; the oldest make room."""


@dataclass(frozen=True)
class GlyphsSettings:
    """The bed's sizes, classes and difficulty.

    The teacher learns from `teacher_images`, of which the first `labelled` are the student's. There are
    `shapes` × `textures` × `orientations` × `colours` classes, in equal numbers. `nuisance` scales all that varies
    within a class, 0 to 1. Of the labels to learn from a share of `label_noise` is replaced by another class at random;
    labels to be scored by are clean. Views have normal `noise` (pixels have a standard deviation of about 1) and move
    by up to `shift` pixels.
    """

    labelled: int = 2_400
    teacher_images: int = 12_000
    reward_images: int = 1_200
    tuning_images: int = 1_200
    test_images: int = 2_400
    side: int = 32
    shapes: int = 3
    textures: int = 2
    orientations: int = 2
    colours: int = 2
    nuisance: float = 1.0
    label_noise: float = 0.0
    noise: float = 0.1
    shift: int = 2
    views: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        ranges = {
            "labelled": 1 <= self.labelled <= self.teacher_images,
            "reward_images": self.reward_images >= 1,
            "tuning_images": self.tuning_images >= 1,
            "test_images": self.test_images >= 1,
            "side": self.side >= LEAST_SIDE,
            "shapes": 1 <= self.shapes <= len(SHAPES),
            "textures": 1 <= self.textures <= len(TEXTURES),
            "orientations": 1 <= self.orientations <= 4,
            "colours": 1 <= self.colours <= len(COLOURS),
            "nuisance": 0 <= self.nuisance <= 1,
            "label_noise": 0 <= self.label_noise < 1,
            "seed": self.seed >= 0,
        }
        for name, holds in ranges.items():
            if not holds:
                raise UsageError(
                    asked=f"setting {name} of dataset glyphs",
                    found=f"{getattr(self, name)!r}",
                    next="Give one in range: labelled from 1 to teacher_images, other numbers of images from 1, side "
                    f"from {LEAST_SIDE}, shapes up to {len(SHAPES)}, textures up to {len(TEXTURES)}, orientations up "
                    f"to 4, colours up to {len(COLOURS)}, nuisance 0 to 1, label_noise 0 to below 1, seed from 0.",
                )
        if self.classes < 2:
            raise UsageError(asked="a bed of glyphs", found="a single class", next="Raise shapes, textures or others.")

    @property
    def input_shape(self) -> tuple[int, int, int]:
        return (3, self.side, self.side)

    @property
    def classes(self) -> int:
        return self.shapes * self.textures * self.orientations * self.colours


def load_glyphs(settings: GlyphsSettings) -> Dataset:
    """The bed; drawn once and kept in the user's data directory."""
    sizes = {
        "teacher_train": settings.teacher_images,
        "reward_val": settings.reward_images,
        "tuning_val": settings.tuning_images,
        "test": settings.test_images,
    }
    splits, first = {}, 0
    for stream, (name, size) in enumerate(sizes.items()):
        pixels, labels = _kept(settings, stream, size)
        if name == "teacher_train":
            labels = with_label_noise(labels, settings.classes, settings.label_noise, settings.seed)
        splits[name] = Split(normalised(pixels, MEAN, STD), labels, np.arange(first, first + size))
        first += size
    train = splits["teacher_train"].take(np.arange(settings.labelled))
    return Dataset(
        name="glyphs",
        train=train,
        **splits,
        class_names=class_names(settings),
        views=ViewSettings(views=settings.views, noise=settings.noise, shift=settings.shift),
        mean=MEAN,
        std=STD,
        provenance={
            "name": "glyphs",
            "settings": asdict(settings),
            "format_version": FORMAT_VERSION,
            "splits": {"train": len(train), **sizes},
            "seed": settings.seed,
        },
    )


def class_names(settings: GlyphsSettings) -> tuple[str, ...]:
    """ "disc striped 0° red" and the like, in the order of the labels."""
    step = 90 / settings.orientations
    angles = [f"{step * k:g}°" for k in range(settings.orientations)]
    parts = (
        list(SHAPES)[: settings.shapes],
        list(TEXTURES)[: settings.textures],
        angles,
        list(COLOURS)[: settings.colours],
    )
    return tuple(" ".join(names) for names in product(*parts))


def with_label_noise(labels: np.ndarray, classes: int, share: float, seed: int) -> np.ndarray:
    """(n,) labels of which about `share` are another class at random; which ones depends on the seed alone."""
    rng = np.random.default_rng([seed, 17])
    draws = rng.random((len(labels), 2))
    others = (labels + 1 + np.floor(draws[:, 1] * (classes - 1)).astype(np.int64)) % classes
    return np.where(draws[:, 0] < share, others, labels)


# --- drawing ----------------------------------------------------------------------------------------------------

Plane = np.ndarray
"""(n, side, side) float32."""


def _polygon(u: Plane, v: Plane, corners: int, inner: float) -> Plane:
    """Above 0 within a regular polygon whose sides are `inner` away from its centre."""
    angles = 2 * np.pi * np.arange(corners) / corners + np.pi / 2
    far = np.maximum.reduce([np.cos(a) * u + np.sin(a) * v for a in angles.astype(np.float32)])
    result: Plane = inner - far
    return result


def _cross(u: Plane, v: Plane) -> Plane:
    wide, high = np.abs(u), np.abs(v)
    result: Plane = np.maximum(np.minimum(0.34 - wide, 0.95 - high), np.minimum(0.34 - high, 0.95 - wide))
    return result


def _star(u: Plane, v: Plane) -> Plane:
    result: Plane = 0.68 + 0.27 * np.cos(5 * np.arctan2(u, v)) - np.hypot(u, v)
    return result


SHAPES: Mapping[str, Callable[[Plane, Plane], Plane]] = MappingProxyType(
    {
        "disc": lambda u, v: 0.9 - np.hypot(u, v),
        "square": lambda u, v: 0.8 - np.maximum(np.abs(u), np.abs(v)),
        "triangle": lambda u, v: _polygon(u, v, 3, 0.52),
        "hexagon": lambda u, v: _polygon(u, v, 6, 0.82),
        "cross": _cross,
        "star": _star,
    }
)
"""Name → a function of coordinates, (−1, 1) over the glyph, that is above 0 inside."""

TEXTURES: Mapping[str, Callable[[Plane, Plane], Plane]] = MappingProxyType(
    {
        "striped": lambda a, b: np.sin(a),
        "checked": lambda a, b: np.sin(a) * np.sin(b),
        "dotted": lambda a, b: 2 * np.maximum(0, np.sin(a) * np.sin(b) - 0.25) - 0.5,
    }
)
"""Name → a function of two phases at right angles to each other; −1 to 1."""

COLOURS: Mapping[str, float] = MappingProxyType({"red": 0.0, "green": 1 / 3, "blue": 2 / 3, "yellow": 1 / 6})
"""Name → hue, 0 to 1 around the circle."""

_HUE_JITTER = 0.06

_LATENTS = (
    "x", "y", "size", "tilt", "turn", "phase_a", "phase_b", "period", "hue", "saturation", "value", "contrast",
    "ground_hue", "ground_saturation", "ground_value", "slope_x", "slope_y", "ground_turn", "ground_phase",
    "ground_period", "ground_contrast", "cover_x", "cover_y", "cover_width", "cover_height", "cover_value",
)  # fmt: skip
"""What is drawn uniformly for each image, −1 to 1."""


def draw_glyphs(settings: GlyphsSettings, stream: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`count` images of one stream: (n, 3, side, side) uint8 pixels and (n,) int64 labels, classes in equal numbers.

    The first images of a stream are the same however many are drawn.
    """
    latents_rng, labels_rng, noise_rng = (
        np.random.Generator(np.random.Philox(key=[settings.seed, 4 * stream + part])) for part in range(3)
    )
    rounds = -(-count // settings.classes)
    labels = labels_rng.random((rounds, settings.classes)).argsort(axis=1).ravel()[:count]
    latents = 2 * latents_rng.random((count, len(_LATENTS))).astype(np.float32) - 1
    pixels = np.empty((count, 3, settings.side, settings.side), np.uint8)
    for start in range(0, count, _CHUNK):
        part = slice(start, min(start + _CHUNK, count))
        images = _drawn(settings, labels[part], latents[part])
        images += settings.nuisance * 0.08 * noise_rng.standard_normal(images.shape, dtype=np.float32)
        pixels[part] = np.clip(255 * images + 0.5, 0, 255)
    return pixels, labels.astype(np.int64)


def _drawn(settings: GlyphsSettings, labels: np.ndarray, latents: np.ndarray) -> np.ndarray:
    """(n, 3, side, side) float32, 0 to 1."""
    at = {name: (settings.nuisance * latents[:, i])[:, None, None] for i, name in enumerate(_LATENTS)}
    axis = np.linspace(-1, 1, settings.side, dtype=np.float32)
    x, y = axis[None, None, :], axis[None, :, None]
    rest, colour = np.divmod(labels, settings.colours)
    rest, turn = np.divmod(rest, settings.orientations)
    shape, texture = np.divmod(rest, settings.textures)

    radius, tilt = 0.62 + 0.16 * at["size"], 0.35 * at["tilt"]
    dx, dy = (x - 0.3 * at["x"]) / radius, (y - 0.3 * at["y"]) / radius
    u, v = np.cos(tilt) * dx + np.sin(tilt) * dy, np.cos(tilt) * dy - np.sin(tilt) * dx
    inside = 1 / (1 + np.exp(-_chosen(SHAPES, shape, u, v) / _SOFTNESS))

    step = np.pi / 2 / settings.orientations
    angle = step * (turn[:, None, None] + 0.3 * at["turn"]).astype(np.float32)
    a, b = _phases(x, y, angle, 1 + 0.25 * at["period"], np.pi * at["phase_a"], np.pi * at["phase_b"])
    light = 0.62 + 0.12 * at["value"] + (0.26 + 0.12 * at["contrast"]) * _chosen(TEXTURES, texture, a, b)
    hues = np.array(list(COLOURS.values()), np.float32)[colour][:, None, None] + _HUE_JITTER * at["hue"]
    glyph = _rgb(hues, 0.6 + 0.25 * at["saturation"], light)

    a, _ = _phases(x, y, np.pi * at["ground_turn"], 1 + 0.5 * at["ground_period"], np.pi * at["ground_phase"], 0)
    shade = 0.45 + 0.2 * at["ground_value"] + 0.12 * (at["slope_x"] * x + at["slope_y"] * y)
    shade = shade + settings.nuisance * (0.1 + 0.08 * at["ground_contrast"]) * np.sin(a)
    ground = _rgb(0.5 + 0.5 * at["ground_hue"], 0.35 + 0.35 * at["ground_saturation"], shade)

    images = ground + inside[:, None] * (glyph - ground)
    far = np.maximum(
        np.abs(x - 0.9 * at["cover_x"]) - 0.18 * (1 + at["cover_width"]),
        np.abs(y - 0.9 * at["cover_y"]) - 0.18 * (1 + at["cover_height"]),
    )
    covered = (far < 0) & (settings.nuisance > 0)
    return np.where(covered[:, None], 0.5 + 0.4 * at["cover_value"][:, None], images).astype(np.float32)


def _chosen(functions: Mapping[str, Callable[[Plane, Plane], Plane]], which: np.ndarray, u: Plane, v: Plane) -> Plane:
    """(n, side, side): for each image the value of the function that it is to have."""
    u, v = np.broadcast_arrays(u, v)
    result = np.empty(u.shape, np.float32)
    for i, function in enumerate(functions.values()):
        members = which == i
        if members.any():
            result[members] = function(u[members], v[members])
    return result


def _phases(
    x: Plane, y: Plane, angle: Plane, frequency: Plane, shift_a: object, shift_b: object
) -> tuple[Plane, Plane]:
    """Phases along and across a direction, in radians."""
    scale = np.pi * _PERIODS * frequency
    a = scale * (np.cos(angle) * x + np.sin(angle) * y) + shift_a
    b = scale * (np.cos(angle) * y - np.sin(angle) * x) + shift_b
    return a, b


def _rgb(hue: Plane, saturation: Plane, value: Plane) -> np.ndarray:
    """(n, 3, side, side) from hue, saturation and value, each of which broadcasts to (n, side, side)."""
    place = 6 * hue[:, None] + np.array([0, 4, 2], np.float32)[:, None, None]
    pure = np.clip(np.abs(place % 6 - 3) - 1, 0, 1)
    result: np.ndarray = value[:, None] * (1 - saturation[:, None] * (1 - pure))
    return result


# --- keeping ----------------------------------------------------------------------------------------------------


def _kept(settings: GlyphsSettings, stream: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """`draw_glyphs`, from the file of an earlier time where there is one."""
    path = _cache_path(settings, stream, count)
    try:
        with path.open("rb") as stored, np.load(stored, allow_pickle=False) as file:
            return file["pixels"], file["labels"]
    except (OSError, ValueError, LookupError, EOFError, zipfile.BadZipFile):  # none there, or torn: drawn again
        pixels, labels = draw_glyphs(settings, stream, count)
    content = io.BytesIO()
    np.savez(content, pixels=pixels, labels=labels)
    try:
        write_atomically(path, content.getvalue())
        newest = sorted(path.parent.glob("*.npz"), key=lambda file: file.stat().st_mtime_ns, reverse=True)
        for old in newest[KEPT_FILES:]:
            old.unlink(missing_ok=True)
    except (StorageError, OSError):
        pass  # a read-only home is legitimate; this is only a cache
    return pixels, labels


def _cache_path(settings: GlyphsSettings, stream: int, count: int) -> Path:
    """A name of its own for whatever decides the pixels."""
    names = ("side", "shapes", "textures", "orientations", "colours", "nuisance", "seed")
    fields = {name: getattr(settings, name) for name in names}
    told = json.dumps({**fields, "format_version": FORMAT_VERSION, "stream": stream, "count": count}, sort_keys=True)
    return user_data_dir() / "glyphs" / f"{hashlib.sha256(told.encode()).hexdigest()[:16]}.npz"
