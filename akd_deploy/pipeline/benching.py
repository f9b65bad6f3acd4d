"""A bench of one model, or of two in turn, as one JSON record."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.certificate import MIN_BLOCKS, certify, ratio_interval, samples_needed
from akd_deploy.engines import load_engine
from akd_deploy.errors import GateError, MissingFileError, UsageError
from akd_deploy.measurement import Measurement
from akd_deploy.pipeline.building import measure_built
from akd_deploy.profiling.blocks import Protocol
from akd_deploy.target import Target

MIN_SAMPLES_PER_BLOCK = 100
MAX_SAMPLES_PER_BLOCK = 5_000


BOUND_CONFIDENCE = 0.95


def _upper_bounds_s(measurement: Measurement) -> dict[str, float | None]:
    """Distribution-free upper bounds of p90 and p99; None where there are too few samples for one."""
    bounds: dict[str, float | None] = {}
    for percentile in (90, 99):
        enough = len(measurement.samples_s) >= samples_needed(percentile, BOUND_CONFIDENCE)
        bounds[f"p{percentile}"] = measurement.upper_bound_s(percentile, BOUND_CONFIDENCE) if enough else None
    return bounds


def bench_models(
    target: Target,
    model: Path,
    other: Path | None,
    *,
    blocks: int,
    seconds: float,
    budget_s: float | None,
    percentile: float,
    confidence: float,
    rng: np.random.Generator,
    on_model: Callable[[int, int], None],
) -> tuple[dict[str, Any], int]:
    """Measure `model` (and `other` in the same processes, in random order); returns the record and the exit code.

    The exit code is that of GateError when a budget was given and its certificate does not hold, else 0.

    Raises:
        UsageError: a budget to certify with fewer than `MIN_BLOCKS` processes.
        MissingFileError: no such model.
        MissingRuntimeError: the target cannot run here.
    """
    for path in (model, other):
        if path is not None and not path.exists():
            raise MissingFileError(asked=f"the model {path}", found="no such file", next="Check the path.")
    if budget_s is not None and blocks < MIN_BLOCKS:
        raise UsageError(
            asked="a budget certificate",
            found=f"--blocks {blocks}",
            next=f"Take at least {MIN_BLOCKS} fresh processes.",
        )
    engine = load_engine(target)
    engine.require(engine.why_not())
    protocol = Protocol(
        blocks=blocks,
        warmup_s=max(0.02, seconds / 2),
        seconds=seconds,
        min_samples=MIN_SAMPLES_PER_BLOCK,
        max_samples=MAX_SAMPLES_PER_BLOCK,
    )
    models = {"model": model.absolute()} | ({"other": other.absolute()} if other else {})
    measured = measure_built(target, models, protocol, rng, on_model)
    main = measured["model"]
    certificate = None
    if budget_s is not None:
        certificate = certify(main.measurement.blocks, budget_s, percentile, confidence)
    compared = None
    if other is not None:
        a, b = measured["other"].measurement, main.measurement
        interval = ratio_interval(a.block_medians_s, b.block_medians_s, paired=True)
        compared = {
            "model": str(other),
            "ratio": interval.ratio,
            "low": interval.low,
            "high": interval.high,
            "differs": interval.differs,
            "latency_stats_s": a.statistics_s(),
        }
    record = {
        "model": str(model),
        "target": target.as_dict(),
        "device": dict(engine.fingerprint().facts),
        "engine_version": engine.version(),
        "protocol": {**protocol.header(), "blocks": protocol.blocks},
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "latency_stats_s": main.measurement.statistics_s(),
        "upper_bounds_s": _upper_bounds_s(main.measurement),
        "samples": len(main.measurement.samples_s),
        "blocks": {str(i): [float(s) for s in samples] for i, samples in main.measurement.blocks.items()},
        "sigma": main.measurement.sigma,
        "remeasured": main.remeasured,
        "disturbed": main.disturbed,
        "certificate": certificate.as_dict() if certificate else None,
        "compared": compared,
    }
    return record, 0 if certificate is None or certificate.ok else GateError.exit_code
