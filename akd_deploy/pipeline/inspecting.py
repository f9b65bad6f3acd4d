"""What runs for a file, whatever the file is: a network on a target, an inspector's JSON, a TensorRT plan."""

from __future__ import annotations

import importlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import onnx

from akd_deploy.engines import load_engine
from akd_deploy.engines.base import Engine
from akd_deploy.engines.onnx_file import read_onnx
from akd_deploy.engines.tensorrt_inspect import EngineLayer, executed_kernels_from_layers, layers_from_inspector
from akd_deploy.errors import BuildError, CorruptFileError, MissingFileError, UsageError
from akd_deploy.export.tensor_types import KernelTypes, types_from_graph, types_from_layer, unknown_types
from akd_deploy.export.trusted import checked_engine_file, network_built_from, why_not_built_here
from akd_deploy.kernel import ExecutedKernel
from akd_deploy.pipeline.latency import target_latency
from akd_deploy.target import Target

PLAN = ".plan"
LAYERS = ".json"


@dataclass(frozen=True)
class Inspected:
    """Executed kernels in order with the types of their tensors; `source` says who told them."""

    kernels: tuple[ExecutedKernel, ...]
    types: tuple[KernelTypes, ...]
    source: str


def inspect_file(path: Path, target: Target | None, *, trust: bool = False) -> Inspected:
    """The kernels of a file.

    Args:
        target: what a network runs on, and whose runtime opens a plan; an inspector's JSON needs none. A plan that
            was built here is built again from its network where there is no GPU, for the build tells its kernels.
        trust: a plan of unknown origin.

    Raises:
        MissingFileError: no such file.
        VerificationError: a plan of unknown origin; none of it was read but to hash it.
        CorruptFileError: a JSON file that is none of an inspector.
        UsageError: no target for a network or a plan, or a plan of another engine.
        MissingRuntimeError: the target's runtime, or for a plan its GPU, is not here.
        BuildError: what is inside hides its kernels.
    """
    if not path.is_file():
        raise MissingFileError(asked=f"the model {path}", found="no such file", next="Check the path.")
    if path.suffix == LAYERS:
        return _of_layers(_layers_in(path), "inspector")
    if target is None:
        raise UsageError(
            asked=f"the kernels of {path}",
            found="no target",
            next="Say where it runs: --target. A layers.json needs none.",
        )
    if path.suffix == PLAN:
        engine = _engine_of_plan(path, target)
        if engine.why_not() is None or why_not_built_here(path) is not None:
            return _of_layers(_layers_of_plan(path, engine, trust), "inspector")
        path = network_built_from(path)  # a plan tells its kernels on its GPU alone, the build of it anywhere
    engine = load_engine(target)
    engine.require(engine.why_not_build())
    kernels = engine.executed_kernels(path)
    return Inspected(kernels, _types_in(path, target, kernels), "runtime")


def predicted_times_s(kernels: tuple[ExecutedKernel, ...], target: Target, table: Path | None = None) -> list[float]:
    """Each kernel's predicted seconds by the target's latency table.

    Raises:
        MissingFileError: no table of this target and device.
        UncoveredOperatorError: names every operator the table says nothing about.
    """
    return [layer.latency_s for layer in target_latency(target, table).predictor.predict(kernels).layers]


def _layers_in(path: Path) -> tuple[EngineLayer, ...]:
    try:
        return layers_from_inspector(path.read_text(encoding="utf-8"))
    except (BuildError, UnicodeDecodeError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise CorruptFileError(
            asked=f"an inspector's layers in {path}",
            found=error.found if isinstance(error, BuildError) else repr(error),
            next="Write it with trtexec --exportLayerInfo and --profilingVerbosity=detailed.",
        ) from error


def _engine_of_plan(path: Path, target: Target) -> Engine:
    engine = load_engine(target)
    if engine.suffix != PLAN:
        raise UsageError(
            asked=f"the kernels of {path} on target {target.name}",
            found=f"a TensorRT plan, and an engine of {target.engine}",
            next="Name a target of tensorrt or tensorrt-rtx.",
        )
    return engine


def _layers_of_plan(path: Path, engine: Engine, trust: bool) -> tuple[EngineLayer, ...]:
    """A plan is native code: one of unknown origin reaches no runtime."""
    engine.require(engine.why_not())
    with tempfile.TemporaryDirectory(prefix="akd-engine-") as folder:
        plan = checked_engine_file(path, engine.target.engine, Path(folder), trust=trust).read_bytes()
    from akd_deploy.engines.tensorrt_session import loaded_facts

    runtime = importlib.import_module(getattr(engine, "module", "tensorrt"))
    return layers_from_inspector(loaded_facts(runtime, plan, str(path)).layers_json)


def _of_layers(layers: tuple[EngineLayer, ...], source: str) -> Inspected:
    executed_kernels_from_layers(layers, {})  # refuses those that hide something
    kernels, types = [], []
    for layer in layers:
        for one in executed_kernels_from_layers([layer], {}):
            kernels.append(one)
            types.append(types_from_layer(layer))
    return Inspected(tuple(kernels), tuple(types), source)


def _types_in(path: Path, target: Target, kernels: tuple[ExecutedKernel, ...]) -> tuple[KernelTypes, ...]:
    """By the network's own tensors; not known for files that are no ONNX, and where an engine casts it itself."""
    if path.suffix != ".onnx" or target.engine == "torch" or _casts(target):
        return tuple(unknown_types(executed.kernel) for executed in kernels)
    model = onnx.shape_inference.infer_shapes(read_onnx(path, target.batch))
    return types_from_graph(kernels, model)


def _casts(target: Target) -> bool:
    return target.engine == "openvino"
