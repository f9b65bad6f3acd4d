"""A gate for continuous integration: is the candidate's bench slower, or less accurate, than the baseline's?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

import numpy as np

from akd_deploy.certificate import Gate, RatioInterval, gate, ratio_interval
from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, UsageError

HEADER = ("target", "device", "protocol")
"""What must agree for two benches to be comparable."""


@dataclass(frozen=True)
class Bench:
    """What `bench --json` wrote: its header, the samples of each block in seconds, the accuracy where known."""

    path: Path
    header: Mapping[str, object]
    blocks_s: Mapping[str, np.ndarray]
    accuracy: float | None

    @property
    def block_medians_s(self) -> np.ndarray:
        """(blocks,) the median of each block."""
        return np.array([np.median(samples) for samples in self.blocks_s.values()])


@dataclass(frozen=True)
class GateResult:
    """The judgement. `latency` is on block medians; `accuracy_loss` is None where no accuracy was judged."""

    latency: Gate
    accuracy_loss: float | None
    max_accuracy_loss: float | None

    @property
    def interval(self) -> RatioInterval:
        return self.latency.interval

    @property
    def accuracy_regressed(self) -> bool:
        return (
            self.accuracy_loss is not None
            and self.max_accuracy_loss is not None
            and self.accuracy_loss > self.max_accuracy_loss
        )

    @property
    def regressed(self) -> bool:
        """Whether the slow-down is proven, or too much accuracy is lost."""
        return self.latency.regressed or self.accuracy_regressed

    def as_dict(self) -> dict[str, object]:
        return {
            "regressed": self.regressed,
            "conclusive": self.latency.conclusive,
            "ratio": self.interval.ratio,
            "interval": [self.interval.low, self.interval.high],
            "confidence": self.interval.confidence,
            "paired": self.interval.paired,
            "max_regression": self.latency.max_regression,
            "accuracy_loss": self.accuracy_loss,
            "max_accuracy_loss": self.max_accuracy_loss,
        }

    def annotations(self) -> list[str]:
        """Lines that GitHub Actions shows beside a change, one per finding; none where all is well and certain."""
        found = (
            f"{self.interval.ratio:.3f}× the baseline's latency ({self.interval.low:.3f} to {self.interval.high:.3f})"
        )
        limit = f"{1 + self.latency.max_regression:.3f}×"
        lines = []
        if self.latency.regressed:
            lines.append(_annotation("error", "Latency regression", f"{found}, over the limit of {limit}"))
        elif not self.latency.conclusive:
            lines.append(
                _annotation("warning", "Latency inconclusive", f"{found} straddles {limit}; bench more blocks")
            )
        if self.accuracy_regressed:
            text = f"{self.accuracy_loss:.2%} of accuracy lost, {self.max_accuracy_loss:.2%} allowed"
            lines.append(_annotation("error", "Accuracy regression", text))
        return lines


def _annotation(level: str, title: str, text: str) -> str:
    # A workflow command is one line; %, CR and LF inside it are percent-encoded.
    for sign, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(sign, code)
    return f"::{level} title={title}::{text}"


def read_bench(path: Path) -> Bench:
    """Read a bench file: `{"target", "device", "protocol", "blocks": {"0": [seconds, …], …}}`.

    Where "blocks" is missing, "samples" is read: a dict of blocks, or one block's list. "accuracy" is optional;
    other keys are not looked at.

    Raises:
        MissingFileError, CorruptFileError: with the place in the file.
    """
    if not path.is_file():
        raise MissingFileError(
            asked=f"the bench file {path}", found="no such file", next="Run `akd-deploy bench --json`."
        )
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise _corrupt(path, f"no JSON ({error})") from error
    if not isinstance(fields, dict):
        raise _corrupt(path, f"a {type(fields).__name__}, not an object")
    for key in HEADER:
        if key not in fields:
            raise _corrupt(path, f"no key {key!r}")
    blocks = fields.get("blocks", fields.get("samples"))
    if isinstance(blocks, list):
        blocks = {"0": blocks}
    if not isinstance(blocks, dict) or not blocks:
        raise _corrupt(path, 'neither "blocks" nor "samples" holding samples')
    for name, samples in blocks.items():
        if not isinstance(samples, list) or not samples:
            raise _corrupt(path, f"block {name!r} without samples")
        for i, value in enumerate(samples):
            if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or value <= 0:
                raise _corrupt(path, f"sample {i} of block {name!r} is {value!r}, not a positive number of seconds")
    accuracy = fields.get("accuracy")
    number = isinstance(accuracy, int | float) and not isinstance(accuracy, bool)
    if accuracy is not None and not (number and 0 <= accuracy <= 1):
        raise _corrupt(path, f"accuracy {accuracy!r}, not a fraction")
    return Bench(
        path=path,
        header={key: fields[key] for key in HEADER},
        blocks_s={name: np.asarray(samples, float) for name, samples in blocks.items()},
        accuracy=accuracy,
    )


def _corrupt(path: Path, found: str) -> CorruptFileError:
    return CorruptFileError(
        asked=f"a bench in {path}", found=found, next="Write it again with `akd-deploy bench --json`."
    )


def header_differences(a: object, b: object, name: str = "") -> list[str]:
    """One line for each value in which two JSON headers differ, named by its path ("protocol.threads: 1 ≠ 2")."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        lines = []
        for key in sorted({*a, *b}):
            inner = f"{name}.{key}" if name else str(key)
            if key not in a or key not in b:
                lines.append(f"{inner}: {json.dumps(a[key]) if key in a else '(none)'} ≠ "
                             f"{json.dumps(b[key]) if key in b else '(none)'}")  # fmt: skip
            else:
                lines += header_differences(a[key], b[key], inner)
        return lines
    return [] if a == b else [f"{name}: {json.dumps(a)} ≠ {json.dumps(b)}"]


