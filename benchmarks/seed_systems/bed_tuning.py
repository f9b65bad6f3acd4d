"""Temperature and weight of distillation for a bed: chosen once on its tuning split, with seeds that nothing reported
uses, and then the same for every method and every student on it, but for what only one method has."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from akd_deploy.distill import TrainingSettings
from benchmarks.seed_systems.ledger import Job, Ledger, Work
from benchmarks.seed_systems.tables import row

Settings = Mapping[str, float]

GRID: Sequence[Settings] = tuple(
    {"temperature": t, "kd_weight": weight} for t in (2.0, 4.0, 8.0, 16.0) for weight in (0.5, 0.9)
)
"""T and λ of plain distillation."""
TUNING = 500
"""First seed of trainings that choose."""

_SHORT = {"temperature": "T", "kd_weight": "λ", "dkd_beta": "β"}


def tuned(
    ledger: Ledger, work: Work, grid: Sequence[Settings], jobs_with: Callable[[Settings], Sequence[Job]], what: str
) -> dict[str, float]:
    """Of a grid the settings with the best mean tuning accuracy, the first of equals; a row says what each gave.

    Args:
        jobs_with: settings to put into `training` → trainings, for each the same networks and seeds. Only what differs
            from a training's defaults is in the settings, here and in what is returned.
    """
    defaults = TrainingSettings()
    offered = [{name: value for name, value in one.items() if value != getattr(defaults, name)} for one in grid]
    jobs = [list(jobs_with(one)) for one in offered]
    results = iter(ledger.results(work, [job for each in jobs for job in each], f"choosing for {what}"))
    means = [float(np.mean([next(results)["tuning"] for _ in each])) for each in jobs]
    best = int(np.argmax(means))
    names = [" ".join(f"{_SHORT[name]} {value:g}" for name, value in one.items()) for one in grid]
    told = ", ".join(f"{name}: {mean:.2%}" for name, mean in zip(names, means, strict=True))
    row(f"chosen for {what}", f"{names[best]} ({told}; {len(jobs[0])} trainings each)")
    return offered[best]


def tuned_distillation(
    ledger: Ledger, work: Work, jobs_with: Callable[[Settings], Sequence[Job]], what: str
) -> dict[str, float]:
    """T and λ, from `GRID`, of which all of a bed's methods begin."""
    return tuned(ledger, work, GRID, jobs_with, what)
