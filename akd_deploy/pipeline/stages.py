"""Stages of a run, done in order; each is recorded when it has ended, and not done again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from akd_deploy.configuration import RunConfiguration, toml_from_dict
from akd_deploy.pipeline.check import check_configuration, check_jobs
from akd_deploy.pipeline.context import Progress, Run
from akd_deploy.search import open_journal
from akd_deploy.storage import make_folder, write_text_atomically

Stage = Callable[[Any, Mapping[str, Any]], dict[str, Any]]
"""(run, results of earlier stages) → its own result, JSON types only."""
R = TypeVar("R", bound=Run)


def do_stages(
    kind: type[R],
    configuration: RunConfiguration,
    directory: Path,
    resume: bool,
    on_progress: Progress | None,
    jobs: int,
    chosen: Mapping[str, Stage],
) -> tuple[R, dict[str, Any]]:
    """Do the stages that the journal does not hold yet, in a run of that kind."""
    check_configuration(configuration, of_space=kind.of_space)
    check_jobs(configuration, jobs)
    make_folder(directory)
    results: dict[str, Any] = {}
    path = directory / "journal.sqlite"
    with open_journal(path, configuration.what_is_run(), resume=resume) as journal:
        run = kind(configuration, directory, Path.cwd() / "latency_tables", journal, jobs=jobs)
        if on_progress is not None:
            run.on_progress = on_progress
        write_text_atomically(directory / "run.toml", toml_from_dict(configuration.as_dict()))
        for name, stage in chosen.items():
            recorded = journal.stage_result(name)
            if recorded is None:
                began = time.monotonic()
                result = stage(run, results)
                recorded = {"seconds": time.monotonic() - began, "result": result}
                journal.record_stage(name, recorded)
            results[name] = recorded["result"]
            run.stages[name] = recorded["seconds"]
    return run, results
