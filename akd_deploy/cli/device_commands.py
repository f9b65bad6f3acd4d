"""Commands about this machine: doctor, targets."""

from __future__ import annotations

import platform
from typing import Any

import typer
from rich.console import Console

from akd_deploy.cli.options import Json
from akd_deploy.cli.output import Outcome, emit, table
from akd_deploy.errors import AkdError
from akd_deploy.units import format_bytes

targets_app = typer.Typer(help="The deployment targets that can be found.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(doctor)
    app.add_typer(targets_app, name="targets")


def doctor(as_json: Json = False) -> None:
    """Say what this machine is, which runtimes are here, what is possible and what to install."""
    from akd_deploy.device import cpu_fingerprint
    from akd_deploy.engines import ENGINES, load_engine
    from akd_deploy.target import Target

    runtimes, problems = [], []
    for name in ENGINES:
        engine = load_engine(Target(name, "cpu", name))
        run, build = engine.why_not(), engine.why_not_build()
        version = engine.version() if build is None else None
        runtimes.append({"engine": name, "version": version, "runs": run is None, "builds": build is None})
        runtimes[-1]["why_not"] = run
        reason = build or run
        if reason is not None:
            problems.append({"what": name, "found": reason, "next": engine.remedy(reason)})
    problems += _onnxruntime_conflict() + _nni_problem()
    facts, memory_bytes = dict(cpu_fingerprint().facts), _memory_bytes()
    data = {
        "python": platform.python_version(),
        "device": facts,
        "device_digest": cpu_fingerprint().digest,
        "memory_bytes": memory_bytes,
        "runtimes": runtimes,
        "problems": problems,
    }

    def show(console: Console) -> None:
        console.print(f"{facts['model']}, {facts['cores']} cores, {format_bytes(memory_bytes)}; {facts['isa']}")
        rows = [
            (r["engine"], r["version"] or "—", "yes" if r["builds"] else "no", "yes" if r["runs"] else r["why_not"])
            for r in runtimes
        ]
        console.print(table("Runtimes", ("engine", "version", "builds", "runs here"), rows))
        for problem in problems:
            console.print(f"{problem['what']}: {problem['found']} → {problem['next']}", highlight=False, markup=False)

    emit(Outcome(data, show), as_json)


def _memory_bytes() -> int:
    import psutil

    return int(psutil.virtual_memory().total)


def _onnxruntime_conflict() -> list[dict[str, str]]:
    from importlib import metadata

    found = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            metadata.version(name)
            found.append(name)
        except metadata.PackageNotFoundError:
            continue
    if len(found) < 2:
        return []
    return [
        {
            "what": "onnxruntime",
            "found": "onnxruntime and onnxruntime-gpu are both installed into the same folder",
            "next": "pip uninstall both, then install exactly one",
        }
    ]


def _nni_problem() -> list[dict[str, str]]:
    from importlib.util import find_spec

    if find_spec("nni") is not None:
        return []
    return [
        {
            "what": "nni",
            "found": f"not installed (it has no wheel for {platform.machine()} perhaps): everything but search works",
            "next": "pip install nni==3.0 on x86_64",
        }
    ]


@targets_app.command("list")
def targets_list(as_json: Json = False) -> None:
    """List every target that can be found, and whether it runs here."""
    from akd_deploy.target import known_targets, read_target

    rows = []
    for name, path in known_targets().items():
        try:
            rows.append(_target_row(read_target(path)))
        except AkdError as error:
            rows.append({"name": name, "engine": None, "runnable": False, "builds": False, "why": str(error)})

    def show(console: Console) -> None:
        cells = [
            (r["name"], r["engine"], "yes" if r["runnable"] else ("builds" if r["builds"] else "no"), r["why"] or "")
            for r in rows
        ]
        console.print(table("Targets", ("target", "engine", "runs here", "why not"), cells))

    emit(Outcome({"targets": rows}, show), as_json)


def _target_row(target: Any) -> dict[str, Any]:
    from akd_deploy.engines import load_engine

    engine = load_engine(target)
    why = engine.why_not()
    return {
        "name": target.name,
        "engine": target.engine,
        "runnable": why is None,
        "builds": engine.why_not_build() is None,
        "why": why,
    }


@targets_app.command("show")
def targets_show(name: str, as_json: Json = False) -> None:
    """Show one target: its settings, and the latency table this device has for it."""
    from akd_deploy.engines import load_engine
    from akd_deploy.errors import MissingFileError
    from akd_deploy.latency_table import find_table
    from akd_deploy.pipeline.latency import device_of
    from akd_deploy.target import load_target

    target = load_target(name)
    try:
        found: str | None = str(find_table(target, device_of(load_engine(target))))
    except MissingFileError:
        found = None
    data = {**target.as_dict(), **_target_row(target), "table": found}

    def show(console: Console) -> None:
        console.print(table(target.name, ("key", "value"), [(k, v) for k, v in data.items() if v is not None]))

    emit(Outcome(data, show), as_json)
