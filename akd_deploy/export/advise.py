"""Recommend a precision: the fastest variant that is measured faster with confidence and accurate enough."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from pathlib import Path

import numpy as np

from akd_deploy.certificate import RatioInterval, ratio_interval
from akd_deploy.errors import AkdError, BuildError, ParityError, UnknownNameError, UsageError
from akd_deploy.export.calibration import CALIBRATIONS
from akd_deploy.export.int8_settings import Int8Settings
from akd_deploy.export.parity import Arrays, Parity, check_parity, tolerance_for
from akd_deploy.export.quantize import MODES, quantize_onnx
from akd_deploy.export.sensitivity import ExcludedNode
from akd_deploy.export.slower import explain_slower
from akd_deploy.export.tune_int8 import Judge, TunedInt8, tune_int8
from akd_deploy.kernel import ExecutedKernel
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


Measure = Callable[[Mapping[str, Path]], Mapping[str, Measurement]]
"""Times ONNX files on the target, all of them in every block, in random order: blocks of one number belong together."""

Accuracy = Callable[[Path], float]
"""Accuracy of an ONNX file as the target runs it, 0 to 1."""

Compare = Callable[[Path], Parity]
"""How far an ONNX file's outputs are from those of the float32 network, as the target runs both."""

Check = Callable[[str, Path, Parity], None]
"""(mode, file, its parity): raises ParityError where that is outside what the mode's precision allows."""

Kernels = Callable[[Path], Sequence[ExecutedKernel]]
"""The kernels that the target's engine runs for an ONNX file, in order."""


