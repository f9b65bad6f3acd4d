"""What is promised of benches, lint and bundles, computed anew: one record and one table of promise beside finding.

    python -m benchmarks.shipping figures runs/shipping_figures.json

Simulated are the statistics of benches (benchmarks/simulations.py), bundles are changed at random (benchmarks/fuzz.py),
and lint reads its corpus (tests/export/lint_corpus.py). Two things are timed, on the machine that this runs on: linting
a ResNet-50, in CPU seconds, and a block of a comparison of two networks, from which follows what it costs to find a
slow-down. All of it takes two or three minutes on two cores.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from akd_deploy.device import cpu_fingerprint
from akd_deploy.errors import AkdError
from akd_deploy.export.lint import lint_onnx
from akd_deploy.models.onnx_skeleton import filled, read_skeleton
from akd_deploy.models.published import skeleton_path
from akd_deploy.pipeline.benching import bench_protocol
from akd_deploy.profiling.blocks import measure_blocks
from akd_deploy.target import load_target
from benchmarks import fuzz, simulations

TESTS = Path(__file__).parents[1] / "tests" / "export"
TARGET, TIMED = "cpu_onnxruntime_fp32", "mobilenet_v2"
"""What a block of a bench is timed with."""
FORMAT = 1


@dataclass(frozen=True)
class Row:
    """One promise: what was counted, what was wanted of it, and whether it is so."""

    promise: str
    of: str
    found: str
    wanted: str
    ok: bool


def figures(runs: int, mutations: int) -> dict[str, Any]:
    """Everything, and the table's rows; `ok` where every promise is kept."""
    began = time.monotonic()
    record: dict[str, Any] = {
        "format": FORMAT,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": dict(cpu_fingerprint().facts),
        "simulations": simulations.figures(runs),
        "fuzz": fuzz.figures(mutations),
        "lint": lint_figures(),
        "block": block_cost(),
    }
    rows = [*bench_rows(record["simulations"], record["block"]), *fuzz_rows(record["fuzz"]), *lint_rows(record["lint"])]
    return record | {
        "rows": [asdict(row) for row in rows],
        "ok": all(row.ok for row in rows),
        "seconds": time.monotonic() - began,
    }


def network(name: str, folder: Path) -> Path:
    """A published network with weights of noise."""
    path = folder / f"{name}.onnx"
    path.write_bytes(filled(read_skeleton(skeleton_path(name)), np.random.default_rng(0)).SerializeToString())
    return path


def lint_figures() -> dict[str, Any]:
    """Of each set of defective networks how many are found completely; findings on clean ones; CPU seconds."""
    if str(TESTS) not in sys.path:
        sys.path.insert(0, str(TESTS))
    corpus = importlib.import_module("lint_corpus")
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch, "m.onnx")
        for key, seeded in (("bad", corpus.BAD), ("second", corpus.SECOND)):
            right = []
            for name, bad in seeded.items():
                path.write_bytes(bad.make().SerializeToString())
                if {(f.rule, f.node) for f in lint_onnx(path, bad.target)} == bad.expected:
                    right.append(name)
            found[key] = {"networks": len(seeded), "found": len(right), "missed": sorted(seeded.keys() - {*right})}
        findings = [len(lint_onnx(clean.write(Path(scratch)), clean.target)) for clean in corpus.CLEAN.values()]
        found["clean"] = {"networks": len(findings), "findings": sum(findings)}
        resnet = network("resnet50", Path(scratch))
        began = time.process_time()
        lint_onnx(resnet, load_target(TARGET))
        found["resnet50_cpu_s"] = time.process_time() - began
    return found


def block_cost(blocks: int = 3) -> dict[str, Any]:
    """Seconds of one block of `bench --compare-with` by its own protocol: two networks in one fresh process."""
    cost: dict[str, Any] = {"target": TARGET, "network": TIMED, "seconds": None, "why_not": None}
    with tempfile.TemporaryDirectory() as scratch:
        model = network(TIMED, Path(scratch))
        protocol = replace(bench_protocol(blocks, 0.1), max_remeasure=0)
        began = time.monotonic()
        try:
            measure_blocks(load_target(TARGET), {"a": model, "b": model}, protocol, np.random.default_rng(0))
        except AkdError as error:
            return cost | {"why_not": error.found}
        return cost | {"seconds": (time.monotonic() - began) / blocks}


