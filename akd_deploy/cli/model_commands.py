"""Commands about one model file: export, build, quantize, lint, inspect, diff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from akd_deploy.cli.options import DryRun, Json, Seed, TargetName
from akd_deploy.cli.output import Outcome, emit, phase_bars, progress_bars, table
from akd_deploy.errors import GateError, MissingFileError, UnknownNameError, UsageError
from akd_deploy.units import format_bytes, format_seconds

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
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a student as ONNX for a target and compare it with torch."""
    from akd_deploy.engines import load_engine
    from akd_deploy.export.quantize import MODES
    from akd_deploy.models.student import load_student
    from akd_deploy.pipeline import shipping
    from akd_deploy.pipeline.typed import mode_for
    from akd_deploy.target import load_target

    chosen, loaded = load_target(target), load_student(_existing(student, "the student"))
    if dry_run:
        plan = {"onnx": str(output / "student.onnx")}
        emit(Outcome(plan, lambda console: console.print(f"would write {plan['onnx']} and compare it")), as_json)
        return
    images, source = _samples(config, (shipping.PARITY_SAMPLES, *loaded.input_shape), seed)
    path = shipping.export_student(loaded, chosen, output)
    models = shipping.typed_variants(path, [m for m in (mode_for(chosen),) if m in MODES], images, chosen, output)
    reference = shipping.reference_target(chosen, load_engine(chosen))
    parity = shipping.student_parity(loaded, load_engine(reference), shipping.model_for(reference, models), images)
    data = {
        "onnx": str(path),
        "variants": {mode: str(p) for mode, p in models.items()},
        "parity": {**parity.as_dict(), "samples_from": source, "run_by": reference.name},
    }

    def show(console: Console) -> None:
        console.print(f"{path}: max |difference| {parity.max_abs:.2g}, cosine {parity.cosine:.8f} on {source}")

    emit(Outcome(data, show), as_json)


def _samples(config: Path | None, shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, str]:
    """Images of the run's tuning split, or normal noise; and which."""
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
    with phase_bars(as_json) as on_progress:
        built = engine.build(onnx, output, on_progress)
    from akd_deploy.storage import file_sha256

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
        "notes": list(built.notes),
    }

    def show(console: Console) -> None:
        layers = ", ".join(f"{count} layers in {dtype}" for dtype, count in built.precision.items())
        console.print(f"{built.path} ({format_bytes(built.size_bytes)}, {built.seconds:.2f} s): {layers}")
        if isinstance(data["memory"], dict):
            told = ", ".join(
                f"{format_bytes(n)} of {what.removesuffix('_bytes')}" for what, n in data["memory"].items()
            )
            console.print(f"  memory: {told}", markup=False, highlight=False)
        for note in built.notes:
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
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a typed variant of a network; `auto` measures every one and recommends what is proven faster."""
    from akd_deploy.export.quantize import MODES
    from akd_deploy.pipeline.quantizing import quantize_measured
    from akd_deploy.target import load_target

    if mode not in (*MODES, "auto"):
        raise UnknownNameError("mode", mode, (*MODES, "auto"))
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
        data = quantize_measured(onnx, chosen, mode, output, config, samples, rng, on_progress)

    def show(console: Console) -> None:
        rows = [
            (
                v["mode"],
                "—" if v["accuracy"] is None else f"{v['accuracy']:.2%}",
                format_seconds(v["latency_stats_s"]["median"]) if v["latency_stats_s"] else "—",
                "yes" if v["recommended"] else "",
                v["why"],
            )
            for v in data["variants"]
        ]
        console.print(table("Variants", ("mode", ">accuracy", ">median", "recommended", "why"), rows))

    emit(Outcome(data, show), as_json)


def lint(
    model: Annotated[Path, typer.Argument(help="An ONNX file.")], target: TargetName, as_json: Json = False
) -> None:
    """Look a network over for a target without running it; exit code 3 where something will not work."""
    from akd_deploy.export.lint import lint_onnx
    from akd_deploy.target import load_target

    findings = lint_onnx(model, load_target(target))
    data = {"model": str(model), "target": target, "findings": [asdict(finding) for finding in findings]}

    def show(console: Console) -> None:
        for f in findings:
            console.print(f"{f.severity:8}{f.rule}: {f.node}: {f.message} {f.fix}", markup=False, highlight=False)
        console.print(f"{len(findings)} findings")

    wrong = any(finding.severity == "error" for finding in findings)
    emit(Outcome(data, show, GateError.exit_code if wrong else 0), as_json)


def _kernels(path: Path, target: str) -> Sequence[Any]:
    from akd_deploy.engines import load_engine
    from akd_deploy.target import load_target

    engine = load_engine(load_target(target))
    engine.require(engine.why_not_build())
    return engine.executed_kernels(_existing(path, "the model"))


def inspect(
    engine: Annotated[Path, typer.Argument(help="A model file.")], target: TargetName, as_json: Json = False
) -> None:
    """List the kernels a target's engine really runs for a model: shapes, types, traffic."""
    from akd_deploy.export.inspect import kernel_table, precision_counts

    kernels = _kernels(engine, target)
    rows = kernel_table(kernels)
    data = {"model": str(engine), "target": target, "kernels": rows, "precision": precision_counts(kernels)}

    def show(console: Console) -> None:
        cells = [
            (r["name"], r["op"], " ".join("×".join(map(str, s)) for s in r["outputs"]), r["dtype"],  # type: ignore[attr-defined]
             format_bytes(float(str(r["traffic_bytes"]))))
            for r in rows
        ]  # fmt: skip
        console.print(table(f"{len(rows)} kernels", ("name", "operator", "output", "type", ">traffic"), cells))

    emit(Outcome(data, show), as_json)


def diff(
    a: Annotated[Path, typer.Argument(help="A model file.")],
    b: Annotated[Path, typer.Argument(help="Another one.")],
    target: TargetName,
    other_target: Annotated[str | None, typer.Option(help="Target of the second, where it differs.")] = None,
    as_json: Json = False,
) -> None:
    """Say which kernels differ between two models."""
    from akd_deploy.export.diff import diff_kernels

    found = diff_kernels(_kernels(a, target), _kernels(b, other_target or target))

    def show(console: Console) -> None:
        rows = [(c.kernel.op, "×".join(map(str, c.kernel.outputs[0])), c.in_a, c.in_b) for c in found.differing]
        console.print(table(f"{found.shared} kernels shared", ("operator", "output", f">{a.name}", f">{b.name}"), rows))
        console.print(f"traffic {format_bytes(found.traffic_bytes_a)} → {format_bytes(found.traffic_bytes_b)}")

    emit(Outcome(found.as_dict(), show), as_json)
