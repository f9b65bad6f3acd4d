"""The published systems' claims with paired seeds: `python benchmarks/seeds.py SYSTEM [--quick | --full]`.

`--quick` checks that everything runs, in minutes, with two seeds: its tables are underpowered and say so. Without it
the evidence is made: five seeds and more, hours on two cores. `--full` is larger and for a GPU. Every training is kept
in `--folder` and done once: a study that was ended goes on where it was, and the same command prints its tables again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.seed_systems import akd, better_students, distpro, oracle_kd
from benchmarks.seed_systems.scales import AKD, BETTER_STUDENTS, DISTPRO, ORACLE_KD

SYSTEMS: dict[str, tuple[Callable[..., dict[str, Any]], dict[str, Any]]] = {
    "akd": (akd.run, AKD),
    "better-students": (better_students.run, BETTER_STUDENTS),
    "distpro": (distpro.run, DISTPRO),
    "oracle-kd": (oracle_kd.run, ORACLE_KD),
}


def main(
    system: Annotated[str, typer.Argument(help=f"One of {', '.join(SYSTEMS)}.")],
    quick: Annotated[bool, typer.Option("--quick", help="Two seeds, minutes: a check that it runs.")] = False,
    full: Annotated[bool, typer.Option("--full", help="Larger, for a GPU.")] = False,
    folder: Annotated[Path, typer.Option(help="Where trainings are kept.")] = Path("seeds"),
    processes: Annotated[int, typer.Option(min=1, help="Trainings at a time, one thread each.")] = 2,
) -> None:
    """Print a system's tables, after whatever training they still need."""
    if system not in SYSTEMS:
        raise typer.BadParameter(f"{system!r} is none of {', '.join(SYSTEMS)}", param_hint="system")
    if quick and full:
        raise typer.BadParameter("give one of --quick and --full")
    run, scales = SYSTEMS[system]
    name = "quick" if quick else "full" if full else "evidence"
    place = folder / f"{system}-{name}"
    found = run(scales[name], place, processes)
    place.mkdir(parents=True, exist_ok=True)
    (place / "tables.json").write_text(json.dumps(found, indent=1, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
