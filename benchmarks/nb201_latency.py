"""A new device from 10 probes, or 3, and one device from random cells: NAS-Bench-201 latencies of 27 devices.

    python benchmarks/nb201_latency.py FOLDER [--draws 10] [--additive-draws 100] [--json]

FOLDER holds `latency.parquet`: a row for each of the 15,625 cells, `edge0` to `edge5` its operators, a column of
milliseconds for each device. The split is HELP's (Lee et al. 2021, arXiv:2106.08630): nine sources of which 900 cells
each are known (drawn anew in every draw), four validation devices, six targets of which only the probes are known.
Everything is chosen on sources and validation devices: each source's account of its cells and its ridge penalty by
cross-validation on its 900 cells; the settings' weights, the design and the intervals' width by leaving source families
out and on the validation devices (the design over all draws, the others within each).

Targets are scored on all cells but the probes; errors leave out labels below 5 % of the device's median (networks that
a compiler found constant), ranks keep them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a file, it still finds `benchmarks`

from akd_deploy.predictor.scores import scores_of
from akd_deploy.predictor.transfer import believe, predict_items
from akd_deploy.predictor.transfer_calibration import (
    HeldOut,
    Rehearsal,
    calibrated_width,
    learned_weights,
    leave_one_family_out,
    mean_error,
    mean_spearman,
    rehearse_designs,
)
from akd_deploy.predictor.transfer_design import measure_probes
from akd_deploy.predictor.transfer_prior import Account, Setting, TransferPrior, transfer_prior
from benchmarks.nb201_additive import additive_scores
from benchmarks.nb201_cells import ACCOUNTS
from benchmarks.nb201_sources import DEGENERATE_SHARE, Cells, Source, family_of, fit_source, read_cells

SOURCES = (
    "1080ti_1", "1080ti_32", "1080ti_256", "silver_4114", "silver_4210r",
    "samsung_a50", "pixel3", "essential_ph_1", "samsung_s7",
)  # fmt: skip
VALIDATION = ("titanx_1", "titanx_32", "titanx_256", "gold_6240")
TARGETS = ("titan_rtx_256", "gold_6226", "pixel2", "raspi4", "eyeriss", "fpga")
HELP_SPEARMAN = {
    "titan_rtx_256": 0.987, "gold_6226": 0.989, "pixel2": 0.802, "raspi4": 0.890, "eyeriss": 0.940, "fpga": 0.985,
}  # fmt: skip
"""HELP's own figures with 10 probes."""
CANDIDATES = 8_000
"""Cells that probes are chosen from, about half of all, drawn anew in every draw."""
COVERAGE = 0.9


def score_target(
    cells: Cells, device: str, predicted_s: np.ndarray, covered: np.ndarray, probes: np.ndarray
) -> dict[str, float]:
    """Scores on all cells but the probes."""
    measured = cells.latency_s[device]
    rest = np.setdiff1d(np.arange(len(measured)), probes)
    ranked = scores_of(predicted_s[rest], measured[rest])
    sound = rest[measured[rest] > DEGENERATE_SHARE * np.median(measured)]
    scored = scores_of(predicted_s[sound], measured[sound], covered[sound])
    return {
        "spearman": float(ranked.spearman or 0.0),
        "mape": scored.mape,
        "within_5": scored.within_5,
        "within_10": scored.within_10,
        "coverage": float(scored.coverage or 0.0),
    }


@dataclass(frozen=True)
class Draw:
    """What one draw of source cells and candidates knows before it sees a target.

    `rehearsed` are the rehearsals by number of probes and criterion.
    """

    sources: tuple[Source, ...]
    accounts: tuple[str, ...]
    prior: TransferPrior
    candidates: np.ndarray
    rehearsed: dict[int, dict[str, list[Rehearsal]]]

    def chosen(self) -> dict[str, object]:
        """What was chosen on sources and validation devices, for people."""
        return {
            "accounts": {s.name: s.account for s in self.sources},
            "penalties": {s.name: s.penalty for s in self.sources},
            "settings": marginals(self.prior.settings, np.exp(self.prior.log_weights), self.accounts),
        }


def prepare(cells: Cells, probe_counts: Sequence[int], rng: np.random.Generator) -> Draw:
    """Fit the sources, learn the settings' weights, rehearse both designs on sources and validation devices."""
    sources = [fit_source(cells, name, rng) for name in SOURCES]
    families = [family_of(source.name) for source in sources]
    names = sorted({source.account for source in sources}, key=list(ACCOUNTS).index)
    accounts = [
        Account(
            np.column_stack([source.latencies_s(cells, name) for source in sources]),
            cells.counts[name],
            share_of_families([source.account == name for source in sources], families),
        )
        for name in names
    ]
    prior = transfer_prior(accounts, families)
    measured = []
    for source in sources:
        runs = np.isin(source.rows, cells.running)
        measured.append((source.rows[runs], source.latency_s[runs]))
    held_out = leave_one_family_out(accounts, families, measured)
    candidates = rng.choice(cells.running, CANDIDATES, replace=False)
    held_out += [HeldOut(family_of(n), prior, candidates, cells.latency_s[n][candidates]) for n in VALIDATION]
    weights = learned_weights(held_out, rng)
    rehearsed = {count: rehearse_designs(held_out, weights, count, rng) for count in probe_counts}
    return Draw(tuple(sources), tuple(names), prior.weighted(weights), candidates, rehearsed)


def share_of_families(holds: Sequence[bool], families: Sequence[str]) -> float:
    """The share of sources for which something holds, families counting alike."""
    by_family: dict[str, list[bool]] = {}
    for value, family in zip(holds, families, strict=True):
        by_family.setdefault(family, []).append(value)
    return float(np.mean([np.mean(values) for values in by_family.values()]))


