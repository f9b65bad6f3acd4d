"""A bench of one model, or of two in turn, as one JSON record."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from akd_deploy.bounds import MIN_BLOCKS_FOR_BOUND, median_interval, samples_needed
from akd_deploy.certificate import MIN_BLOCKS, certify
from akd_deploy.comparison import RatioInterval, blocks_needed, fewest_blocks, ratio_interval, ratio_sigma
from akd_deploy.device import cpu_clocks
from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.engines.nvidia import gpu_clocks
from akd_deploy.errors import GateError, MismatchError, MissingFileError, UsageError
from akd_deploy.measurement import Measurement
from akd_deploy.pipeline.building import audit_precision, ready_models
from akd_deploy.pipeline.correctness import LabelledSamples, accuracy_record
from akd_deploy.profiling.blocks import PATIENCE_S, Measured, Protocol, measure_blocks, pinned_cpus
from akd_deploy.profiling.worker import no_device_clock
from akd_deploy.storage import file_sha256
from akd_deploy.target import Target

MIN_SAMPLES_PER_BLOCK = 100
MAX_SAMPLES_PER_BLOCK = 5_000
CONFIDENCE = 0.95
"""Of bounds and intervals. A certificate has its own."""
MIN_PAIRED_BLOCKS = fewest_blocks(paired=True, confidence=CONFIDENCE)
"""From fewer there is no such interval of a ratio."""


@dataclass(frozen=True)
class BenchSettings:
    """What is wanted of a bench.

    Attributes:
        budget_s: to certify at `percentile` with `confidence`; None certifies nothing.
        aa: the other model is the same one: may it be told apart?
        detect: a slow-down, as a fraction; the record then says how many blocks it takes to find it.
        samples: to answer, for accuracy.
    """

    protocol: Protocol
    budget_s: float | None = None
    percentile: float = 90
    confidence: float = 0.99
    aa: bool = False
    detect: float | None = None
    samples: LabelledSamples | None = None


def bench_protocol(blocks: int, seconds: float, idle_s: float = 0.0, boundary: str = "host") -> Protocol:
    """How `bench` takes its samples; with a pause, `seconds` are of calls and pauses together."""
    return Protocol(
        blocks=blocks,
        warmup_s=max(0.02, seconds / 2),
        seconds=seconds,
        min_samples=MIN_SAMPLES_PER_BLOCK,
        max_samples=MAX_SAMPLES_PER_BLOCK,
        idle_s=idle_s,
        boundary=boundary,
        pauses_s=PATIENCE_S,
        watch=True,
    )


def check_bench(engine: Engine, settings: BenchSettings, model: Path, other: Path | None) -> None:
    """Raise what a bench would fail with, before anything is measured.

    Raises:
        UsageError: a budget to certify, or models to compare, in too few processes; a device without a clock.
        MissingFileError: no such model.
        MissingRuntimeError: the target cannot run here.
    """
    for path in (model, other):
        if path is not None and not path.exists():
            raise MissingFileError(asked=f"the model {path}", found="no such file", next="Check the path.")
    blocks = settings.protocol.blocks
    if settings.budget_s is not None and blocks < MIN_BLOCKS:
        raise UsageError(
            asked="a budget certificate",
            found=f"--blocks {blocks}",
            next=f"Take at least {MIN_BLOCKS} fresh processes.",
        )
    if other is not None and blocks < MIN_PAIRED_BLOCKS:
        raise UsageError(
            asked="a comparison of two models",
            found=f"--blocks {blocks}",
            next=f"Take at least {MIN_PAIRED_BLOCKS} fresh processes.",
        )
    if settings.detect is not None and blocks < 2:
        raise UsageError(
            asked="the blocks that a slow-down takes",
            found=f"--blocks {blocks}",
            next="Take at least 2 fresh processes: how they differ decides it.",
        )
    engine.require(engine.why_not())
    if settings.protocol.boundary == "gpu" and engine.fingerprint().facts["kind"] == "cpu":
        raise no_device_clock("the device is this CPU, which has no clock but the host's")


def bench_models(
    target: Target,
    model: Path,
    other: Path | None,
    settings: BenchSettings,
    rng: np.random.Generator,
    on_model: Callable[[int, int], None],
    instead: Mapping[Path, Path] = MappingProxyType({}),
) -> tuple[dict[str, Any], int]:
    """Measure `model` (and `other` in the same processes, in random order); returns the record and the exit code.

    The exit code is that of GateError when a budget was given and its certificate does not hold, else 0.

    Args:
        instead: model → the file to load instead: the copy of it that was checked.

    Raises:
        BuildError: a budget to certify on a target of another precision than the model's.
        MismatchError: a model that changed while it was measured.
        AkdError: what `check_bench` does.
    """
    engine = load_engine(target)
    check_bench(engine, settings, model, other)
    accuracy: Mapping[str, Any] = {"accuracy": None}
    protocol = settings.protocol
    files = {name: instead.get(path, path) for name, path in {"model": model, "other": other}.items() if path}
    hashes = {path: file_sha256(path) for path in files.values() if path.is_file()}
    if settings.budget_s is not None:
        audit_precision(engine, files["model"])
    with ready_models(engine, files) as models:
        if settings.samples is not None:  # a wrong file is told before minutes of measuring
            accuracy = accuracy_record(engine, models["model"], settings.samples)
        clocks = {"before": clocks_now(target, engine)}
        measured = measure_blocks(target, models, protocol, rng, on_model)
        clocks["after"] = clocks_now(target, engine)
    check_unchanged(hashes)
    main = measured["model"]
    certificate = None
    if settings.budget_s is not None:
        certificate = certify(main.measurement.blocks, settings.budget_s, settings.percentile, settings.confidence)
    compared, interval, baseline = None, None, None
    if other is not None:
        baseline = measured["other"].measurement
        interval = ratio_interval(baseline.block_medians_s, main.measurement.block_medians_s, paired=True)
        compared = {
            "model": str(other),
            "ratio": interval.ratio,
            "low": interval.low,
            "high": interval.high,
            "confidence": interval.confidence,
            "differs": interval.differs,
            **disturbances(measured["other"]),
            "latency_stats_s": baseline.statistics_s(),
            "blocks": {str(i): [float(s) for s in samples] for i, samples in baseline.blocks.items()},
        }
    record = {
        "model": str(model),
        "sha256": hashes.get(files["model"]),
        "target": target.as_dict(),
        "device": dict(engine.fingerprint().facts),
        "engine_version": engine.version(),
        "flags": {name: engine.option(name) for name in engine.options},
        "protocol": {**protocol.header(), "blocks": protocol.blocks},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": sorted({cpu for detail in main.details.values() for cpu in detail.cpus}),
        "clocks": clocks,
        "latency_stats_s": main.measurement.statistics_s(),
        "full_speed_s": main.measurement.label_s,
        "upper_bounds_s": upper_bounds_s(main.measurement),
        "samples": len(main.measurement.samples_s),
        "blocks": {str(i): [float(s) for s in samples] for i, samples in main.measurement.blocks.items()},
        "sigma": main.measurement.sigma,
        "cpu_s": {str(i): detail.cpu_s for i, detail in main.details.items()},
        "cold_start_s": cold_starts(main),
        "boundaries_s": boundaries(main),
        **disturbances(main),
        "certificate": certificate.as_dict() if certificate else None,
        "compared": compared,
        "aa": _aa(interval) if settings.aa and interval is not None else None,
        "detect": None if settings.detect is None else _detection(main.measurement, baseline, settings.detect),
        **accuracy,
    }
    return record, 0 if certificate is None or certificate.ok else GateError.exit_code


def check_unchanged(hashes: Mapping[Path, str]) -> None:
    """Make sure that files still are what they were hashed as: every process of a bench opens them anew.

    Raises:
        MismatchError: one is not.
    """
    for path, sha256 in hashes.items():
        now = file_sha256(path) if path.is_file() else None
        if now != sha256:
            raise MismatchError(
                asked=f"a bench of {path} (SHA-256 {sha256})",
                found="the file gone" if now is None else f"another file there when it was done (SHA-256 {now})",
                next="Measure it again, and leave it alone meanwhile.",
            )


def clocks_now(target: Target, engine: Engine) -> Mapping[str, object] | None:
    """Clocks of the CPUs that processes are bound to, or of the GPU; None where unknown."""
    if engine.fingerprint().facts["kind"] == "cpu":
        return cpu_clocks(pinned_cpus(target))
    return gpu_clocks()


def upper_bounds_s(measurement: Measurement) -> dict[str, float | None]:
    """Upper bounds of p90 and p99 over processes to come; None where samples or processes are too few for one."""
    processes = len(measurement.blocks) >= MIN_BLOCKS_FOR_BOUND
    bounds: dict[str, float | None] = {}
    for percentile in (90, 99):
        enough = processes and len(measurement.samples_s) >= samples_needed(percentile, CONFIDENCE)
        bounds[f"p{percentile}"] = measurement.upper_bound_s(percentile, CONFIDENCE) if enough else None
    return bounds


def disturbances(measured: Measured) -> dict[str, Any]:
    """How often blocks were taken again because something else had a part in their times, and which stayed so.

    Returns:
        `remeasured`: how many times a block was taken again, and `disturbed`: how many of those that were kept are
        disturbed; `remeasured_blocks` and `disturbed_blocks` say which, by their ids in `blocks`.
    """
    details = measured.details
    return {
        "remeasured": measured.remeasured,
        "disturbed": measured.disturbed,
        "remeasured_blocks": {str(i): detail.remeasured for i, detail in details.items() if detail.remeasured},
        "disturbed_blocks": [str(i) for i, detail in details.items() if detail.disturbed],
    }


def cold_starts(measured: Measured) -> dict[str, Any]:
    """Seconds to load the engine, and of the first call, in processes that this model began.

    For `load` and `first`: the median over processes, its interval (None from fewer than 6) and each block's.
    """
    starts = {}
    for name in ("load", "first"):
        seconds = {str(i): getattr(detail, f"{name}_s") for i, detail in measured.details.items()}
        cold = {block: value for block, value in seconds.items() if value is not None}
        interval = median_interval(np.array(list(cold.values())), CONFIDENCE)
        starts[name] = {
            "median": float(np.median(list(cold.values()))) if cold else None,
            "interval": None if interval is None else list(interval),
            "blocks": cold,
        }
    return starts


def boundaries(measured: Measured) -> dict[str, dict[str, float]] | None:
    """Part of a call (enqueue, h2d, compute, d2h, end_to_end) → its statistics; None where calls have no parts."""
    parts: dict[str, list[float]] = {}
    for detail in measured.details.values():
        for name, seconds in detail.parts_s.items():
            parts.setdefault(name.removesuffix("_s"), []).extend(seconds)
    found = {}
    for name, seconds in parts.items():
        median, p90, p99 = np.percentile(seconds, [50, 90, 99])
        found[name] = {"median": float(median), "p90": float(p90), "p99": float(p99)}
    return found or None


def _aa(interval: RatioInterval) -> dict[str, Any]:
    """Whether the same model twice was told apart: it may be in `alpha` of all benches."""
    return {
        "differs": interval.differs,
        "ratio": interval.ratio,
        "interval": [interval.low, interval.high],
        "alpha": round(1 - interval.confidence, 12),
    }


def _detection(measurement: Measurement, baseline: Measurement | None, effect: float) -> dict[str, Any]:
    """How many blocks find a slow-down of `effect` at the scatter seen here.

    Of two models in turn, where a baseline was measured; else of two benches that `gate` compares.
    """
    other = measurement if baseline is None else baseline
    paired = baseline is not None
    sigma = ratio_sigma(other.block_medians_s, measurement.block_medians_s, paired=paired)
    needed = blocks_needed(sigma, effect, paired=paired, confidence=CONFIDENCE)
    return {
        "effect": effect,
        "sigma": sigma,
        "paired": paired,
        "blocks_needed": needed,
        "blocks": len(measurement.blocks),
        "enough": needed <= len(measurement.blocks),
    }
