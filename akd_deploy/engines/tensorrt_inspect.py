"""Read the fused kernels of a TensorRT engine: from its inspector's JSON (10.x, 11.x) or from a detailed build log.

Everything here is a function of text; no runtime is imported.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from akd_deploy.engines.tensorrt_log import layers_in_log
from akd_deploy.errors import BuildError
from akd_deploy.kernel import AttributeValue, ExecutedKernel, Kernel, Shape

# What TensorRT calls an element type in a log, in an inspector's "Datatype", and in the prose that
# 10.x puts into "Format/Datatype" ("Channel major FP16 format where channel % 8 == 0").
_DTYPES = {
    "Float": "float32", "FP32": "float32",
    "Half": "float16", "FP16": "float16",
    "BFloat16": "bfloat16", "BF16": "bfloat16",
    "FP8": "float8e4m3",
    "Int8": "int8", "INT8": "int8", "UInt8": "uint8", "UINT8": "uint8",
    "Int32": "int32", "INT32": "int32", "Int64": "int64", "INT64": "int64",
    "Bool": "bool", "BOOL": "bool",
}  # fmt: skip
_DTYPE_WORD = re.compile(r"\b(" + "|".join(_DTYPES) + r")\b")

# Layers that only make one stream wait for another, that compute shapes on the host, or that run nothing at all.
_NOT_KERNELS = frozenset({"signal", "wait", "NoOp", "Constant", "ShapeHostToDevice", "shape_call"})
# Code generated around one fusion; such a kernel is named after the operations in it.
_GENERATED_NAME = re.compile(r"^__myl_([A-Za-z0-9]+?)_myl\d+_\d+$")
# Products, and attention whole, in code generated around them; the name says which.
_GENERATED_PRODUCT = re.compile(r"^_(gemm\w*?)_myl\d+_\d+$")
_ATTENTION = "mha"
_PRODUCTS = ("correlation", "gemm")
_OPERATION = re.compile(r"\bpwgen::i(\w+)\(")
_SETTINGS = ("Kernel", "Stride", "Dilation", "Groups", "Activation", "HasResidual", "Origin", "Operations")
_FORMATS = (
    (re.compile(r"^\((\w+)\)"), None),
    (re.compile(r"Thirty-two wide channel"), "chw32"), (re.compile(r"Sixteen wide channel"), "chw16"),
    (re.compile(r"Four wide channel"), "chw4"), (re.compile(r"Two wide channel"), "chw2"),
    (re.compile(r"channel % (\d+)", re.IGNORECASE), "hwc"), (re.compile(r"Channel major"), "hwc"),
    (re.compile(r"Row major"), "linear"),
)  # fmt: skip
"""What 10.x says of a tensor's layout → a short name, the first that fits; 11.x begins with one, in brackets."""
_MEMORY_LINE = re.compile(r"^Total (Activation|Weights) Memory: (\d+) bytes$")
ACTIVATIONS = frozenset(
    {"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Sigmoid", "Softplus",
     "Swish", "Tanh"}
)  # fmt: skip


@dataclass(frozen=True)
class EngineTensor:
    """A tensor that a layer of an engine reads or writes; `layout` is "" where TensorRT does not say."""

    shape: Shape
    dtype: str
    layout: str = field(default="", compare=False)


@dataclass(frozen=True)
class EngineLayer:
    """One layer of a built engine, as TensorRT describes it.

    `constants` are weights and scales held by the engine; `nodes` the ONNX nodes it came from;
    `settings` what the inspector says of its window ("Kernel", "Stride", …), {} in a log.
    """

    name: str
    op: str
    inputs: tuple[EngineTensor, ...]
    constants: tuple[EngineTensor, ...]
    outputs: tuple[EngineTensor, ...]
    nodes: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_opaque(self) -> bool:
        """Whether a whole stretch of the network hides in this one layer."""
        return "ForeignNode[" in self.name or self.op in ("Myelin", "ForeignNode")


@dataclass(frozen=True)
class NodeSettings:
    """What an ONNX node says of itself: its operator, and its window where it has one."""

    op: str
    attributes: tuple[tuple[str, AttributeValue], ...] = ()


