"""`profile --transfer-from`: what it does, and what it says of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from akd_deploy.cli.output import Outcome, progress_bars
from akd_deploy.units import format_sigma

if TYPE_CHECKING:
    from akd_deploy.profiling.blocks import Protocol
    from akd_deploy.profiling.subjects import Subjects
    from akd_deploy.target import Target


@dataclass(frozen=True)
class TransferJob:
    """What was asked for; `sources` as written, `probes` is how many to measure."""

    target: Target
    sources: str
    probes: int
    protocol: Protocol
    directory: Path
    seed: int
    resume: bool


def transfer_outcome(job: TransferJob, candidates: Callable[[], Subjects], dry_run: bool, as_json: bool) -> Outcome:
    """Find the sources, and measure unless nothing is to be done."""
    from akd_deploy.pipeline.transfer import profile_transfer
    from akd_deploy.pipeline.transfer_sources import find_sources

    found = find_sources(job.sources, job.directory)
    data: dict[str, Any] = {
        "table": str(job.directory),
        "target": job.target.name,
        "probes": job.probes,
        "blocks": job.protocol.blocks,
        "transferred_from": [source.as_dict() for source in found],
        "notes": [note for source in found for note in source.unlike(job.target)],
    }
    if not dry_run:
        with progress_bars(as_json) as on_progress:
            profiled = profile_transfer(
                job.target,
                candidates(),
                {source.name: source.source() for source in found},
                job.probes,
                job.protocol,
                job.directory,
                job.seed,
                resume=job.resume,
                on_prepared=lambda done, total: on_progress("listing kernels", done, total),
                on_model=lambda done, total: on_progress("measuring", done, total),
            )
        table, plan = profiled.table, profiled.plan
        data |= {
            "kernels": len({kernel for item in plan.items for kernel, _ in item.kernels}),
            "candidates": len(plan.items),
            "measured": [row.name for row in table.rows],
            "rows": len(table.rows),
            "seconds": profiled.seconds,
            "sigma": table.sigma,
            "planned_blocks": profiled.planned,
            "measured_blocks": profiled.measured,
            "disturbed_blocks": profiled.disturbed,
            "torn_lines": profiled.torn_lines,
            "intervals_rehearsed": plan.width is not None,
        }

    def show(console: Console) -> None:
        names = ", ".join(source.name for source in found)
        for note in data["notes"]:
            console.print(f"note: {note}", markup=False)
        if dry_run:
            console.print(f"would measure {job.probes} probes into {job.directory}, to complete {names}", markup=False)
            return
        console.print(
            f"{data['rows']} of {data['candidates']} candidates measured in {data['seconds']:.0f} s, "
            f"σ {format_sigma(data['sigma'])}, to complete {names} → {job.directory}",
            markup=False,
        )
        if not data["intervals_rehearsed"]:
            console.print("sources of two families or more would tell how wide intervals have to be")
        if profiled.disturbed:
            console.print(f"{profiled.disturbed} blocks stayed disturbed however often they were measured")
        if profiled.torn_lines:
            console.print(f"{profiled.torn_lines} torn line of a killed profile's journal was left out")

    return Outcome(data, show)
