"""The command that turns other tools' measurements into a latency table."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from akd_deploy.cli.options import DryRun, Json, TargetName
from akd_deploy.cli.output import Outcome, emit
from akd_deploy.errors import MissingRuntimeError, UnknownNameError, UsageError

if TYPE_CHECKING:
    from akd_deploy.device import DeviceFingerprint
    from akd_deploy.engines.base import Engine
    from akd_deploy.kernel import Kernel
    from akd_deploy.profiling.importers.blocks import Block
    from akd_deploy.profiling.importers.imported import Imported
    from akd_deploy.target import Target

NAMED_AT_MOST = 5
"""How many layers without a latency are named on the terminal; `--json` names all."""

_OPTIONS_OF = {
    "--network": ("trtexec", "onnxruntime"),
    "--warmup-runs": ("trtexec", "onnxruntime"),
    "--onnx": ("trtexec",),
    "--metric": ("trtexec",),
    "--optimized-model": ("onnxruntime",),
    "--kernels": ("nn-meter", "once-for-all"),
}
"""Options that are not for every format → the formats they are for."""


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command(name="import-table")(import_table)


def import_table(
    source: Annotated[str, typer.Argument(metavar="FORMAT", help="trtexec, onnxruntime, nn-meter or once-for-all.")],
    files: Annotated[list[Path], typer.Argument(help="What the tool wrote; told apart by what is in them.")],
    target: TargetName,
    device_name: Annotated[str | None, typer.Option(help="The device it was measured on, like “RTX 4090”.")] = None,
    this_device: Annotated[bool, typer.Option("--this-device", help="It was measured on this very machine.")] = False,
    engine_version: Annotated[str | None, typer.Option(help="Of the runtime it was measured with.")] = None,
    network: Annotated[str | None, typer.Option(help="The network's name; else that of its file.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="The ONNX file the engine was built from.")] = None,
    optimized_model: Annotated[Path | None, typer.Option(help="What optimized_model_filepath wrote.")] = None,
    warmup_runs: Annotated[int | None, typer.Option(min=0, help="To leave out; else 0, of onnxruntime 1.")] = None,
    metric: Annotated[str | None, typer.Option(help="compute or latency: with the copies to the device.")] = None,
    kernels: Annotated[str | None, typer.Option(help="engine or onnx: who says what a block executes.")] = None,
    append: Annotated[bool, typer.Option("--append", help="Extend the table that is there.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="The table's folder.")] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make a latency table of measurements that trtexec, ONNX Runtime, nn-Meter or Once-for-All took."""
    from akd_deploy.engines import load_engine
    from akd_deploy.latency_table import NETWORK, PROBE, table_directory
    from akd_deploy.profiling.importers import FORMATS
    from akd_deploy.profiling.importers.into_table import imported_table, write_imported
    from akd_deploy.target import load_target

    if source not in FORMATS:
        raise UnknownNameError("format", source, FORMATS)
    given = {
        "--network": network,
        "--warmup-runs": warmup_runs,
        "--onnx": onnx,
        "--metric": metric,
        "--optimized-model": optimized_model,
        "--kernels": kernels,
    }
    for option, formats in _OPTIONS_OF.items():
        if given[option] is not None and source not in formats:
            raise UsageError(
                asked=f"{option} for {source}",
                found=f"an option of {' and '.join(formats)}",
                next="Leave it out.",
            )
    chosen = load_target(target)
    engine = load_engine(chosen)
    device = _device(engine, device_name, this_device)
    if source == "trtexec":
        imported = _from_trtexec(files, chosen, network, onnx, warmup_runs or 0, metric or "compute")
    elif source == "onnxruntime":
        runs = 1 if warmup_runs is None else warmup_runs
        imported = _from_onnxruntime(files, chosen, network, optimized_model, runs)
    else:
        imported = _from_blocks(source, files, engine, kernels or "engine")
    table = imported_table(imported, chosen, device, engine_version)
    directory = output or table_directory(Path.cwd() / "latency_tables", chosen, device)
    notes = list(imported.notes)
    if engine_version is None:
        notes.append(f"no --engine-version: where {engine.name} is installed, `fit` and `predict` refuse the table")
    written = table if dry_run else write_imported(table, directory, append=append)
    data: dict[str, Any] = {
        "table": str(directory),
        "target": chosen.name,
        "format": source,
        "device": dict(device.facts),
        "engine_version": table.header.engine_version,
        "protocol": dict(table.header.protocol),
        "probes": len(table.of_kind(PROBE)),
        "networks": len(table.of_kind(NETWORK)),
        "kernels": len({kernel for row in table.rows for kernel, _ in row.kernels}),
        "aggregated": imported.aggregated,
        "rows": len(table.rows),
        "table_rows": len(written.rows),
        "without_latency": list(imported.without_latency),
        "not_kernels": list(imported.not_kernels),
        "layers_over_network": imported.layers_over_network,
        "notes": notes,
    }

    def show(console: Console) -> None:
        verb = "would write" if dry_run else "wrote"
        lines = [
            f"{verb} {data['probes']} probes and {data['networks']} networks, {data['kernels']} kernels → {directory}",
            f"{data['aggregated']} of them are averages or medians of {source}'s own: they say nothing of tails",
        ]
        for name, what in (("without_latency", "without a latency"), ("not_kernels", "running no kernel")):
            if data[name]:
                more = " …" if len(data[name]) > NAMED_AT_MOST else ""
                lines.append(f"{len(data[name])} {what}, left out: {', '.join(data[name][:NAMED_AT_MOST])}{more}")
        if imported.layers_over_network is not None:
            lines.append(f"the layers add up to {imported.layers_over_network:.3g} × the network")
        for line in (*lines, *notes):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    emit(Outcome(data, show), as_json)