def _dtype(text: str, where: str) -> str:
    found = _DTYPE_WORD.search(text)
    if found is None:
        raise BuildError(
            asked=f"the element type of a tensor of engine layer {where!r}",
            found=repr(text[:120]),
            next=f"Known element types: {', '.join(_DTYPES)}.",
        )
    return _DTYPES[found.group(1)]


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """The ONNX nodes in a layer's `Metadata`; 11.x and RTX part them by U+001F, 10.x by U+001E."""
    names = re.findall(r"\[ONNX Layer: ([^\x1e\x1f]*)\](?=[\x1e\x1f]|\[|$)", metadata)
    return tuple(dict.fromkeys(names))


def layers_from_log(messages: Iterable[str]) -> tuple[EngineLayer, ...]:
    """The last kernel table of a VERBOSE build log; () where the log has none.

    Raises:
        BuildError: a line of the table cannot be read.
    """
    return tuple(_layer(described) for described in layers_in_log(messages))


def memory_from_log(messages: Iterable[str]) -> dict[str, int]:
    """`{"activation_bytes": …, "weights_bytes": …}` as far as a build log tells them."""
    found = (_MEMORY_LINE.match(message) for message in messages)
    return {f"{match[1].lower()}_bytes": int(match[2]) for match in found if match}


def _json_tensor(tensor: Mapping[str, Any], where: str) -> EngineTensor:
    described = next((str(tensor[k]) for k in ("Datatype", "DataType", "Format/Datatype") if k in tensor), "")
    layout = _layout(str(tensor.get("Format", tensor.get("Format/Datatype", ""))))
    return EngineTensor(tuple(int(n) for n in tensor.get("Dimensions", ())), _dtype(described, where), layout)


def _layout(text: str) -> str:
    """The short name of how a tensor lies in memory."""
    for pattern, name in _FORMATS:
        found = pattern.search(text)
        if found is not None:
            number = found.group(1) if pattern.groups else ""
            return number.lower() if name is None else f"{name}{number}"
    return ""


