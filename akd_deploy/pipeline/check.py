"""What can be known to be wrong with a run.toml before anything is measured, trained or written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from akd_deploy.configuration import RunConfiguration, SearchTable, TeacherTable
from akd_deploy.data import known_shape
from akd_deploy.distill.methods import PROCESS, method_for
from akd_deploy.distill.settings import TrainingSettings
from akd_deploy.distill.teachers import TEACHER_SETTINGS
from akd_deploy.engines import load_engine
from akd_deploy.errors import MissingFileError, UnknownNameError, UsageError
from akd_deploy.pipeline.by_process import check_process
from akd_deploy.pipeline.training import require_fit, settings_from
from akd_deploy.recipes.better_students import GateSearchSettings
from akd_deploy.recipes.oracle_kd import backbone_of
from akd_deploy.search import reward_shape
from akd_deploy.search.strategies import STRATEGIES, load_strategy
from akd_deploy.search_space import load_space
from akd_deploy.target import load_target
from akd_deploy.units import parse_latency_budget


def check_configuration(configuration: RunConfiguration, *, of_space: bool = True) -> None:
    """Look up every name, and try every value that needs neither the data nor the device.

    A run's folder keeps the configuration it was begun with: a misspelling is better found before there is one. Left to
    the data are the classes of an image folder, and whether every class has images enough.

    Args:
        of_space: whether students are of the `[space]`, which then has to fit the data; else they are parts of the
            teacher, which is one torch network then.

    Raises:
        UnknownNameError: a target, engine, space, strategy, reward, dataset, method or setting that nobody knows.
        UsageError: a value that makes no sense where it is used, as a `backbone` in a space without one.
        MismatchError: the dataset's images or classes are not the space's.
        MissingFileError: the teacher's file is not there.
        MissingRuntimeError: the target cannot run here, so no student could be measured on it, or NNI is missing.
    """
    engine = load_engine(load_target(configuration.target))
    engine.require(engine.why_not())
    for name in configuration.export.targets:
        load_engine(load_target(name))
    parse_latency_budget(configuration.budget, teacher_s=1.0)
    shape, classes = known_shape(configuration.data.name, configuration.data.settings)
    space = load_space(configuration.space.name, configuration.space.settings)
    if of_space:
        require_fit(space, configuration.data.name, shape, classes)
    else:
        require_parts(configuration.teacher.teachers, is_torch=configuration.teacher.source != "onnx")
    _check_members(configuration.teacher, classes)
    if configuration.search.shared.backbone is not None:
        backbone_of(space)
        settings_from(configuration.search.shared.backbone, TrainingSettings())
    reward_shape(configuration.search.reward)
    if configuration.search.shared.memory_reward is not None:
        reward_shape(configuration.search.shared.memory_reward)
    if configuration.distill.method == PROCESS:
        check_process(configuration)
    else:
        method_for(configuration.distill.method, configuration.teacher.teachers)
    if configuration.distill.betas is not None and configuration.teacher.teachers == 1:
        raise UsageError(
            asked="betas of the soft oracle",
            found="one teacher, which is weighted alike by every β",
            next="Give several teachers, or leave betas away.",
        )
    settings_from(configuration.teacher.training, TEACHER_SETTINGS)
    for table in (configuration.search.training, configuration.search.shared.training, configuration.distill.training):
        settings_from(table, TrainingSettings())
    replace(GateSearchSettings(), **configuration.shrink.gates.given())
    for path in (*configuration.teacher.weight_files, configuration.teacher.onnx):
        _require_file(path)
    _check_strategies(configuration.search, configuration.seed)


def require_parts(teachers: int, *, is_torch: bool) -> None:
    """Raises UsageError where there is no one network of which a student could be a part."""
    if teachers > 1 or not is_torch:
        raise UsageError(
            asked="a part of the teacher",
            found="an ensemble" if teachers > 1 else "an ONNX file, whose graph cannot be trained",
            next="Give one torch network, as factory and weights.",
        )


def _check_members(table: TeacherTable, classes: int | None) -> None:
    if table.skew == 1 and classes is not None and table.members > classes:
        raise UsageError(
            asked=f"{table.members} members that learn from classes of their own alone (skew = 1)",
            found=f"{classes} classes: {table.members - classes} would learn from no image",
            next="Lower skew, or give no more members than classes.",
        )


def _check_strategies(table: SearchTable, seed: int) -> None:
    for strategy in table.strategies:
        load_strategy(strategy, seed, table.settings_of(strategy))
    for strategy in table.settings or {}:
        if strategy not in STRATEGIES:
            raise UnknownNameError("search strategy", strategy, STRATEGIES, where="[search.settings]")
        if strategy not in table.strategies:
            raise UsageError(
                asked=f"settings of strategy {strategy}",
                found=f"a search by {', '.join(table.strategies)}",
                next=f'Add "{strategy}" to strategies, or leave [search.settings.{strategy}] out.',
            )


def check_jobs(configuration: RunConfiguration, jobs: int) -> None:
    """Raises UsageError where the run's driver does not train so many candidates at a time."""
    if jobs > 1 and configuration.search.driver != "nni":
        raise UsageError(
            asked=f"{jobs} trainings at a time",
            found=f"the {configuration.search.driver} driver, which trains one",
            next='Write driver = "nni" in [search], which a run that has begun may change to, or leave --jobs out.',
        )


def _require_file(path: Path | None) -> None:
    if path is not None and not path.is_file():
        raise MissingFileError(asked=f"the teacher {path}", found="no such file", next="Check the path in [teacher].")
