"""Shipping for a run: a trained student to ONNX, typed variants, engines, measurements, certificate and bundle."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np

import akd_deploy
from akd_deploy.certificate import Certificate, certify
from akd_deploy.comparison import fewest_blocks, ratio_interval
from akd_deploy.configuration import CertificateTable
from akd_deploy.data import Split
from akd_deploy.engines import load_engine
from akd_deploy.engines.base import BuiltEngine, Engine
from akd_deploy.errors import AkdError, BuildError, StorageError
from akd_deploy.export.quantize import int8_settings, quantize_onnx
from akd_deploy.export.trusted import record_built
from akd_deploy.measurement import Measurement
from akd_deploy.models.onnx_from_module import onnx_from_module
from akd_deploy.models.onnx_from_student import INPUT, onnx_from_student
from akd_deploy.models.student import Student
from akd_deploy.pipeline.typed import isa_of, mode_for
from akd_deploy.profiling.blocks import (
    LATE_S,
    PATIENCE_S,
    Measured,
    Protocol,
    Taken,
    Usual,
    after_pauses,
    is_disturbed,
    measure_blocks,
)
from akd_deploy.target import Target

PARITY_SAMPLES = 128
CALIBRATION_SAMPLES = 128


def certificate_protocol(table: CertificateTable) -> Protocol:
    """Fresh processes with enough samples each for the certificate; what is disturbed is measured again at the end, not
    at once, when the spell that slowed it may be over."""
    return Protocol(
        blocks=table.blocks,
        warmup_s=0.05,
        seconds=0.05,
        min_samples=table.samples_per_block,
        max_samples=table.samples_per_block,
        max_remeasure=0,
        pauses_s=PATIENCE_S,
        watch=True,
    )


def certificate_of(measurement: Measurement, budget_s: float, table: CertificateTable) -> Certificate:
    """The budget's certificate on a measurement taken with `certificate_protocol`."""
    return certify(measurement.blocks, budget_s, table.percentile, table.confidence)


def feeds_of(images: np.ndarray, batch: int, input_name: str = INPUT) -> list[dict[str, np.ndarray]]:
    """Whole batches of images as feeds; images that fill no batch are left out."""
    return [{input_name: np.ascontiguousarray(images[i : i + batch])} for i in range(0, len(images) - batch + 1, batch)]


def accuracy_of(engine: Engine, path: Path, split: Split) -> float:
    """Accuracy of a model file on a split, run by its engine."""
    batch = engine.target.batch
    right = total = 0
    with engine.load(path) as session:
        (spec,), (out, *_) = session.inputs, session.outputs
        for i, feed in enumerate(feeds_of(split.images, batch, spec.name)):
            answer = session.run(feed)[out.name].argmax(-1)
            right += int((answer == split.labels[i * batch : i * batch + len(answer)]).sum())
            total += len(answer)
    return right / total


def reference_target(target: Target, engine: Engine) -> Target:
    """The target itself where it runs here, else ONNX Runtime on this CPU in float32."""
    if engine.why_not() is None and target.engine != "torch":
        return target
    return Target("cpu_onnxruntime_fp32", "cpu", "onnxruntime", batch=target.batch)


def model_for(target: Target, models: Mapping[str, Path]) -> Path:
    """The typed variant that a target reads.

    Raises:
        BuildError: that variant was not made.
    """
    mode = mode_for(target)
    if mode not in models:
        raise BuildError(
            asked=f"a {target.precision} network for target {target.name}",
            found=f"variants {', '.join(models)}",
            next=f'Add "{mode}" to quantize in [export].',
        )
    return models[mode]


@dataclass(frozen=True)
class TargetBuild:
    """What became of one further target: its engine, or why there is none."""

    target: Target
    built: BuiltEngine | None
    why_not: str | None
    why_not_measured: str | None = None


def build_for(target: Target, models: Mapping[str, Path], folder: Path) -> TargetBuild:
    """Build a target's engine in `folder`; what is impossible here is told, not raised."""
    engine = load_engine(target)
    reason = engine.why_not_build()
    if reason is not None:
        return TargetBuild(target, None, reason)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        network = model_for(target, models)
        built = engine.build(network, folder)
    except AkdError as error:
        return TargetBuild(target, None, str(error))
    with suppress(StorageError):  # the engine is as good without its record, for which `bench --engine` asks alone
        record_built(engine, built, network)
    return TargetBuild(target, built, None, engine.why_not())


