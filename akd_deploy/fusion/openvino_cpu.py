"""The kernels OpenVINO would execute on a CPU, by rules that are tested against it.

The rules are those of OpenVINO 2026.4 for float32 networks on x86, one inference at a time; `why_not` says where they
do not hold. What it makes of a network is a matter of shapes, operators and a few values: a constant of zeros or ones
may have no effect and be left out. Weights that the file does not hold count as any other numbers. What the rules do
not know they refuse by name: a kernel that is guessed would have a price that is guessed.

AVX-512's and AMX's instructions for bfloat16 are two implementations of the same kernels in the same layouts. With AVX2
channels are blocked by 8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import onnx

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines.onnx_file import node_names
from akd_deploy.engines.openvino_kernels import ExecutedLayer, kernels_from_layers
from akd_deploy.errors import AkdError, UnknownNameError, UsageError
from akd_deploy.fusion import (
    rules_openvino_activations,
    rules_openvino_attention,
    rules_openvino_common,
    rules_openvino_factors,
    rules_openvino_fuse,
    rules_openvino_moves,
    rules_openvino_norms,
    rules_openvino_snippets,
    rules_openvino_strides,
)
from akd_deploy.fusion.reading import graph_from_model
from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph, unknown, unstored_constants
from akd_deploy.fusion.rules_openvino_layouts import Form, Forms, planar
from akd_deploy.fusion.rules_openvino_read import layers_from_graph
from akd_deploy.fusion.rules_openvino_reorders import forms_of
from akd_deploy.kernel import ExecutedKernel

PRECISIONS: Mapping[str, str] = {"fp32": "float32", "bf16": "bfloat16"}
"""A target's precision → what OpenVINO computes floats in where it can."""

_COMMON: Sequence[Callable[[LayerGraph], bool]] = (
    rules_openvino_common.drop_dead,
    rules_openvino_common.drop_noops,
    rules_openvino_common.merge_equal,
    rules_openvino_factors.multiply_by_inverses,
    rules_openvino_common.fuse_shuffles,
    rules_openvino_common.reshape_instead,
    rules_openvino_common.merge_reshapes,
    rules_openvino_common.merge_concatenations,
    rules_openvino_common.reduce_before_reshaping,
    rules_openvino_common.keep_reduced,
    rules_openvino_factors.align_ranks,
    rules_openvino_attention.split_slices,
    rules_openvino_attention.fuse_transposes,
    rules_openvino_attention.merge_transposes,
    rules_openvino_norms.fuse_rms_norms,
    rules_openvino_activations.fuse_swish,
    rules_openvino_activations.fuse_gelu,
    rules_openvino_activations.fuse_tanh_gelu,
    rules_openvino_factors.fuse_factors,
    rules_openvino_factors.scale_next_weights,
    rules_openvino_attention.scale_second_operands,
)
_TRANSLATIONS = {**rules_openvino_moves.TRANSLATIONS, **rules_openvino_norms.TRANSLATIONS}
_MOST_ROUNDS = 20

_LAYER_TYPES: Mapping[str, str] = {
    "MaxPool": "Pooling", "AvgPool": "Pooling", "HardSigmoid": "Math", "Slice": "StridedSlice",
    **{op: "Eltwise" for op in rules_openvino_snippets.ELEMENTWISE},
}  # fmt: skip
"""Layers → the runtime's types of them, where they differ."""

_SHORT = {
    "float32": "f32", "bfloat16": "bf16", "int32": "i32", "int64": "i64", "bool": "boolean", "uint8": "u8",
    "int8": "i8",
}  # fmt: skip
"""Our element types → those of the runtime's model."""


RUNTIME_VERSION = "2026.4"
"""Of OpenVINO: the one that the rules were tested against. Others may fuse otherwise."""

MOST_THREADS = 2
"""With which the rules were tested; more may cut attention up in more parts."""

_X86 = ("x86_64", "AMD64")
_NEEDED = {"fp32": ("avx2",), "bf16": ("avx512f", "avx512_bf16")}
"""Instruction sets that the rules of a precision are for."""


def why_not(runtime_version: str, device: DeviceFingerprint) -> str | None:
    """Why the rules do not hold for a version of OpenVINO on a CPU; None where they do."""
    if runtime_version != RUNTIME_VERSION and not runtime_version.startswith(f"{RUNTIME_VERSION}."):
        return f"the rules are those of OpenVINO {RUNTIME_VERSION}, not of {runtime_version}"
    if device.facts.get("machine") not in _X86:
        return f"the rules are those of an x86 CPU, not of {device.facts.get('machine', 'an unknown one')}"
    if not device.facts.get("isa"):
        return "it is not known which instructions the CPU has"
    return None if "avx2" in device.facts["isa"].split() else "the rules are those of a CPU with AVX2 at least"


def why_not_threads(threads: int) -> str | None:
    """Why the rules do not hold for so many threads of one inference; None where they do."""
    return None if threads <= MOST_THREADS else f"the rules were tested with {MOST_THREADS} threads, not {threads}"


def doubtful(isa: Collection[str]) -> str | None:
    """Why the runtime had better be asked where it is at hand; None where rules and a real CPU were compared."""
    return None if "avx512f" in isa else "a CPU without AVX-512, which was emulated"