def _device(engine: Engine, name: str | None, this_device: bool) -> DeviceFingerprint:
    """The device the user states; never this machine's unless asked for."""
    from akd_deploy.profiling.importers.into_table import stated_device

    target = engine.target
    if (name is None) == (not this_device):
        raise UsageError(
            asked="the device the files were measured on",
            found="both --device-name and --this-device" if this_device else "no word of it",
            next='Give --device-name "RTX 4090", or --this-device where it was this machine.',
        )
    if name is None:
        engine.require(engine.why_not())
        return engine.fingerprint()
    if target.is_generic:
        raise UsageError(
            asked=f"a table of device {name!r} for target {target.name}",
            found=f"a target whose device {target.device!r} means the machine it is used on",
            next=f'Give --this-device, or write targets/NAME.toml with device = "{name}".',
        )
    return stated_device(name)


def _from_trtexec(
    files: Sequence[Path], target: Target, network: str | None, onnx: Path | None, warmup_runs: int, metric: str
) -> Imported:
    from akd_deploy.engines.tensorrt_build import node_settings
    from akd_deploy.profiling.importers.trtexec import rows_from_trtexec

    nodes = None if onnx is None else node_settings(onnx, target.batch)
    return rows_from_trtexec(files, target, network=network, nodes=nodes, warmup_runs=warmup_runs, metric=metric)


def _from_onnxruntime(
    files: Sequence[Path], target: Target, network: str | None, optimized_model: Path | None, warmup_runs: int
) -> Imported:
    from akd_deploy.profiling.importers.onnxruntime_profile import rows_from_profiles

    if optimized_model is None:
        raise UsageError(
            asked="the model whose nodes the profile times",
            found="no --optimized-model: a profile tells shapes, but no strides, groups or fused activations",
            next="Set SessionOptions.optimized_model_filepath in the profiled session, and give that file.",
        )
    return rows_from_profiles(files, optimized_model, target, network=network, warmup_runs=warmup_runs)


def _from_blocks(source: str, files: Sequence[Path], engine: Engine, kernels: str) -> Imported:
    from akd_deploy.profiling.importers.measured_blocks import imported_from_blocks, plain_kernels
    from akd_deploy.profiling.importers.nn_meter import blocks_from_nn_meter
    from akd_deploy.profiling.importers.once_for_all import blocks_from_lookup_table

    if kernels not in ("engine", "onnx"):
        raise UnknownNameError("way to name kernels", kernels, ("engine", "onnx"))
    if source == "nn-meter":
        measured, without_latency = blocks_from_nn_meter(files, engine.target.batch)
    elif len(files) == 1:
        measured, without_latency = blocks_from_lookup_table(files[0], engine.target.batch)
    else:
        raise UsageError(
            asked="one lookup table", found=f"{len(files)} files", next="Import them one by one, with --append."
        )
    if kernels == "onnx":
        return imported_from_blocks(source, measured, without_latency, plain_kernels(engine.target.precision), "onnx")
    try:
        by = f"{engine.name} {engine.version()}"
        return imported_from_blocks(source, measured, without_latency, _kernels_of(engine), by)
    except MissingRuntimeError as error:
        raise MissingRuntimeError(
            error.asked, error.found, f"{error.next} Or give --kernels onnx: rows that name plain ONNX operators."
        ) from error


def _kernels_of(engine: Engine) -> Callable[[Sequence[Block]], list[tuple[Kernel, ...]]]:
    """Blocks → what the engine executes for them, in the precision that the target ships."""
    from akd_deploy.pipeline.typed import typed_network
    from akd_deploy.profiling.importers.block_models import executed_by

    def kernels_of(blocks: Sequence[Block]) -> list[tuple[Kernel, ...]]:
        if engine.name == "torch":
            raise UsageError(
                asked=f"the kernels of blocks on target {engine.target.name}",
                found="the torch engine, which reads no ONNX files",
                next="Give --kernels onnx, or a target of another engine.",
            )
        with tempfile.TemporaryDirectory(prefix="akd-import-") as folder:
            return executed_by(
                blocks, lambda path: engine.executed_kernels(typed_network(path, engine.target)), Path(folder)
            )

    return kernels_of
