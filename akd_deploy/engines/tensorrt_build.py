"""Build a TensorRT plan from an ONNX file; the runtime's module is handed in as `trt`.

One path serves TensorRT 10.12 to 11.x and TensorRT-RTX: what a version lacks is asked of its module.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import onnx

from akd_deploy.engines.base import Progress
from akd_deploy.engines.declared_float32 import declared_float32
from akd_deploy.engines.onnx_attributes import node_attributes
from akd_deploy.engines.onnx_file import graph_inputs, read_onnx
from akd_deploy.engines.precision_audit import Layer, audited_precision
from akd_deploy.engines.tensorrt_api import TensorRt
from akd_deploy.engines.tensorrt_callbacks import message_log, run_monitored
from akd_deploy.engines.tensorrt_config import Recipe, configure
from akd_deploy.engines.tensorrt_inspect import EngineLayer, NodeSettings, layers_from_log
from akd_deploy.engines.tensorrt_parse import parsed_network
from akd_deploy.engines.tensorrt_precision import as_built, network_layers
from akd_deploy.engines.tensorrt_profiles import Profile, checked_profiles
from akd_deploy.engines.tensorrt_timing import write_timing_cache
from akd_deploy.errors import BuildError, CorruptFileError, StorageError
from akd_deploy.kernel import Shape

# Windowed ONNX operators, whose cost depends on these settings.
_WINDOWED = ("Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool")


@dataclass(frozen=True)
class Audited:
    """What an audit of a build's layers goes by; `kernels` are those that were built, where anything tells them."""

    precision: str
    layers: tuple[Layer, ...]
    asked: str
    allowed: Mapping[str, str]

    def judged_by(self, kernels: tuple[EngineLayer, ...]) -> tuple[dict[str, int], tuple[str, ...]]:
        """`audited_precision` of the layers as these kernels compute them; as the network is typed, without any."""
        built = as_built(self.layers, kernels)
        precision, notes = audited_precision(self.precision, built, self.asked, self.allowed)
        lost = [
            f"{layer.name} in {now.dtype}"
            for layer, now in zip(self.layers, built, strict=True)
            if layer.dtype == "float32" != now.dtype and not self.allowed.keys().isdisjoint(layer.nodes)
        ]
        if lost:
            notes += (f"declared to stay in float32 and fused into kernels that do not: {', '.join(lost)}",)
        if self.precision == "tf32":
            notes += ("products of float32 may round their inputs to TF32; which do, no build tells",)
        return precision, notes


@dataclass(frozen=True)
class Plan:
    """A built engine in memory: its bytes, its log, and how many layers were audited to compute in each dtype.

    `timing_cache_sha256` is that of the cache as the build left it, None where it used none or could not write it,
    which `remarks` say; `notes` are the audit's.
    """

    data: bytes
    messages: tuple[str, ...]
    precision: Mapping[str, int]
    notes: tuple[str, ...]
    seconds: float
    audited: Audited
    profiles: tuple[Profile, ...] = ()
    timing_cache_sha256: str | None = None
    remarks: tuple[str, ...] = ()


_BUILDING = threading.Lock()
_SPOILED: set[str] = set()


def build_plan(trt: TensorRt, model_path: Path, recipe: Recipe, on_progress: Progress | None = None) -> Plan:
    """Parse, audit, build, audit again. Ctrl-C cancels the build; one build runs at a time.

    TensorRT-RTX 1.7.1 carries settings of a refused build over into the next one of the process, which
    then holds other kernels: with `absorbs_failures` a build after a failed one is made twice, the
    first thrown away.

    Raises:
        MissingFileError, CorruptFileError: the file, or its weights, is not there or no ONNX network.
        UsageError: the model's shapes are not fixed apart from the batch and no profile says their range, or its
            batch is not the target's.
        BuildError: an operator is not supported, the precision is another, or TensorRT refused.
    """
    with _BUILDING:
        if recipe.absorbs_failures and trt.__name__ in _SPOILED:
            _build_once(trt, model_path, recipe, None)
        return _build_once(trt, model_path, recipe, on_progress)


def _build_once(trt: TensorRt, model_path: Path, recipe: Recipe, on_progress: Progress | None) -> Plan:
    start = time.perf_counter()
    log = message_log(trt)
    log.records.clear()
    builder = trt.Builder(log)
    model = read_onnx(model_path, recipe.batch, keep_dynamic=bool(recipe.profiles))
    recipe = replace(recipe, profiles=checked_profiles(recipe.profiles, graph_inputs(model.graph), model_path.name))
    network = parsed_network(trt, builder, model, model_path, recipe.what)
    audited = Audited(
        recipe.precision,
        tuple(network_layers(trt, network)),
        f"precision {recipe.precision} for {recipe.what}",
        declared_float32(model, model_path.name),
    )
    audited.judged_by(())
    config = builder.create_builder_config()
    cache_sha256 = configure(trt, builder, config, recipe)
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
    precision, notes = audited.judged_by(layers_from_log(messages))
    remarks: tuple[str, ...] = ()
    if recipe.timing_cache is not None and not recipe.timing_cache.pinned:
        try:
            cache_sha256 = write_timing_cache(config, recipe.timing_cache)
        except (StorageError, CorruptFileError) as error:  # hours of building are worth more than their timings
            cache_sha256, remarks = None, (f"the timing cache was not written: {error.found}",)
    seconds = time.perf_counter() - start
    return Plan(bytes(data), messages, precision, notes, seconds, audited, recipe.profiles, cache_sha256, remarks)


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
