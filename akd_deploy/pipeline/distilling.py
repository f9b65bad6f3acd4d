"""One student trained with a run's data and teacher, outside any search."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from akd_deploy.architecture import Architecture
from akd_deploy.configuration import RunConfiguration
from akd_deploy.distill.methods import PROCESS
from akd_deploy.models.student import save_student, student_from_architecture
from akd_deploy.pipeline.by_process import check_process, found_process, teach_by_process
from akd_deploy.pipeline.oracle_beta import chooses_beta, chosen_beta, with_beta
from akd_deploy.pipeline.training import load_bed
from akd_deploy.search_space import space_of
from akd_deploy.storage import make_folder


def distill_one(
    configuration: RunConfiguration,
    architecture: Architecture,
    output: Path,
    method: str | None,
    on_progress: Callable[[str, int, int], None],
) -> dict[str, Any]:
    """Train one student for the configuration's full length and write it; the teacher is kept beside it."""
    make_folder(output.parent)
    bed = load_bed(
        configuration,
        space_of(architecture),
        output.parent,
        lambda step, steps, loss: on_progress("training the teacher", step, steps),
    )
    began, seed, method = time.perf_counter(), configuration.seed, method or bed.method
    facts: dict[str, Any] = {}

    def on_step(step: int, steps: int, _loss: float) -> None:
        on_progress("distilling", step, steps)

    if method == PROCESS:
        check_process(configuration)
        process, searched = found_process(
            configuration, bed, lambda seed: student_from_architecture(architecture, seed), on_progress
        )
        kept = output.with_suffix(".process.json")
        process.save(kept)
        facts = {"process": str(kept), **{f"process_{name}": value for name, value in searched.items()}}
        student = student_from_architecture(architecture, seed)
        teach_by_process(configuration, bed, student, process, seed, on_step)
    else:
        chosen = None
        if chooses_beta(configuration, method):
            chosen = chosen_beta(
                configuration, bed, method, lambda seed: student_from_architecture(architecture, seed), on_progress
            )
            facts = {"oracle_beta": chosen["beta"], "oracle_beta_tuning_accuracy": chosen["tuning_accuracy"]}
        student = bed.train(architecture, seed, method, with_beta(bed.long, chosen), on_step)
    seconds = time.perf_counter() - began
    save_student(student, output)
    return {"student": str(output), "method": method, "seconds": seconds, **facts, **bed.test_scores(student)}
