"""What a model file answers on labelled samples: which of them are right, so that two models can be paired."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.engines.base import Engine
from akd_deploy.errors import UsageError
from akd_deploy.pipeline.samples import read_samples


@dataclass(frozen=True)
class LabelledSamples:
    """Inputs by name, each (samples, …), and what is right for each sample: (samples,) class numbers."""

    inputs: Mapping[str, np.ndarray]
    labels: np.ndarray

    @property
    def digest(self) -> str:
        """SHA-256 of every name, type, shape and value: equal for the same samples in the same order only."""
        hasher = hashlib.sha256()
        for name, array in [*sorted(self.inputs.items()), ("labels", self.labels)]:
            hasher.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
            hasher.update(np.ascontiguousarray(array).tobytes())
        return hasher.hexdigest()


def labelled_samples(path: Path) -> LabelledSamples:
    """An .npz of one array for each input of the network, by name, and `labels`: whole numbers.

    Raises:
        MissingFileError, CorruptFileError: it cannot be read.
        UsageError: no inputs, no labels, or not equally many.
    """
    inputs, labels = read_samples(path)
    if labels is None or not inputs:
        raise UsageError(
            asked=f"labelled samples in {path}",
            found=f"arrays {', '.join([*inputs, *(['labels'] if labels is not None else [])]) or '(none)'}",
            next="Write it with numpy.savez(path, INPUT=…, labels=…), an array for each input.",
        )
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or not labels.size:
        raise UsageError(
            asked=f"labels in {path}",
            found=f"{labels.dtype.name} of shape {labels.shape}",
            next="Give one class number for each sample.",
        )
    counts = {name: len(array) if array.ndim else 0 for name, array in inputs.items()}
    if set(counts.values()) != {len(labels)}:
        raise UsageError(
            asked=f"as many samples as labels in {path}",
            found=", ".join(f"{count} of {name}" for name, count in {**counts, "labels": len(labels)}.items()),
            next="Give every array the same first dimension.",
        )
    return LabelledSamples(inputs, labels)


def correct_answers(engine: Engine, model: Path, samples: LabelledSamples) -> np.ndarray:
    """(samples,) booleans: whether the model's first output is largest at the sample's label.

    The last batch is filled up with the first samples again, whose second answers are not looked at.

    Raises:
        UsageError: inputs that are not the network's, or an output that is no (batch, classes).
    """
    batch, count = engine.target.batch, len(samples.labels)
    right = np.zeros(count, bool)
    with engine.load(model) as session:
        for start in range(0, count, batch):
            rows = np.arange(start, start + batch) % count
            answer = session.run({name: array[rows] for name, array in samples.inputs.items()})[session.outputs[0].name]
            if answer.ndim != 2 or len(answer) != batch:
                raise UsageError(
                    asked=f"one row of scores for each of {batch} samples from {model}",
                    found=f"output {session.outputs[0].name!r} of shape {answer.shape}",
                    next="Accuracy is of classifiers: put the (batch, classes) output first, or leave --samples out.",
                )
            here = rows[: min(batch, count - start)]
            right[here] = answer[: len(here)].argmax(-1) == samples.labels[here]
    return right


def accuracy_record(engine: Engine, model: Path, samples: LabelledSamples) -> dict[str, Any]:
    """What a bench tells about accuracy: `accuracy`, `correct` (1 or 0 for each sample) and which samples."""
    right = correct_answers(engine, model, samples)
    return {
        "accuracy": float(right.mean()),
        "correct": right.astype(int).tolist(),
        "samples_sha256": samples.digest,
    }
