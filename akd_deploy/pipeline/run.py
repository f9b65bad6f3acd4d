"""The whole way for one run.toml, in order; every stage is recorded and resumable."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from akd_deploy.configuration import RunConfiguration
from akd_deploy.distill.methods import PROCESS
from akd_deploy.pipeline import choose, deliver, prepare
from akd_deploy.pipeline.context import Progress, Run
from akd_deploy.pipeline.oracle_beta import chooses_beta
from akd_deploy.pipeline.stages import Stage, do_stages
from akd_deploy.pipeline.summary import reported, summary


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
    method = configuration.distill.method
    how: dict[str, Stage] = {"process": choose.process} if method == PROCESS else {}
    if chooses_beta(configuration, method):
        how["beta"] = choose.beta
    return {
        "profile": prepare.profile,
        **teacher_and_budget,
        **searches,
        "hand-shrunk": choose.hand_shrunk,
        "confirm": choose.confirm,
        **how,
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
    return reported(summary(run, results), directory)


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