def bench_rows(simulated: dict[str, Any], block: dict[str, Any]) -> list[Row]:
    """Of the statistics: what measurement.md of a bench promises."""
    enough = simulated["runs"] >= simulations.LEAST_RUNS
    of = f"{simulated['runs']:,} runs"
    rows = []
    for a in simulated["false_alarms"]:
        how = f"{a['blocks']} {'paired' if a['paired'] else 'unpaired'} blocks"
        found = f"{a['rate']:.2%}, at most {a['upper_95']:.2%} at 95 %"
        rows.append(
            Row(f"A/A: the same model called different, {how}", f"{a['runs']:,} runs", found, "≤ 6 %",
                enough and a["upper_95"] <= 0.06)
        )  # fmt: skip
    for d in simulated["slow_downs_of_3_percent"]:
        cost = f"{d['blocks']} blocks {'in turn' if d['paired'] else 'of each'}"
        if block["seconds"] is not None:  # two unpaired blocks measure what one paired block does
            cost += f", {d['blocks'] * block['seconds'] / 60:.1f} min"
        rows.append(
            Row(f"a slow-down of 3 % found at σ {d['sigma']:.1%}, {cost}", of, f"{d['power']:.1%}", "≥ 95 %",
                enough and d["power"] >= 0.95)
        )  # fmt: skip
    for c in simulated["coverage_of_95_percent_bounds"]:
        rows.append(
            Row(f"95 % upper bound of p{c['percentile']:g} covers, {c['between']:.1%} between processes", of,
                f"{c['coverage']:.1%}, {c['excess']:+.1%} above it", "≥ 94 %", enough and c["coverage"] >= 0.94)
        )  # fmt: skip
    return rows


def fuzz_rows(fuzzed: dict[str, Any]) -> list[Row]:
    of, enough = f"{fuzzed['mutations']:,} mutations", fuzzed["mutations"] >= fuzz.MUTATIONS
    return [
        Row(f"changed bundles {what}", of, str(fuzzed[key]), "0", enough and fuzzed[key] == 0)
        for what, key in (("accepted", "accepted"), ("that crash the verifier", "crashed"))
    ]


def lint_rows(linted: dict[str, Any]) -> list[Row]:
    bad, second, clean = (linted[key] for key in ("bad", "second", "clean"))
    return [
        Row("defective networks of lint's corpus, all defects found and nothing else", f"{bad['networks']} networks",
            str(bad["found"]), "all of ≥ 30", bad["found"] == bad["networks"] >= 30),
        Row("defects that no rule was written for, likewise", f"{second['networks']} networks", str(second["found"]),
            "all", second["found"] == second["networks"] > 0),
        Row("findings on networks without defects", f"{clean['networks']} networks", str(clean["findings"]),
            "0 on ≥ 10", clean["findings"] == 0 and clean["networks"] >= 10),
        Row("linting a ResNet-50", "CPU time", f"{linted['resnet50_cpu_s']:.2f} s", "< 5 s",
            linted["resnet50_cpu_s"] < 5),
    ]  # fmt: skip


def markdown(record: dict[str, Any]) -> str:
    """The table, and below it what it was computed on."""
    rows: Sequence[dict[str, Any]] = record["rows"]
    lines = ["| promise | of | found | wanted | |", "|---|---|---|---|---|"]
    lines += [
        f"| {r['promise']} | {r['of']} | {r['found']} | {r['wanted']} | {'kept' if r['ok'] else '**NOT kept**'} |"
        for r in rows
    ]
    block = record["block"]
    timed = (
        f"a block of two {block['network']} in turn took {block['seconds']:.1f} s on {block['target']}"
        if block["seconds"] is not None
        else f"no block was timed: {block['why_not']}"
    )
    device = record["device"].get("model", "an unknown CPU")
    return "\n".join([*lines, "", f"{record['date']}, {device}: {timed}; all of this {record['seconds']:.0f} s.", ""])
