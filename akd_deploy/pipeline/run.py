"""The whole way for one run.toml, in order; every stage is recorded and resumable."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from akd_deploy.configuration import RunConfiguration
from akd_deploy.pipeline import choose, deliver, prepare
from akd_deploy.pipeline.context import Progress, Run
from akd_deploy.pipeline.stages import Stage, do_stages
from akd_deploy.pipeline.summary import summary
from akd_deploy.report.report import write_report
from akd_deploy.storage import write_text_atomically


def stages(configuration: RunConfiguration) -> dict[str, Stage]:
    """Name → stage, in order."""
    searches = {
        f"search-{strategy}": partial(choose.search_students, strategy=strategy)
        for strategy in configuration.search.strategies
    }
    teacher_and_budget: dict[str, Stage] = {"teacher": prepare.teacher, "budget": prepare.budget}
    if not prepare.is_relative(configuration):
        # It needs no teacher, whose training may take hours that a budget nothing meets would waste.
        teacher_and_budget = dict(reversed(teacher_and_budget.items()))
    return {
        "profile": prepare.profile,
        **teacher_and_budget,
        **searches,
        "hand-shrunk": choose.hand_shrunk,
        "confirm": choose.confirm,
        "distill": choose.distill,
        "export": deliver.export,
        "measure": deliver.measure,
        "bundle": deliver.bundle,
    }


def run_pipeline(
    configuration: RunConfiguration,
    directory: Path,
    *,
    resume: bool = False,
    on_progress: Progress | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Do the whole way and return the summary that the report is made from (also `summary.json` in `directory`).

    Raises:
        UsageError: `directory` holds a run and `resume` is false, or the driver does not do so many `jobs`.
        MismatchError: it holds a run of another configuration.
        InfeasibleBudgetError: nothing in the space meets the budget.
        AkdError: any other error of the stages; what was finished stays finished.
    """
    run, results = do_stages(Run, configuration, directory, resume, on_progress, jobs, stages(configuration))
    text = json.dumps(summary(run, results), indent=1, sort_keys=True, allow_nan=False) + "\n"
    write_text_atomically(directory / "summary.json", text)
    # What was written, so that a resumed run, and `report`, give the very same page.
    outcome: dict[str, Any] = json.loads(text)
    write_report(outcome, directory / "report.html")
    return outcome


def run_until_search(
    configuration: RunConfiguration,
    directory: Path,
    *,
    resume: bool = False,
    on_progress: Progress | None = None,
    jobs: int = 1,
) -> dict[str, Any]:
    """Do the stages up to the searches; `run_pipeline` with `resume` goes on from there.

    Returns `front` (rows of arch, latency_s, reward, accuracy), the number of `trials` trained, and `seconds`.
    """
    chosen = {
        name: stage
        for name, stage in stages(configuration).items()
        if name in ("profile", "teacher", "budget") or name.startswith("search-")
    }
    run, results = do_stages(Run, configuration, directory, resume, on_progress, jobs, chosen)
    searches = [result for name, result in results.items() if name.startswith("search-")]
    return {
        "run_dir": str(directory),
        "budget_s": results["budget"]["budget_s"],
        "front": choose.front(results),
        "trials": sum(result["counts"]["done"] for result in searches),
        "seconds": sum(run.stages.values()),
    }
