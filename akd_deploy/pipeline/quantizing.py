"""Typed variants of a network, measured on the target and scored on the user's samples."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.configuration import read_configuration
from akd_deploy.data import load_dataset
from akd_deploy.engines import load_engine
from akd_deploy.engines.onnx_file import graph_inputs
from akd_deploy.errors import CorruptFileError, MissingFileError, UsageError
from akd_deploy.export.advise import quantize_auto
from akd_deploy.export.onnx_file import parse_onnx
from akd_deploy.export.quantize import int8_settings, quantize_onnx
from akd_deploy.measurement import Measurement
from akd_deploy.pipeline.building import built_as_typed
from akd_deploy.pipeline.shipping import CALIBRATION_SAMPLES
from akd_deploy.pipeline.typed import isa_of
from akd_deploy.profiling.blocks import Protocol, measure_blocks
from akd_deploy.storage import make_folder
from akd_deploy.target import Target

ADVICE = Protocol(blocks=6, warmup_s=0.05, seconds=0.1, min_samples=50, max_samples=1_000)


def _read_samples(path: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Inputs by name, and the labels where there are any."""
    if not path.is_file():
        raise MissingFileError(asked=f"the samples {path}", found="no such file", next="Check the path.")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError) as error:
        raise CorruptFileError(
            asked=f"samples in {path}", found=str(error), next="Write it with numpy.savez(path, input=…, labels=…)."
        ) from error
    labels = arrays.pop("labels", None)
    return arrays, labels


def _samples(config: Path | None, samples: Path | None, onnx: Path) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    if samples is not None:
        return _read_samples(samples)
    if config is None:
        return {}, None
    inputs = graph_inputs(parse_onnx(onnx).graph)
    if len(inputs) != 1:
        raise UsageError(
            asked=f"{onnx} fed with the images of {config}",
            found=f"{len(inputs)} inputs",
            next="Give --samples with an array for each input.",
        )
    read = read_configuration(config)
    dataset = load_dataset(read.data.name, read.data.settings)
    return {inputs[0].name: dataset.tuning_val.images}, dataset.tuning_val.labels


def quantize_measured(
    onnx: Path,
    target: Target,
    mode: str,
    output: Path,
    config: Path | None,
    samples: Path | None,
    rng: np.random.Generator,
    on_progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Write one variant, or with mode "auto" all that the target runs, measured and with one recommended.

    The first `CALIBRATION_SAMPLES` calibrate; "auto" scores on the others, which no variant has seen. `rng` feeds
    what is measured.

    Raises:
        UsageError: "auto" without labelled samples beyond those that calibrate.
    """
    arrays, labels = _samples(config, samples, onnx)
    batch = target.batch
    count = min((len(a) for a in arrays.values()), default=0)
    feeds = [{name: a[i : i + batch] for name, a in arrays.items()} for i in range(0, count - batch + 1, batch)]
    calibration = feeds[: max(1, CALIBRATION_SAMPLES // batch)] if feeds else []
    make_folder(output)
    engine = load_engine(target)
    settings = int8_settings(target.engine, isa_of(target))
    if mode != "auto":
        made = quantize_onnx(onnx, mode, calibration, output / f"{onnx.stem}.{mode}.onnx", settings)
        row = {"mode": mode, "accuracy": None, "latency_stats_s": None, "recommended": False}
        notes = "; ".join(made.notes) or "written; use --mode auto to measure it"
        return {"onnx": str(made.path), "sha256": made.sha256, "variants": [{**row, "why": notes}]}
    if labels is None or not feeds:
        raise UsageError(
            asked="advice on precision",
            found=f"{len(feeds)} batches of samples, {'no ' if labels is None else ''}labels",
            next="Give --config, or --samples with inputs and labels.",
        )
    scored = feeds[len(calibration) :]
    if not scored:
        raise UsageError(
            asked="advice on precision",
            found=f"{count} samples, all of which calibrate",
            next=f"Give more than {len(calibration) * batch + batch - 1}: those after the first "
            f"{len(calibration) * batch} are scored on.",
        )
    engine.require(engine.why_not())
    held_out = labels[len(calibration) * batch :]

    @cache
    def built(path: Path) -> Path:
        return built_as_typed(target, path, output)

    def measure(path: Path) -> Measurement:
        on_progress(f"measuring {path.name}", 0, 0)
        return measure_blocks(target, {"model": built(path)}, ADVICE, rng)["model"].measurement

    def accuracy(path: Path) -> float:
        right = 0
        with engine.load(built(path)) as session:
            for i, feed in enumerate(scored):
                answer = next(iter(session.run(feed).values())).argmax(-1)
                right += int((answer == held_out[i * batch : (i + 1) * batch]).sum())
        return right / (len(scored) * batch)

    variants = quantize_auto(onnx, target, calibration, output, measure, accuracy, settings, build=built)
    best = next(variant for variant in variants if variant.recommended)
    return {"onnx": str(best.path), "variants": [variant.as_dict() for variant in variants]}
