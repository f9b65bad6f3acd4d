"""Commands about latency: profile, fit, feasible."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console

from akd_deploy.cli.options import DryRun, Json, Resume, Seed, Space, Table, TargetName
from akd_deploy.cli.output import Outcome, emit, progress_bars, table
from akd_deploy.errors import UsageError
from akd_deploy.units import format_seconds, format_sigma, parse_fraction, parse_latency_budget

LEAST_PROBES, PROBES = 20, 240
"""Of a profile that builds on no other: at least, and unless told otherwise."""


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for command in (profile, fit, feasible):
        app.command()(command)


def profile(
    target: TargetName,
    space: Space = None,
    onnx: Annotated[
        list[Path] | None,
        typer.Option(
            "--onnx", "--model", help="Profile the kernels of this network instead (for torch a .pt2 file); repeatable."
        ),
    ] = None,
    general: Annotated[
        bool,
        typer.Option("--general", help="Profile stretches of published networks instead, for networks to come."),
    ] = False,
    calibrate_on: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --onnx or --general: a network to measure whole, for intervals and scores only; repeatable."
        ),
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.05,
            help="End after this long, with as many measured as it is enough for; with --general 15 by default.",
        ),
    ] = None,
    until_error: Annotated[
        str | None,
        typer.Option(
            help="Plan no more than lowers the expected error of networks to this, like 3%. Unless this or --probes is "
            "given, the plan ends where its rest would lower it by less than 1 %, relatively."
        ),
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(
            min=5, help="Stretches of networks to measure; with --transfer-from, 10 by default.", show_default="240"
        ),
    ] = None,
    networks: Annotated[int, typer.Option(min=0, help="Whole networks to calibrate and score on.")] = 40,
    transfer_from: Annotated[
        str | None,
        typer.Option(help="Targets, or folders of latency tables, T1,T2: complete their predictors by a few probes."),
    ] = None,
    blocks: Annotated[
        int | None,
        typer.Option(min=1, help="Fresh processes for each: 3, or 2 of stretches of networks, unless told otherwise."),
    ] = None,
    resume: Resume = False,
    seed: Seed = 0,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Measure the kernels of a search space, or of given networks, on a target and write its latency table."""
    from akd_deploy.engines import load_engine
    from akd_deploy.latency_table import HEADER_NAME, NETWORK, PROBE, read_table, table_directory
    from akd_deploy.pipeline.expected_error import LEAST_GAIN, Enough, LiveError
    from akd_deploy.pipeline.planning import Domain, planned_probes
    from akd_deploy.pipeline.probe_plan import (
        GENERAL_MINUTES,
        GENERAL_STRETCHES,
        MOST_STRETCHES,
        STRETCHES,
        stretches_plan,
    )
    from akd_deploy.pipeline.spaces import named_space
    from akd_deploy.predictor.fitting import MIN_PROBES
    from akd_deploy.profiling.measured_journal import JOURNAL_NAME
    from akd_deploy.profiling.profile import (
        PROFILE,
        ProfilePlan,
        measure_subjects,
        plan_within,
        resumed_protocol,
        unfinished,
    )
    from akd_deploy.target import load_target

    if transfer_from is None and probes is not None and probes < LEAST_PROBES:
        raise UsageError(
            asked=f"a profile of {probes} probes",
            found=f"fewer than {LEAST_PROBES}, from which nothing can be fitted",
            next=f"Measure at least {LEAST_PROBES}, or complete other devices' tables: --transfer-from.",
        )
    if transfer_from is not None and minutes is not None:
        raise UsageError(
            asked="a transfer in --minutes",
            found="both --transfer-from and --minutes",
            next="Say with --probes how many to measure; each takes a few seconds.",
        )
    limit = None if until_error is None else parse_fraction(until_error)
    if limit is not None and transfer_from is not None:
        raise UsageError(
            asked="a transfer --until-error",
            found="both --transfer-from and --until-error",
            next="Say with --probes how many to measure.",
        )
    if general and minutes is None and transfer_from is None:
        minutes = GENERAL_MINUTES
    chosen = load_target(target)
    engine = load_engine(chosen)
    engine.require(engine.why_not())
    directory = table_directory(Path.cwd() / "latency_tables", chosen, engine.fingerprint())
    protocol = PROFILE if blocks is None else replace(PROFILE, blocks=blocks)
    if resume:
        protocol = resumed_protocol(directory, protocol)
    asked = [name for name, given in (("--space", space), ("--onnx", onnx), ("--general", general)) if given]
    if len(asked) > 1:
        raise UsageError(asked="one thing to profile", found=" and ".join(asked), next="Give one of them.")
    if calibrate_on and not onnx and not general:
        raise UsageError(
            asked="--calibrate-on", found="no --onnx beside it", next="Name the networks whose windows are probes."
        )
    usual = GENERAL_STRETCHES if general else MOST_STRETCHES if limit is not None else PROBES
    most = probes or usual
    if general or (onnx and chosen.engine != "torch"):
        stretches = STRETCHES if blocks is None else replace(STRETCHES, blocks=blocks)
        plan = stretches_plan(most, resumed_protocol(directory, stretches) if resume else stretches, minutes, seed)
    elif minutes:
        plan = plan_within(minutes, protocol, seed)
    else:
        plan = ProfilePlan(most, networks, protocol, seed)
    of = named_space(space or "mobile") if not onnx and not general else None
    domain = Domain(of, tuple(onnx or ()), tuple(calibrate_on or ()), plan.networks)
    if not dry_run and not resume and (directory / JOURNAL_NAME).is_file():
        raise unfinished(directory / JOURNAL_NAME)
    if not dry_run and not resume and (directory / HEADER_NAME).is_file():
        raise UsageError(
            asked=f"a new latency table in {directory}",
            found="one that is there already",
            next="Add --resume to extend it, or delete the folder to start again.",
        )
    if transfer_from is not None:
        from akd_deploy.cli.transfer_profile import TransferJob, transfer_outcome
        from akd_deploy.pipeline.transfer import PROBES as FEW
        from akd_deploy.pipeline.transfer import candidates

        job = TransferJob(chosen, transfer_from, probes or FEW, protocol, directory, seed, resume)
        emit(transfer_outcome(job, lambda: candidates(chosen, domain, networks, seed), dry_run, as_json), as_json)
        return
    data: dict[str, Any] = {
        "table": str(directory),
        "target": chosen.name,
        "probes": plan.probes,
        "networks": plan.networks,
        "blocks": plan.protocol.blocks if transfer_from is None else protocol.blocks,
    }
    if not dry_run:
        with progress_bars(as_json) as on_progress:
            planned = planned_probes(
                chosen,
                domain,
                Enough(plan.probes, limit, None if probes or limit is not None else LEAST_GAIN),
                seed,
                read_table(directory).rows if resume and (directory / HEADER_NAME).is_file() else (),
                lambda done, total: on_progress("planning", done, total),
                plan.within_s,
            )
            watch = LiveError(planned.expected)
            profiled = measure_subjects(
                chosen,
                planned.subjects,
                planned.within_what_is_left(plan),
                directory,
                resume=resume,
                on_prepared=lambda done, total: on_progress("preparing", done, total),
                on_model=lambda done, total: on_progress("measuring", done, total, watch.note),
                on_measured=watch.measured,
            )
        measured = profiled.table
        data |= {
            "probes": planned.probes,
            "networks": sum(subject.kind == NETWORK for subject in planned.subjects.subjects),
            "kernels": len({kernel for row in measured.rows for kernel, _ in row.kernels}),
            "rows": len(measured.rows),
            "seconds": profiled.seconds,
            "sigma": measured.sigma,
            "planned_blocks": profiled.planned,
            "measured_blocks": profiled.measured,
            "disturbed_blocks": profiled.disturbed,
            "torn_lines": profiled.torn_lines,
            "too_few_to_fit": len(measured.of_kind(PROBE)) < MIN_PROBES,
        }
        if planned.expected is not None:
            data["expected_error"] = planned.error_of(measured)
            data["plan_ended_by"] = planned.ended
        data["left_out"] = dict(planned.unlisted)

    def show(console: Console) -> None:
        if dry_run:
            at_most = f" for {minutes:g} minutes at most" if minutes else ""
            console.print(f"would measure {plan.probes} probes and {plan.networks} networks into {directory}{at_most}")
            return
        console.print(
            f"{data['rows']} measurements of {data['kernels']} kernels in {data['seconds']:.0f} s, "
            f"σ between processes {format_sigma(data['sigma'])} → {directory}"
        )
        complete = profiled.measured >= profiled.planned
        if data.get("expected_error") is not None and not data["too_few_to_fit"]:
            for line in expectation_lines(data["expected_error"], limit, planned.ended if complete else None):
                console.print(line)
        for name, why in data["left_out"].items():
            console.print(f"left out: {name}: {why}", markup=False, highlight=False)
        if not complete:
            console.print(
                f"time was enough for {profiled.measured:,} of {profiled.planned:,} planned blocks; "
                "--resume measures more"
            )
        if profiled.disturbed:
            console.print(f"{profiled.disturbed} blocks stayed disturbed however often they were measured")
        if data["too_few_to_fit"]:
            console.print(
                f"{data['rows']} measurements are too few to fit a predictor to ({MIN_PROBES} stretches at least): "
                "profile more or larger networks, with --resume",
                soft_wrap=True,
            )
        if profiled.torn_lines:
            console.print(f"{profiled.torn_lines} torn line of a killed profile's journal was left out")

    emit(Outcome(data, show), as_json)


