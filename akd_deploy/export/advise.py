"""Recommend a precision: the fastest variant that is measured faster with confidence and accurate enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from akd_deploy.certificate import RatioInterval, ratio_interval
from akd_deploy.errors import BuildError, UnknownNameError, UsageError
from akd_deploy.export.int8_settings import Int8Settings
from akd_deploy.export.parity import Arrays
from akd_deploy.export.quantize import MODES, quantize_onnx
from akd_deploy.measurement import Measurement
from akd_deploy.target import Target

BASELINE = "fp32"
"""The mode of the network as it came, against which variants are judged."""

_NO_BF16_CONV = "ONNX Runtime has no bfloat16 convolution on the CPU"
_NO_FP8 = "ONNX Runtime has no fp8 kernels, and 1.31 fuses fp8 Q/DQ into int8 ones on the CPU, with other results"
_NEEDS_TORCH_MODULE = "the torch engine reads modules, not ONNX files"
REFUSALS: Mapping[str, Mapping[str, str]] = {
    "onnxruntime": {"bf16": _NO_BF16_CONV, "fp8": _NO_FP8},
    "openvino": {"fp8": "OpenVINO dequantises fp8 and computes in float32 on the CPU"},
    "tensorrt": {},
    "tensorrt-rtx": {},
    "torch": dict.fromkeys(MODES, _NEEDS_TORCH_MODULE),
}
"""Engine → mode → why it cannot run there; a mode that is not listed can."""


Measure = Callable[[Path], Measurement]
"""Builds and times an ONNX file on the target: samples of several blocks, each a fresh process."""

Accuracy = Callable[[Path], float]
"""Accuracy of an ONNX file as the target runs it, 0 to 1."""


def runnable_modes(target: Target) -> dict[str, str | None]:
    """Mode → None where the target's engine runs such a file, else the reason.

    Raises:
        UnknownNameError: an engine nobody knows.
    """
    if target.engine not in REFUSALS:
        raise UnknownNameError("engine", target.engine, REFUSALS, where=f"target {target.name}")
    return {mode: REFUSALS[target.engine].get(mode) for mode in MODES}


@dataclass(frozen=True)
class Variant:
    """One row of the table. Where the variant could not be built or run, its numbers are None and `why` says so.

    `interval` is that of latency over the float32 network's, None for the float32 network itself.
    """

    mode: str
    path: Path | None
    accuracy: float | None
    latency_stats_s: Mapping[str, float] | None
    interval: RatioInterval | None
    recommended: bool
    why: str

    def as_dict(self) -> dict[str, object]:
        return {
            "mode": self.mode,
            "path": None if self.path is None else str(self.path),
            "accuracy": self.accuracy,
            "latency_stats_s": None if self.latency_stats_s is None else dict(self.latency_stats_s),
            "ratio": None if self.interval is None else self.interval.ratio,
            "interval": None if self.interval is None else [self.interval.low, self.interval.high],
            "recommended": self.recommended,
            "why": self.why,
        }


def advise_precision(
    candidates: Mapping[str, Path],
    measure: Measure,
    accuracy: Accuracy,
    *,
    max_accuracy_loss: float = 0.01,
    confidence: float = 0.95,
    rounds: int = 1,
) -> tuple[Variant, ...]:
    """Measure every candidate and recommend exactly one: float32 unless another is proven faster.

    A variant can be recommended only if the whole interval of its latency ratio lies below 1 and it loses at
    most `max_accuracy_loss`. The intervals hold together at `confidence` (Bonferroni over the variants), so a
    variant that is no faster is recommended at most 1 − `confidence` of the time.

    Args:
        candidates: mode → ONNX file; "fp32" must be among them.
        measure: called `rounds` times per file, in an order that shifts each round, so that a drift of the
            machine does not fall on one variant; the blocks of all rounds count.
        accuracy: called once per file.
        max_accuracy_loss: as a fraction of all samples (0.01: one percentage point).

    Raises:
        UsageError: no float32 baseline, an accuracy that is not a fraction, or too few blocks.
    """
    if BASELINE not in candidates:
        raise UsageError(
            asked="advice on precision",
            found=f"modes {sorted(candidates)}",
            next=f"Include {BASELINE!r} to judge against.",
        )
    if rounds < 1:
        raise UsageError(asked="rounds of measuring", found=f"{rounds}", next="Measure at least once.")
    modes = list(candidates)
    measured: dict[str, Measurement] = {}
    for turn in range(rounds):
        shift = turn % len(modes)
        for mode in modes[shift:] + modes[:shift]:
            again = measure(candidates[mode])
            measured[mode] = measured[mode].merged(again) if mode in measured else again
    accuracies = {mode: _fraction(accuracy(path), mode) for mode, path in candidates.items()}
    others = [mode for mode in modes if mode != BASELINE]
    each = 1 - (1 - confidence) / max(1, len(others))
    intervals = {
        mode: ratio_interval(
            measured[BASELINE].block_medians_s, measured[mode].block_medians_s, paired=False, confidence=each
        )
        for mode in others
    }
    verdicts = {
        mode: _verdict(intervals[mode], accuracies[BASELINE] - accuracies[mode], max_accuracy_loss) for mode in others
    }
    fit = [mode for mode in others if verdicts[mode] is None]
    winner = min(fit, key=lambda mode: measured[mode].median_s) if fit else BASELINE

    def why(mode: str) -> str:
        if mode == BASELINE:
            return "the network as it came" + ("" if fit else "; no variant is proven faster and accurate enough")
        reason = verdicts[mode]
        if reason is not None:
            return reason
        speedup = f"{1 / intervals[mode].ratio:.2f}× as fast"
        return speedup if mode == winner else f"{speedup}, but {winner} is faster"

    return tuple(
        Variant(
            mode=mode,
            path=candidates[mode],
            accuracy=accuracies[mode],
            latency_stats_s=measured[mode].statistics_s(),
            interval=intervals.get(mode),
            recommended=mode == winner,
            why=why(mode),
        )
        for mode in modes
    )


def quantize_auto(
    model_path: Path,
    target: Target,
    calibration: Sequence[Arrays],
    out_dir: Path,
    measure: Measure,
    accuracy: Accuracy,
    settings: Int8Settings,
    *,
    build: Callable[[Path], object] = lambda path: None,
    max_accuracy_loss: float = 0.01,
    confidence: float = 0.95,
    rounds: int = 1,
) -> tuple[Variant, ...]:
    """Write `<stem>.<mode>.onnx` for each mode the target's engine runs, measure them all, and recommend one.

    Arguments and errors as of `quantize_onnx` and `advise_precision`; `build` is called with each variant, and
    raises BuildError where the target's engine cannot be made of it. A mode that the engine does not run, or
    in which the network cannot be built, is a row of the table with its reason.
    """
    candidates = {BASELINE: model_path}
    refused: dict[str, str] = {}
    for mode, reason in runnable_modes(target).items():
        if reason is None:
            try:
                out = out_dir / f"{model_path.stem}.{mode}.onnx"
                quantize_onnx(model_path, mode, calibration, out, settings)
                build(out)
                candidates[mode] = out
            except BuildError as error:
                reason = str(error)
        if reason is not None:
            refused[mode] = reason
    judged = advise_precision(
        candidates, measure, accuracy, max_accuracy_loss=max_accuracy_loss, confidence=confidence, rounds=rounds
    )
    rows = {variant.mode: variant for variant in judged}
    rows |= {mode: Variant(mode, None, None, None, None, False, why) for mode, why in refused.items()}
    return tuple(rows[mode] for mode in (BASELINE, *MODES))


def _fraction(accuracy: float, mode: str) -> float:
    if not isfinite(accuracy) or not 0 <= accuracy <= 1:
        raise UsageError(asked=f"the accuracy of {mode}, 0 to 1", found=f"{accuracy}", next="Hand in a fraction.")
    return float(accuracy)


def _verdict(interval: RatioInterval, loss: float, max_accuracy_loss: float) -> str | None:
    """Why a variant cannot be recommended, or None."""
    if interval.high >= 1:
        return (
            f"slower: {interval.ratio:.2f}× the latency"
            if interval.low > 1
            else f"not proven faster: {interval.low:.2f} to {interval.high:.2f}× the latency"
        )
    if loss > max_accuracy_loss:
        return f"loses {loss:.2%} of accuracy, more than the {max_accuracy_loss:.2%} allowed"
    return None
