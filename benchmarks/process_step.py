"""What a step of searching for a process of distillation costs beside a step of distilling by one.

    python benchmarks/process_step.py
    python benchmarks/process_step.py --rounds 30 --json

Both are steps of the same student along the same pathways, the teacher running beside it; a step of the search makes
one of the pathways' weights as well. Trainings take turns as in kd_step.py. The claim holds where the whole interval of
the exact meta-gradient's ratio is at most 2.2 at every size (else exit code 3). It takes about ten minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from akd_deploy.certificate import ratio_interval
from akd_deploy.data import ViewBank
from akd_deploy.distill import TrainingSettings
from akd_deploy.distill.meta_gradient import GRADIENTS
from akd_deploy.distill.process import constant_process
from akd_deploy.distill.process_training import ProcessSearchSettings, search_process, train_by_process
from akd_deploy.models.convnet import ConvNetSettings, convnet
from akd_deploy.models.teacher import Teacher
from akd_deploy.recipes.distpro import PathwaySettings, pathways_between
from akd_deploy.units import format_seconds
from benchmarks.kd_step import CASES, DROPPED, Case, bed_of, in_turns

CLAIM = 2.2
MEASURED = (CASES[0], CASES[2], CASES[3])
"""Of the sizes of kd_step.py: small, of large batches, and of larger images."""
PLAIN = "plain"


def step_seconds(case: Case, views: ViewBank, teacher: Teacher, kind: str, steps: int, seed: int) -> float:
    """Median seconds of one step of a fresh training, by a constant process or in a search by that gradient."""
    generator = torch.Generator().manual_seed(seed)
    student = convnet(ConvNetSettings(case.channels, case.classes, case.widths, depth=1), generator)
    assert teacher.module is not None
    pathways = pathways_between(teacher.module, student, (case.channels, case.side, case.side), PathwaySettings(), seed)
    settings = TrainingSettings(steps=steps + DROPPED, batch_size=case.batch, learning_rate=0.01)
    stamps: list[float] = []

    def on_step(_step: int, _steps: int, _loss: float) -> None:
        stamps.append(time.perf_counter())

    if kind == PLAIN:
        process = constant_process({pathway.name: 1.0 for pathway in pathways.pathways})
        train_by_process(student, teacher.module, pathways, process, views, settings, generator, on_step=on_step)
    else:
        search = ProcessSearchSettings(gradient=kind, held_out=case.batch)
        search_process(student, teacher.module, pathways, views, views, settings, search, generator, on_step=on_step)
    return float(np.median(np.diff(stamps)[DROPPED - 1 :]))


def measure(case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """Seconds per step of either, and the ratio of each gradient's to the plain one."""
    views, teacher = bed_of(case)
    kinds = (PLAIN, *GRADIENTS)
    seconds = in_turns({kind: partial(step_seconds, case, views, teacher, kind, steps) for kind in kinds}, rounds)
    ratios = {kind: asdict(ratio_interval(seconds[PLAIN], seconds[kind], paired=True)) for kind in GRADIENTS}
    return {
        "case": case.name,
        "seconds_per_step": {kind: float(np.median(taken)) for kind, taken in seconds.items()},
        "ratio_to_plain": ratios,
        "holds": ratios["exact"]["high"] <= CLAIM,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12, help="paired rounds per size, at least 6")
    parser.add_argument("--steps", type=int, default=10, help="timed steps per training")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args()
    if given.rounds < 6 or given.steps < 1:
        parser.error("at least 6 rounds and 1 step are needed")
    torch.set_num_threads(1)
    results = []
    for case in MEASURED:
        results.append(measure(case, given.rounds, given.steps))
        print(f"{len(results)}/{len(MEASURED)} {case.name}", file=sys.stderr)
    holds = all(result["holds"] for result in results)
    if given.json:
        print(json.dumps({"claim": CLAIM, "holds": holds, "cases": results}))
    else:
        for result in results:
            print(result["case"])
            print(f"  {PLAIN:18s} {format_seconds(result['seconds_per_step'][PLAIN]):>10s}")
            for kind, ratio in result["ratio_to_plain"].items():
                taken = format_seconds(result["seconds_per_step"][kind])
                print(
                    f"  {kind:18s} {taken:>10s}  {ratio['ratio']:.2f} × plain [{ratio['low']:.2f}, {ratio['high']:.2f}]"
                )
        print(f"a step with the exact gradient costs at most {CLAIM} × plain: {'yes' if holds else 'no'}")
    raise SystemExit(0 if holds else 3)


if __name__ == "__main__":
    main()
