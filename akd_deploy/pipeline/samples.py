"""Samples that a user hands in, as feeds of a network: those that calibrate, those that choose, those that score."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from akd_deploy.configuration import read_configuration
from akd_deploy.data import load_dataset
from akd_deploy.engines.onnx_file import graph_inputs
from akd_deploy.errors import CorruptFileError, MissingFileError, UsageError
from akd_deploy.export.onnx_file import parse_onnx
from akd_deploy.export.parity import Arrays

CHOOSING_SAMPLES = 256
"""At most so many choose among calibrations and nodes: each choice runs them again."""


def read_samples(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Inputs by name, and the labels where there are any.

    Raises:
        MissingFileError: no such file.
        CorruptFileError: it is no .npz archive of arrays.
    """
    if not path.is_file():
        raise MissingFileError(asked=f"the samples {path}", found="no such file", next="Check the path.")
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, AttributeError, TypeError, EOFError, BadZipFile) as error:
        raise CorruptFileError(
            asked=f"samples in {path}", found=str(error), next="Write it with numpy.savez(path, input=…, labels=…)."
        ) from error
    labels = arrays.pop("labels", None)
    return arrays, labels


def images_from(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """Up to `shape[0]` inputs of the other dimensions, from a file with one array beside the labels.

    Raises:
        UsageError: several arrays, or one that is not float32 (n, *shape[1:]) with n of at least 1.
    """
    arrays, _ = read_samples(path)
    if len(arrays) != 1:
        raise UsageError(
            asked=f"the inputs in {path}",
            found=f"{len(arrays)} arrays: {', '.join(sorted(arrays))}",
            next="Give one array, and labels if you like.",
        )
    ((name, array),) = arrays.items()
    if array.dtype != np.float32 or array.shape[1:] != shape[1:] or not len(array):
        raise UsageError(
            asked=f"samples {name!r} in {path} as float32 [n, {', '.join(map(str, shape[1:]))}]",
            found=f"{array.dtype} {list(array.shape)}",
            next="Preprocess them exactly as in deployment.",
        )
    return np.asarray(array[: shape[0]])


def samples_for(
    config: Path | None, samples: Path | None, onnx: Path
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """What the file, or the tuning split of a run's data, has for a network; nothing where neither is given."""
    if samples is not None:
        return read_samples(samples)
    if config is None:
        return {}, None
    inputs = graph_inputs(parse_onnx(onnx).graph)
    if len(inputs) != 1:
        raise UsageError(
            asked=f"{onnx} fed with the images of {config}",
            found=f"{len(inputs)} inputs",
            next="Give --samples with an array for each input.",
        )
    read = read_configuration(config)
    dataset = load_dataset(read.data.name, read.data.settings)
    return {inputs[0].name: dataset.tuning_val.images}, dataset.tuning_val.labels


@dataclass(frozen=True)
class Held:
    """Feeds of whole batches, and their labels where there are any."""

    feeds: tuple[Arrays, ...]
    labels: np.ndarray | None

    def accuracy(self, outputs: Sequence[Arrays]) -> float:
        """Share of right answers, by the first output's largest value."""
        assert self.labels is not None
        answers = np.concatenate([next(iter(batch.values())).argmax(-1) for batch in outputs])
        return float((answers == self.labels).mean())


@dataclass(frozen=True)
class Parts:
    """Samples in three parts that share none: what was chosen on one is not scored on it."""

    count: int
    calibration: Held
    choosing: Held
    scoring: Held


def parts_of(arrays: Mapping[str, np.ndarray], labels: np.ndarray | None, batch: int, calibrating: int) -> Parts:
    """The first `calibrating` samples calibrate; of the others a third, at most `CHOOSING_SAMPLES`, chooses.

    Samples that fill no batch are left out. Where one batch is left behind those that calibrate, it scores.

    Raises:
        UsageError: labels of another number than the samples.
    """
    count = min((len(a) for a in arrays.values()), default=0)
    if labels is not None and len(labels) < count:
        raise UsageError(asked=f"labels of {count} samples", found=f"{len(labels)}", next="Give one for each sample.")
    batches = count // batch
    first = min(batches, max(1, calibrating // batch))
    choosing = min((batches - first) // 3, max(1, CHOOSING_SAMPLES // batch))
    if batches - first == 2:
        choosing = 1

    def held(start: int, stop: int) -> Held:
        feeds = tuple(
            {name: np.ascontiguousarray(a[i * batch : (i + 1) * batch]) for name, a in arrays.items()}
            for i in range(start, stop)
        )
        return Held(feeds, None if labels is None else labels[start * batch : stop * batch])

    return Parts(count, held(0, first), held(first, first + choosing), held(first + choosing, batches))
