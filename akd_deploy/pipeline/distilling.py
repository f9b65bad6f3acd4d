"""One student trained with a run's data and teacher, outside any search."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from akd_deploy.architecture import Architecture
from akd_deploy.configuration import RunConfiguration
from akd_deploy.models.student import save_student
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
    began = time.perf_counter()
    student = bed.train(
        architecture,
        configuration.seed,
        method or bed.method,
        bed.long,
        lambda step, steps, loss: on_progress("distilling", step, steps),
    )
    seconds = time.perf_counter() - began
    save_student(student, output)
    return {"student": str(output), "method": method or bed.method, "seconds": seconds, **bed.test_scores(student)}
