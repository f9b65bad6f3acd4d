"""Commands about one model file: export, build, quantize, lint, inspect, diff."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console

from akd_deploy.cli.options import DryRun, Json, Seed, TargetName, TrustEngine
from akd_deploy.cli.output import Outcome, emit, phase_bars, progress_bars, table
from akd_deploy.errors import GateError, MissingFileError, StorageError, UnknownNameError, UsageError
from akd_deploy.units import format_bytes, format_seconds, parse_fraction

if TYPE_CHECKING:
    from akd_deploy.pipeline.inspecting import Inspected

MOVED_SHOWN, NODES_SHOWN = 20, 4
"""So many groups of nodes that moved are printed, and nodes of each; --json has them all."""

Output = Annotated[Path, typer.Option("-o", "--output", help="Folder to write into.")]
Model = Annotated[Path, typer.Option("--onnx", help="The network.")]
Config = Annotated[Path | None, typer.Option("--config", help="A run.toml: its data calibrates and scores.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for command in (export, build, quantize, lint, inspect, diff):
        app.command()(command)


def _existing(path: Path, what: str) -> Path:
    if not path.is_file():
        raise MissingFileError(asked=f"{what} {path}", found="no such file", next="Check the path.")
    return path


def export(
    student: Annotated[Path, typer.Option(help="What `distill` wrote (.safetensors).")],
    target: TargetName,
    output: Output,
    config: Config = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="An .npz with an array of real inputs; without it and --config, noise compares."),
    ] = None,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a student as ONNX for a target and compare it with torch."""
    from akd_deploy.engines import load_engine
    from akd_deploy.export.quantize import MODES
    from akd_deploy.models.student import load_student
    from akd_deploy.pipeline import shipping
    from akd_deploy.pipeline.parity import student_parity
    from akd_deploy.pipeline.typed import mode_for
    from akd_deploy.target import load_target

    chosen, loaded = load_target(target), load_student(_existing(student, "the student"))
    if dry_run:
        plan = {"onnx": str(output / "student.onnx")}
        emit(Outcome(plan, lambda console: console.print(f"would write {plan['onnx']} and compare it")), as_json)
        return
    images, source = _samples(config, samples, (shipping.PARITY_SAMPLES, *loaded.input_shape), seed)
    path = shipping.export_student(loaded, chosen, output)
    models = shipping.typed_variants(path, [m for m in (mode_for(chosen),) if m in MODES], images, chosen, output)
    reference = shipping.reference_target(chosen, load_engine(chosen))
    model = shipping.model_for(reference, models)
    parity = student_parity(loaded, load_engine(reference), model, images, source=path)
    data = {
        "onnx": str(path),
        "variants": {mode: str(p) for mode, p in models.items()},
        "parity": {**parity.as_dict(), "samples_from": source, "run_by": reference.name},
    }

    def show(console: Console) -> None:
        console.print(f"{path}: max |difference| {parity.max_abs:.2g}, cosine {parity.cosine:.8f} on {source}")

    emit(Outcome(data, show), as_json)


def _samples(config: Path | None, samples: Path | None, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, str]:
    """The user's samples, images of the run's tuning split, or normal noise; and which."""
    if samples is not None:
        from akd_deploy.pipeline.samples import images_from

        if config is not None:
            raise UsageError(asked="samples to compare on", found="both --config and --samples", next="Give one.")
        return images_from(samples, shape), f"samples of {samples.name}"
    if config is None:
        return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32), "normal noise"
    from akd_deploy.configuration import read_configuration
    from akd_deploy.data import load_dataset

    read = read_configuration(config)
    dataset = load_dataset(read.data.name, read.data.settings)
    return dataset.tuning_val.images[: shape[0]], f"images of {dataset.name}"


