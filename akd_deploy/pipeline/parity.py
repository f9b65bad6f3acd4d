"""What an engine computes beside what torch, or plain numpy, computes; where it differs, the first node that does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.errors import BuildError, ParityError
from akd_deploy.export.divergence import Divergence, Evaluate, reference_evaluate
from akd_deploy.export.locate import failing_batch, locate, located
from akd_deploy.export.parity import Arrays, Parity, Tolerance, check_parity, compare_outputs, tolerance_for
from akd_deploy.models.onnx_from_student import INPUT, OUTPUT
from akd_deploy.pipeline.shipping import TargetBuild, feeds_of, model_for
from akd_deploy.pipeline.typed import is_archive, mode_for


def student_parity(
    student: nn.Module,
    engine: Engine,
    path: Path,
    images: np.ndarray,
    source: Path | None = None,
    model: Path | None = None,
) -> Parity:
    """Compare what an engine computes with what torch computes, on real samples.

    Args:
        path: what the engine loads.
        source: the student's float32 ONNX, where the engine's file came from it.
        model: the ONNX file that the engine's was built from, where it is another one than `path`.

    Raises:
        ParityError: they differ; with the first tensor in which the typed ONNX differs from the float32 one, or the
            engine from plain numpy, where `source` is given.
    """

    def reference(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {OUTPUT: student(torch.tensor(feed[INPUT])).numpy()}

    feeds, tolerance = feeds_of(images, engine.target.batch), tolerance_for(engine.target.precision)
    with engine.load(path) as session:
        parity = compare_outputs(reference, session.run, feeds)
        try:
            check_parity(parity, tolerance)
        except ParityError as error:
            bad = failing_batch(reference, session.run, feeds, tolerance)
            if source is None or bad is None:
                raise
            raise located(error, *_where(source, model or path, bad, tolerance, engine)) from error
    return parity


def checked_build(
    student: nn.Module, build: TargetBuild, models: Mapping[str, Path], images: np.ndarray, *, required: bool
) -> tuple[TargetBuild, dict[str, object] | None]:
    """Compare what was built for a target with torch, where it runs here; its parity as JSON, None where nobody looked.

    An engine that fails is no longer a build: nothing that computes something else is shipped.

    Args:
        models: mode → file, as `build_for` had them.
        required: the run's own target, whose failure ends the run.

    Raises:
        BuildError: the required engine was not built.
        ParityError: it differs.
    """
    target = build.target
    engine = load_engine(target)
    if required and build.built is None:
        raise BuildError(
            asked=f"the engine of target {target.name}, which the run is for",
            found=str(build.why_not),
            next="Correct the cause and resume the run; nothing but this stage is done again.",
        )
    if not required and (build.built is None or build.why_not_measured is not None):
        return build, None
    model = model_for(target, models)
    assert build.built is not None
    loaded = build.built.path
    source = None if is_archive(mode_for(target)) else models["fp32"]
    try:
        return build, student_parity(student, engine, loaded, images, source, model).as_dict()
    except ParityError as error:
        if required:
            raise
        parity = error.details["parity"]
        assert isinstance(parity, dict)
        return TargetBuild(target, None, f"built, but not shipped: {error}"), parity


def _where(
    source: Path, model: Path, feeds: Arrays, tolerance: Tolerance, engine: Engine
) -> tuple[Divergence | None, str]:
    """Whether the conversion from `source` to `model` differs, or else the engine from plain numpy."""
    if model != source:
        found, how = locate(source, model, feeds, tolerance, evaluators_of(engine))
        if found is not None:
            return found, how
    (evaluate, _), *_ = evaluators_of(engine).values()
    name = f"target {engine.target.name} against plain numpy"
    found, how = locate(source, source, feeds, tolerance, {name: (reference_evaluate, evaluate)})
    return found, how if found is not None else f"{how}: it is the export from torch, or what the engine fuses"


def outputs_of(engine: Engine, path: Path, feeds: Sequence[Arrays]) -> list[Arrays]:
    """What a model file answers to each batch, run by an engine."""
    with engine.load(path) as session:
        return [session.run(feed) for feed in feeds]


def evaluators_of(engine: Engine) -> dict[str, tuple[Evaluate, Evaluate]]:
    """Who looks for the first tensor that diverges: the engine that saw it, else plain numpy."""

    def evaluate(path: Path, feeds: Arrays) -> Arrays:
        (outputs,) = outputs_of(engine, path, [feeds])
        return outputs

    by_numpy = (reference_evaluate, reference_evaluate)
    if not engine.loads_models:
        return {"the ONNX reference evaluator": by_numpy}
    return {f"target {engine.target.name}": (evaluate, evaluate), "the ONNX reference evaluator": by_numpy}
