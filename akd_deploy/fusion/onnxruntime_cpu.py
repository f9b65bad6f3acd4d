"""The kernels ONNX Runtime would execute on a CPU, by rules that are tested against it.

The rules are those of ONNX Runtime 1.31 for float32 networks on x86; `why_not` says where they do not hold. What the
runtime makes of a network is a matter of shapes, constants and operators alone, so neither it nor weights are needed:
a model whose large tensors are empty does. Where the runtime knows a fusion that is no rule here, nodes stay unfused.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import onnx
from onnx import numpy_helper

import akd_deploy
from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines.onnx_file import node_names
from akd_deploy.engines.onnxruntime_kernels import ProfileEvent, kernels_from_profile
from akd_deploy.errors import AkdError, UnknownNameError, UsageError
from akd_deploy.fusion import (
    qdq_pairs,
    rules_basic,
    rules_extended,
    rules_fold,
    rules_gelu,
    rules_matmul,
    rules_norm,
    rules_qdq,
    rules_qdq_types,
    rules_qdq_weights,
)
from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import MICROSOFT
from akd_deploy.fusion.onnxruntime_tested import refuse_untested
from akd_deploy.fusion.reading import graph_from_model, inline_functions
from akd_deploy.fusion.rules_nchwc import block_channels
from akd_deploy.fusion.rules_nhwc import channels_last
from akd_deploy.fusion.transposes import push_transposes, push_transposes_on_cpu
from akd_deploy.fusion.types_of_outputs import default_attributes, schema_of
from akd_deploy.kernel import ExecutedKernel

RUNTIME_VERSION = "1.31"
"""Of ONNX Runtime: the one whose fusions the rules were tested against. Others may fuse otherwise."""

_X86 = ("x86_64", "AMD64")

Rule = Callable[[Graph], bool]
"""Applies wherever it can and says whether it did."""

_BASIC: Sequence[Rule] = (
    rules_basic.drop_noops,
    rules_fold.fuse_divisions,
    rules_fold.fuse_relu_clips,
    rules_fold.swap_negated_choices,
    rules_matmul.fuse_gemm_sums,
    rules_matmul.fuse_gemm_transposes,
    rules_matmul.fold_norms_into_matmuls,
    rules_fold.fold_into_convolutions,
    rules_fold.fuse_pads,
    qdq_pairs.merge_pairs,
    rules_basic.merge_equal_nodes,
    rules_basic.fold_constants,
    functools.partial(rules_matmul.gemms_from_matmuls, keep_attention=True),
    rules_basic.merge_reshapes,
    functools.partial(rules_gelu.fuse_gelus, domain=""),
    functools.partial(rules_norm.fuse_layer_norms, is_standard=True),
    rules_qdq_types.quantise_weights,
    qdq_pairs.propagate_quantisation,
    qdq_pairs.separate_dequantisations,
    push_transposes,
)
_EXTENDED: Sequence[Rule] = (
    rules_matmul.fuse_gemm_transposes,
    rules_qdq.drop_clipped_activations,
    push_transposes_on_cpu,
    rules_qdq_types.make_unsigned,
    qdq_pairs.repair_units,
    rules_qdq.fuse_quantised,
    rules_qdq_weights.fuse_weights,
    rules_extended.fuse_gemm_activations,
    rules_extended.fuse_convolution_activations,
    functools.partial(rules_gelu.fuse_gelus, domain=MICROSOFT),
    functools.partial(rules_norm.fuse_layer_norms, is_standard=False),
    rules_norm.fuse_rms_norms,
    rules_extended.split_slices,
    rules_matmul.fuse_matmul_transposes,
    rules_gelu.fuse_bias_gelus,
    functools.partial(rules_matmul.gemms_from_matmuls, keep_attention=False),
    rules_norm.fuse_skip_layer_norms,
    rules_gelu.fuse_tanh_gelus,
    rules_gelu.fuse_quick_gelus,
    rules_matmul.fuse_matmul_scales,
)
_ONCE = frozenset({push_transposes, push_transposes_on_cpu, qdq_pairs.repair_units})
"""Rules that are gone through in a level's first round only."""

_MOST_ROUNDS = 10
"""As in the runtime: a level's rules are gone through until none applies, at most this often."""

LEVELS: Mapping[str, Sequence[Sequence[Rule]]] = {
    "disabled": (),
    "basic": (_BASIC,),
    "extended": (_BASIC, _EXTENDED),
    "all": (_BASIC, _EXTENDED),
}
"""The runtime's levels of graph optimisation; "all" also changes layouts."""


def why_not(runtime_version: str, device: DeviceFingerprint) -> str | None:
    """Why the rules do not hold for a version of ONNX Runtime on a CPU; None where they do."""
    if runtime_version != RUNTIME_VERSION and not runtime_version.startswith(f"{RUNTIME_VERSION}."):
        return f"the rules are those of ONNX Runtime {RUNTIME_VERSION}, not of {runtime_version}"
    if device.facts.get("machine") not in _X86:
        return f"the rules are those of an x86 CPU, not of {device.facts.get('machine', 'an unknown one')}"
    return None if device.facts.get("isa") else "it is not known which instructions the CPU has"


