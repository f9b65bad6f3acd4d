"""Before any student: the latency table, the teacher, the budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from akd_deploy.engines import load_engine
from akd_deploy.errors import InfeasibleBudgetError, MissingFileError
from akd_deploy.latency_table import table_directory
from akd_deploy.models.export_archive import archive_from_module
from akd_deploy.models.onnx_from_module import onnx_from_module
from akd_deploy.pipeline.context import Run
from akd_deploy.pipeline.feasibility import feasibility
from akd_deploy.profiling.blocks import Protocol, measure_blocks
from akd_deploy.profiling.profile import PROFILE, ProfilePlan, profile_space
from akd_deploy.units import format_seconds, parse_latency_budget

PROFILING = "profiling begun"
"""What the journal holds from the moment a run starts to measure a table of its own."""


def profile(run: Run, _results: Mapping[str, Any]) -> dict[str, Any]:
    """Use the target's table where there is one, else measure it here."""
    # A table is on disk after its first block: one that this run began, and was stopped at, is not there yet.
    if run.journal.stage_result(PROFILING) is None:
        try:
            latency = run.latency
            return {"table": str(latency.directory), "seconds": 0.0, "measured_here": False}
        except MissingFileError:
            run.__dict__.pop("latency", None)
    engine = load_engine(run.target)
    engine.require(engine.why_not())
    directory = table_directory(run.tables, run.target, engine.fingerprint())
    table = run.configuration.profile
    run.journal.record_stage(PROFILING, {"table": str(directory)})
    plan = ProfilePlan(table.probes, table.networks, replace(PROFILE, blocks=table.blocks), run.configuration.seed)
    _, seconds = profile_space(
        run.target,
        run.space,
        plan,
        directory,
        resume=True,
        on_model=lambda done, total: run.on_progress("profiling kernels", done, total),
    )
    return {"table": str(directory), "seconds": seconds, "measured_here": True}


def teacher(run: Run, _results: Mapping[str, Any]) -> dict[str, Any]:
    """Train or load the teacher, and measure it where it runs as an ONNX network."""
    bed = run.bed
    provenance = bed.teacher.provenance
    path = _teacher_onnx(run)
    measured = measure_blocks(
        run.target,
        {"teacher": path},
        Protocol(blocks=5, warmup_s=0.05, seconds=0.05, max_samples=1000),
        run.rng("teacher"),
    )["teacher"]
    return {
        "source": provenance.source,
        "sha256": provenance.sha256,
        "parameters": provenance.parameters,
        "accuracy": bed.teacher_accuracy(),
        "latency_s": measured.measurement.median_s,
    }


def _teacher_onnx(run: Run) -> Path:
    """The teacher as the target's engine reads it."""
    table, module = run.configuration.teacher, run.bed.teacher.module
    if table.onnx is not None:
        return table.onnx
    assert module is not None
    shape = (run.target.batch, *run.bed.dataset.input_shape)
    if run.target.engine == "torch":
        return archive_from_module(module, shape, run.directory / "teacher.pt2")
    return onnx_from_module(module, shape, run.directory / "teacher.onnx")


def budget(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve the budget and check that something meets it, before any student is trained."""
    budget_s = parse_latency_budget(run.configuration.budget, results["teacher"]["latency_s"])
    found = feasibility(run.compiled, run.rng("feasible"), budget_s, run.latency.predictor.tail_factor)
    if found.fraction_within_budget == 0:
        raise InfeasibleBudgetError(
            asked=f"a student of space {run.space.name} within {format_seconds(budget_s)} on {run.target.name}",
            found=f"none of {found.sampled:,} architectures; the fastest needs {format_seconds(found.fastest_bound_s)}",
            next=f"Raise the budget to at least {format_seconds(found.fastest_bound_s)}, or widen the space.",
            fastest_s=found.fastest_bound_s,
            budget_s=budget_s,
        )
    relative = run.configuration.budget.strip().endswith("%")
    return {"budget_s": budget_s, "of": "teacher" if relative else None, "feasible": found.as_dict()}
