"""Students shipped to every target: built, compared with torch, predicted, measured, certified; and certified again.

    python -m benchmarks.shipping run runs/shipping.json
    python -m benchmarks.shipping recertify runs/shipping.json
    python -m benchmarks.shipping figures

`run` draws students of a space (untrained: neither time nor parity depends on what they have learnt), profiles
targets that have no latency table yet (a small one, beside the file), builds an engine for each target, and writes
budgets into the file before anything is measured: the upper end of the predicted interval times what a certificate
asks on that table. Then all engines are measured in fresh processes in turn, and certified. Targets that cannot run
here are built alone (TensorRT RTX), or say why not. `recertify` measures the same engines again, against the same
budgets, in processes of its own, and adds the result to the file. The file's .md is its table, a line for each
target. A block that was disturbed is measured again as the protocol says, and counted. `figures` needs no record: see
benchmarks/shipping_figures.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from akd_deploy.configuration import CertificateTable
from akd_deploy.data import load_dataset
from akd_deploy.engines import load_engine
from akd_deploy.errors import AkdError, GateError, MissingFileError
from akd_deploy.latency_table import table_directory
from akd_deploy.models.student import student_from_architecture
from akd_deploy.pipeline import shipping
from akd_deploy.pipeline.latency import TargetLatency, profile_target, target_latency
from akd_deploy.pipeline.parity import student_parity
from akd_deploy.pipeline.spaces import named_space
from akd_deploy.pipeline.typed import mode_for
from akd_deploy.profiling.blocks import Measured
from akd_deploy.profiling.profile import PROFILE, ProfilePlan
from akd_deploy.storage import write_atomically, write_text_atomically
from akd_deploy.target import Target, load_target
from akd_deploy.units import format_bytes, format_seconds
from benchmarks import fuzz, shipping_figures, simulations

CPU_TARGETS = (
    "cpu_onnxruntime_fp32", "cpu_onnxruntime_extended_fp32", "cpu_onnxruntime_int8", "cpu_openvino_fp32",
    "cpu_openvino_bf16",
)  # fmt: skip
RTX, RTX_PRECISIONS = "rtx_tensorrt-rtx_fp16", ("fp16", "bf16", "int8")
BUDGET_RULE = "upper end of the predicted interval × certificate factor of the target's table, written before measuring"
REQUIRED_PASSES, REQUIRED_SLACK = 0.95, 0.25
"""Of certificates taken again, and of the median of budget / p90 − 1."""
FORMAT = 1
ISSUED = ("issued", "issued_that_hold")
"""Certificates that held when they were first tried, and how many of these hold again: only such engines ship."""


@dataclass(frozen=True)
class Size:
    """How much is done."""

    students: int
    targets: tuple[str, ...]
    rtx: tuple[str, ...]
    probes: int
    networks: int
    profile_blocks: int
    certificate: CertificateTable


FULL = Size(5, CPU_TARGETS, RTX_PRECISIONS, 120, 30, 3, CertificateTable(blocks=10, samples_per_block=100))
QUICK = Size(1, CPU_TARGETS[:2], (), 24, 8, 2, CertificateTable(blocks=10, samples_per_block=30))


def rtx_targets(precisions: Sequence[str]) -> list[Target]:
    """The plans built for RTX cards, one target for each precision."""
    base = load_target(RTX)
    return [replace(base, name=f"rtx_tensorrt-rtx_{precision}", precision=precision) for precision in precisions]


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def latency_of(target: Target, size: Size, space_name: str, tables: Path, seed: int) -> tuple[TargetLatency, float]:
    """The target's predictor, and the seconds its table took; profiled in `tables` unless there is one.

    Raises:
        AkdError: the target cannot run here.
    """
    engine = load_engine(target)
    engine.require(engine.why_not())
    directory = table_directory(tables, target, engine.fingerprint())
    try:
        return target_latency(target, directory), 0.0
    except MissingFileError:
        plan = ProfilePlan(size.probes, size.networks, replace(PROFILE, blocks=size.profile_blocks), seed)
        say(f"{target.name}: profiling {size.probes} probes and {size.networks} networks")
        space = named_space(space_name)
        _, seconds = profile_target(target, space, plan, directory, resume=False, on_model=lambda done, total: None)
        return target_latency(target, directory), seconds


def run(
    out: Path, size: Size, space_name: str, seed: int, *, measure: Callable[..., Any] | None = None
) -> dict[str, Any]:
    """Build, predict, state budgets, measure, certify; the record, which is in `out` too."""
    began = time.monotonic()
    folder, rng = out.with_suffix(""), np.random.default_rng(seed)
    space, images = named_space(space_name), load_dataset("digits").tuning_val.images[: shipping.PARITY_SAMPLES]
    architectures = [space.sample(rng) for _ in range(size.students)]
    students = [student_from_architecture(one, seed + i).eval() for i, one in enumerate(architectures)]
    record: dict[str, Any] = {
        "format": FORMAT,
        "began": datetime.now(UTC).isoformat(timespec="seconds"),
        "space": space_name,
        "seed": seed,
        "students": [one.as_dict() for one in architectures],
        "budget_rule": BUDGET_RULE,
        "certificate": size.certificate.model_dump(),
        "targets": {},
        "rows": [],
        "recertified": [],
    }
    for target in [*map(load_target, size.targets), *rtx_targets(size.rtx)]:
        told: dict[str, Any] = {"target": target.as_dict(), "why_not": None, "profile_seconds": None}
        record["targets"][target.name] = told
        latency = None
        try:
            latency, told["profile_seconds"] = latency_of(target, size, space_name, folder / "tables", seed)
            told["device"] = dict(latency.table.header.device.facts)
        except AkdError as error:
            told["why_not"] = error.found
        for i, student in enumerate(students):
            place = folder / f"student{i}" / target.name
            place.mkdir(parents=True, exist_ok=True)
            record["rows"].append(
                {"student": i, "target": target.name, **shipped(student, target, latency, images, place)}
            )
        say(f"{target.name}: {told['why_not'] or 'built, compared, budgets stated'}")
    record["stated"] = datetime.now(UTC).isoformat(timespec="seconds")
    write(out, record)

    measured = (measure or shipping.measure_together)(
        subjects_of(record), shipping.certificate_protocol(size.certificate), np.random.default_rng(seed)
    )
    for row in record["rows"]:
        if key_of(row) in measured:
            row.update(judged(row, measured[key_of(row)], size.certificate))
    record["seconds"] = time.monotonic() - began
    write(out, record)
    return record


def shipped(
    student: Any, target: Target, latency: TargetLatency | None, images: np.ndarray, place: Path
) -> dict[str, Any]:
    """One student on one target: its engine, what it computes beside torch, its prediction and budget."""
    row: dict[str, Any] = dict.fromkeys(
        (
            "engine",
            "model",
            "build_s",
            "size_bytes",
            "precision",
            "parity",
            "predicted_s",
            "interval_s",
            "budget_s",
            "why_not",
        )
    )
    onnx_path = shipping.export_student(student, target, place)
    mode = mode_for(target)
    try:
        models = shipping.typed_variants(onnx_path, [] if mode == "fp32" else [mode], images, target, place)
    except AkdError as error:
        return row | {"why_not": str(error)}
    build = shipping.build_for(target, models, place)
    if build.built is None:
        return row | {"why_not": build.why_not}
    row |= {
        "engine": str(build.built.path),
        "model": str(models[mode]),
        "build_s": build.built.seconds,
        "size_bytes": build.built.size_bytes,
        "precision": dict(build.built.precision),
        "why_not": build.why_not_measured,
    }
    if build.why_not_measured is None:
        try:
            row["parity"] = student_parity(student, load_engine(target), build.built.path, images).as_dict()
        except AkdError as error:
            row["parity"] = {"failed": error.found}
    if latency is not None:
        try:
            prediction = latency.predict_model(models[mode])
            factor = latency.certificate_factor(CertificateTable())
        except AkdError as error:
            return row | {"why_not": f"no budget: {error.found}"}
        row |= {
            "predicted_s": prediction.latency_s,
            "interval_s": list(prediction.interval_s),
            "in_domain": prediction.in_domain,
            "certificate_factor": factor,
            "budget_s": prediction.upper_s * factor,
        }
    return row


def key_of(row: dict[str, Any]) -> str:
    return f"student {row['student']} on {row['target']}"


def subjects_of(record: dict[str, Any]) -> dict[str, tuple[Target, Path]]:
    """What there is to measure: every engine that runs here and has a budget."""
    named = {target.name: target for target in [*map(load_target, CPU_TARGETS), *rtx_targets(RTX_PRECISIONS)]}
    return {
        key_of(row): (named[row["target"]], Path(row["engine"]))
        for row in record["rows"]
        if row["engine"] and row["budget_s"] and not row["why_not"]
    }


def judged(row: dict[str, Any], measured: Measured, table: CertificateTable) -> dict[str, Any]:
    """A measurement beside its prediction and budget."""
    found = measured.measurement
    statistics = found.statistics_s()
    low, high = row["interval_s"]
    return {
        "measured_s": statistics,
        "error": row["predicted_s"] / statistics["median"] - 1,
        "in_interval": low <= statistics["median"] <= high,
        "certificate": shipping.certificate_of(found, row["budget_s"], table).as_dict(),
        "slack": row["budget_s"] / statistics["p90"] - 1,
        "remeasured": measured.remeasured,
        "disturbed": measured.disturbed,
    }


def recertify(out: Path, *, measure: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Measure the engines of a record again, against its budgets; the new entry, which is added to the file."""
    record = read(out)
    table = CertificateTable(**record["certificate"])
    seed = record["seed"] + 1 + len(record["recertified"])
    measured = (measure or shipping.measure_together)(
        subjects_of(record), shipping.certificate_protocol(table), np.random.default_rng(seed)
    )
    rows = [
        {"student": row["student"], "target": row["target"], **judged(row, measured[key_of(row)], table)}
        for row in record["rows"]
        if key_of(row) in measured
    ]
    issued = {key_of(row) for row in record["rows"] if (row.get("certificate") or {}).get("ok")}
    again = [row["certificate"]["ok"] for row in rows if key_of(row) in issued]
    entry = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        **summary(rows),
        "issued": len(again),
        "issued_that_hold": sum(again),
        "rows": rows,
    }
    record["recertified"].append(entry)
    write(out, record)
    return entry