def kernels_of(
    model: onnx.ModelProto, precision: str = "fp32", *, isa: Collection[str] = ("avx2", "avx512f", "avx512_bf16")
) -> tuple[ExecutedKernel, ...]:
    """The kernels of a network, as `OpenVinoEngine.executed_kernels` reads them off the runtime.

    Args:
        model: with static shapes; the values of large weights may be missing, and count as not zero.
        precision: the target's, "fp32" or "bf16".
        isa: the CPU's instruction sets, as its fingerprint has them: layouts depend on them. There are rules for AVX2
            and AVX-512, and for bfloat16 with AVX-512's instructions for it, with or without AMX.

    Raises:
        UnknownNameError: another precision.
        UsageError: another CPU, an operator or pattern that the rules do not know, or a shape that only a run tells;
            the message names the node.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision of OpenVINO's fusion rules", precision, PRECISIONS)
    missing = [flag for flag in _NEEDED[precision] if flag not in isa]
    if missing:
        raise UsageError(
            asked=f"the kernels OpenVINO executes in {precision}, by fusion rules",
            found=f"a CPU without {', '.join(missing)}",
            next="Read the kernels off the runtime on that machine.",
        )
    block = 16 if "avx512f" in isa else 8
    try:
        return _kernels_of(model, PRECISIONS[precision], block)
    except AkdError:
        raise
    except (LookupError, TypeError, ValueError, ArithmeticError, AssertionError, AttributeError) as error:
        # Rules read nodes as ONNX defines them; there are files that nobody has checked.
        raise UsageError(
            asked="the kernels OpenVINO executes, by fusion rules",
            found=f"a network that they cannot read ({type(error).__name__}: {error})",
            next="Check it with onnx.checker, or read the kernels off the runtime.",
        ) from error


def _kernels_of(model: onnx.ModelProto, low: str, block: int) -> tuple[ExecutedKernel, ...]:
    renamed = onnx.ModelProto()
    renamed.CopyFrom(model)
    for node, name in zip(renamed.graph.node, node_names(model.graph), strict=True):
        node.name = name
    graph = optimised_graph(renamed, low)
    return kernels_from_layers(renamed.graph, _as_told(graph, forms_of(graph, low, block)))


def optimised_graph(model: onnx.ModelProto, low: str) -> LayerGraph:
    """The layers that the runtime would execute, layouts aside; nodes must have names."""
    source = graph_from_model(model)
    graph = layers_from_graph(source, unstored_constants(model, source), _TRANSLATIONS)
    for _ in range(_MOST_ROUNDS):
        if not any([rule(graph) for rule in _COMMON]):
            break
    _refuse_unknown(graph)
    rules_openvino_strides.move_strides(graph)
    while rules_openvino_attention.move_up(graph):
        pass
    rules_openvino_snippets.mark_skipped(graph)
    rules_openvino_attention.tokenise_attention(graph, writes_transposed=low == "float32")
    rules_openvino_snippets.tokenise(graph)
    rules_openvino_fuse.connect_products(graph)
    rules_openvino_fuse.fuse_biases(graph)
    rules_openvino_fuse.fuse_products_and_sums(graph)
    rules_openvino_fuse.fuse_through_max_pools(graph)
    rules_openvino_fuse.fuse_simple(graph, "Deconvolution", "Convolution")
    rules_openvino_fuse.fuse_sums(graph)
    rules_openvino_fuse.fuse_simple(graph)
    rules_openvino_fuse.fuse_elementwise(graph)
    return graph


def _refuse_unknown(graph: LayerGraph) -> None:
    """OpenVINO rearranges reductions of what was just moved, in ways that are no rule here."""
    for layer in graph.layers("Reduce"):
        before = graph.layer(layer.inputs[0])
        if before is not None and before.op in ("Reshape", "Transpose") and graph.child(before) is layer:
            raise unknown(layer, f"a reduction of what a {before.op.lower()} moved for it alone")


def _as_told(graph: LayerGraph, forms: Forms) -> list[ExecutedLayer]:
    """The graph as the runtime's own model of it would tell."""
    told: list[ExecutedLayer] = []
    position: dict[str, int] = {}

    def tell(names: Sequence[str], kind: str, layer: Layer | None, form: Form, dtype: str) -> None:
        inputs = [] if layer is None else layer.inputs
        told.append(
            ExecutedLayer(
                name=names[0] if layer is None else layer.name,
                layer_type=kind,
                original_names=() if layer is None else tuple(layer.origins),
                precision=_SHORT[dtype],
                output_precisions=(_SHORT[form.dtype],),
                layout=form.layout,
                inputs=tuple(graph.shape(name) or (1,) for name in inputs),
                outputs=tuple(graph.shape(name) or (1,) for name in names),
                sources=tuple(position[name] for name in inputs),
            )
        )
        position.update((name, len(told) - 1) for name in names)

    for name in graph.inputs:
        tell([name], "Input", None, forms.of[name], forms.of[name].dtype)
    for layer in graph.in_execution_order():
        for name in layer.inputs:
            if name not in position:
                type_ = graph.types[name]
                tell([name], "Const", None, Form(planar(len(type_.shape)), type_.dtype), type_.dtype)
        kind = _LAYER_TYPES.get(layer.op, layer.op)
        tell(layer.outputs, kind, layer, forms.of[layer.outputs[0]], forms.computed[id(layer)])
    return told