def block_of(device: DeviceFingerprint) -> int:
    """The channels that float32 convolutions block by on an x86 CPU: as many floats as its registers are made for."""
    return 16 if "avx512f" in device.facts["isa"].split() else 8


@functools.cache
def sources_digest() -> str:
    """Another text for any other rules, and for any other way to read a file or to name and attribute kernels."""
    package = Path(akd_deploy.__file__).parent
    hasher = hashlib.sha256(akd_deploy.__version__.encode())
    for source in sorted([*package.glob("fusion/*.py"), *package.glob("engines/*.py"), package / "kernel.py"]):
        hasher.update(source.read_bytes())
    return hasher.hexdigest()


def prepare() -> None:
    """Do now what else the first network waits for: ONNX registers all its operators when it is asked for one."""
    schema_of("Conv", 1, "")
    sources_digest()


def kernels_of(model: onnx.ModelProto, level: str, *, nchwc_block: int = 16) -> tuple[ExecutedKernel, ...]:
    """The kernels of a network, as `OnnxRuntimeEngine.executed_kernels` reads them off the runtime.

    Args:
        model: with static shapes; the values of large weights may be missing.
        level: "disabled", "basic", "extended" or "all".
        nchwc_block: channels that the CPU's float32 convolutions block by: see `block_of`.

    Raises:
        UnknownNameError: another level.
        UsageError: control flow, an operator without ONNX shape inference, a shape that only a run tells, a value that
            is missing and decides something, another precision than float32, or a network unlike any that the rules
            know; the message names the node or tensor.
    """
    try:
        return _kernels_of(model, level, nchwc_block)
    except AkdError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AssertionError, AttributeError) as error:
        # Rules read nodes as ONNX defines them; there are files that nobody has checked.
        raise UsageError(
            asked="the kernels of a network by fusion rules",
            found=f"a network that they cannot read ({type(error).__name__}: {error})",
            next="Check it with onnx.checker, or read the kernels off the runtime.",
        ) from error


def _kernels_of(model: onnx.ModelProto, level: str, nchwc_block: int) -> tuple[ExecutedKernel, ...]:
    graph = optimised_graph(model, level, nchwc_block=nchwc_block)
    original = model.graph
    names = node_names(original)
    if any(node.name != name for node, name in zip(original.node, names, strict=True)):
        original = _renamed(original, names)
    optimised, events = _as_profiled(graph, model.graph)
    return kernels_from_profile(original, optimised, events, {n: type_.shape for n, type_ in graph.inputs.items()})


def optimised_graph(model: onnx.ModelProto, level: str, *, nchwc_block: int = 16) -> Graph:
    """The graph that the runtime would execute; arguments and errors as those of `kernels_of`."""
    if level not in LEVELS:
        raise UnknownNameError("graph_optimization", level, LEVELS)
    graph = graph_from_model(model)
    refuse_untested(graph)
    qdq_pairs.separate_dequantisations(graph)
    basic, *extended = LEVELS[level] or ((),)
    _apply(graph, basic)
    inline_functions(graph)
    for rules in extended:
        _apply(graph, rules)
    if level == "all":
        if nchwc_block > 1:
            block_channels(graph, nchwc_block)
        channels_last(graph)
        rules_extended.fuse_convolution_sums(graph)
    return graph


def _apply(graph: Graph, rules: Sequence[Rule]) -> None:
    for i in range(_MOST_ROUNDS):
        # Every rule is tried in every round, whatever came of those before it.
        if not any([rule(graph) for rule in rules if i == 0 or rule not in _ONCE]):
            return


def _renamed(graph: onnx.GraphProto, names: Sequence[str]) -> onnx.GraphProto:
    """The nodes with these names; of the weights only that they are there."""
    renamed = onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output)
    for node, name in zip(renamed.node, names, strict=True):
        node.name = name
    for tensor in graph.initializer:
        renamed.initializer.add(name=tensor.name)
    return renamed


def _as_profiled(graph: Graph, original: onnx.GraphProto) -> tuple[onnx.GraphProto, list[ProfileEvent]]:
    """The graph as the runtime would save it, and what profiling a run would tell of every node."""
    saved = onnx.GraphProto()
    events = []
    for node in graph.nodes:
        made = saved.node.add(
            op_type=node.op, domain=node.domain, name=node.name, input=node.inputs, output=node.outputs
        )
        made.attribute.extend(node.attributes.values())
        defaults = default_attributes(node.op, graph.opset, node.domain)
        made.attribute.extend(a for a in defaults if a.name not in node.attributes)
        read, written = (
            tuple((graph.types[name].dtype, graph.shape(name)) for name in tensors if name)
            for tensors in (node.inputs, node.outputs)
        )
        events.append(ProfileEvent(node.name, node.op, "", read, written))
    for name, type_ in graph.stored.items():
        readers = graph.readers(name)
        if name in graph.constants and any(node.op.startswith("Reduce") for node in readers):
            saved.initializer.append(numpy_helper.from_array(graph.constants[name].value, name))
        elif readers:
            saved.initializer.add(name=name, data_type=type_.element, dims=type_.shape)
    saved.input.extend(value for value in original.input if value.name in graph.inputs)
    return saved, events
