"""A winner of each published recipe, shipped within its budget: `python -m benchmarks.shipped_winners [NAME …]`.

Each file of `benchmarks/winners` is a run as a user would write one: `akd-deploy run`, or `shrink` for parts of a
teacher, does the whole way, and `akd-deploy verify` reads the bundle. Runs lie in `--folder` and go on where they were
ended. Printed, and written to `winners.md` there, is a line for each run and what its arms scored. The exit code is 3
where a certificate does not hold.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from akd_deploy.configuration import RunConfiguration, read_configuration
from akd_deploy.data import load_dataset
from akd_deploy.distill import TrainingSettings
from akd_deploy.errors import GateError
from akd_deploy.storage import write_text_atomically
from akd_deploy.units import format_seconds
from benchmarks.seed_systems.residual_network import residual_network
from benchmarks.seed_systems.scales import TEACHER
from benchmarks.seed_systems.students import save_trained

CONFIGURATIONS = Path(__file__).with_name("winners")
COLUMNS = ("run", "target", "budget", "predicted", "median, p90 measured", "certificate", "parity", "bundle")


def names() -> list[str]:
    """Of the runs."""
    return sorted(path.stem for path in CONFIGURATIONS.glob("*.toml"))


def is_part(configuration: RunConfiguration) -> bool:
    """Whether a run's student is a part of its teacher."""
    return "shrink" in configuration.model_fields_set


def prepare_teacher(configuration: RunConfiguration) -> None:
    """Train the ResNet that parts are cut out of, where it is not there yet."""
    for path in configuration.teacher.weight_files:
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            dataset = load_dataset(configuration.data.name, configuration.data.settings)
            save_trained(residual_network(dataset.classes, 0), dataset, 0, TrainingSettings(**TEACHER), path)


def do(name: str, folder: Path) -> dict[str, Any]:
    """One run and its bundle's verification; its summary.

    Raises:
        SystemExit: the run ended with another code than that of a certificate that does not hold.
    """
    path = CONFIGURATIONS / f"{name}.toml"
    configuration, place = read_configuration(path), folder / name
    prepare_teacher(configuration)
    command = "shrink" if is_part(configuration) else "run"
    code = _akd_deploy(command, "--config", str(path), "--output", str(place), "--resume")
    if code not in (0, GateError.exit_code):
        raise SystemExit(f"{name}: akd-deploy {command} ended with {code}")
    summary: dict[str, Any] = json.loads((place / "summary.json").read_text(encoding="utf-8"))
    return {**summary, "verified": _akd_deploy("verify", summary["winner"]["bundle"]) == 0}


def _akd_deploy(*arguments: str) -> int:
    return subprocess.run([sys.executable, "-m", "akd_deploy", *arguments], check=False).returncode


def line(name: str, summary: Mapping[str, Any]) -> list[str]:
    """A run's cells under `COLUMNS`."""
    winner, parity = summary["winner"], summary["export"]["parity"]
    certificate, measured, (low, high) = winner["certificate"], winner["measured_s"], winner["interval_s"]
    over = f"{certificate['exceeding']} of {certificate['samples']} over, {certificate['allowed']} allowed"
    agreed = parity["top1_agreement"]
    return [
        name,
        summary["target"]["name"],
        f"{format_seconds(winner['budget_s'])} at p{certificate['percentile']:g}",
        f"{format_seconds(winner['predicted_s'])} [{format_seconds(low)}, {format_seconds(high)}]",
        f"{format_seconds(measured['median'])}, {format_seconds(measured['p90'])}",
        f"{'holds' if certificate['ok'] else 'does NOT hold'}: {over}",
        f"{parity['max_abs']:.1g}" + ("" if agreed is None else f", top-1 {agreed:.0%}"),
        "verified" if summary["verified"] else "NOT verified",
    ]


def arms(summary: Mapping[str, Any]) -> str:
    """What every arm scored on the test images, and what pairs of seeds differ by."""
    accuracy = summary["accuracy"]
    told = [f"teacher {accuracy['teacher']['mean']:.2%}"]
    for arm, scores in accuracy["per_seed"].items():
        spread = accuracy[arm]["spread"]
        told.append(
            f"{arm} {accuracy[arm]['mean']:.2%}" + ("" if spread is None else f" ± {spread:.2%}") + f" ({len(scores)})"
        )
    pairs = [
        f"{one['a']} less {one['b']} {100 * one['mean']:+.2f} [{100 * one['low']:+.2f}, {100 * one['high']:+.2f}]"
        for one in accuracy["paired"]
    ]
    by_hand = [
        f"{arm} takes {format_seconds(accuracy[arm]['latency_s'])}, "
        + ("within the budget" if accuracy[arm]["within_budget"] else "NOT certified within the budget")
        for arm in accuracy["per_seed"]
        if "latency_s" in accuracy[arm]
    ]
    return f"{', '.join(told)}; {'; '.join(pairs)} points; {'; '.join(by_hand)}"


def markdown(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    lines = [f"| {' | '.join(COLUMNS)} |", "|---" * len(COLUMNS) + "|"]
    lines += [f"| {' | '.join(line(name, summary))} |" for name, summary in summaries.items()]
    for name, summary in summaries.items():
        lines += ["", f"**{name}** ({summary['seconds']:.0f} s): {arms(summary)}."]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names())}; all if none is given")
    parser.add_argument("--folder", type=Path, default=Path("runs/winners"), help="where runs are kept")
    given = parser.parse_args(arguments)
    if unknown := sorted(set(given.names) - set(names())):
        parser.error(f"{', '.join(unknown)}: none of {', '.join(names())}")
    summaries = {name: do(name, given.folder) for name in given.names or names()}
    text = markdown(summaries)
    print(text)
    write_text_atomically(given.folder / "winners.md", text)
    held = all(one["winner"]["certificate"]["ok"] and one["verified"] for one in summaries.values())
    return 0 if held else GateError.exit_code


if __name__ == "__main__":
    sys.exit(main())
