"""Datasets: files in published formats, what scikit-learn bundles, and images drawn by rules."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from akd_deploy.data.dataset import Dataset, Split
from akd_deploy.data.views import ViewBank, ViewSettings
from akd_deploy.errors import UnknownNameError, UsageError

__all__ = ["DATASETS", "Dataset", "Split", "ViewBank", "ViewSettings", "known_shape", "load_dataset"]

DATASETS: Mapping[str, tuple[str, str, str]] = {
    "digits": ("akd_deploy.data.digits", "DigitsSettings", "load_digits"),
    "cifar10": ("akd_deploy.data.cifar", "Cifar10Settings", "load_cifar10"),
    "cifar100": ("akd_deploy.data.cifar", "Cifar100Settings", "load_cifar100"),
    "glyphs": ("akd_deploy.data.glyphs", "GlyphsSettings", "load_glyphs"),
    "image_folder": ("akd_deploy.data.image_folder", "ImageFolderSettings", "load_image_folder"),
}
"""Dataset name → its module, the class of its settings, which knows `input_shape` and `classes` as far as `known_shape`
tells them, and the function that loads it; none needs torch."""


def load_dataset(name: str, settings: Mapping[str, Any] | None = None) -> Dataset:
    """Load a dataset by name.

    Raises:
        UnknownNameError: no such dataset or setting; the message lists the known ones.
        UsageError: a setting is missing, of the wrong type or out of range.
        MissingFileError, CorruptFileError: a file is not there, or not what it should be.
    """
    checked = _checked_settings(name, settings)
    module_name, _, loader = DATASETS[name]
    dataset: Dataset = getattr(importlib.import_module(module_name), loader)(checked)
    return dataset


def known_shape(name: str, settings: Mapping[str, Any] | None = None) -> tuple[tuple[int, int, int], int | None]:
    """(channels, height, width) of a dataset's images and its number of classes, None where only its files tell, and
    no file is read.

    Raises:
        UnknownNameError, UsageError: as for `load_dataset`.
    """
    checked = _checked_settings(name, settings)
    return checked.input_shape, checked.classes


def _checked_settings(name: str, settings: Mapping[str, Any] | None) -> Any:
    """The settings of a dataset, as its own class has them."""
    import pydantic

    if name not in DATASETS:
        raise UnknownNameError("dataset", name, DATASETS)
    module_name, settings_class, _ = DATASETS[name]
    kind = getattr(importlib.import_module(module_name), settings_class)
    given = dict(settings or {})
    for key in given:
        if key not in kind.__dataclass_fields__:
            raise UnknownNameError("setting", key, kind.__dataclass_fields__, where=f"dataset {name}")
    try:
        return pydantic.TypeAdapter(kind).validate_python(given)
    except pydantic.ValidationError as error:
        first = error.errors()[0]
        ours = first.get("ctx", {}).get("error")
        if isinstance(ours, UsageError):
            raise ours from error
        raise UsageError(
            asked=f"setting {'.'.join(map(str, first['loc']))!r} of dataset {name}",
            found=f"{first['msg']} ({first['input']!r})" if first["type"] != "missing" else "none",
            next="Correct it in the run's configuration.",
        ) from error