def typed_variants(
    onnx_path: Path, modes: list[str], images: np.ndarray, target: Target, folder: Path
) -> dict[str, Path]:
    """The float32 network and its typed variants, mode → file."""
    models = {"fp32": onnx_path}
    calibration = feeds_of(images, target.batch)
    for mode in modes:
        settings = int8_settings(target.engine, isa_of(target)) if mode == "int8" else None
        models[mode] = quantize_onnx(
            onnx_path, mode, calibration, folder / f"{onnx_path.stem}.{mode}.onnx", settings
        ).path
    return models


def export_student(student: Any, target: Target, folder: Path) -> Path:
    """Write `student.onnx` for the target's batch; another network than a space's student by torch's own exporter."""
    path = folder / "student.onnx"
    if isinstance(student, Student):
        return onnx_from_student(student, path, target.batch)
    return onnx_from_module(student, (target.batch, *student.input_shape), path)


def measure_together(
    subjects: Mapping[str, tuple[Target, Path]],
    protocol: Protocol,
    rng: np.random.Generator,
    on_model: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Measured]:
    """Measure models on several targets block by block in turn: blocks of equal number belong together.

    What was disturbed is measured again at the end for up to twice as long as all of it took.
    """
    by_target: dict[str, tuple[Target, dict[str, Path]]] = {}
    began_s = time.monotonic()
    for name, (target, path) in subjects.items():
        by_target.setdefault(target.name, (target, {}))[1][name] = path
    one = replace(protocol, blocks=1, pauses_s=())
    found: dict[str, dict[int, Measured]] = {name: {} for name in subjects}
    taken: dict[tuple[str, int], Taken] = {}
    # References are of one kind on all CPU targets; each engine of a GPU may have its own.
    usual: dict[str, Usual] = {}

    def usual_of(target: Target) -> Usual:
        kind = "cpu" if target.device == "cpu" else f"{target.device} {target.engine}"
        return usual.setdefault(kind, Usual())

    def measure(target: Target, names: Sequence[str], block: int, settings: Protocol) -> None:
        measured = measure_blocks(
            target,
            {name: subjects[name][1] for name in names},
            settings,
            rng,
            usual=usual_of(target),
            on_taken=lambda name, _, sample: taken.update({(name, block): sample}),
            earlier={name: [taken[name, block]] for name in names if (name, block) in taken},
        )
        for name, value in measured.items():
            found[name][block] = value
            on_model(sum(map(len, found.values())), protocol.blocks * len(subjects))

    for block in range(protocol.blocks):
        groups = list(by_target.values())
        for i in rng.permutation(len(groups)):
            target, models = groups[i]
            measure(target, list(models), block, one)

    def late() -> list[tuple[Target, list[str], int]]:
        return [
            (target, names, block)
            for target, models in by_target.values()
            for block in range(protocol.blocks)
            if (names := [name for name in models if is_disturbed(taken[name, block], target, usual_of(target))])
        ]

    for target, names, block in after_pauses(protocol, late, max(LATE_S, 2 * (time.monotonic() - began_s))):
        once_more = 1 + max(taken[name, block].remeasured for name in names)
        measure(target, names, block, replace(one, max_remeasure=once_more))
    return {name: reduce(_joined, (blocks[i] for i in sorted(blocks))) for name, blocks in found.items()}


def _joined(a: Measured, b: Measured) -> Measured:
    return Measured(a.measurement.merged(b.measurement), a.remeasured + b.remeasured, a.disturbed + b.disturbed)


def paired_ratio(baseline: Measurement, candidate: Measurement, confidence: float = 0.95) -> dict[str, float] | None:
    """Ratio candidate / baseline with its interval, from blocks taken in turn; None with too few blocks for one."""
    if len(baseline.blocks) < fewest_blocks(paired=True, confidence=confidence):
        return None
    interval = ratio_interval(baseline.block_medians_s, candidate.block_medians_s, paired=True, confidence=confidence)
    return {"ratio": interval.ratio, "low": interval.low, "high": interval.high}


def versions(engines: list[Engine]) -> dict[str, str]:
    """What built a bundle."""
    import onnx

    found = {"akd-deploy": akd_deploy.__version__, "python": platform.python_version(), "onnx": onnx.__version__}
    for engine in engines:
        if engine.why_not_build() is None:
            found[engine.name] = engine.version()
    return found


def engine_summary(
    build: TargetBuild, measurement: Measurement | None, ratio: Mapping[str, float] | None
) -> dict[str, Any]:
    """One row of the report's table of engines."""
    return {
        "target": build.target.name,
        "precision": dict(build.built.precision) if build.built else None,
        "size_bytes": build.built.size_bytes if build.built else None,
        "seconds": build.built.seconds if build.built else None,
        "latency_stats_s": measurement.statistics_s() if measurement else None,
        "ratio": dict(ratio) if ratio else None,
        "why_not": build.why_not or (f"built; not run here: {build.why_not_measured}" if measurement is None else None),
    }
