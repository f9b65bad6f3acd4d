"""A run's short trainings in processes of their own, which NNI starts."""

from __future__ import annotations

from pathlib import Path

from akd_deploy.configuration import read_configuration
from akd_deploy.pipeline.context import Run
from akd_deploy.pipeline.training import load_bed
from akd_deploy.search import ScoreFunction
from akd_deploy.search.experiment import NniExperiment
from akd_deploy.search_space import load_space

TRIAL_LIMIT_S = 3600.0
"""For a training of minutes at most; picked by eye."""


def in_experiment(run: Run, strategy: str) -> NniExperiment:
    """The trainings of one strategy's search, `run.jobs` at a time."""
    table = run.configuration.search
    run.bed  # noqa: B018  (the teacher and its logits are on disk from here on, where every training finds them)
    return NniExperiment(
        space=run.space,
        score_factory=score_of_run,
        arguments={"directory": str(run.directory.absolute())},
        folder=run.directory / "nni" / strategy,
        jobs=run.jobs,
        trial_limit_s=TRIAL_LIMIT_S if table.trial_limit_s is None else table.trial_limit_s,
        port=table.portal_port,
        on_portal=lambda url: run.on_progress(f"NNI's portal for {strategy}: {url}", 0, 0),
    )


def score_of_run(directory: str) -> ScoreFunction:
    """How the run in that folder scores a candidate; for a process that knows nothing else of it."""
    import torch

    torch.set_num_threads(1)  # as the command line does: the same candidate gets the same score
    configuration = read_configuration(Path(directory) / "run.toml")
    space = load_space(configuration.space.name, configuration.space.settings)
    return load_bed(configuration, space, Path(directory)).score