def build(onnx: Model, target: TargetName, output: Output, dry_run: DryRun = False, as_json: Json = False) -> None:
    """Build a target's engine from a network, and audit the precision of what was built."""
    from akd_deploy.engines import load_engine
    from akd_deploy.target import load_target

    chosen = load_target(target)
    engine = load_engine(chosen)
    engine.require(engine.why_not_build())
    _existing(onnx, "the model")
    if dry_run:
        plan = {"engine": str(output / f"{onnx.stem}{engine.suffix}"), "engine_version": engine.version()}
        emit(Outcome(plan, lambda console: console.print(f"would build {plan['engine']}")), as_json)
        return
    from akd_deploy.export.trusted import record_built
    from akd_deploy.storage import file_sha256

    with phase_bars(as_json) as on_progress:
        built = engine.build(onnx, output, on_progress)
    notes = list(built.notes)
    try:
        record_built(engine, built, onnx)
    except StorageError as error:
        notes.append(
            f"not recorded as built here, so that `bench --engine` will ask for --trust-engine ({error.found})"
        )
    data = {
        "engine": str(built.path),
        "files": [str(path) for path in built.files],
        "precision": dict(built.precision),
        "seconds": built.seconds,
        "size_bytes": built.size_bytes,
        "sha256": file_sha256(built.path),
        "engine_version": built.engine_version,
        "memory": built.details.get("memory"),
        "profiles": built.details.get("profiles", []),
        "timing_cache": built.details.get("timing_cache"),
        "notes": notes,
    }

    def show(console: Console) -> None:
        layers = ", ".join(f"{count} layers in {dtype}" for dtype, count in built.precision.items())
        console.print(f"{built.path} ({format_bytes(built.size_bytes)}, {built.seconds:.2f} s): {layers}")
        if isinstance(data["memory"], dict):
            told = ", ".join(
                f"{format_bytes(n)} of {what.removesuffix('_bytes')}" for what, n in data["memory"].items()
            )
            console.print(f"  memory: {told}", markup=False, highlight=False)
        for note in notes:
            console.print(f"  {note}", markup=False, highlight=False)

    emit(Outcome(data, show), as_json)


