"""The command `bench`: measure a model, compare it with another, certify a budget, reproduce a record."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from rich.console import Console

from akd_deploy.cli.options import Json, Onnx, Seed, TrustEngine
from akd_deploy.cli.output import Outcome, emit, emit_error, progress_bars, table
from akd_deploy.errors import StorageError, UsageError
from akd_deploy.storage import require_place, write_text_atomically
from akd_deploy.units import format_seconds, parse_fraction, parse_latency_budget, parse_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

BLOCKS, SECONDS = 10, 0.1


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command()(bench)


def bench(
    target: Annotated[
        str | None, typer.Option(help="A target's name, or the path of its TOML file; with --reproduce, the card's.")
    ] = None,
    onnx: Onnx = None,
    engine: Annotated[Path | None, typer.Option(help="A built engine.")] = None,
    compare_with: Annotated[Path | None, typer.Option(help="Another model, measured in turn with this one.")] = None,
    aa: Annotated[bool, typer.Option("--aa", help="Measure the same model twice: may it be told apart?")] = False,
    detect: Annotated[
        str | None, typer.Option(help="A slow-down like 3%: how many blocks find it, as processes scatter here?")
    ] = None,
    latency_budget: Annotated[str | None, typer.Option(help="Certify this budget.")] = None,
    percentile: Annotated[float, typer.Option(min=50, max=99.9)] = 90,
    confidence: Annotated[float, typer.Option(min=0.5, max=0.9999)] = 0.99,
    samples: Annotated[
        Path | None, typer.Option(help="An .npz of inputs by name and labels: record which are answered rightly.")
    ] = None,
    blocks: Annotated[int | None, typer.Option(min=1, help="Fresh processes.", show_default=str(BLOCKS))] = None,
    seconds: Annotated[
        float | None, typer.Option(min=0.001, help="Of sampling in each.", show_default=str(SECONDS))
    ] = None,
    idle: Annotated[str | None, typer.Option(help="Sleep so long before every call, like 10ms.")] = None,
    boundary: Annotated[
        str | None,
        typer.Option(
            help="Of what: host, a call on bound buffers; gpu, the device's own time; or end-to-end, arrays to arrays.",
            show_default="host",
        ),
    ] = None,
    reproduce: Annotated[
        Path | None, typer.Option(help="A record of an earlier bench: measure by its protocol; does it match?")
    ] = None,
    tolerance: Annotated[str, typer.Option(help="With --reproduce: what still is a match.")] = "5%",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Write the JSON there too.")] = None,
    trust_engine: TrustEngine = False,
    key: Annotated[
        Path | None, typer.Option(help="Of an engine in a bundle: PEM file of the public key that signed it.")
    ] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Measure a model on a target: fresh processes, order statistics, and a budget certificate on request."""
    from akd_deploy.export.trusted import checked_models
    from akd_deploy.pipeline.benching import BenchSettings, bench_models, bench_protocol
    from akd_deploy.pipeline.correctness import labelled_samples
    from akd_deploy.target import load_target

    rng = np.random.default_rng(seed)
    if reproduce is not None:
        given = {
            "--compare-with": compare_with, "--aa": aa or None, "--detect": detect, "--samples": samples,
            "--latency-budget": latency_budget, "--blocks": blocks, "--seconds": seconds, "--idle": idle,
            "--boundary": boundary,
        }  # fmt: skip
        extra = [name for name, value in given.items() if value is not None]
        if extra or (onnx is not None and engine is not None):
            raise UsageError(
                asked=f"to reproduce {reproduce}",
                found=f"{', '.join(extra) or '--onnx and --engine'} besides",
                next="The record says how it was measured; give --target, or --onnx or --engine, where they differ.",
            )
        if output is not None:
            require_place(output)
        again = Again(reproduce, onnx, engine, target, parse_fraction(tolerance), trust_engine, key)
        _reproduce(again, rng, output, as_json)
        return
    if target is None:
        raise UsageError(asked="a bench", found="no --target", next="Give one; `akd-deploy targets list` lists them.")
    if (onnx is None) == (engine is None):
        raise UsageError(asked="a model", found="both or neither of --onnx and --engine", next="Give exactly one.")
    if aa and compare_with is not None:
        raise UsageError(asked="a comparison", found="both --aa and --compare-with", next="Give one of them.")
    model = onnx or engine
    assert model is not None
    others = [path for path in (onnx, compare_with) if path]
    checked = checked_models(
        load_target(target).engine, [engine] if engine else [], others, trust=trust_engine, key=key
    )
    settings = BenchSettings(
        bench_protocol(
            BLOCKS if blocks is None else blocks,
            SECONDS if seconds is None else seconds,
            parse_seconds(idle) if idle else 0.0,
            boundary or "host",
        ),
        budget_s=parse_latency_budget(latency_budget, None) if latency_budget else None,
        percentile=percentile,
        confidence=confidence,
        aa=aa,
        detect=parse_fraction(detect) if detect else None,
        samples=labelled_samples(samples) if samples else None,
    )
    if output is not None:
        require_place(output)
    with checked as instead, progress_bars(as_json) as on_progress:
        data, exit_code = bench_models(
            load_target(target), model, model if aa else compare_with, settings, rng, _measuring(on_progress), instead
        )
    _finish(data, exit_code, output, as_json)


