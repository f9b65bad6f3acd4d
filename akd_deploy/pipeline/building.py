"""Model files made ready to load: an engine that reads no ONNX is given what it builds from it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.engines.onnx_file import read_onnx, tensors_of
from akd_deploy.errors import BuildError, VerificationError
from akd_deploy.export.engine_facts import engine_facts_from_dict
from akd_deploy.export.trusted import built_record
from akd_deploy.target import Target

_FULL = ("fp32", "tf32")
_FLOAT8 = (onnx.TensorProto.FLOAT8E4M3FN, onnx.TensorProto.FLOAT8E5M2)


def precision_of(path: Path, batch: int) -> str:
    """What an ONNX file is typed to compute in, read from its tensors: a precision as targets write it."""
    model = read_onnx(path, batch)
    types = {tensor.data_type for tensor in tensors_of(model.graph)}
    if any(node.op_type == "QuantizeLinear" for node in model.graph.node):
        return "fp8" if types.intersection(_FLOAT8) else "int8"
    if onnx.TensorProto.FLOAT16 in types:
        return "fp16"
    return "bf16" if onnx.TensorProto.BFLOAT16 in types else "fp32"


def target_as_typed(target: Target, path: Path) -> Target:
    """The target with the precision that a variant has, so that a build is audited against what the variant is.

    Engines that load the file itself keep the target as it is: its precision is a hint to them.
    """
    engine = load_engine(target)
    if engine.loads_models or path.suffix == engine.suffix:
        return target
    precision = precision_of(path, target.batch)
    return target if precision in _FULL and target.precision in _FULL else replace(target, precision=precision)


def built_as_typed(target: Target, path: Path, folder: Path) -> Path:
    """`Engine.loadable` of a variant whose precision need not be the target's."""
    return load_engine(target_as_typed(target, path)).loadable(path, folder)


def audit_precision(engine: Engine, path: Path) -> None:
    """Make sure that a network, or an engine that was built here, computes in the target's precision: a runtime loads
    any.

    Raises:
        BuildError: it computes in another.
    """
    target = engine.target
    if not engine.loads_models or path.suffix != ".onnx":
        made_for = _precision_built_for(path)
        if made_for not in (None, target.precision) and not {made_for, target.precision} <= set(_FULL):
            raise BuildError(
                asked=f"{path.name} in {target.precision} for target {target.name}",
                found=f"an engine that was built for a target of {made_for}",
                next=f"Name the target that it was built for, or one of {made_for}.",
            )
        return
    with tempfile.TemporaryDirectory(prefix="akd-audit-") as folder:
        try:
            engine.build(path, Path(folder))
        except BuildError as error:
            if error.details.get("layers"):
                raise
            # An engine that hides its kernels goes by what the network is typed as; other refusals come when it loads.
            typed = precision_of(path, target.batch)
            if typed != target.precision and not {typed, target.precision} <= set(_FULL):
                raise BuildError(
                    asked=f"{path.name} in {target.precision} for target {target.name}",
                    found=f"a network typed {typed}",
                    next="Give it the network in the target's precision (`akd-deploy quantize`), or another target.",
                ) from error


def _precision_built_for(engine_file: Path) -> str | None:
    """Of the target that an engine was built for here; None where there is no record of it."""
    if not engine_file.is_file():
        return None
    try:
        facts = built_record(engine_file)["facts"]
    except VerificationError:
        return None
    return engine_facts_from_dict(facts, f"the record of {engine_file}").target.precision


@contextmanager
def ready_models(engine: Engine, models: Mapping[str, Path]) -> Iterator[dict[str, Path]]:
    """Name → the file to load of each model, absolute: itself, or what the engine built from it for as long as this
    lasts."""
    with tempfile.TemporaryDirectory(prefix="akd-built-") as folder:
        yield {
            name: engine.loadable(path, Path(folder) / str(i)).absolute()
            for i, (name, path) in enumerate(models.items())
        }