def check_mode(mode: str, path: Path, parity: Parity) -> None:  # noqa: ARG001 - a Check that does not look into the file
    """Judge a variant's parity by its mode alone."""
    check_parity(parity, tolerance_for(mode))


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

    `interval` is that of latency over the float32 network's, None for the float32 network itself. `calibration`
    and `excluded` (nodes left in float, with the error that saved) are int8's. Where a variant is slower,
    `why_slower` says what its kernels do that the float32 network's do not.
    """

    mode: str
    path: Path | None
    accuracy: float | None
    latency_stats_s: Mapping[str, float] | None
    interval: RatioInterval | None
    recommended: bool
    why: str
    parity: Parity | None = None
    calibration: str | None = None
    excluded: tuple[ExcludedNode, ...] = ()
    why_slower: str | None = None

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
            "parity": None if self.parity is None else self.parity.as_dict(),
            "calibration": self.calibration,
            "excluded": [one.as_dict() for one in self.excluded],
            "why_slower": self.why_slower,
        }


def advise_precision(
    candidates: Mapping[str, Path],
    measure: Measure,
    accuracy: Accuracy,
    compare: Compare,
    *,
    check: Check = check_mode,
    kernels: Kernels | None = None,
    max_accuracy_loss: float = 0.01,
    confidence: float = 0.95,
) -> tuple[Variant, ...]:
    """Measure every candidate and recommend exactly one: float32 unless another is proven faster.

    A variant can be recommended only if the whole interval of its latency ratio lies below 1, its outputs are those
    of the float32 network within its precision's tolerance, and it loses at most `max_accuracy_loss`. The intervals
    hold together at `confidence` (Bonferroni over the variants), so a variant that is no faster is recommended at
    most 1 − `confidence` of the time.

    Args:
        candidates: mode → ONNX file; "fp32" must be among them.
        measure: called once, with all files: what the machine does to a block it does to every variant of it, and
            the ratios of blocks of one number are free of it.
        accuracy, compare: called once per file.
        check: called once per variant; what it raises is the variant's reason.
        kernels: asked about variants that are proven slower, and about the float32 network, to say why.
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
    modes = list(candidates)
    measured = measure(candidates)
    accuracies = {mode: _fraction(accuracy(path), mode) for mode, path in candidates.items()}
    others = [mode for mode in modes if mode != BASELINE]
    each = 1 - (1 - confidence) / max(1, len(others))
    intervals = {mode: _paired_interval(measured[BASELINE], measured[mode], each) for mode in others}
    parities = {mode: compare(path) for mode, path in candidates.items()}

    def verdict(mode: str) -> str | None:
        """Why a variant cannot be recommended, or None."""
        if (reason := _latency_verdict(intervals[mode])) is not None:
            return reason
        try:
            check(mode, candidates[mode], parities[mode])
        except ParityError as error:
            return f"differs from the float32 network: {error.found}"
        loss = accuracies[BASELINE] - accuracies[mode]
        if loss > max_accuracy_loss:
            return f"loses {loss:.2%} of accuracy, more than the {max_accuracy_loss:.2%} allowed"
        return None

    verdicts = {mode: verdict(mode) for mode in others}
    slower = [mode for mode in others if kernels is not None and intervals[mode].low > 1]
    explained = _explained(kernels, candidates, slower) if kernels is not None else {}
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
            parity=parities[mode],
            why_slower=explained.get(mode),
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
    compare: Compare,
    settings: Int8Settings,
    *,
    judge: Judge,
    calibrations: Sequence[str] = CALIBRATIONS,
    check: Check = check_mode,
    kernels: Kernels | None = None,
    build: Callable[[Path], object] = lambda path: None,
    max_accuracy_loss: float = 0.01,
    confidence: float = 0.95,
) -> tuple[Variant, ...]:
    """Write `<stem>.<mode>.onnx` for each mode the target's engine runs, measure them all, and recommend one.

    int8 is `tune_int8`'s: the calibration that errs least, without the nodes that cost too much. Arguments and
    errors as of `quantize_onnx`, `tune_int8` and `advise_precision`; `build` is called with each variant, and raises
    BuildError where the target's engine cannot be made of it. A mode that the engine does not run, or in which the
    network cannot be built, is a row of the table with its reason.
    """
    candidates = {BASELINE: model_path}
    refused: dict[str, str] = {}
    tuned: TunedInt8 | None = None
    for mode, reason in runnable_modes(target).items():
        if reason is None:
            out = out_dir / f"{model_path.stem}.{mode}.onnx"
            try:
                if mode == "int8":
                    tuned = tune_int8(model_path, calibration, out, settings, judge, calibrations)
                else:
                    quantize_onnx(model_path, mode, calibration, out, settings)
                build(out)
                candidates[mode] = out
            except BuildError as error:
                reason = str(error)
        if reason is not None:
            refused[mode] = reason
    judged = advise_precision(
        candidates,
        measure,
        accuracy,
        compare,
        check=check,
        kernels=kernels,
        max_accuracy_loss=max_accuracy_loss,
        confidence=confidence,
    )
    rows = {variant.mode: variant for variant in judged}
    if tuned is not None:
        rows["int8"] = replace(rows["int8"], calibration=tuned.calibration, excluded=tuned.excluded)
    rows |= {mode: Variant(mode, None, None, None, None, False, why) for mode, why in refused.items()}
    return tuple(rows[mode] for mode in (BASELINE, *MODES))


def _paired_interval(baseline: Measurement, candidate: Measurement, confidence: float) -> RatioInterval:
    """Of candidate over baseline, from the blocks that both have."""
    a, b = baseline.blocks, candidate.blocks
    shared = sorted(a.keys() & b.keys())
    medians_a, medians_b = (np.array([np.median(blocks[i]) for i in shared]) for blocks in (a, b))
    return ratio_interval(medians_a, medians_b, paired=True, confidence=confidence)


def _fraction(accuracy: float, mode: str) -> float:
    if not isfinite(accuracy) or not 0 <= accuracy <= 1:
        raise UsageError(asked=f"the accuracy of {mode}, 0 to 1", found=f"{accuracy}", next="Hand in a fraction.")
    return float(accuracy)


def _latency_verdict(interval: RatioInterval) -> str | None:
    """Why a variant's latency rules it out, or None."""
    if interval.high < 1:
        return None
    if interval.low > 1:
        return f"slower: {interval.ratio:.2f}× the latency"
    return f"not proven faster: {interval.low:.2f} to {interval.high:.2f}× the latency"


def _explained(kernels: Kernels, candidates: Mapping[str, Path], slower: Sequence[str]) -> dict[str, str]:
    """Mode → why it is slower, or why its kernels are not known."""
    told = {}
    for mode in slower:
        try:
            told[mode] = explain_slower(kernels(candidates[BASELINE]), kernels(candidates[mode]))
        except AkdError as error:
            told[mode] = f"its kernels are not known: {error.found}"
    return told