def gate_benches(
    baseline: Bench,
    candidate: Bench,
    max_regression: float,
    *,
    max_accuracy_loss: float | None = None,
    confidence: float = 0.95,
    paired: bool = False,
) -> GateResult:
    """Judge a candidate's bench against a baseline's.

    Args:
        max_regression: largest slow-down allowed, as a fraction (0.03: 3 %).
        max_accuracy_loss: largest loss allowed, as a fraction of all samples; None does not look at accuracy.
        paired: block i of both was measured side by side.

    Raises:
        MismatchError: the headers differ; the message names where.
        UsageError: a limit that makes no sense, too few blocks, or accuracy to judge and none in a file.
    """
    for name, limit in (("slow-down", max_regression), ("accuracy loss", max_accuracy_loss)):
        if limit is not None and not (isfinite(limit) and limit >= 0):
            raise UsageError(asked=f"the largest {name} allowed", found=f"{limit}", next="Write a fraction ≥ 0, or 3%.")
    differences = header_differences(baseline.header, candidate.header)
    if differences:
        raise MismatchError(
            asked=f"benches of the same target, device and protocol in {baseline.path} and {candidate.path}",
            found="; ".join(differences),
            next="Bench both in the same way on the same device.",
            differences=differences,
        )
    loss = None
    if max_accuracy_loss is not None:
        for bench in (baseline, candidate):
            if bench.accuracy is None:
                raise UsageError(
                    asked="a gate on accuracy",
                    found=f"no accuracy in {bench.path}",
                    next="Bench with accuracy, or drop it.",
                )
        assert baseline.accuracy is not None
        assert candidate.accuracy is not None
        loss = baseline.accuracy - candidate.accuracy
    interval = ratio_interval(baseline.block_medians_s, candidate.block_medians_s, paired=paired, confidence=confidence)
    return GateResult(gate(interval, max_regression), loss, max_accuracy_loss)
