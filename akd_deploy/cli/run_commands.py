"""Commands that follow a run.toml: search, distill, run, shrink, demo, report."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from akd_deploy.cli.options import Config, DryRun, Json, Resume
from akd_deploy.cli.output import Outcome, emit, progress_bars, table
from akd_deploy.errors import GateError
from akd_deploy.storage import require_place
from akd_deploy.units import format_seconds, format_share

RunDirectory = Annotated[
    Path | None, typer.Option("-o", "--output", help="The run's folder; runs/<name> if not given.")
]
WINNER_FIELDS = (
    "arch", "budget_s", "predicted_s", "interval_s", "measured_s", "certificate", "accuracy", "bundle",
)  # fmt: skip
"""What `run --json` says about the winner; the rest is in `summary.json`."""
Jobs = Annotated[int, typer.Option(min=1, help='Trainings at a time in a search; more than 1 where driver = "nni".')]
RunSeed = Annotated[int | None, typer.Option("--seed", min=0, help="Instead of the configuration's.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    for command in (search, distill, run, shrink, demo, report):
        app.command()(command)


def _prepared(config: Path, output: Path | None, seed: int | None) -> tuple[Any, Path]:
    """The configuration and the run's folder; torch held to one thread, which small networks are fastest with."""
    from akd_deploy.configuration import read_configuration

    read = read_configuration(config)
    if seed is not None:
        read = read.model_copy(update={"seed": seed})
    return read, output or Path("runs") / read.name


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _plan(configuration: Any, directory: Path, until: str | None, jobs: int) -> Outcome:
    from akd_deploy.pipeline.check import check_configuration, check_jobs
    from akd_deploy.pipeline.run import stages

    check_configuration(configuration)
    check_jobs(configuration, jobs)
    names = list(stages(configuration))
    if until is not None:
        names = names[: names.index(until) + 1]
    return _would_do(configuration, directory, names)


def _would_do(configuration: Any, directory: Path, names: list[str]) -> Outcome:
    """What a dry run says."""
    data = {"run_dir": str(directory), "stages": names, "configuration": configuration.as_dict()}
    return Outcome(data, lambda console: console.print(f"would do in {directory}: {', '.join(names)}", markup=False))


