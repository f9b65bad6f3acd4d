"""Our latency predictor beside published ones, on latency tables: errors, ranks and intervals beside the noise.

    python -m benchmarks.predictor latency_tables/h200_torch_fp16 --protocol all --markdown results.md

A TABLE is a latency table's folder with probes and whole networks. For each table and protocol a table of predictors
is printed, and below it the networks that a predictor does not predict, with the operators it knows nothing of. The
protocols are described in what is printed (`benchmarks/predictors/protocols.py`), the baselines in
`benchmarks/predictors/`. Fits are repeated for every family that is left out, which takes minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from akd_deploy.errors import AkdError
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, read_table
from benchmarks.predictors import CONTENDERS, Predicted
from benchmarks.predictors.protocols import (
    FAMILY_OUT,
    PROBES_ONLY,
    PROTOCOLS,
    UNSEEN_KINDS,
    Line,
    family_of,
    run_protocol,
    tested_by,
)

CHOICES: Mapping[str, Sequence[str]] = {
    "unseen": (UNSEEN_KINDS,),
    "probes": (PROBES_ONLY,),
    "quick": (UNSEEN_KINDS, PROBES_ONLY),
    "family": (FAMILY_OUT,),
    "both": (PROBES_ONLY, FAMILY_OUT),
    "all": (UNSEEN_KINDS, FAMILY_OUT, PROBES_ONLY),
}
"""Those that a table has networks for are shown."""
COLUMNS = (
    "predictor", "fitted on", "predicted", "MAPE", "MAPE, common", "±5 %", "±10 %", "τ", "Spearman", "worst",
    "90 % held", "σ", "MAPE / 0.8 σ",
)  # fmt: skip
EXPLANATION = (
    "±5 % and ±10 % are shares of all networks: one that is not predicted is a miss. MAPE, ranks, worst error and the "
    "share of 90 % intervals that hold are of those predicted; MAPE, common is of those that every line predicts. σ is "
    "the median relative noise of their labels, of which a perfect model would score a MAPE of 0.8 σ."
)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction as people read it; a dash for none."""
    return "–" if value is None else f"{100 * value:.{digits}f} %"


def number(value: float | None, digits: int) -> str:
    """A number, or a dash for none."""
    return "–" if value is None else f"{value:.{digits}f}"


def cells(line: Line) -> list[str]:
    """A line's texts under `COLUMNS`."""
    scores = line.scores
    return [
        line.predictor,
        line.fitted_on,
        f"{scores.items if scores else 0} of {len(line.networks)}",
        percent(scores.mape if scores else None),
        f"{percent(line.common_mape)} (n = {line.common})",
        percent(line.within_5, 0),
        percent(line.within_10, 0),
        number(scores.kendall_tau if scores else None, 3),
        number(scores.spearman if scores else None, 3),
        percent(scores.worst if scores else None),
        percent(scores.coverage if scores else None, 0),
        percent(scores.sigma if scores else None, 2),
        number(line.over_floor, 1),
    ]


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """Aligned columns, the first row their names."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    texts = [
        "| " + " | ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([texts[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *texts[1:]])


def describe(table: LatencyTable) -> str:
    """What a table was measured on, and how much of it there is."""
    header, networks = table.header, table.of_kind(NETWORK)
    device = header.device.facts.get("model", header.device.digest)
    return (
        f"{device}, {header.target.engine} {header.engine_version}, {header.target.precision}, batch "
        f"{header.target.batch}, {header.created[:10]}: {len(table.of_kind(PROBE))} probes, {len(networks)} networks "
        f"of {len({family_of(row) for row in networks})} families."
    )


def section(protocol: str, lines: Sequence[Line]) -> str:
    """One protocol's results as Markdown."""
    parts = [f"### {protocol}", PROTOCOLS[protocol], markdown_table([COLUMNS, *(cells(line) for line in lines)])]
    missing = [
        f"- {line.predictor} ({line.fitted_on}) does not predict "
        + "; ".join(f"{name}: {reason}" for name, reason in line.unpredicted.items())
        for line in lines
        if line.unpredicted
    ]
    return "\n\n".join([*parts, *(["\n".join(missing)] if missing else [])])


def as_json(line: Line) -> dict[str, object]:
    """A line as JSON types, every prediction included."""
    found = zip(line.networks, line.answers, line.measured_s, strict=True)
    return {
        "predictor": line.predictor,
        "fitted_on": line.fitted_on,
        "networks": len(line.networks),
        "scores": asdict(line.scores) if line.scores else None,
        "within_5": line.within_5,
        "within_10": line.within_10,
        "common": line.common,
        "common_mape": line.common_mape,
        "mape_over_floor": line.over_floor,
        "unpredicted": line.unpredicted,
        "predictions": [
            {
                "network": name,
                "predicted_s": answer.latency_s,
                "interval_s": list(answer.interval_s) if answer.interval_s else None,
                "measured_s": measured_s,
            }
            for name, answer, measured_s in found
            if isinstance(answer, Predicted)
        ],
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", type=Path, nargs="+", metavar="TABLE")
    parser.add_argument("--protocol", choices=CHOICES, default="all")
    parser.add_argument("--only", nargs="+", choices=CONTENDERS, default=list(CONTENDERS), metavar="PREDICTOR")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--markdown", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)

    try:
        tables = {directory: read_table(directory) for directory in given.tables}
    except AkdError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    results, texts = [], []
    for directory, table in tables.items():
        if not table.of_kind(NETWORK):
            print(f"{directory}: no whole network to predict in it", file=sys.stderr)
            return 2
        protocols = {
            protocol: run_protocol(
                protocol, table, [CONTENDERS[name] for name in given.only], lambda text: print(text, file=sys.stderr)
            )
            for protocol in CHOICES[given.protocol]
            if tested_by(protocol, table)
        }
        results.append(
            {
                "table": table.header.target.name,
                "digest": table.digest(),
                "device": dict(table.header.device.facts),
                "protocols": {protocol: [as_json(line) for line in lines] for protocol, lines in protocols.items()},
            }
        )
        sections = [section(protocol, lines) for protocol, lines in protocols.items()]
        texts.append("\n\n".join([f"## {table.header.target.name}", describe(table), *sections]))
    text = "\n\n".join([*texts, EXPLANATION])
    print(text)
    if given.markdown:
        given.markdown.write_text(text + "\n", encoding="utf-8")
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
