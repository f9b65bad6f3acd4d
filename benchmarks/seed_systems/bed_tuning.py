"""Temperature and weight of distillation for a bed: chosen once on its tuning split, with seeds that nothing reported
uses, and then the same for every method and every student on it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from akd_deploy.distill import TrainingSettings
from benchmarks.seed_systems.ledger import Job, Ledger, Work
from benchmarks.seed_systems.tables import row

GRID = tuple({"temperature": t, "kd_weight": weight} for t in (2.0, 4.0, 8.0, 16.0) for weight in (0.5, 0.9))
TUNING = 500
"""First seed of trainings that choose."""

_DEFAULTS = TrainingSettings()


def tuned_distillation(
    ledger: Ledger, work: Work, jobs_with: Callable[[Mapping[str, float]], Sequence[Job]], what: str
) -> dict[str, float]:
    """Of `GRID` the settings with the best mean tuning accuracy, the first of equals; a row says what each gave.

    Args:
        jobs_with: settings to put into `training` → trainings by plain distillation, for each the same networks and
            seeds. Only what differs from a training's defaults is in the settings, here and in what is returned.
    """
    offered = [{name: value for name, value in one.items() if value != getattr(_DEFAULTS, name)} for one in GRID]
    jobs = [list(jobs_with(one)) for one in offered]
    results = iter(ledger.results(work, [job for each in jobs for job in each], f"T and λ, {what}"))
    means = [float(np.mean([next(results)["tuning"] for _ in each])) for each in jobs]
    best = int(np.argmax(means))
    told = ", ".join(
        f"T {one['temperature']:g} λ {one['kd_weight']:g}: {mean:.2%}" for one, mean in zip(GRID, means, strict=True)
    )
    row(f"T and λ chosen for {what}", f"{GRID[best]['temperature']:g} and {GRID[best]['kd_weight']:g} ({told})")
    return offered[best]
