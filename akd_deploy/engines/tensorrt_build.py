"""Build a TensorRT plan from an ONNX file; the runtime's module is handed in as `trt`.

One path serves TensorRT 10.12 to 11.x and TensorRT-RTX: what a version lacks is asked of its module.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from akd_deploy.engines.declared_float32 import declared_float32
from akd_deploy.engines.onnx_attributes import node_attributes
from akd_deploy.engines.onnx_file import read_onnx
from akd_deploy.engines.precision_audit import audited_precision
from akd_deploy.engines.tensorrt_callbacks import Progress, message_log, run_monitored
from akd_deploy.engines.tensorrt_inspect import NodeSettings, layers_from_log
from akd_deploy.engines.tensorrt_precision import as_built, network_layers
from akd_deploy.errors import BuildError, CorruptFileError, StorageError, UnknownNameError, UsageError
from akd_deploy.kernel import Shape
from akd_deploy.storage import write_atomically

# TensorRT's own default of 1 picks kernels by one noisy timing each.
_TIMING_ITERATIONS = 8
_MIB = 1 << 20
# Windowed ONNX operators, whose cost depends on these settings.
_WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")


@dataclass(frozen=True)
class Recipe:
    """Everything that decides what is built; `compute_capabilities` () means this machine's GPU.

    `absorbs_failures`: see `build_plan`.
    """

    what: str
    precision: str
    batch: int
    compute_capabilities: tuple[str, ...] = ()
    optimization_level: int = 3
    workspace_mib: int = 0
    version_compatible: bool = False
    tf32: bool = False
    sparse_weights: bool = False
    refit: bool = False
    timing_cache: Path | None = None
    absorbs_failures: bool = False


@dataclass(frozen=True)
class Plan:
    """A built engine in memory: its bytes, its log, and how many layers were audited to compute in each dtype."""

    data: bytes
    messages: tuple[str, ...]
    precision: Mapping[str, int]
    notes: tuple[str, ...]
    seconds: float


_BUILDING = threading.Lock()
_SPOILED: set[str] = set()


def build_plan(trt: Any, model_path: Path, recipe: Recipe, on_progress: Progress | None = None) -> Plan:
    """Parse, audit, build, audit again. Ctrl-C cancels the build; one build runs at a time.

    TensorRT-RTX 1.7.1 carries settings of a refused build over into the next one of the process, which
    then holds other kernels: with `absorbs_failures` a build after a failed one is made twice, the
    first thrown away.

    Raises:
        MissingFileError, CorruptFileError: the file, or its weights, is not there or no ONNX network.
        UsageError: the model's shapes are not fixed apart from the batch, or its batch is not the target's.
        BuildError: an operator is not supported, the precision is another, or TensorRT refused.
    """
    with _BUILDING:
        if recipe.absorbs_failures and trt.__name__ in _SPOILED:
            _build_once(trt, model_path, recipe, None)
        return _build_once(trt, model_path, recipe, on_progress)


def _build_once(trt: Any, model_path: Path, recipe: Recipe, on_progress: Progress | None) -> Plan:
    start = time.perf_counter()
    log = message_log(trt)
    log.records.clear()
    builder = trt.Builder(log)
    model = read_onnx(model_path, recipe.batch)
    network = _parsed(trt, builder, model, model_path, recipe)
    asked, allowed = f"precision {recipe.precision} for {recipe.what}", declared_float32(model, model_path.name)
    layers = network_layers(trt, network)
    audited_precision(recipe.precision, layers, asked, allowed)
    config = builder.create_builder_config()
    _configure(trt, config, recipe)
    _SPOILED.add(trt.__name__)
    data = run_monitored(trt, config, lambda: builder.build_serialized_network(network, config), on_progress)
    if data is None:
        raise BuildError(
            asked=f"an engine: {recipe.what}",
            found="; ".join(log.errors()) or "no engine and no error in the log",
            next="Change the model or the target's engine options as the message says.",
        )
    _SPOILED.discard(trt.__name__)
    messages = tuple(text for _, text in log.records)
    log.records.clear()
    precision, notes = audited_precision(recipe.precision, as_built(layers, layers_from_log(messages)), asked, allowed)
    if recipe.timing_cache is not None:
        write_atomically(recipe.timing_cache, bytes(config.get_timing_cache().serialize()))
    return Plan(bytes(data), messages, precision, notes, time.perf_counter() - start)


def _parsed(trt: Any, builder: Any, model: onnx.ModelProto, model_path: Path, recipe: Recipe) -> Any:
    flags = 0
    for name in ("EXPLICIT_BATCH", "STRONGLY_TYPED"):
        flag = getattr(trt.NetworkDefinitionCreationFlag, name, None)
        if flag is not None:
            flags |= 1 << int(flag)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, message_log(trt))
    # Parsed from memory with its batch fixed and its nodes named; the path says where other weights files are.
    if parser.parse(model.SerializeToString(), path=str(model_path.resolve())):
        return network
    failures = [parser.get_error(i) for i in range(parser.num_errors)]
    nodes = [
        {
            "operator": failure.node_operator(),
            "node": failure.node_name(),
            "message": " ".join(f"{failure.code().name} ({failure.desc()})".split()),
        }
        for failure in failures
    ]
    raise BuildError(
        asked=f"an engine: {recipe.what}",
        found="; ".join(f"operator {n['operator']} of node {n['node']!r}: {n['message']}" for n in nodes)
        or "; ".join(message_log(trt).errors())
        or "a parser that gave no reason",
        next="Replace the operator, or choose a target whose engine has it.",
        nodes=nodes,
    )


def node_settings(model_path: Path, batch: int) -> dict[str, NodeSettings]:
    """ONNX node name → its operator, and the settings of its window where it has one."""
    model = onnx.shape_inference.infer_shapes(read_onnx(model_path, batch))
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    shapes: dict[str, Shape] = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in (*model.graph.input, *model.graph.value_info)
    }
    shapes |= {name: tuple(tensor.dims) for name, tensor in constants.items()}
    settings = {}
    for node in model.graph.node:
        windowed = node.op_type in _WINDOWED and all(name in shapes for name in node.input if name)
        attributes = node_attributes(node, [shapes[n] for n in node.input if n], constants) if windowed else {}
        settings[node.name] = NodeSettings(node.op_type, tuple(attributes.items()))
    return settings


def _configure(trt: Any, config: Any, recipe: Recipe) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = recipe.optimization_level
    config.avg_timing_iterations = _TIMING_ITERATIONS
    if recipe.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, recipe.workspace_mib * _MIB)
    flags = {
        "TF32": recipe.precision == "tf32" or recipe.tf32,  # on by default, so fp32 has to switch it off
        "SPARSE_WEIGHTS": recipe.sparse_weights,
        "VERSION_COMPATIBLE": recipe.version_compatible,
        "REFIT": recipe.refit,
    }
    for name, on in flags.items():
        flag = getattr(trt.BuilderFlag, name, None)
        if flag is None and on:
            raise UsageError(
                asked=f"builder flag {name} for {recipe.what}",
                found=f"{trt.__name__} {trt.__version__} without it",
                next="Leave the option out.",
            )
        if flag is not None:
            (config.set_flag if on else config.clear_flag)(flag)
    if recipe.compute_capabilities:
        _set_compute_capabilities(trt, config, recipe)
    if recipe.timing_cache is not None:
        _set_timing_cache(config, recipe.timing_cache)


def _set_compute_capabilities(trt: Any, config: Any, recipe: Recipe) -> None:
    known = {n.lower(): c for n, c in trt.ComputeCapability.__members__.items() if re.fullmatch(r"SM\d+", n)}
    for name in recipe.compute_capabilities:
        if name not in known:
            raise UnknownNameError("compute capability", name, known, where=f"{trt.__name__} {trt.__version__}")
    # A slot counted and left empty ends the build with an unexplained C++ exception: fill every one.
    config.num_compute_capabilities = len(recipe.compute_capabilities)
    for slot, name in enumerate(recipe.compute_capabilities):
        if not config.set_compute_capability(known[name], slot):
            raise BuildError(
                asked=f"a plan for {', '.join(recipe.compute_capabilities)}",
                found=f"{name} refused: {'; '.join(message_log(trt).errors())}",
                next=f"{trt.__name__} {trt.__version__} knows {', '.join(known)}.",
            )


def _set_timing_cache(config: Any, path: Path) -> None:
    try:
        content = path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise StorageError(asked=f"timing cache {path}", found=str(error), next="Check the path.") from error
    timings = config.create_timing_cache(content)
    if timings is None or not config.set_timing_cache(timings, False):
        raise CorruptFileError(
            asked=f"timing cache {path}",
            found="a file that is no timing cache of this GPU and TensorRT version",
            next="Name another file, or delete it.",
        )
