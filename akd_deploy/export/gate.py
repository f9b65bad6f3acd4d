"""A gate for continuous integration: is the candidate's bench slower, or less accurate, than the baseline's?"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite
from pathlib import Path

import numpy as np

from akd_deploy.comparison import Gate, RatioInterval, gate, ratio_interval
from akd_deploy.errors import CorruptFileError, MismatchError, MissingFileError, UsageError
from akd_deploy.paired_accuracy import AccuracyLoss, paired_accuracy_loss

HEADER = ("target", "device", "protocol")
"""What must agree for two benches to be comparable; of the protocol, the number of blocks need not."""

LONGEST_S = 1e9
"""No call takes so long; what says so is no time."""
VERSION = "engine_version"
"""Must agree too, unless a change of it is what is judged."""


@dataclass(frozen=True)
class Bench:
    """What `bench --json` wrote: its header, the samples of each block in seconds, the accuracy where known.

    `correct` says for each sample whether it was answered rightly, and `samples_sha256` which samples these are.
    `compared_s` are the blocks of the model that was measured in turn with this one, of the same names; `disturbed`
    counts those of this one that something else had a part in, `compared_disturbed` those of the other.
    """

    path: Path
    header: Mapping[str, object]
    blocks_s: Mapping[str, np.ndarray]
    accuracy: float | None
    engine_version: str | None = None
    correct: np.ndarray | None = None
    samples_sha256: str | None = None
    compared_s: Mapping[str, np.ndarray] | None = None
    disturbed: int = 0
    compared_disturbed: int = 0

    @property
    def block_medians_s(self) -> np.ndarray:
        """(blocks,) the median of each block."""
        return np.array([np.median(samples) for samples in self.blocks_s.values()])


@dataclass(frozen=True)
class AccuracyGate:
    """The judgement on accuracy, as `Gate` is on latency: `regressed` where a loss above the limit is proven.

    `paired` is None where the benches tell no more than a share each: the limit is then held against the difference as
    it is, with no confidence in it either way.
    """

    loss: float
    max_loss: float
    paired: AccuracyLoss | None

    @property
    def regressed(self) -> bool:
        return self.loss > self.max_loss if self.paired is None else self.paired.low > self.max_loss

    @property
    def conclusive(self) -> bool:
        return self.paired is None or self.regressed or self.paired.high <= self.max_loss


@dataclass(frozen=True)
class GateResult:
    """The judgement. `latency` is on block medians; `accuracy` is None where no accuracy was judged. `disturbed` counts
    the blocks of "baseline" and "candidate" that something else had a part in, of `blocks` each."""

    latency: Gate
    accuracy: AccuracyGate | None
    disturbed: Mapping[str, int] = field(default_factory=dict)
    blocks: Mapping[str, int] = field(default_factory=dict)

    @property
    def interval(self) -> RatioInterval:
        return self.latency.interval

    @property
    def accuracy_regressed(self) -> bool:
        return self.accuracy is not None and self.accuracy.regressed

    @property
    def regressed(self) -> bool:
        """Whether the slow-down, or the loss of accuracy, is proven to be above its limit."""
        return self.latency.regressed or self.accuracy_regressed

    @property
    def conclusive(self) -> bool:
        """Whether nothing is left open: each judged quantity is proven to be above its limit, or within it."""
        return self.latency.conclusive and (self.accuracy is None or self.accuracy.conclusive)

    def as_dict(self) -> dict[str, object]:
        accuracy = self.accuracy
        paired = accuracy.paired if accuracy else None
        return {
            "regressed": self.regressed,
            "conclusive": self.conclusive,
            "ratio": self.interval.ratio,
            "interval": [self.interval.low, self.interval.high],
            "confidence": self.interval.confidence,
            "paired": self.interval.paired,
            "max_regression": self.latency.max_regression,
            "accuracy_loss": accuracy.loss if accuracy else None,
            "max_accuracy_loss": accuracy.max_loss if accuracy else None,
            "accuracy_interval": [paired.low, paired.high] if paired else None,
            "accuracy_p_value": paired.p_value if paired else None,
            "accuracy_samples": paired.samples if paired else None,
            "disturbed": dict(self.disturbed),
        }

    def restlessness(self) -> list[str]:
        """In words, whose blocks stayed disturbed; nothing of a bench that has none."""
        return [
            f"{count} of {self.blocks[name]} blocks of the {name} stayed disturbed: bench again"
            for name, count in self.disturbed.items()
            if count
        ]

    def annotations(self) -> list[str]:
        """Lines that GitHub Actions shows beside a change, one per finding; none where all is well and certain."""
        return [_annotation(level, title, text) for level, title, text in self._findings()]

    def _findings(self) -> list[tuple[str, str, str]]:
        """(level, title, text) of what is proven to be wrong, or left open."""
        found = (
            f"{self.interval.ratio:.3f}× the baseline's latency ({self.interval.low:.3f}× to {self.interval.high:.3f}×)"
        )
        limit = f"{1 + self.latency.max_regression:.3f}×"
        findings = []
        if self.latency.regressed:
            findings.append(("error", "Latency regression", f"{found}, over the limit of {limit}"))
        elif not self.latency.conclusive:
            findings.append(("warning", "Latency inconclusive", f"{found} straddles {limit}; bench more blocks"))
        if self.accuracy is not None:
            between = self.accuracy.paired
            span = f" ({points(between.low)} to {points(between.high)} at {between.confidence:.0%})" if between else ""
            lost = (
                f"accuracy lower by {points(self.accuracy.loss)} percentage points{span}, "
                f"{points(self.accuracy.max_loss)} allowed"
            )
            if self.accuracy.regressed:
                findings.append(("error", "Accuracy regression", lost))
            elif not self.accuracy.conclusive:
                findings.append(("warning", "Accuracy inconclusive", f"{lost}; bench with more samples"))
        findings += [("warning", "Disturbed bench", told) for told in self.restlessness()]
        return findings

    def markdown(self) -> str:
        """The judgement as a table of GitHub's Markdown, for a workflow's summary."""
        i = self.interval
        latency = _word(self.latency.regressed, self.latency.conclusive)
        rows = [
            "| | found | interval | limit | |",
            "|---|---|---|---|---|",
            f"| latency | {i.ratio:.3f}× | {i.low:.3f}× to {i.high:.3f}× at {i.confidence:.0%} "
            f"| {1 + self.latency.max_regression:.3f}× | {latency} |",
        ]
        if self.accuracy is not None:
            between = self.accuracy.paired
            span = "unknown"
            if between:
                span = f"{points(between.low)} to {points(between.high)} at {between.confidence:.0%}"
            rows.append(
                f"| accuracy lost, percentage points | {points(self.accuracy.loss)} | {span} "
                f"| {points(self.accuracy.max_loss)} "
                f"| {_word(self.accuracy.regressed, self.accuracy.conclusive)} |"
            )
        restless = "".join(f"\n{told}.\n" for told in self.restlessness())
        return "### akd-deploy gate\n\n" + "\n".join(rows) + "\n" + restless


def points(share: float) -> str:
    """A difference of two accuracies, in percentage points."""
    return f"{100 * share:.2f}"


def _word(regressed: bool, conclusive: bool) -> str:
    return "**regressed**" if regressed else "within the limit" if conclusive else "inconclusive"


def _annotation(level: str, title: str, text: str) -> str:
    # A workflow command is one line; %, CR and LF inside it are percent-encoded.
    for sign, code in (("%", "%25"), ("\r", "%0D"), ("\n", "%0A")):
        text = text.replace(sign, code)
    return f"::{level} title={title}::{text}"


def read_bench(path: Path) -> Bench:
    """Read a bench file: `{"target", "device", "protocol", "blocks": {"0": [seconds, …], …}}`.

    Where "blocks" is missing, "samples" is read: a dict of blocks, or one block's list. "accuracy" and
    "correct", one 1 or 0 for each sample, are optional, as are "engine_version" and "disturbed"; others are not read.

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
    blocks_s = _blocks_s(path, fields.get("blocks", fields.get("samples")))
    beside = fields.get("compared")
    other: dict[str, object] = beside if isinstance(beside, dict) else {}
    compared_s = None if other.get("blocks") is None else _blocks_s(path, other["blocks"])
    if compared_s is not None and compared_s.keys() != blocks_s.keys():
        raise _corrupt(path, f"blocks {', '.join(blocks_s)} beside compared blocks {', '.join(compared_s)}")
    accuracy = fields.get("accuracy")
    number = isinstance(accuracy, int | float) and not isinstance(accuracy, bool)
    if accuracy is not None and not (number and 0 <= accuracy <= 1):
        raise _corrupt(path, f"accuracy {accuracy!r}, not a fraction")
    correct, digest = fields.get("correct"), fields.get("samples_sha256")
    if correct is not None:
        if not isinstance(correct, list) or not correct or not all(type(c) is int and c in (0, 1) for c in correct):
            raise _corrupt(path, '"correct" is no list of 0 and 1')
        if accuracy is None or abs(accuracy - sum(correct) / len(correct)) > 1e-9:
            raise _corrupt(path, f"accuracy {accuracy!r}, and {sum(correct)} of {len(correct)} samples correct")
    version = fields.get(VERSION)
    for key, text in ((VERSION, version), ("samples_sha256", digest)):
        if text is not None and not isinstance(text, str):
            raise _corrupt(path, f"{key} {text!r}, not a text")
    return Bench(
        path=path,
        header={key: _compared(fields[key]) if key == "protocol" else fields[key] for key in HEADER},
        blocks_s=blocks_s,
        accuracy=accuracy,
        engine_version=version,
        correct=None if correct is None else np.asarray(correct, bool),
        samples_sha256=digest,
        compared_s=compared_s,
        disturbed=_count(fields.get("disturbed"), len(blocks_s)),
        compared_disturbed=_count(other.get("disturbed"), len(blocks_s)),
    )