def expectation_lines(expected: float, limit: float | None, ended: str | None) -> list[str]:
    """What a profile may expect of its predictor, and whether more would help.

    Args:
        limit: the error that was asked for.
        ended: why no more were planned; None where not all of the plan was measured.
    """
    from akd_deploy.pipeline.expected_error import GAIN, LEAST_GAIN

    lines = [
        f"expected error of a network like those measured: {expected:.1%} (forecast from what is measured and how "
        "often; `fit` scores it)"
    ]
    if limit is not None and expected > limit:
        lines.append(f"that is more than the {limit:.1%} asked for: --resume with more --probes or --minutes")
    elif ended == GAIN:
        lines.append(f"more would lower it by less than {LEAST_GAIN:.0%} of itself; --probes measures so many")
    return lines


def fit(target: TargetName, directory: Table = None, as_json: Json = False) -> None:
    """Fit the target's latency predictor and score it on networks it was not fitted on."""
    from dataclasses import asdict

    from akd_deploy.pipeline.latency import target_latency
    from akd_deploy.target import load_target

    latency = target_latency(load_target(target), directory)
    predictor = latency.predictor
    data = {
        **asdict(predictor.scores),
        "calibrated_on": predictor.calibrated_on,
        "in_place_factor": predictor.factor,
        "left_out": predictor.left_out,
        "tail_factors": {f"p{p:g}": factor for p, factor in predictor.tail_factors.items()},
        "table": str(latency.directory),
        "warnings": predictor.scores.warnings(),
    }
    origin = latency.table.header.transfer
    if origin is not None:
        data["transferred_from"] = [asdict(source) for source in origin.sources]

    def show(console: Console) -> None:
        console.print(table(f"Predictor of {target}", ("score", ">value"), _fitted_rows(data)))
        for warning in data["warnings"]:
            console.print(warning, markup=False, highlight=False, soft_wrap=True)

    emit(Outcome(data, show), as_json)