def _measuring(on_progress: Callable[[str, int, int], None]) -> Callable[[int, int], None]:
    return lambda done, total: on_progress("measuring", done, total)


@dataclass(frozen=True)
class Again:
    """What is measured once more by a record's protocol: its own model and target where None is given."""

    card: Path
    onnx: Path | None
    engine: Path | None
    target: str | None
    tolerance: float
    trust_engine: bool
    key: Path | None


def _reproduce(again: Again, rng: np.random.Generator, output: Path | None, as_json: bool) -> None:
    from akd_deploy.export.trusted import checked_models
    from akd_deploy.pipeline.reproducing import read_card, reproduce
    from akd_deploy.target import load_target

    card = read_card(again.card)
    target = load_target(again.target) if again.target else None
    built, others = ([again.engine] if again.engine else []), ([again.onnx] if again.onnx else [])
    if not built and not others:
        others = [card.model]
    checked = checked_models((target or card.target).engine, built, others, trust=again.trust_engine, key=again.key)
    with checked as instead, progress_bars(as_json) as on_progress:
        data, exit_code = reproduce(
            card, again.onnx or again.engine, target, again.tolerance, rng, _measuring(on_progress), instead
        )
    _finish(data, exit_code, output, as_json)


def _finish(data: dict[str, Any], exit_code: int, output: Path | None, as_json: bool) -> None:
    """Write and print what was found; what cannot be written is printed all the same."""
    unwritten: StorageError | None = None
    if output is not None:
        try:
            write_text_atomically(output, json.dumps(data, indent=1, default=float) + "\n")
        except StorageError as error:
            unwritten, exit_code = error, error.exit_code
            data = {**data, "error": error.as_dict()}

    def show(console: Console) -> None:
        if unwritten is not None:
            emit_error(unwritten, as_json=False)
        console.print(bench_table(data))
        for line in data.get("reproduction", {}).get("factors", []):
            console.print(line, markup=False, highlight=False, soft_wrap=True)

    emit(Outcome(data, show, exit_code), as_json)


