"""Stages are done in order, recorded, and never done twice."""

import tomllib

import pytest

from akd_deploy.configuration import configuration_from_dict
from akd_deploy.errors import MismatchError, StorageError, UsageError
from akd_deploy.pipeline import run as pipeline
from akd_deploy.pipeline.context import Run
from akd_deploy.pipeline.stages import do_stages
from akd_deploy.search import Journal, Trial, read_journal

CONFIGURATION = configuration_from_dict({"target": "cpu_onnxruntime_fp32", "budget": "2ms"}, "here")


class Stages:
    """Stages that note when they are done; one of them may fail."""

    def __init__(self, failing=None):
        self.done, self.failing = [], failing

    def named(self, *names):
        return {name: lambda run, results, name=name: self._do(name, results) for name in names}

    def _do(self, name, results):
        if name == self.failing:
            raise UsageError("this stage", "a failure", "Correct it.")
        self.done.append((name, tuple(results)))
        return {"made": name}


def do(directory, stages, *names, resume=False, configuration=CONFIGURATION):
    return do_stages(Run, configuration, directory, resume, None, 1, stages.named(*names))


def test_each_stage_sees_the_results_of_those_before_it(tmp_path):
    stages = Stages()
    run, results = do(tmp_path / "run", stages, "a", "b", "c")
    assert stages.done == [("a", ()), ("b", ("a",)), ("c", ("a", "b"))]
    assert results == {name: {"made": name} for name in "abc"}
    assert list(run.stages) == ["a", "b", "c"]
    assert all(seconds >= 0 for seconds in run.stages.values())
    resolved = tomllib.loads((tmp_path / "run" / "run.toml").read_text(encoding="utf-8"))
    assert resolved == CONFIGURATION.as_dict()


def test_a_stage_that_is_done_is_not_done_again_and_keeps_its_seconds(tmp_path):
    failing = Stages(failing="c")
    with pytest.raises(UsageError):
        do(tmp_path, failing, "a", "b", "c")
    assert [name for name, _ in failing.done] == ["a", "b"]
    with read_journal(tmp_path / "journal.sqlite") as journal:
        recorded = journal.stages()
    assert list(recorded) == ["a", "b"]
    resumed = Stages()
    run, results = do(tmp_path, resumed, "a", "b", "c", resume=True)
    assert resumed.done == [("c", ("a", "b"))]
    assert list(results) == ["a", "b", "c"]
    assert run.stages["a"] == recorded["a"]["seconds"]


def test_a_search_alone_and_the_whole_way_share_their_stages(tmp_path):
    do(tmp_path, Stages(), "a", "b")
    longer = Stages()
    do(tmp_path, longer, "a", "b", "c", resume=True)
    assert [name for name, _ in longer.done] == ["c"]


def _record_a_trial(run):
    architecture = run.space.sample(run.rng("trial"))
    trial = Trial(0, "tpe", architecture, run.space.network_digest(architecture), "infeasible", 1e-3, 2e-3, 0)
    run.journal.of_search("tpe").record([trial])
    return {}


def test_a_mistake_found_before_any_trial_is_corrected_in_place(tmp_path):
    with pytest.raises(UsageError):
        do(tmp_path, Stages(failing="b"), "a", "b")
    corrected = Stages()
    do(tmp_path, corrected, "a", "b", configuration=CONFIGURATION.model_copy(update={"budget": "3ms"}))
    assert [name for name, _ in corrected.done] == ["a", "b"]


def test_a_run_is_begun_once_and_resumed_under_its_own_configuration(tmp_path):
    trained = Stages()
    stages = {**trained.named("a"), "search": lambda run, results: _record_a_trial(run)}
    do_stages(Run, CONFIGURATION, tmp_path, False, None, 1, stages)
    with pytest.raises(UsageError, match="--resume"):
        do(tmp_path, Stages(), "a")
    other = CONFIGURATION.model_copy(update={"seed": 1})
    with pytest.raises(MismatchError, match="seed: 0 → 1"):
        do(tmp_path, Stages(), "a", resume=True, configuration=other)
    resolved = tomllib.loads((tmp_path / "run.toml").read_text(encoding="utf-8"))
    assert resolved["seed"] == 0


def test_a_place_that_is_no_folder_is_refused(tmp_path):
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    for place in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(StorageError):
            do(place, Stages(), "a")
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"


@pytest.mark.parametrize(("budget", "first"), [("35%", ("teacher", "budget")), ("2ms", ("budget", "teacher"))])
def test_the_stages_of_a_run_are_in_the_order_of_the_page_and_search_once_for_each_strategy(budget, first):
    """A budget that needs no teacher is checked before one is trained."""
    configuration = configuration_from_dict(
        {"target": "t", "budget": budget, "search": {"strategies": ["tpe", "random"]}}, "here"
    )
    assert list(pipeline.stages(configuration)) == [
        "profile", *first, "search-tpe", "search-random", "hand-shrunk", "confirm", "distill", "export",
        "measure", "bundle",
    ]  # fmt: skip


def test_every_stage_draws_from_a_generator_of_its_own(tmp_path):
    from akd_deploy.pipeline.context import Run
    from akd_deploy.search import Journal

    def draws(seed, stage):
        configuration = CONFIGURATION.model_copy(update={"seed": seed})
        return Run(configuration, tmp_path, tmp_path, Journal()).rng(stage).integers(2**31, size=4).tolist()

    assert draws(0, "confirm") == draws(0, "confirm")
    assert draws(0, "confirm") != draws(0, "measure") != draws(1, "measure")


def test_targets_given_as_paths_are_known_by_their_names_in_every_stage(tmp_path):
    for name in ("mine", "other"):
        text = 'device = "cpu"\nengine = "onnxruntime"\nprecision = "fp32"\n'
        (tmp_path / f"{name}.toml").write_text(text, encoding="utf-8")
    fields = {
        "target": str(tmp_path / "mine.toml"),
        "budget": "2ms",
        "export": {"targets": [str(tmp_path / "other.toml"), str(tmp_path / "mine.toml")]},
    }
    with Journal() as journal:
        run = Run(configuration_from_dict(fields, "here"), tmp_path, tmp_path, journal)
        assert list(run.targets) == ["mine", "other"]
        assert run.targets["mine"] == run.target