def _fitted_rows(data: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a fit found, in words and with units."""

    def share(key: str) -> str:
        return "unknown" if data[key] is None else f"{data[key]:.1%}"

    def plain(key: str) -> str:
        return "unknown" if data[key] is None else f"{data[key]:.3f}"

    tails = ", ".join(f"{name} {factor:.2f}×" for name, factor in data["tail_factors"].items())
    rows = [
        (f"scored on ({data['calibrated_on']}, each without itself)", str(data["items"])),
        ("mean error (MAPE)", share("mape")),
        ("noise of a label (σ)", share("sigma")),
        ("mean error of a perfect predictor of such labels", share("floor_mape")),
        ("within ±5 %", share("within_5")),
        ("within ±10 %", share("within_10")),
        ("worst", share("worst")),
        ("Kendall τ", plain("kendall_tau")),
        ("Spearman ρ", plain("spearman")),
        ("intervals of 90 % hold", share("coverage")),
        ("in-place factor", plain("in_place_factor")),
        ("left out, for operators that no probe has", str(data["left_out"])),
        ("samples over full speed", tails or "too few samples"),
        ("table", data["table"]),
    ]
    if "transferred_from" in data:
        rows.append(("transferred from", ", ".join(str(source["target"]) for source in data["transferred_from"])))
    return rows


def feasible(
    target: TargetName,
    space: Space = None,
    latency_budget: Annotated[str | None, typer.Option(help="Like 2ms.")] = None,
    percentile: Annotated[float, typer.Option(min=50, max=99, help="That must meet the budget.")] = 90,
    directory: Table = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Say what a search space can reach on a target, before any training."""
    from akd_deploy.configuration import CertificateTable
    from akd_deploy.errors import InfeasibleBudgetError
    from akd_deploy.pipeline.feasibility import feasibility
    from akd_deploy.pipeline.latency import target_latency
    from akd_deploy.pipeline.spaces import named_space
    from akd_deploy.target import load_target

    budget_s = parse_latency_budget(latency_budget, None) if latency_budget else None
    latency = target_latency(load_target(target), directory)
    factor = latency.certificate_factor(CertificateTable(percentile=percentile))
    found = feasibility(latency.compile(named_space(space or "mobile")), np.random.default_rng(seed), budget_s, factor)
    data = {"target": target, "budget_s": budget_s, **found.as_dict()}

    def show(console: Console) -> None:
        rows = [
            ("fastest", format_seconds(found.min_s), f"{found.min_parameters:,}"),
            ("median", format_seconds(found.median_s), f"{found.median_parameters:,}"),
            ("slowest", format_seconds(found.max_s), f"{found.max_parameters:,}"),
        ]
        console.print(table(f"Reachable on {target}", ("", ">latency", ">parameters"), rows))
        if budget_s is not None:
            share = found.fraction_within_budget or 0.0
            console.print(
                f"{share:.2%} of architectures are expected to meet {format_seconds(budget_s)}: a certificate at "
                f"p{percentile:g} asks for {factor:.2f} × the upper end of a predicted interval here"
            )

    if found.reachable is False:
        raise InfeasibleBudgetError(
            asked=f"students within {format_seconds(budget_s or 0)} on {target}",
            found=f"none; the fastest needs {format_seconds(found.fastest_bound_s)}",
            next="Raise the budget or widen the space.",
            **data,
        )
    emit(Outcome(data, show), as_json)