def best_design(draws: Sequence[Draw], counts: Sequence[int]) -> tuple[str, dict[str, dict[int, dict[str, float]]]]:
    """The criterion of the least rehearsed error over all draws and numbers of probes, and what each one's score.

    One for all: with ten probes the two are apart by less than draws are.
    """
    found = {
        criterion: {
            count: {
                "mape": float(np.mean([mean_error(d.rehearsed[count][criterion]) for d in draws])),
                "spearman": float(np.mean([mean_spearman(d.rehearsed[count][criterion]) for d in draws])),
            }
            for count in counts
        }
        for criterion in draws[0].rehearsed[counts[0]]
    }
    return min(found, key=lambda name: sum(scores["mape"] for scores in found[name].values())), found


def score_draw(
    cells: Cells, draw: Draw, count: int, criterion: str, rng: np.random.Generator
) -> dict[str, dict[str, float]]:
    """Scores by target, from `count` probes of each."""
    width = calibrated_width(draw.rehearsed[count][criterion], COVERAGE)
    scores = {}
    for device in TARGETS:
        measured = cells.latency_s[device]
        probes, latency_s = measure_probes(
            draw.prior, lambda cell, labels=measured: float(labels[cell]), count, rng, criterion, draw.candidates
        )
        predicted = predict_items(believe(draw.prior, probes, latency_s))
        low, high = predicted.interval_s(width)
        covered = (low <= measured) & (measured <= high)
        scores[device] = score_target(cells, device, predicted.latency_s, covered, probes)
    return scores


def marginals(settings: Sequence[Setting], weights: np.ndarray, accounts: Sequence[str]) -> dict[str, dict[str, float]]:
    """Total weight by value of each field of the settings."""
    result: dict[str, dict[str, float]] = {"account": {}, "source_amplitude": {}, "feature_amplitude": {}, "noise": {}}
    for setting, weight in zip(settings, weights, strict=True):
        for field, total in result.items():
            value = getattr(setting, field)
            key = accounts[value] if field == "account" else str(value)
            total[key] = round(total.get(key, 0.0) + float(weight), 4)
    return result


def summary_of(draws: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean and standard deviation over draws of every score."""
    return {
        key: {"mean": float(np.mean([d[key] for d in draws])), "sd": float(np.std([d[key] for d in draws], ddof=1))}
        for key in draws[0]
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--probes", type=int, nargs="+", default=[10, 3])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--additive-draws", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()

    cells = read_cells(given.folder)
    draws = [prepare(cells, given.probes, np.random.default_rng([given.seed, i])) for i in range(given.draws)]
    criterion, rehearsed = best_design(draws, given.probes)
    design = {"criterion": criterion, "rehearsed": rehearsed}
    transfer = {}
    for count in given.probes:
        scored = [
            score_draw(cells, draw, count, criterion, np.random.default_rng([given.seed, i, count]))
            for i, draw in enumerate(draws)
        ]
        transfer[str(count)] = {device: summary_of([scores[device] for scores in scored]) for device in TARGETS}
    additive = additive_scores(cells.counts, cells.latency_s, given.additive_draws, given.seed)
    if given.json:
        chosen = {"design": design, "draws": [draw.chosen() for draw in draws]}
        print(json.dumps({"seed": given.seed, "transfer": transfer, "chosen": chosen, "additive": additive}))
        return
    for count, devices in transfer.items():
        print(f"\n{count} probes, mean ± standard deviation over {given.draws} draws")
        print(f"{'':15}{'HELP':>6}  {'Spearman':>14}  {'MAPE':>12}  {'±5 %':>12}  {'±10 %':>12}  {'in interval':>12}")
        for device, summary in devices.items():
            print(f"{device:15}{HELP_SPEARMAN[device]:6.3f}  " + _cells_of(summary))
        means = {
            key: float(np.mean([d[key]["mean"] for d in devices.values()])) for key in next(iter(devices.values()))
        }
        help_mean = np.mean(list(HELP_SPEARMAN.values()))
        print(
            f"{'mean':15}{help_mean:6.3f}  {means['spearman']:14.4f}  "
            + "  ".join(f"{means[k]:12.1%}" for k in ("mape", "within_5", "within_10", "coverage"))
        )
    print("\nchosen on sources and validation devices (sources and settings of the first draw)")
    print(json.dumps({"design": design, **draws[0].chosen()}, indent=1))
    print(f"\none device, additive, from random cells; mean over {given.additive_draws} draws")
    print(
        f"{'':15}{'cells':>6}  {'account':>10}  {'MAPE':>7}  {'ceiling':>7}  "
        f"{'±5 %':>7}  {'ceiling':>7}  {'in interval':>11}  {'width':>6}"
    )
    for row in additive:
        print(
            f"{row['device']:15}{row['cells']:6}  {row['account']:>10}  "
            f"{row['mape']:7.2%}  {row['ceiling_mape']:7.2%}  {row['within_5']:7.1%}  "
            f"{row['ceiling_within_5']:7.1%}  {row['coverage']:11.1%}  {row['width']:6.1%}"
        )


def _cells_of(summary: dict[str, dict[str, float]]) -> str:
    rank = summary["spearman"]
    rates = [
        f"{summary[k]['mean']:6.1%} ±{summary[k]['sd']:4.1%}" for k in ("mape", "within_5", "within_10", "coverage")
    ]
    return f"{rank['mean']:7.4f} ±{rank['sd']:6.4f}  " + "  ".join(f"{r:>12}" for r in rates)


if __name__ == "__main__":
    main()
