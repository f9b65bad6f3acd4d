"""Typed variants of a network, measured on the target and scored on the user's samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.errors import AkdError, ParityError, UsageError
from akd_deploy.export.advise import quantize_auto
from akd_deploy.export.locate import check_located
from akd_deploy.export.parity import Arrays, Parity, compare_outputs, is_within, tolerance_for
from akd_deploy.export.quantize import Int8Settings, QuantizedModel, int8_settings, quantize_onnx
from akd_deploy.export.sensitivity import Score, output_error
from akd_deploy.export.tune_int8 import AUTO, TunedInt8, calibrations_of, tune_int8
from akd_deploy.measurement import Measurement
from akd_deploy.pipeline.building import built_as_typed
from akd_deploy.pipeline.parity import evaluators_of, outputs_of
from akd_deploy.pipeline.samples import Held, Parts, parts_of, samples_for
from akd_deploy.pipeline.shipping import CALIBRATION_SAMPLES, reference_target
from akd_deploy.pipeline.typed import isa_of
from akd_deploy.profiling.blocks import Protocol, measure_blocks
from akd_deploy.storage import make_folder
from akd_deploy.target import Target

ADVICE = Protocol(blocks=10, warmup_s=0.05, seconds=0.1, min_samples=50, max_samples=1_000)
"""Ten fresh processes, every variant in each: intervals that hold together for four variants need eight at least."""


class Compared:
    """A float32 network's outputs on samples, run by one engine, and how its variants' outputs differ from them."""

    def __init__(self, engine: Engine, source: Path, held: Held, ready: Callable[[Path], Path] = lambda path: path):
        self._engine, self._source, self._held, self._ready = engine, source, held, ready
        self._expected = outputs_of(engine, ready(source), held.feeds)

    def parity(self, path: Path) -> Parity:
        return self._parity(outputs_of(self._engine, self._ready(path), self._held.feeds))

    def _parity(self, outputs: Sequence[Arrays]) -> Parity:
        answers = iter(outputs)
        return compare_outputs(self._expected, lambda _: next(answers), self._held.feeds)

    def check(self, mode: str, path: Path, parity: Parity) -> None:
        """Raise ParityError, with the first node that diverges, where a variant is outside its mode's tolerance."""
        source, typed = self._ready(self._source), self._ready(path)
        with self._engine.load(source) as reference, self._engine.load(typed) as candidate:
            check_located(
                parity,
                tolerance_for(mode),
                reference.run,
                candidate.run,
                self._held.feeds,
                self._source,
                path,
                evaluators_of(self._engine),
            )

    def judge(self, max_accuracy_loss: float) -> Callable[[Path], Score]:
        """Scores int8 variants: within the limit where neither parity nor, with labels, accuracy lose more."""

        def score(path: Path) -> Score:
            outputs = outputs_of(self._engine, self._ready(path), self._held.feeds)
            within = is_within(self._parity(outputs), tolerance_for("int8"))
            if self._held.labels is not None:
                loss = self._held.accuracy(self._expected) - self._held.accuracy(outputs)
                within = within and loss <= max_accuracy_loss
            return Score(output_error(self._expected, outputs), within)

        return score


