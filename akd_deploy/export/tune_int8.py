"""The best int8 variant of a network: the calibration that errs least, and what must stay in floating point."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from akd_deploy.errors import BuildError, UsageError
from akd_deploy.export.calibration import CALIBRATIONS
from akd_deploy.export.int8_settings import Int8Settings
from akd_deploy.export.parity import Arrays
from akd_deploy.export.quantize import QuantizedModel, quantize_onnx
from akd_deploy.export.sensitivity import MAX_TRIALS, ExcludedNode, Score, exclude_sensitive

AUTO = "auto"
"""Instead of a calibration: try each, and leave out what costs too much."""

Judge = Callable[[Path], Score]
"""Scores an ONNX file against the float32 network on samples that calibrated nothing."""


@dataclass(frozen=True)
class TunedInt8:
    """What `tune_int8` wrote and why: each calibration's score, the chosen one, the nodes left in float.

    `trials` counts the networks that were quantised and scored. `within` is False where the loss stays above the
    judge's limit.
    """

    model: QuantizedModel
    calibration: str
    scores: Mapping[str, Score]
    excluded: tuple[ExcludedNode, ...]
    within: bool
    trials: int


def calibrations_of(text: str) -> tuple[str, ...]:
    """The calibrations to try for what a user asked for."""
    return CALIBRATIONS if text == AUTO else (text,)


def quantized_nodes(path: Path) -> tuple[str, ...]:
    """Nodes of a quantised network that read or write int8, in order, Q and DQ themselves left out.

    A node that was excluded may be among them: where its neighbours are quantised, it reads what they have rounded.
    """
    graph = onnx.load(path, format="protobuf").graph
    converters = ("QuantizeLinear", "DequantizeLinear")
    dequantized = {name for node in graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    quantized = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    return tuple(
        node.name
        for node in graph.node
        if node.op_type not in converters and (dequantized.intersection(node.input) or quantized & {*node.output})
    )


def tune_int8(
    model_path: Path,
    calibration: Sequence[Arrays],
    out: Path,
    settings: Int8Settings,
    judge: Judge,
    calibrations: Sequence[str],
    max_trials: int = MAX_TRIALS,
) -> TunedInt8:
    """Quantise with each calibration, keep the one that errs least, and exclude nodes until the judge is content.

    Args:
        settings: what all have in common; its `calibration` is not read, what it excludes stays excluded.
        calibrations: to try; one within the limit comes before one that is not, then the smaller error.
        max_trials: networks to quantise and score while looking for nodes to exclude.

    Raises:
        UsageError: no calibration to try, or samples that do not fit the inputs.
        BuildError: nothing in the network can be quantised.
    """
    if not calibrations:
        raise UsageError(asked="int8", found="no calibration to try", next=f"Name some of {', '.join(CALIBRATIONS)}.")
    with tempfile.TemporaryDirectory() as folder:

        def quantised(name: str, excluded: tuple[str, ...], path: Path) -> QuantizedModel:
            chosen = replace(settings, calibration=name, exclude=(*settings.exclude, *excluded))
            ranges = Path(folder) / f"ranges-{name.replace(':', '-')}.json"
            return quantize_onnx(model_path, "int8", calibration, path, chosen, ranges)

        trial_path = Path(folder) / "trial.onnx"
        scores = {name: judge(quantised(name, (), trial_path).path) for name in calibrations}
        best = min(calibrations, key=lambda name: (not scores[name].within, scores[name].error))
        nodes = quantized_nodes(quantised(best, (), trial_path).path)

        def trial(excluded: tuple[str, ...]) -> Score:
            if not excluded:
                return scores[best]
            try:
                return judge(quantised(best, excluded, trial_path).path)
            except BuildError:  # nothing is left to quantise: such a network is no int8 variant
                return Score(float("inf"), within=False)

        found = exclude_sensitive(nodes, trial, max_trials)
        model = quantised(best, found.names, out)
    trials = len(scores) + found.trials - 1
    return TunedInt8(model, best, scores, found.excluded, found.score.within, trials)