def _count(value: object, most: int) -> int:
    """A number of blocks; no more than there are."""
    return min(value, most) if isinstance(value, int) and not isinstance(value, bool) and value > 0 else 0


def _blocks_s(path: Path, blocks: object) -> dict[str, np.ndarray]:
    """Block → its samples in seconds, from a dict of blocks or one block's list."""
    if isinstance(blocks, list):
        blocks = {"0": blocks}
    if not isinstance(blocks, dict) or not blocks:
        raise _corrupt(path, 'neither "blocks" nor "samples" holding samples')
    for name, samples in blocks.items():
        if not isinstance(samples, list) or not samples:
            raise _corrupt(path, f"block {name!r} without samples")
        for i, value in enumerate(samples):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            if not is_number or not 0 < value < LONGEST_S:
                raise _corrupt(path, f"sample {i} of block {name!r} is {value!r}, not a positive number of seconds")
    return {name: np.asarray(samples, float) for name, samples in blocks.items()}


def _compared(protocol: object) -> object:
    """A protocol without its number of blocks: benches of more and of fewer compare."""
    return {k: v for k, v in protocol.items() if k != "blocks"} if isinstance(protocol, Mapping) else protocol


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
    across_versions: bool = False,
) -> GateResult:
    """Judge a candidate's bench against a baseline's.

    Args:
        max_regression: largest slow-down allowed, as a fraction (0.03: 3 %). It is a regression where the whole
            interval of the ratio lies above: the gate proves slow-downs, and says so where it can prove neither.
        max_accuracy_loss: largest loss allowed, as a fraction of all samples, likewise; None does not look at accuracy.
        paired: block i of both was measured side by side.
        across_versions: the benches may be of different versions of the engine: that is what is judged.

    Raises:
        MismatchError: the headers, versions or samples differ; the message names where.
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
    if baseline.engine_version != candidate.engine_version and not across_versions:
        versions = [json.dumps(bench.engine_version) for bench in (baseline, candidate)]
        raise MismatchError(
            asked=f"benches of one version of the engine in {baseline.path} and {candidate.path}",
            found=f"{VERSION}: {' ≠ '.join(versions)}",
            next="Bench the baseline again with this version, or add --across-versions to judge the upgrade itself.",
            differences=[f"{VERSION}: {' ≠ '.join(versions)}"],
        )
    accuracy = None
    if max_accuracy_loss is not None:
        accuracy = _judged_accuracy(baseline, candidate, max_accuracy_loss, confidence)
    interval = ratio_interval(baseline.block_medians_s, candidate.block_medians_s, paired=paired, confidence=confidence)
    benches = {"baseline": baseline, "candidate": candidate}
    return GateResult(
        gate(interval, max_regression),
        accuracy,
        {name: bench.disturbed for name, bench in benches.items()},
        {name: len(bench.blocks_s) for name, bench in benches.items()},
    )


def gate_compared(bench: Bench, max_regression: float, *, confidence: float = 0.95) -> GateResult:
    """Judge a bench against the model that was measured in turn with it, paired block by block.

    Raises:
        UsageError: a bench of one model, too few blocks, or a limit that makes no sense.
    """
    if bench.compared_s is None:
        raise UsageError(
            asked=f"a gate on {bench.path} alone",
            found="a bench of one model, or one that did not keep the other's samples",
            next="Give --baseline, or bench with --compare-with.",
        )
    blocks_s = {name: bench.compared_s[name] for name in bench.blocks_s}
    baseline = replace(bench, blocks_s=blocks_s, disturbed=bench.compared_disturbed)
    return gate_benches(baseline, bench, max_regression, confidence=confidence, paired=True)


def _judged_accuracy(baseline: Bench, candidate: Bench, max_loss: float, confidence: float) -> AccuracyGate:
    """Paired where both benches tell which samples they answered rightly."""
    for bench in (baseline, candidate):
        if bench.accuracy is None:
            raise UsageError(
                asked="a gate on accuracy",
                found=f"no accuracy in {bench.path}",
                next="Bench both with --samples, or drop --max-accuracy-loss.",
            )
    assert baseline.accuracy is not None
    assert candidate.accuracy is not None
    if baseline.correct is None or candidate.correct is None:
        return AccuracyGate(baseline.accuracy - candidate.accuracy, max_loss, None)
    if baseline.samples_sha256 != candidate.samples_sha256 or len(baseline.correct) != len(candidate.correct):
        raise MismatchError(
            asked=f"accuracies on the same samples in {baseline.path} and {candidate.path}",
            found=f"{len(baseline.correct)} samples {baseline.samples_sha256} "
            f"and {len(candidate.correct)} samples {candidate.samples_sha256}",
            next="Bench both with the same --samples.",
        )
    loss = paired_accuracy_loss(baseline.correct, candidate.correct, confidence)
    return AccuracyGate(loss.loss, max_loss, loss)
