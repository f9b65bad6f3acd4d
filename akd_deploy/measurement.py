"""A measurement as a value: raw samples in blocks, and the statistics derived from them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from akd_deploy.bounds import clustered_upper_bound_s

SEGMENT_S = 0.005
"""Consecutive samples that take so long together are one segment: what slows a shared machine lasts longer."""
QUICKEST = 0.05
"""Quantile of the segments that tells a subject's full speed."""
FULL_SPEED = 1.08
"""A segment within this factor of the quickest ones ran at full speed. (A shared CPU whose neighbour works runs at half
to two thirds of its speed for tenths of seconds to seconds; processes on a quiet one differ by 1–2 %.)"""


@dataclass(frozen=True)
class Measurement:
    """Timings of one subject (a kernel, a probe, a network) on one target.

    `samples_s[i]` was taken in block `block_ids[i]`; a block is one fresh process. Samples are never
    averaged away; the warm-up is not among them. Equal lengths, at least one sample, all positive.
    """

    subject: str
    samples_s: tuple[float, ...]
    block_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        samples, ids = np.asarray(self.samples_s), np.asarray(self.block_ids)
        if samples.ndim != 1 or samples.size == 0 or samples.shape != ids.shape:
            raise ValueError(f"{self.subject}: {len(self.samples_s)} samples, {len(self.block_ids)} block ids")
        if samples.dtype.kind not in "fiu" or not (np.isfinite(samples) & (samples > 0)).all():
            raise ValueError(f"{self.subject}: a sample is not a positive number of seconds")
        if ids.dtype.kind not in "iu":
            raise ValueError(f"{self.subject}: a block id is not a whole number")
        # Plain numbers, whatever came in: a measurement equals itself read back from a file.
        object.__setattr__(self, "samples_s", tuple(samples.astype(float).tolist()))
        object.__setattr__(self, "block_ids", tuple(ids.tolist()))

    @property
    def blocks(self) -> dict[int, np.ndarray]:
        """Block id → its samples in seconds, in the order taken."""
        ids = np.asarray(self.block_ids)
        samples = np.asarray(self.samples_s)
        return {int(i): samples[ids == i] for i in dict.fromkeys(self.block_ids)}

    @cached_property
    def block_medians_s(self) -> np.ndarray:
        """(blocks,) the median of each block."""
        medians = np.array([np.median(samples) for samples in self.blocks.values()])
        medians.flags.writeable = False  # fits ask for them thousands of times, and nobody may change what others see
        return medians

    @cached_property
    def median_s(self) -> float:
        """The median of the blocks' medians: one loaded process does not move it."""
        return float(np.median(self.block_medians_s))

    def percentile_s(self, percentile: float) -> float:
        """Percentile of the pooled samples, `percentile` in 0 to 100."""
        return float(np.percentile(self.samples_s, percentile))

    def upper_bound_s(self, percentile: float, confidence: float = 0.95) -> float:
        """Upper confidence bound of a percentile over processes to come; see `clustered_upper_bound_s`."""
        return clustered_upper_bound_s(self.blocks, percentile, confidence)

    @cached_property
    def sigma(self) -> float | None:
        """Relative scatter between blocks: standard deviation of block medians over their mean.

        This is how far one more process may lie from the others; None with one block.
        """
        medians = self.block_medians_s
        return float(np.std(medians, ddof=1) / np.mean(medians)) if len(medians) > 1 else None

    @cached_property
    def _full_speed_s(self) -> dict[int, np.ndarray]:
        """Block id → medians of its segments that ran at full speed; blocks with none are left out."""
        segments = {i: _segment_medians_s(samples) for i, samples in self.blocks.items()}
        quick_s = np.quantile(np.concatenate(list(segments.values())), QUICKEST)
        kept = {i: medians[medians <= FULL_SPEED * quick_s] for i, medians in segments.items()}
        return {i: medians for i, medians in kept.items() if medians.size}

    @cached_property
    def label_s(self) -> float:
        """Latency while nothing else slowed the machine: what a latency model is fitted to and scored on.

        The median of the segments at full speed, of all blocks. Where nothing disturbs, all are, and it is the median;
        where a neighbour takes part of a shared CPU now and then, the median tells how often it did, and this does not.
        What is promised of a latency rests on all samples and never on this.
        """
        return float(np.median(np.concatenate(list(self._full_speed_s.values()))))

    @cached_property
    def label_sigma(self) -> float | None:
        """Relative noise of `label_s`: the scatter of its blocks' medians over √blocks; None where it rests on one."""
        medians = np.array([np.median(segments) for segments in self._full_speed_s.values()])
        if len(medians) < 2:
            return None
        return float(np.std(medians, ddof=1) / np.mean(medians) / len(medians) ** 0.5)

    def statistics_s(self) -> dict[str, float]:
        """`{median, p90, p99}` in seconds."""
        return {"median": self.median_s, "p90": self.percentile_s(90), "p99": self.percentile_s(99)}

    def merged(self, other: Measurement) -> Measurement:
        """Both measurements' blocks; the other's are renumbered after ours."""
        if other.subject != self.subject:
            raise ValueError(f"cannot merge {other.subject!r} into {self.subject!r}")
        shift = max(self.block_ids) + 1 - min(other.block_ids)
        return Measurement(
            self.subject,
            self.samples_s + other.samples_s,
            self.block_ids + tuple(i + shift for i in other.block_ids),
        )


def _segment_medians_s(samples_s: np.ndarray) -> np.ndarray:
    """(segments,) medians of runs of consecutive samples that take about `SEGMENT_S`; what is over joins the last."""
    length = int(np.clip(round(SEGMENT_S / float(np.median(samples_s))), 1, len(samples_s)))
    last = len(samples_s) - length - len(samples_s) % length
    whole = np.median(samples_s[:last].reshape(-1, length), axis=1)
    return np.append(whole, np.median(samples_s[last:]))