def quantize(
    onnx: Model,
    target: TargetName,
    mode: Annotated[str, typer.Option(help="fp16, bf16, int8, fp8 or auto.")],
    output: Output,
    config: Config = None,
    samples: Annotated[
        Path | None,
        typer.Option(help="An .npz of inputs by name (and labels, if it has an array of that name)."),
    ] = None,
    calibration: Annotated[
        str | None,
        typer.Option(
            help="How int8 finds ranges: minmax, entropy, percentile[:99.99], or auto, which tries each and leaves "
            "nodes in float whose quantisation costs too much. Left out: auto with --mode auto, else minmax."
        ),
    ] = None,
    max_accuracy_loss: Annotated[
        str, typer.Option(help="The most accuracy that a recommended variant may lose, in points.")
    ] = "1%",
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a typed variant of a network; `auto` measures every one and recommends what is proven faster."""
    from akd_deploy.export.calibration import split_calibration
    from akd_deploy.export.quantize import MODES
    from akd_deploy.export.tune_int8 import AUTO
    from akd_deploy.pipeline.quantizing import quantize_measured
    from akd_deploy.target import load_target

    if mode not in (*MODES, "auto"):
        raise UnknownNameError("mode", mode, (*MODES, "auto"))
    if calibration is not None and mode not in ("int8", "auto"):
        raise UsageError(asked=f"{mode} with --calibration", found=calibration, next="Only int8 is calibrated.")
    if calibration not in (None, AUTO):
        split_calibration(calibration)
    limit = parse_fraction(max_accuracy_loss)
    chosen = load_target(target)
    _existing(onnx, "the model")
    if (config is None) == (samples is None) and mode != "fp16" and mode != "bf16":
        found = "no samples" if config is None else "both --config and --samples"
        raise UsageError(asked=f"{mode} of {onnx}", found=found, next="Give --config or --samples, one of them.")
    if dry_run:
        plan = {"output": str(output), "mode": mode}
        emit(Outcome(plan, lambda console: console.print(f"would write variants of {onnx} to {output}")), as_json)
        return
    with progress_bars(as_json) as on_progress:
        rng = np.random.default_rng(seed)
        data = quantize_measured(
            onnx, chosen, mode, output, config, samples, rng, on_progress, calibration, max_accuracy_loss=limit
        )

    def show(console: Console) -> None:
        columns = ("mode", ">accuracy", ">cosine", ">top-1 alike", ">median", "recommended", "why")
        console.print(table("Variants", columns, map(_variant_row, data["variants"])))
        for v in data["variants"]:
            if v.get("calibration"):
                console.print(f"{v['mode']} is calibrated by {v['calibration']}", highlight=False)
            for one in v.get("excluded", ()):
                effect = "the error" if one["effect"] is None else f"{one['effect']:.3g} of error"
                console.print(f"{v['mode']} leaves {one['node']} in float: {effect} less", markup=False)
            if v.get("why_slower"):
                console.print(f"{v['mode']} is slower: {v['why_slower']}", markup=False, highlight=False)

    emit(Outcome(data, show), as_json)


def _variant_row(v: Mapping[str, Any]) -> tuple[str, ...]:
    """A variant's accuracy, parity and latency; what was not measured is a dash."""
    parity = v.get("parity") or {}
    return (
        v["mode"],
        "—" if v["accuracy"] is None else f"{v['accuracy']:.2%}",
        "—" if parity.get("cosine") is None else f"{parity['cosine']:.5f}",
        "—" if parity.get("top1_agreement") is None else f"{parity['top1_agreement']:.1%}",
        format_seconds(v["latency_stats_s"]["median"]) if v["latency_stats_s"] else "—",
        "yes" if v["recommended"] else "",
        v["why"],
    )


def lint(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")],
    target: TargetName,
    table_folder: Annotated[
        Path | None, typer.Option("--table", help="Folder of the target's latency table; found by itself if there.")
    ] = None,
    dimension: Annotated[
        list[str] | None, typer.Option(help="Sizes of a dynamic dimension, like height=128,224,512.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Look a network over for a target without running it; exit code 3 where something will not work."""
    from akd_deploy.pipeline.linting import lint_for, parse_dimensions
    from akd_deploy.target import load_target

    linted = lint_for(model, load_target(target), table_folder, parse_dimensions(dimension or []))
    findings = linted.findings
    data = {
        "model": str(model),
        "target": target,
        "findings": [asdict(finding) for finding in findings],
        "granularity": asdict(linted.granularity),
        "table": str(linted.table) if linted.table else None,
        "notes": list(linted.notes),
    }

    def show(console: Console) -> None:
        for note in linted.notes:
            console.print(note, markup=False, highlight=False)
        for f in findings:
            console.print(f"{f.severity:8}{f.rule}: {f.node}: {f.message} {f.fix}", markup=False, highlight=False)
        console.print("1 finding" if len(findings) == 1 else f"{len(findings)} findings")

    wrong = any(finding.severity == "error" for finding in findings)
    emit(Outcome(data, show, GateError.exit_code if wrong else 0), as_json)


def _inspected(path: Path, target: str | None, trust: bool) -> Inspected:
    from akd_deploy.pipeline.inspecting import inspect_file
    from akd_deploy.target import load_target

    return inspect_file(path, load_target(target) if target else None, trust=trust)


AnyTarget = Annotated[
    str | None, typer.Option("--target", help="A target's name or TOML file; a layers.json needs none.")
]


def inspect(
    engine: Annotated[Path, typer.Argument(help="A model file, a plan, or what trtexec --exportLayerInfo wrote.")],
    target: AnyTarget = None,
    trtexec: Annotated[
        Path | None, typer.Option(help="Also write layers_*.json into this folder, as trtexec does.")
    ] = None,
    predict: Annotated[
        bool, typer.Option("--predict", help="With --trtexec: profile_*.json too, of times by the latency table.")
    ] = False,
    trust_engine: TrustEngine = False,
    as_json: Json = False,
) -> None:
    """List the kernels a target's engine really runs for a model: shapes, types, traffic."""
    from akd_deploy.export.inspect import kernel_table, precision_counts

    if predict and (trtexec is None or target is None):
        raise UsageError(asked="predicted times", found="no --trtexec or no --target", next="Give both.")
    found = _inspected(engine, target, trust_engine)
    rows = kernel_table(found.kernels, found.types)
    written = _written_for_trtexec(engine, target, found, trtexec, predict) if trtexec else ()
    data = {
        "model": str(engine),
        "target": target,
        "kernels": rows,
        "precision": precision_counts(found.kernels),
        "source": found.source,
        "written": [str(path) for path in written],
    }

    def show(console: Console) -> None:
        cells = [
            (r["name"], r["op"], " ".join("×".join(map(str, s)) for s in r["outputs"]), r["dtype"],  # type: ignore[attr-defined]
             format_bytes(float(str(r["traffic_bytes"]))))
            for r in rows
        ]  # fmt: skip
        console.print(table(f"{len(rows)} kernels", ("name", "operator", "output", "type", ">traffic"), cells))
        for path in written:
            console.print(f"wrote {path}", markup=False, highlight=False)

    emit(Outcome(data, show), as_json)


def _written_for_trtexec(
    engine: Path, target: str | None, found: Inspected, folder: Path, predict: bool
) -> tuple[Path, ...]:
    from akd_deploy.export.trtexec_json import write_trtexec
    from akd_deploy.pipeline.inspecting import predicted_times_s
    from akd_deploy.target import load_target

    times_s = predicted_times_s(found.kernels, load_target(target)) if predict and target else None
    return write_trtexec(folder, engine.stem, found.kernels, found.types, times_s)


def diff(
    a: Annotated[Path, typer.Argument(help="A model file, a plan, or a layers.json of trtexec.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    target: AnyTarget = None,
    other_target: Annotated[str | None, typer.Option(help="Target of the second, where it differs.")] = None,
    trust_engine: TrustEngine = False,
    as_json: Json = False,
) -> None:
    """Say which kernels differ between two models, and which nodes run in other ones."""
    from akd_deploy.export.diff import diff_kernels
    from akd_deploy.export.moved import conversions, moved_nodes
    from akd_deploy.export.tensor_types import total_traffic_bytes

    one, other = (_inspected(path, of, trust_engine) for path, of in ((a, target), (b, other_target or target)))
    found = diff_kernels(one.kernels, other.kernels)
    moved = moved_nodes(one.kernels, other.kernels, one.types, other.types)
    converted = conversions(one.kernels, other.kernels)
    traffic_a, traffic_b = total_traffic_bytes(one.kernels, one.types), total_traffic_bytes(other.kernels, other.types)
    data = found.as_dict() | {
        "traffic_bytes_a": traffic_a,
        "traffic_bytes_b": traffic_b,
        "traffic_delta_bytes": traffic_b - traffic_a,
        "moved": [each.as_dict() for each in moved],
        "conversions": {op: list(counts) for op, counts in converted.items()},
    }

    def show(console: Console) -> None:
        rows = [(c.kernel.op, "×".join(map(str, c.kernel.outputs[0])), c.in_a, c.in_b) for c in found.differing]
        console.print(table(f"{found.shared} kernels shared", ("operator", "output", f">{a.name}", f">{b.name}"), rows))
        for each in moved[:MOVED_SHOWN]:
            nodes = ", ".join(each.nodes[:NODES_SHOWN]) + (" …" if len(each.nodes) > NODES_SHOWN else "")
            console.print(f"{nodes}: {each.text}", markup=False, highlight=False)
        if len(moved) > MOVED_SHOWN:
            console.print(f"… and {len(moved) - MOVED_SHOWN} groups of nodes more; --json has all")
        for op, counts in converted.items():
            console.print(f"{op}: {counts[0]} → {counts[1]}")
        console.print(f"traffic {format_bytes(traffic_a)} → {format_bytes(traffic_b)}")

    emit(Outcome(data, show), as_json)