def summary(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Passes, median slack, errors of the predictions; None where nothing was measured."""
    done = [row for row in rows if row.get("certificate")]
    return {
        "certificates": len(done),
        "pass_rate": sum(row["certificate"]["ok"] for row in done) / len(done) if done else None,
        "median_slack": median(row["slack"] for row in done) if done else None,
        "median_error": median(abs(row["error"]) for row in done) if done else None,
        "in_interval": sum(row["in_interval"] for row in done) / len(done) if done else None,
        "remeasured": sum(row["remeasured"] for row in done),
        "disturbed": sum(row["disturbed"] for row in done),
    }


def show(rows: Sequence[dict[str, Any]], title: str, issued: Mapping[str, Any] | None = None) -> None:
    """The rows and their summary, with the limits beside it; `issued` as `ISSUED` of an entry."""
    print(title)
    for row in rows:
        measured = row.get("measured_s")
        if measured is None:
            parts = [
                f"built in {row['build_s']:.2f} s, {row['size_bytes']} bytes" if row.get("build_s") else "not built"
            ]
            parts.append(str(row.get("why_not") or "not measured"))
        else:
            parts = [
                f"median {format_seconds(measured['median'])}, p90 {format_seconds(measured['p90'])}",
                f"error {row['error']:+.1%}",
                f"slack {row['slack']:.1%}",
                "certified" if row["certificate"]["ok"] else "NOT certified",
            ]
        print(f"  {key_of(row)}: {'; '.join(parts)}")
    found = {**summary(rows), **(issued or {})}
    if found["certificates"]:
        print(_told(found))
    else:
        print("nothing was measured")


def markdown(record: dict[str, Any]) -> str:
    """A line for each target: medians over its students, the worst parity and error, and every certification."""
    again = [f"certified again, {entry['date']}" for entry in record["recertified"]]
    lines = [
        "| target | built, in | size | worst parity | predicted, measured | error, worst | in its interval "
        "| slack of p90 | certified | " + "".join(f"{title} | " for title in again),
        "|---" * (9 + len(again)) + "|",
    ]
    for target in record["targets"]:
        rows = [row for row in record["rows"] if row["target"] == target]
        later = [[row for row in entry["rows"] if row["target"] == target] for entry in record["recertified"]]
        lines.append("| " + " | ".join(_cells(target, rows, later)) + " |")
    titles = ["", *(f"{title}: " for title in again)]
    for title, part in zip(titles, [record, *record["recertified"]], strict=True):
        found = {**summary(part["rows"]), **{key: part[key] for key in ISSUED if key in part}}
        if found["certificates"]:
            lines += ["", f"{title}{_told(found)}."]
    device = next((told["device"] for told in record["targets"].values() if told.get("device")), {})
    took = f"{record['seconds']:.0f} s" if "seconds" in record else "not measured yet"
    lines += ["", f"{record['began']}, {device.get('model', 'an unknown CPU')}, {took}.", ""]
    return "\n".join(lines)


def _cells(target: str, rows: Sequence[dict[str, Any]], later: Sequence[Sequence[dict[str, Any]]]) -> list[str]:
    """A target's line; a dash for what nobody could measure."""
    built = [row for row in rows if row["build_s"] is not None]
    compared = [row["parity"] for row in rows if row["parity"] and "max_rel" in row["parity"]]
    done, none = [row for row in rows if row.get("certificate")], "–"
    found = summary(rows)
    parity, took = none, ""
    if built:
        took = f", {format_seconds(median(row['build_s'] for row in built))}"
    if compared:
        agreements = [parity["top1_agreement"] for parity in compared if parity["top1_agreement"] is not None]
        parity = f"{max(parity['max_rel'] for parity in compared):.1g}"
        parity += f", top-1 {min(agreements):.0%}" if agreements else ""
    if failed := sum(bool(row["parity"]) and "failed" in row["parity"] for row in rows):
        parity = f"{failed} FAILED" + (f", others {parity}" if compared else "")
    return [
        target,
        f"{len(built)} of {len(rows)}{took}",
        format_bytes(median(row["size_bytes"] for row in built)) if built else none,
        parity,
        f"{format_seconds(median(row['predicted_s'] for row in done))}, "
        f"{format_seconds(median(row['measured_s']['median'] for row in done))}" if done else none,
        f"{found['median_error']:.1%}, {max(abs(row['error']) for row in done):.1%}" if done else none,
        f"{sum(row['in_interval'] for row in done)} of {len(done)}" if done else none,
        f"{found['median_slack']:.0%}" if done else none,
        *(_held(part) for part in (rows, *later)),
    ]  # fmt: skip


def _held(rows: Sequence[dict[str, Any]]) -> str:
    done = [row["certificate"]["ok"] for row in rows if row.get("certificate")]
    return f"{sum(done)} of {len(done)}" if done else "–"


def _told(found: dict[str, Any]) -> str:
    """A summary in words, with the limits beside it."""
    issued = ""
    if found.get("issued"):
        share = found["issued_that_hold"] / found["issued"]
        issued = f"; of {found['issued']} that held at first {share:.1%} hold again (wanted ≥ {REQUIRED_PASSES:.0%})"
    return (
        f"{found['certificates']} certificates: {found['pass_rate']:.1%} hold (wanted ≥ {REQUIRED_PASSES:.0%}), "
        f"median slack {found['median_slack']:.1%} (wanted ≤ {REQUIRED_SLACK:.0%}); predictions off by "
        f"{found['median_error']:.1%} in the median, {found['in_interval']:.0%} in their interval; "
        f"{found['remeasured']} blocks measured again, {found['disturbed']} stayed disturbed{issued}"
    )


def read(path: Path) -> dict[str, Any]:
    """A record that `run` wrote.

    Raises:
        MissingFileError: no such file.
        SystemExit: one of another format.
    """
    if not path.is_file():
        raise MissingFileError(asked=f"the record {path}", found="no such file", next="Run `run` first.")
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != FORMAT:
        raise SystemExit(f"{path} is of format {record.get('format')}, not {FORMAT}")
    return record


def write(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(record, indent=1).encode())
    if "stated" in record:
        write_text_atomically(path.with_suffix(".md"), markdown(record))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("run")
    first.add_argument("out", type=Path, help="the record, .json; engines and tables lie beside it")
    first.add_argument("--space", default="mobile", help="a space's name, or a run.toml that has one")
    first.add_argument("--students", type=int)
    first.add_argument("--seed", type=int, default=7)
    first.add_argument("--quick", action="store_true", help="one student, two targets, small tables")
    again = commands.add_parser("recertify")
    again.add_argument("out", type=Path)
    told = commands.add_parser("figures")
    told.add_argument("out", type=Path, nargs="?", default=Path("runs/shipping_figures.json"), help=".json; .md beside")
    told.add_argument("--runs", type=int, default=simulations.LEAST_RUNS, help="of each simulated figure")
    told.add_argument("--mutations", type=int, default=fuzz.MUTATIONS)
    given = parser.parse_args(arguments)
    try:
        if given.command == "run":
            size = QUICK if given.quick else FULL
            if given.students:
                size = replace(size, students=given.students)
            record = run(given.out, size, given.space, given.seed)
            show(record["rows"], f"{record['budget_rule']}; {record['seconds']:.0f} s")
        elif given.command == "recertify":
            entry = recertify(given.out)
            show(entry["rows"], f"measured again on {entry['date']}", {key: entry[key] for key in ISSUED})
        else:
            found = shipping_figures.figures(given.runs, given.mutations)
            write(given.out, found)
            text = shipping_figures.markdown(found)
            write_text_atomically(given.out.with_suffix(".md"), text)
            print(text, end="")
            return 0 if found["ok"] else GateError.exit_code
    except AkdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