def search(
    config: Config,
    output: RunDirectory = None,
    jobs: Jobs = 1,
    resume: Resume = False,
    seed: RunSeed = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Search students: profile what is missing, fit, check the budget, train candidates with the teacher."""
    from akd_deploy.pipeline.run import run_until_search, stages

    configuration, directory = _prepared(config, output, seed)
    last = next(name for name in reversed(stages(configuration)) if name.startswith("search-"))
    if dry_run:
        emit(_plan(configuration, directory, last, jobs), as_json)
        return
    _one_thread()
    with progress_bars(as_json) as on_progress:
        data = run_until_search(configuration, directory, resume=resume, on_progress=on_progress, jobs=jobs)

    def show(console: Console) -> None:
        rows = [
            (r["digest"], format_seconds(r["latency_s"]), f"{r['accuracy']:.2%}", f"{r['reward']:.4f}")
            for r in data["front"]
        ]
        console.print(table("Front", ("student", ">predicted", ">accuracy", ">reward"), rows))
        console.print(f"{data['trials']} trainings in {data['seconds']:.0f} s → {directory}")

    emit(Outcome(data, show), as_json)


def distill(
    config: Config,
    arch: Annotated[Path, typer.Option(help="An architecture file.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The student to write (.safetensors).")],
    method: Annotated[str | None, typer.Option(help="Instead of the configuration's.")] = None,
    seed: RunSeed = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train one student with the run's teacher and data."""
    from akd_deploy.architecture import read_architecture
    from akd_deploy.pipeline.distilling import distill_one

    configuration, _ = _prepared(config, None, seed)
    architecture = read_architecture(arch)
    if dry_run:
        emit(Outcome({"student": str(output)}, lambda console: console.print(f"would train {output}")), as_json)
        return
    require_place(output)
    _one_thread()
    with progress_bars(as_json) as on_progress:
        data = distill_one(configuration, architecture, output, method, on_progress)

    def show(console: Console) -> None:
        console.print(
            f"{output}: accuracy {data['accuracy']:.2%}, agreement with the teacher {data['agreement']:.2%}, "
            f"{data['seconds']:.1f} s"
        )

    emit(Outcome(data, show), as_json)


def run(
    config: Config,
    output: RunDirectory = None,
    jobs: Jobs = 1,
    resume: Resume = False,
    seed: RunSeed = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """The whole way: profile, predict, search, distil, export, measure, certify, bundle, report."""
    configuration, directory = _prepared(config, output, seed)
    _whole_way(configuration, directory, jobs, resume, dry_run, as_json)


def shrink(
    config: Config,
    output: RunDirectory = None,
    resume: Resume = False,
    seed: RunSeed = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Shrink the teacher itself: drop channels and branches until it meets the budget, distil, certify, bundle."""
    from akd_deploy.pipeline.check import check_configuration
    from akd_deploy.pipeline.shrink import shrink as shrink_teacher
    from akd_deploy.pipeline.shrink import stages

    configuration, directory = _prepared(config, output, seed)
    if dry_run:
        check_configuration(configuration, of_space=False)
        emit(_would_do(configuration, directory, list(stages(configuration))), as_json)
        return
    _one_thread()
    with progress_bars(as_json) as on_progress:
        summary = shrink_teacher(configuration, directory, resume=resume, on_progress=on_progress)
    held = summary["winner"]["certificate"]["ok"]
    emit(Outcome(summary, lambda console: show_part(console, summary), 0 if held else GateError.exit_code), as_json)


def show_part(console: Console, summary: dict[str, Any]) -> None:
    """The closing tables of a shrunk teacher."""
    from akd_deploy.pipeline.shrink import BY_HAND

    winner = summary["winner"]
    certificate, (low, high) = winner["certificate"], winner["interval_s"]
    measured = ", ".join(f"{name} {format_seconds(value)}" for name, value in winner["measured_s"].items())
    held = "holds" if certificate["ok"] else "does NOT hold"
    rows = [
        ("operations", f"{winner['macs']:,} of {winner['teacher_macs']:,} multiply-accumulates"),
        ("budget", f"{format_seconds(winner['budget_s'])} at p{certificate['percentile']:g}"),
        (
            "predicted",
            f"median {format_seconds(winner['predicted_s'])} [{format_seconds(low)}, {format_seconds(high)}]",
        ),
        ("measured", measured),
        ("certificate", f"{held}: {certificate['exceeding']} of {certificate['samples']} samples over"),
    ]
    method = winner["method"]
    labels = {
        "teacher": "teacher", method: "part, distilled afresh" if method == "kd" else f"part afresh, by {method}",
        **({} if method == "kd" else {"kd": "part afresh, by kd"}), "ce": "part, labels only",
        "inherited": "part, with the teacher's weights",
    }  # fmt: skip
    labels |= {name: f"{label}, by {method}" for name, label in BY_HAND.items() if name in winner["accuracy"]}
    for name, label in labels.items():
        shipped = " (shipped)" if name == winner["arm"] else ""
        rows.append((label, _scored(winner["accuracy"][name]) + shipped))
    rows += [(BY_HAND[name], "the part itself") for name in winner["by_hand"]]
    rows += _pairs(summary["accuracy"])
    rows += [("bundle", winner["bundle"]), ("time", f"{summary['seconds']:.0f} s")]
    console.print(table(f"Part of the teacher on {summary['target']['name']}", ("", "value"), rows))
    kept = [(layer, f"{share:.0%}") for layer, share in winner["kept"].items()]
    console.print(table("What was kept", ("layer", ">units"), kept))
    for why, count in winner["kept_whole"].items():
        console.print(f"kept whole: {count} channels, {why}", markup=False)


def demo(
    output: RunDirectory = None,
    resume: Resume = False,
    seed: RunSeed = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """The whole way on bundled real data and this machine's CPU, in a few minutes."""
    with resources.as_file(resources.files("akd_deploy.pipeline") / "demo.toml") as config:
        configuration, directory = _prepared(config, output or Path("demo"), seed)
    _whole_way(configuration, directory, 1, resume, dry_run, as_json)


ARMS = {"ce": "labels only", "hand_shrunk": "hand-shrunk"}
"""What pairs of a closing table are called that are no method's name."""


def _scored(scores: Mapping[str, Any]) -> str:
    """A network's accuracy, and what it takes where it was measured by itself."""
    spread = "" if scores["spread"] is None else f" ± {scores['spread']:.2%} over {scores['seeds']} seeds"
    latency = f", {format_seconds(scores['latency_s'])}" if "latency_s" in scores else ""
    if not scores.get("within_budget", True):
        latency += ", NOT certified within the budget"
    return f"{scores['mean']:.2%}{spread}{latency}"


def _pairs(accuracy: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Differences of arms, seed by seed, as rows of a closing table."""
    rows = []
    for pair in accuracy["paired"]:
        interval = f"[{pair['low']:+.2%}, {pair['high']:+.2%}] at 95 %"
        if pair["low"] == pair["high"]:
            interval = "in every seed, which gives no interval"
        a, b = (ARMS.get(pair[key], pair[key]) for key in ("a", "b"))
        rows.append((f"  {a} − {b}", f"{pair['mean']:+.2%} {interval}"))
    return rows


def _whole_way(configuration: Any, directory: Path, jobs: int, resume: bool, dry_run: bool, as_json: bool) -> None:
    if dry_run:
        emit(_plan(configuration, directory, None, jobs), as_json)
        return
    from akd_deploy.pipeline.run import run_pipeline

    _one_thread()
    with progress_bars(as_json) as on_progress:
        summary = run_pipeline(configuration, directory, resume=resume, on_progress=on_progress, jobs=jobs)
    winner = summary["winner"]
    data = {
        "run_dir": str(directory),
        "report": str(directory / "report.html"),
        "winner": {key: winner[key] for key in WINNER_FIELDS},
        "seconds": summary["seconds"],
    }
    held = winner["certificate"]["ok"]
    emit(
        Outcome(data, lambda console: show_closing(console, summary, directory), 0 if held else GateError.exit_code),
        as_json,
    )


def show_closing(console: Console, summary: dict[str, Any], directory: Path) -> None:
    """The closing table of a run."""
    winner, accuracy, c = summary["winner"], summary["accuracy"], summary["winner"]["certificate"]
    low, high = winner["interval_s"]
    held = "holds" if c["ok"] else "does NOT hold"
    over = f"{c['exceeding']} of {c['samples']} samples over, {c['allowed']} allowed"
    upper_s = c["clustered_upper_s"]
    to_come = f"in processes to come p{c['percentile']:g} "
    to_come += "has no bound" if upper_s is None else f"is at most {format_seconds(upper_s)}"
    again = f", {c['remeasured']} of them taken again" if c["remeasured"] else ""
    tail = summary["predictor"]["tail_factor"]
    certifiable = summary["predictor"]["certificate_factor"]
    bound = f", p{c['percentile']:g} at most {format_seconds(high * tail)}"
    bound += f", certifiable within {format_seconds(high * certifiable)}"
    full_speed = {} if winner["full_speed_s"] is None else {"at full speed": winner["full_speed_s"]}
    measured = {**winner["measured_s"], **full_speed}
    feasible = summary["feasible"]
    reach = ", ".join(f"{name} {format_seconds(feasible[f'{name}_s'])}" for name in ("min", "median", "max"))
    share = format_share(feasible["fraction_within_budget"], feasible["sampled"])
    rows = [
        ("device", f"{summary['device'].get('model', 'unknown')}, {summary['device'].get('cores', '?')} cores"),
        ("reachable", f"{reach}; {share} of the space within the budget"),
        ("budget", f"{format_seconds(winner['budget_s'])} at p{c['percentile']:g} ({summary['budget']['text']})"),
        (
            "predicted",
            f"median {format_seconds(winner['predicted_s'])} [{format_seconds(low)}, {format_seconds(high)}]{bound}",
        ),
        ("measured", ", ".join(f"{name} {format_seconds(value)}" for name, value in measured.items())),
        ("certificate", f"{held}: {over}; {to_come}; {c['blocks']} processes{again}, {c['confidence']:.0%} confidence"),
    ]
    labels, method = {"teacher": "teacher", "kd": "winner, distilled", "ce": "winner, labels only"}, winner["method"]
    if method not in labels:
        labels |= {"kd": "winner, by kd", method: f"winner, by {method}"}
    for name, label in {**labels, "hand_shrunk": f"hand-shrunk, by {method}"}.items():
        if name in accuracy:
            rows.append((label, _scored(accuracy[name])))
    rows += _pairs(accuracy)
    rows += [
        ("bundle", winner["bundle"]),
        ("report", str(directory / "report.html")),
        ("time", f"{summary['seconds']:.0f} s"),
    ]
    console.print(table(f"{summary['name']} on {summary['target']['name']}", ("", "value"), rows))
    if shutil.get_terminal_size().columns >= 60:
        engines = [
            (
                e["target"],
                "built" if e["size_bytes"] else "no",
                format_seconds(e["latency_stats_s"]["median"]) if e["latency_stats_s"] else "—",
                "—" if e["sigma"] is None else f"{e['sigma']:.1%}",
                e["why_not"] or "",
            )
            for e in summary["export"]["engines"]
        ]
        engines += [
            (
                f"{summary['target']['name']}, {v['mode']} variant",
                "built",
                format_seconds(v["latency_stats_s"]["median"]),
                "—",
                v["note"],
            )
            for v in summary["export"]["variants"]
            if not v["own"] and v["latency_stats_s"]
        ]
        console.print(table("Engines", ("target", "built", ">median", ">σ", "remark"), engines))


def report(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="A run's folder.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="The HTML file to write.")] = Path("report.html"),
    compare_with: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Another run of the same space: do both prefer the same students?"),
    ] = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write a finished run as one self-contained HTML file."""
    from akd_deploy.report.report import write_report
    from akd_deploy.report.summary import read_summary

    summary = read_summary(run_dir)
    data: dict[str, Any] = {"report": str(output)}
    if compare_with is not None:
        from akd_deploy.pipeline.preferences import compare_preferences

        data["preferences"] = summary["preferences"] = compare_preferences(summary, read_summary(compare_with))
    if not dry_run:
        write_report(summary, output)

    def show(console: Console) -> None:
        console.print(f"{'would write' if dry_run else 'wrote'} {output}")
        if "preferences" in data:
            found, common = data["preferences"], data["preferences"]["in_common"]
            told = (
                "too few to tell whether that is chance"
                if common["p"] is None
                else f"among these by {common['distance']:.3f}, by chance {common['null']:.3f}, p {common['p']:.3f}"
            )
            console.print(
                f"the better students' choices differ by {found['distance']:.3f} (Jensen–Shannon, mean over choices); "
                f"{common['students']} students were trained by both, {told}"
            )

    emit(Outcome(data, show), as_json)
