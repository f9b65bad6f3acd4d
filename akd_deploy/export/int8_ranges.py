"""Ranges of a network's tensors for int8, by ONNX Runtime's calibrators: smallest to largest, percentile, entropy."""

from __future__ import annotations

import io
from collections.abc import Collection, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from types import ModuleType

from akd_deploy.export.calibration import CalibrationReader, split_calibration
from akd_deploy.export.int8_settings import Int8Settings
from akd_deploy.export.parity import Arrays

ENTROPY_BINS = 512
"""Of a tensor's histogram. With the quantiser's own default, 128, there are as many bins as quantised values:
nothing can be cut off, and entropy gives the smallest and largest value like "minmax". More bins cost their square."""

BATCHES_AT_ONCE = 16
"""A histogram calibrator holds every tensor of all batches it is handed at once; so many fit in memory."""


def calibration_method(quantization: ModuleType, settings: Int8Settings) -> object:
    """ONNX Runtime's name for the settings' method."""
    methods = quantization.CalibrationMethod
    by_name = {"minmax": methods.MinMax, "entropy": methods.Entropy, "percentile": methods.Percentile}
    return by_name[split_calibration(settings.calibration)[0]]


def write_ranges(
    quantization: ModuleType,
    network: Path,
    op_types: Collection[str],
    calibration: Sequence[Arrays],
    settings: Int8Settings,
    out: Path,
) -> None:
    """Run the batches through the network and write the range of each tensor that these operators read or make.

    The ranges do not depend on which nodes are excluded later. `out` is what `quantize_static` takes as its cache.
    """
    method, percentile = split_calibration(settings.calibration)
    options: dict[str, object] = {}
    if method != "minmax":  # ranges are made symmetric when scales are computed, in all methods alike
        options["symmetric"] = settings.symmetric_activations
    if method == "entropy":
        options["num_bins"] = ENTROPY_BINS
    if percentile is not None:
        options["percentile"] = percentile
    with redirect_stdout(io.StringIO()):  # it prints what it is doing
        calibrator = quantization.calibrate.create_calibrator(
            network,
            sorted(op_types),
            str(out.with_suffix(".augmented.onnx")),
            calibration_method(quantization, settings),
            providers=["CPUExecutionProvider"],
            extra_options=options,
        )
        for start in range(0, len(calibration), BATCHES_AT_ONCE):
            calibrator.collect_data(CalibrationReader(calibration[start : start + BATCHES_AT_ONCE]))
        ranges = calibrator.compute_data()
    quantization.calibrate.save_tensors_data(ranges, out)
