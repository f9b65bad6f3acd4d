"""Before any student: the latency table, the teacher, the budget."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from akd_deploy.configuration import RunConfiguration
from akd_deploy.engines import load_engine
from akd_deploy.errors import InfeasibleBudgetError, MissingFileError, UncoveredOperatorError
from akd_deploy.latency_table import table_directory
from akd_deploy.models.convnet import ConvNet
from akd_deploy.models.export_archive import archive_from_module
from akd_deploy.models.onnx_from_convnet import onnx_from_convnet
from akd_deploy.models.onnx_from_module import onnx_from_module
from akd_deploy.pipeline.context import Run
from akd_deploy.pipeline.feasibility import feasibility
from akd_deploy.pipeline.latency import profile_target
from akd_deploy.pipeline.typed import typed_network
from akd_deploy.profiling.blocks import PATIENCE_S, Protocol, measure_blocks
from akd_deploy.profiling.profile import PROFILE, ProfilePlan, resumed_protocol
from akd_deploy.units import format_seconds, format_share, parse_latency_budget

DOMAIN_SAMPLES = 20
MIN_SHARE_IN_DOMAIN = 0.8
"""With fewer of a space's networks in a table's range, the table is of another space and more is measured."""
PROFILING = "profiling begun"
"""What the journal holds from the moment a run starts to measure a table of its own."""


def profile(run: Run, _results: Mapping[str, Any]) -> dict[str, Any]:
    """Use the target's table where there is one that covers the space, else measure it here or measure more."""

    def measure(directory: Path) -> float:
        table = run.configuration.profile
        protocol = resumed_protocol(directory, replace(PROFILE, blocks=table.blocks))
        plan = ProfilePlan(table.probes, table.networks, protocol, run.configuration.seed)
        return profile_target(
            run.target,
            run.space,
            plan,
            directory,
            resume=True,
            on_model=lambda done, total: run.on_progress("profiling kernels", done, total),
        )[1]

    return used_or_measured(run, lambda: _share_in_domain(run), MIN_SHARE_IN_DOMAIN, measure)


def used_or_measured(
    run: Run, share_in_domain: Callable[[], float], least_share: float, measure: Callable[[Path], float]
) -> dict[str, Any]:
    """The target's table where enough of what the run predicts is in its range, else one that is measured here.

    Args:
        share_in_domain: of networks such as the run predicts.
        measure: writes a table, or goes on with it, in the folder it is given; returns the seconds it took.
    """
    # A table is on disk after its first block: one that this run began, and was stopped at, is not there yet.
    if run.journal.stage_result(PROFILING) is None:
        try:
            latency, share = run.latency, share_in_domain()
            if share >= least_share:
                return {"table": str(latency.directory), "seconds": 0.0, "measured_here": False, "in_domain": share}
        except MissingFileError:
            pass
        run.forget_latency()
    engine = load_engine(run.target)
    engine.require(engine.why_not())
    directory = table_directory(run.tables, run.target, engine.fingerprint())
    run.journal.record_stage(PROFILING, {"table": str(directory)})
    seconds = measure(directory)
    return {"table": str(directory), "seconds": seconds, "measured_here": True, "in_domain": share_in_domain()}


def _share_in_domain(run: Run) -> float:
    """Share of random networks of the space whose every kernel lies in the table's range; 0 where one is unknown."""
    try:
        rng = run.rng("domain")
        found = [run.latency.predict_architecture(run.space.sample(rng)).in_domain for _ in range(DOMAIN_SAMPLES)]
    except UncoveredOperatorError:
        return 0.0
    return sum(found) / len(found)


def teacher(run: Run, _results: Mapping[str, Any]) -> dict[str, Any]:
    """Train or load the teacher, and measure it where it runs as an ONNX network."""
    bed = run.bed
    provenance = bed.teacher.provenance
    path = _teacher_onnx(run)
    measured = measure_blocks(
        run.target,
        {"teacher": path},
        Protocol(blocks=5, warmup_s=0.05, seconds=0.05, max_samples=1000, pauses_s=PATIENCE_S),
        run.rng("teacher"),
    )["teacher"]
    return {
        "source": provenance.source,
        "sha256": provenance.sha256,
        "parameters": provenance.parameters,
        "accuracy": bed.teacher_accuracy(),
        "ensemble": bed.ensemble(),
        "latency_s": measured.measurement.median_s,
        "certifiable_s": measured.measurement.label_s * run.certificate_factor,
    }


def _teacher_onnx(run: Run) -> Path:
    """The teacher as the target's engine reads it."""
    table, module = run.configuration.teacher, run.bed.teacher.module
    if table.onnx is not None:
        return table.onnx
    assert module is not None
    shape = (run.target.batch, *run.bed.dataset.input_shape)
    if run.target.engine == "torch":
        return archive_from_module(module, shape, run.directory / "teacher.pt2", run.target.precision)
    path = run.directory / "teacher.onnx"
    if isinstance(module, ConvNet) and shape[2] == shape[3]:
        return typed_network(onnx_from_convnet(module, shape, path), run.target)
    return typed_network(onnx_from_module(module, shape, path), run.target)


def is_relative(configuration: RunConfiguration) -> bool:
    """Whether the budget is a share of the teacher's latency."""
    return configuration.budget.strip().endswith("%")


def budget(run: Run, results: Mapping[str, Any]) -> dict[str, Any]:
    """Resolve the budget and check that something meets it, before any student is trained.

    A percentage is of the least budget that the teacher itself could be certified for here: its latency at full speed
    times what a certificate asks, as the student's is.
    """
    relative = is_relative(run.configuration)
    teacher_s = results["teacher"]["certifiable_s"] if relative else None
    budget_s = parse_latency_budget(run.configuration.budget, teacher_s)
    found = feasibility(run.compiled, run.rng("feasible"), budget_s, run.certificate_factor)
    if not found.reachable:
        raise InfeasibleBudgetError(
            asked=f"a student of space {run.space.name} within {format_seconds(budget_s)} on {run.target.name}",
            found=f"none of {found.sampled:,} architectures; the fastest needs {format_seconds(found.fastest_bound_s)}",
            next=f"Raise the budget to at least {format_seconds(found.fastest_bound_s)}, or widen the space.",
            fastest_s=found.fastest_bound_s,
            budget_s=budget_s,
        )
    reach = f"{format_seconds(found.min_s)} to {format_seconds(found.max_s)}"
    share = f"{format_share(found.fraction_within_budget, found.sampled)} within {format_seconds(budget_s)}"
    run.on_progress(f"feasible: {reach}, {share}", 1, 1)
    return {"budget_s": budget_s, "of": "teacher" if relative else None, "feasible": found.as_dict()}
