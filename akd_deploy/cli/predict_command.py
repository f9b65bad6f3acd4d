"""The command `predict`: a network's latency with an interval, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from akd_deploy.cli.options import Json, Onnx, Space, Table, TargetName
from akd_deploy.cli.output import Outcome, emit, table
from akd_deploy.errors import UsageError
from akd_deploy.units import format_seconds

if TYPE_CHECKING:
    from akd_deploy.predictor.predictor import Prediction

NAMED_OUTSIDE = 5
"""Kernels outside the profiled range that are named on the terminal; `--json` names all."""


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(predict)


def predict(
    target: TargetName,
    onnx: Onnx = None,
    arch: Annotated[Path | None, typer.Option(help="An architecture file.")] = None,
    space: Space = None,
    layers: Annotated[bool, typer.Option("--layers", help="Every kernel's share.")] = False,
    kernels: Annotated[
        str,
        typer.Option(
            help="Who says what is executed: the runtime, the rules of its fusion, or auto: the rules where they hold."
        ),
    ] = "auto",
    directory: Table = None,
    as_json: Json = False,
) -> None:
    """Predict a network's latency with an interval, from the kernels it executes."""
    from akd_deploy.architecture import read_architecture
    from akd_deploy.engines.onnx_file import fixed_batch
    from akd_deploy.errors import MissingFileError
    from akd_deploy.pipeline.latency import target_latency
    from akd_deploy.pipeline.spaces import named_space
    from akd_deploy.target import load_target

    if (onnx is None) == (arch is None):
        raise UsageError(asked="a network", found="both or neither of --onnx and --arch", next="Give exactly one.")
    chosen = load_target(target)
    latency, notes = target_latency(chosen, directory), list[str]()
    if onnx is not None:
        if not onnx.is_file():
            raise MissingFileError(asked=f"the model {onnx}", found="no such file", next="Check the path.")
        prediction = latency.predict_model(onnx, kernels)
        own = fixed_batch(onnx) if chosen.engine != "torch" else None
        if own is not None and own != chosen.batch:
            notes.append(f"the model's own batch is {own}, the target's {chosen.batch}: predicted as the model is")
    else:
        assert arch is not None
        architecture = read_architecture(arch)
        if space is not None:
            named_space(space).checked(architecture)
        prediction = latency.predict_architecture(architecture, kernels)
    terms = [
        {
            "name": term.name,
            "kernel": term.kernel.signature,
            "latency_s": term.latency_s,
            "outside": [
                {"dimension": one.dimension, "value": one.value, "measured": list(one.measured)} for one in term.outside
            ],
        }
        for term in prediction.layers
    ]
    data: dict[str, Any] = {
        "target": target,
        "latency_s": prediction.latency_s,
        "interval_s": list(prediction.interval_s),
        "coverage": prediction.coverage,
        "calibrated_on": prediction.calibrated_on,
        "in_domain": prediction.in_domain,
        "uncovered": [],
        "overhead_s": prediction.overhead_s,
        "kernels_from": prediction.kernels_from,
        "sigma": latency.predictor.sigma,
        "table": str(latency.directory),
        "notes": [*notes, *latency.predictor.scores.warnings()],
        "layers": terms,
    }

    def show(console: Console) -> None:
        low, high = prediction.interval_s
        console.print(
            f"{format_seconds(prediction.latency_s)}  [{format_seconds(low)}, {format_seconds(high)}] "
            f"at {prediction.coverage:.0%}, calibrated on {prediction.calibrated_on}; "
            f"kernels from the {prediction.kernels_from}",
            markup=False,
            soft_wrap=True,
        )
        if not prediction.in_domain:
            for line in _outside_lines(prediction):
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        for note in data["notes"]:
            console.print(note, markup=False, highlight=False, soft_wrap=True)
        if layers:
            rows = [
                (t.name, t.kernel.op, format_seconds(t.latency_s), ", ".join(one.dimension for one in t.outside))
                for t in prediction.layers
            ]
            rows.append(("(each call)", "", format_seconds(prediction.overhead_s), ""))
            console.print(table("Kernels", ("name", "operator", ">latency", "outside the profiled range in"), rows))

    emit(Outcome(data, show), as_json)


def _outside_lines(prediction: Prediction) -> list[str]:
    """Which kernels lie outside the profiled range, those that cost most first, and in what."""
    terms = sorted((term for term in prediction.layers if term.outside), key=lambda term: -term.latency_s)
    share = sum(term.latency_s for term in terms) / prediction.latency_s
    lines = [f"outside the profiled range: {len(terms)} of {len(prediction.layers)} kernels, {share:.0%} of the time"]
    lines += [
        f"  {term.name} ({term.kernel.op}): {'; '.join(map(str, term.outside))}" for term in terms[:NAMED_OUTSIDE]
    ]
    return [*lines, *(["  …"] if len(terms) > NAMED_OUTSIDE else [])]