def bench_table(data: dict[str, Any]) -> Any:
    """The table of one bench."""
    statistics = data["latency_stats_s"]
    rows = [("median", format_seconds(statistics["median"]))]
    for name, bound_s in data["upper_bounds_s"].items():
        bound = f", below {format_seconds(bound_s)} at 95 %" if bound_s is not None else "; too little to bound it"
        rows.append((name, format_seconds(statistics[name]) + bound))
    rows.append(("at full speed", format_seconds(data["full_speed_s"])))
    rows.append(("samples", f"{data['samples']} in {len(data['blocks'])} processes"))
    rows.append(("σ between processes", "—" if data["sigma"] is None else f"{data['sigma']:.2%}"))
    for name, part in (data["boundaries_s"] or {}).items():
        rows.append((name.replace("_", " "), format_seconds(part["median"])))
    if data["cpu_s"]:
        rows.append(("CPU time of a call", format_seconds(float(np.median(list(data["cpu_s"].values()))))))
    rows += _start_rows(data["cold_start_s"])
    if data["certificate"] is not None:
        rows.append(("certificate", _certificate(data["certificate"])))
    if data["compared"] is not None:
        r = data["compared"]
        rows.append((f"beside {Path(r['model']).name}", _ratio(r)))
        rows += _disturbed_rows(r, f"disturbed, {Path(r['model']).name}")
    if data["aa"] is not None:
        verdict = "called DIFFERENT from itself" if data["aa"]["differs"] else "not told apart from itself"
        rows.append(("A/A", f"{verdict} (it may be in {data['aa']['alpha']:.0%} of benches)"))
    if data["detect"] is not None:
        rows.append(("to detect", _detection(data["detect"])))
    if data["accuracy"] is not None:
        rows.append(("accuracy", f"{data['accuracy']:.2%} of {len(data['correct'])} samples"))
    rows += _disturbed_rows(data, "disturbed")
    if "reproduction" in data:
        rows.append(("reproduction", _reproduction(data["reproduction"])))
    return table(f"{data['model']} on {data['target']['name']}", ("", ">value"), rows)


def _start_rows(starts: dict[str, Any]) -> list[tuple[str, str]]:
    rows = []
    for name, title in (("load", "loading"), ("first", "first call")):
        start = starts[name]
        if start["median"] is not None:
            ends = [format_seconds(end) for end in start["interval"] or ()]
            rows.append((title, format_seconds(start["median"]) + (f" [{', '.join(ends)}]" if ends else "")))
    return rows


def _ratio(r: dict[str, Any]) -> str:
    """How this model's latency is to the other's, which is measured in the same unit."""
    other = format_seconds(r["latency_stats_s"]["median"])
    verdict = "they differ" if r["differs"] else "not told apart"
    return (
        f"{r['ratio']:.3f}× its latency [{r['low']:.3f}×, {r['high']:.3f}×] at {r['confidence']:.0%}; "
        f"its median {other}; {verdict}"
    )


def _disturbed_rows(told: dict[str, Any], title: str) -> list[tuple[str, str]]:
    if not (told["disturbed"] or told["remeasured"]):
        return []
    blocks = ", ".join(told["disturbed_blocks"])
    stayed = f"{told['disturbed']} blocks stayed disturbed" + (f" ({blocks})" if blocks else "")
    return [(title, f"{stayed}; taken again {told['remeasured']} times")]


def _certificate(c: dict[str, Any]) -> str:
    verdict = "holds" if c["ok"] else "does NOT hold"
    upper_s = c["clustered_upper_s"]
    return (
        f"p{c['percentile']:g} ≤ {format_seconds(c['budget_s'])} at {c['confidence']:.0%}: {verdict} "
        f"({c['exceeding']} of {c['samples']} over, {c['allowed']} allowed; "
        f"worst process {c['worst_block_exceeding']:.1%} over; "
        f"over processes {'not bounded' if upper_s is None else f'below {format_seconds(upper_s)}'}; "
        f"{c['failing_blocks']} of {c['blocks']} processes missed it: at most {c['failing_share_upper']:.0%} of all do)"
    )


def _detection(d: dict[str, Any]) -> str:
    how = "in turn" if d["paired"] else "in each of two benches"
    enough = "as many as these or fewer" if d["enough"] else f"these were {d['blocks']}"
    effect = f"a slow-down of {100 * d['effect']:.3g} %"
    return f"{effect} takes {d['blocks_needed']} blocks {how} at σ {d['sigma']:.2%}; {enough}"


def _reproduction(r: dict[str, Any]) -> str:
    words = {"match": "matches", "differs": "DIFFERS", "inconclusive": "inconclusive: measure more blocks"}
    factors = f"{len(r['factors'])} recorded factors differ" if r["factors"] else "no recorded factor differs"
    low, high = r["interval"]
    return (
        f"{words[r['verdict']]}: {r['ratio']:.3f} [{low:.3f}, {high:.3f}] of the card's, "
        f"{r['tolerance']:.0%} is a match; {factors}"
    )