def quantize_measured(
    onnx: Path,
    target: Target,
    mode: str,
    output: Path,
    config: Path | None,
    samples: Path | None,
    rng: np.random.Generator,
    on_progress: Callable[[str, int, int], None],
    calibration: str | None = None,
    max_accuracy_loss: float = 0.01,
) -> dict[str, Any]:
    """Write one variant, or with mode "auto" all that the target runs, measured and with one recommended.

    The first `CALIBRATION_SAMPLES` calibrate; a part of the others chooses calibration and excluded nodes, and the
    rest, which no variant has seen, scores. `rng` feeds what is measured.

    Args:
        calibration: how int8 finds ranges; "auto" tries each and leaves out what costs too much. None: "auto" where
            the mode is, else "minmax".

    Raises:
        UsageError: "auto" without samples, labelled ones for the mode, beyond those that calibrate.
        ParityError: the one variant differs from the network by more than its precision allows; it stays written.
    """
    parts = parts_of(*samples_for(config, samples, onnx), target.batch, CALIBRATION_SAMPLES)
    make_folder(output)
    engine = load_engine(target)
    settings = int8_settings(target.engine, isa_of(target))
    calibration = calibration or (AUTO if mode == "auto" else settings.calibration)
    if mode != "auto":
        out = output / f"{onnx.stem}.{mode}.onnx"
        runner = load_engine(reference_target(target, engine))
        return _one(onnx, mode, out, parts, runner, settings, calibration, max_accuracy_loss)
    if parts.scoring.labels is None or not parts.calibration.feeds:
        raise UsageError(
            asked="advice on precision",
            found=f"{len(parts.calibration.feeds)} batches of samples, "
            f"{'no ' if parts.scoring.labels is None else ''}labels",
            next="Give --config, or --samples with inputs and labels.",
        )
    _require_choosing(parts, target.batch)
    engine.require(engine.why_not())

    def built(path: Path) -> Path:
        return built_as_typed(target, path, path.parent)

    ready = cache(built)

    def measure(paths: Mapping[str, Path]) -> dict[str, Measurement]:
        def on_model(done: int, total: int) -> None:
            on_progress(f"measuring {len(paths)} variants in turn", done, total)

        files = {mode: ready(path).absolute() for mode, path in paths.items()}
        return {mode: m.measurement for mode, m in measure_blocks(target, files, ADVICE, rng, on_model).items()}

    @cache
    def scored(path: Path) -> list[Arrays]:
        return outputs_of(engine, ready(path), parts.scoring.feeds)

    def accuracy(path: Path) -> float:
        return parts.scoring.accuracy(scored(path))

    on_progress("quantising", 0, 0)
    compared = Compared(engine, onnx, parts.scoring, ready)
    variants = quantize_auto(
        onnx,
        target,
        parts.calibration.feeds,
        output,
        measure,
        accuracy,
        compared.parity,
        settings,
        # not remembered: what it is given are files written anew at the same path
        judge=Compared(engine, onnx, parts.choosing, built).judge(max_accuracy_loss),
        calibrations=calibrations_of(calibration),
        check=compared.check,
        kernels=engine.executed_kernels,
        build=ready,
        max_accuracy_loss=max_accuracy_loss,
    )
    best = next(variant for variant in variants if variant.recommended)
    return {"onnx": str(best.path), "variants": [variant.as_dict() for variant in variants]}


def _require_choosing(parts: Parts, batch: int) -> None:
    calibrating = len(parts.calibration.feeds) * batch
    if not parts.choosing.feeds:
        raise UsageError(
            asked="choices and scores on samples that calibrated nothing",
            found=f"{parts.count} samples, {parts.count - calibrating} of them left after the {calibrating} that do",
            next=f"Give at least {calibrating + 2 * batch}: a batch to choose on, and one to score on.",
        )


def _one(
    onnx: Path,
    mode: str,
    out: Path,
    parts: Parts,
    runner: Engine,
    settings: Int8Settings,
    calibration: str,
    max_accuracy_loss: float,
) -> dict[str, Any]:
    """Write one variant and compare it with its source, where there are samples and something that runs both."""
    tuned: TunedInt8 | None = None
    if mode == "int8" and calibration == AUTO:
        _require_choosing(parts, runner.target.batch)
        judge = Compared(runner, onnx, parts.choosing).judge(max_accuracy_loss)
        tuned = tune_int8(onnx, parts.calibration.feeds, out, settings, judge, calibrations_of(AUTO))
        made = tuned.model
    else:
        settings = settings if mode != "int8" else replace(settings, calibration=calibration)
        made = quantize_onnx(onnx, mode, parts.calibration.feeds, out, settings)
    held = parts.scoring if parts.scoring.feeds else parts.calibration
    parity, why_not = _parity_of(runner, onnx, mode, made, held)
    compared_on = None
    if parity is not None:
        compared_on = "samples that calibrated nothing" if held is parts.scoring else "the samples that calibrated"
    row = {
        "mode": mode,
        "accuracy": None,
        "latency_stats_s": None,
        "recommended": False,
        "parity": parity.as_dict() if parity else None,
        "calibration": (tuned.calibration if tuned else settings.calibration) if mode == "int8" else None,
        "excluded": [one.as_dict() for one in tuned.excluded] if tuned else [],
        "why": "; ".join([*made.notes, *why_not]) or "written; use --mode auto to measure it",
    }
    facts = {"compared_on": compared_on, "run_by": runner.target.name if parity else None}
    return {"onnx": str(made.path), "sha256": made.sha256, "variants": [row], **facts}


def _parity_of(
    runner: Engine, onnx: Path, mode: str, made: QuantizedModel, held: Held
) -> tuple[Parity | None, list[str]]:
    """How far the variant is from its source, or why nobody can tell here."""
    if not held.feeds:
        return None, ["not compared with its source: no samples"]
    try:
        compared = Compared(runner, onnx, held)
        parity = compared.parity(made.path)
    except ParityError:
        raise
    except AkdError as error:
        return None, [f"not compared with its source: {error.found}"]
    compared.check(mode, made.path, parity)
    return parity, []