def _json_weights(layer: Mapping[str, Any], name: str) -> tuple[EngineTensor, ...]:
    """Weights that 10.x tells by type and count only; their shape follows from the convolution's settings."""
    tensors = []
    for key in ("Weights", "Bias"):
        told = layer.get(key)
        if not isinstance(told, Mapping) or not told.get("Count"):
            continue
        count, shape = int(told["Count"]), (int(told["Count"]),)
        if key == "Weights" and layer.get("Kernel") and layer.get("OutMaps"):
            window, out = prod(layer["Kernel"]), int(layer["OutMaps"])
            if count % (window * out) == 0:
                shape = (out, count // (window * out), *layer["Kernel"])
        tensors.append(EngineTensor(shape, _dtype(str(told["Type"]), name)))
    return tuple(tensors)


def layers_from_inspector(text: str) -> tuple[EngineLayer, ...]:
    """The layers in `EngineInspector.get_engine_information(JSON)`, of TensorRT 10.x ("Bindings") or 11.x.

    Raises:
        BuildError: the text is not such JSON, or the engine was built without detailed layer information.
    """
    try:
        described = json.loads(text)["Layers"]
        if not isinstance(described, list):
            raise TypeError(f"Layers is a {type(described).__name__}")
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise BuildError(
            asked="the layers of an engine",
            found=f"inspector text that cannot be read ({error})",
            next="Expected the JSON of TensorRT 10.x or 11.x.",
        ) from error
    if any(isinstance(layer, str) for layer in described):
        raise BuildError(
            asked="the layers of an engine",
            found="layer names only",
            next="Build the engine with detailed profiling verbosity, as `build` does.",
        )
    return tuple(_layer(layer) for layer in described)


def _layer(described: Mapping[str, Any]) -> EngineLayer:
    name = str(described.get("Name", ""))
    constants = tuple(_json_tensor(t, name) for t in described.get("Constants", ()))
    return EngineLayer(
        name=name,
        op=str(described.get("LayerType", "")),
        inputs=tuple(_json_tensor(t, name) for t in described.get("Inputs", ())),
        constants=constants or _json_weights(described, name),
        outputs=tuple(_json_tensor(t, name) for t in described.get("Outputs", ())),
        nodes=onnx_nodes(str(described.get("Metadata", ""))),
        settings={key: described[key] for key in _SETTINGS if key in described},
    )


def _attributes(layer: EngineLayer, nodes: Mapping[str, NodeSettings]) -> dict[str, AttributeValue]:
    """Settings of a kernel: those of its window, what is fused in it, and conversions on its way."""
    generated = _GENERATED_NAME.match(layer.name) or _GENERATED_PRODUCT.match(layer.name)
    fusion: dict[str, AttributeValue] = {"fusion": generated.group(1)} if generated else {}
    operations = _OPERATION.findall(str(layer.settings.get("Operations", "")))
    if operations:
        fusion["fusion"] = "+".join(operations)
    return _window(layer, nodes) | fusion | _conversion(layer)


def _conversion(layer: EngineLayer) -> dict[str, AttributeValue]:
    """Which element type and layout a reformat makes of which; of others, the type they write if it is another."""
    tensors = (*layer.inputs, *layer.constants, *layer.outputs)
    source, target = tensors[0], layer.outputs[0]
    values: dict[str, AttributeValue] = {}
    if layer.op == "Reformat":
        values = {"from": source.dtype, "to": target.dtype, "from_format": source.layout, "to_format": target.layout}
        if layer.settings.get("Origin") == "QDQ":
            values["origin"] = "qdq"
    elif target.dtype != source.dtype:
        values["to"] = target.dtype
    return {name: value for name, value in values.items() if value}


def _read(layer: EngineLayer) -> tuple[EngineTensor, ...]:
    """What a kernel reads, in the order in which every engine's kernels have it."""
    if layer.op in _PRODUCTS or "conv" in layer.op.lower():
        return (*layer.inputs[:1], *layer.constants, *layer.inputs[1:])
    return (*layer.inputs, *layer.constants)


def _operator(layer: EngineLayer) -> str:
    """What a kernel is named by: TensorRT's type of the layer; what was generated, where the type says no more."""
    product = _GENERATED_PRODUCT.match(layer.name)
    if layer.op != "kgen" or product is None:
        return layer.op
    return "attention" if _ATTENTION in product.group(1) else "gemm"


def _window(layer: EngineLayer, nodes: Mapping[str, NodeSettings]) -> dict[str, AttributeValue]:
    if layer.op == "kgen":
        return {}
    told = layer.settings
    if "Kernel" in told:
        attributes: dict[str, AttributeValue] = {"kernel_size": tuple(told["Kernel"])}
        for key, name in (("Stride", "strides"), ("Dilation", "dilations")):
            if key in told:
                attributes[name] = tuple(told[key])
        if "Groups" in told:
            attributes["groups"] = int(told["Groups"])
        if told.get("Activation", "NONE") != "NONE":
            attributes["activation"] = str(told["Activation"]).lower()
        if told.get("HasResidual"):
            attributes["residual"] = 1
        return attributes
    known = [nodes[name] for name in layer.nodes if name in nodes]
    window: dict[str, AttributeValue] = next((dict(node.attributes) for node in known if node.attributes), {})
    activations = [node.op.lower() for node in known if node.op in ACTIVATIONS]
    if activations:
        window["activation"] = "+".join(activations)
    if layer.op == "correlation" and len(layer.inputs) > 1:
        window["residual"] = 1
    return window


def executed_kernels_from_layers(
    layers: Sequence[EngineLayer], nodes: Mapping[str, NodeSettings]
) -> tuple[ExecutedKernel, ...]:
    """The kernels an engine runs, in order; weights follow the inputs, of which those behind a product's first, as what
    is added to its result, come last.

    A kernel computes in the element type of the first tensor it reads. `nodes` are the settings of the
    model's ONNX nodes by name, for layers that do not tell their own.

    Raises:
        BuildError: there are no layers, or one hides a stretch of the network.
    """
    opaque = [layer.name for layer in layers if layer.is_opaque]
    if opaque or not layers:
        raise BuildError(
            asked="the kernels of an engine",
            found=f"one opaque layer {opaque[0]!r}" if opaque else "nothing about its kernels in the build log",
            next="This build hides its kernels. Measure the network as a whole, or profile another target.",
        )
    kernels = []
    for layer in layers:
        if layer.op in _NOT_KERNELS:
            continue
        tensors = (*layer.inputs, *layer.constants, *layer.outputs)
        if not layer.outputs or any(n < 0 for tensor in tensors for n in tensor.shape):
            raise BuildError(
                asked=f"the shapes of engine layer {layer.name!r}",
                found="dimensions that are not known before it runs" if layer.outputs else "no output",
                next="Build with static shapes.",
            )
        kernel = Kernel(
            op=_operator(layer),
            inputs=tuple(t.shape for t in _read(layer)),
            outputs=tuple(t.shape for t in layer.outputs),
            dtype=tensors[0].dtype,
            attributes=tuple(_attributes(layer, nodes).items()),
        )
        kernels.append(ExecutedKernel(kernel, layer.name, layer.nodes))
    return tuple(kernels)
