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
_MEMORY_LINE = re.compile(r"^Total (Activation|Weights) Memory: (\d+) bytes$")
_TENSORS = r"(?:, {0}: \[(?P<{0}>|(?:(?!\], (?:Inputs|Constants|Outputs): ).)*?\}})\])?"
_LOG_LINE = re.compile(
    r"^Name: (?P<Name>.*?), LayerType: (?P<LayerType>[^,]*)"
    + "".join(_TENSORS.format(key) for key in ("Inputs", "Constants", "Outputs"))
    # Fields that differ from layer to layer and from version to version, but no tensors in an order nobody knows.
    + r"(?:(?!, (?:Inputs|Constants|Outputs): ).)*?(?:, Metadata: (?P<Metadata>.*))?$"
)
_LOG_TENSOR = re.compile(r"\{ Name: .*?, Dimensions: \[(?P<Dimensions>[-\d,]*)\](?P<rest>.*?)\}")

ACTIVATIONS = frozenset(
    {"Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Sigmoid", "Softplus",
     "Swish", "Tanh"}
)  # fmt: skip


@dataclass(frozen=True)
class EngineTensor:
    """A tensor that a layer of an engine reads or writes."""

    shape: Shape
    dtype: str


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


def _log_tensors(text: str | None, where: str) -> tuple[EngineTensor, ...]:
    tensors = []
    for match in _LOG_TENSOR.finditer(text or ""):
        shape = tuple(int(n) for n in match["Dimensions"].split(",") if n)
        datatype = re.search(r"Datatype: (\w+)", match["rest"])
        tensors.append(EngineTensor(shape, _dtype(datatype.group(1) if datatype else match["rest"], where)))
    return tuple(tensors)


def layers_from_log(messages: Iterable[str]) -> tuple[EngineLayer, ...]:
    """The last kernel table of a VERBOSE build log; () where the log has none.

    Such a table is one message: "Layers:", a line for each layer, an empty line, "I/O Tensors:" …

    Raises:
        BuildError: a line of the table cannot be read.
    """
    tables = [message for message in messages if message.startswith("Layers:\n")]
    layers: list[EngineLayer] = []
    for line in tables[-1].partition("\n\n")[0].splitlines()[1:] if tables else ():
        match = _LOG_LINE.match(line)
        if match is None:
            raise BuildError(
                asked="the kernel table of a build log",
                found=f"a line that is no layer: {line[:200]!r}",
                next="This TensorRT version writes another format; please report the line.",
            )
        layers.append(
            EngineLayer(
                name=match["Name"],
                op=match["LayerType"],
                inputs=_log_tensors(match["Inputs"], match["Name"]),
                constants=_log_tensors(match["Constants"], match["Name"]),
                outputs=_log_tensors(match["Outputs"], match["Name"]),
                nodes=onnx_nodes(match["Metadata"] or ""),
            )
        )
    return tuple(layers)


def memory_from_log(messages: Iterable[str]) -> dict[str, int]:
    """`{"activation_bytes": …, "weights_bytes": …}` as far as a build log tells them."""
    found = (_MEMORY_LINE.match(message) for message in messages)
    return {f"{match[1].lower()}_bytes": int(match[2]) for match in found if match}


def _json_tensor(tensor: Mapping[str, Any], where: str) -> EngineTensor:
    described = next((str(tensor[k]) for k in ("Datatype", "DataType", "Format/Datatype") if k in tensor), "")
    return EngineTensor(tuple(int(n) for n in tensor.get("Dimensions", ())), _dtype(described, where))


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
    layers = []
    for layer in described:
        name = str(layer.get("Name", ""))
        constants = tuple(_json_tensor(t, name) for t in layer.get("Constants", ()))
        layers.append(
            EngineLayer(
                name=name,
                op=str(layer.get("LayerType", "")),
                inputs=tuple(_json_tensor(t, name) for t in layer.get("Inputs", ())),
                constants=constants or _json_weights(layer, name),
                outputs=tuple(_json_tensor(t, name) for t in layer.get("Outputs", ())),
                nodes=onnx_nodes(str(layer.get("Metadata", ""))),
                settings={
                    k: layer[k]
                    for k in ("Kernel", "Stride", "Dilation", "Groups", "Activation", "HasResidual")
                    if k in layer
                },
            )
        )
    return tuple(layers)


def _attributes(layer: EngineLayer, nodes: Mapping[str, NodeSettings]) -> dict[str, AttributeValue]:
    generated = _GENERATED_NAME.match(layer.name)
    fusion: dict[str, AttributeValue] = {"fusion": generated.group(1)} if generated else {}
    if layer.op == "kgen":
        return fusion
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
        return attributes | fusion
    known = [nodes[name] for name in layer.nodes if name in nodes]
    window: dict[str, AttributeValue] = next((dict(node.attributes) for node in known if node.attributes), {})
    activations = [node.op.lower() for node in known if node.op in ACTIVATIONS]
    if activations:
        window["activation"] = "+".join(activations)
    if layer.op == "correlation" and len(layer.inputs) > 1:
        window["residual"] = 1
    return window | fusion


def executed_kernels_from_layers(
    layers: Sequence[EngineLayer], nodes: Mapping[str, NodeSettings]
) -> tuple[ExecutedKernel, ...]:
    """The kernels an engine runs, in order; weights follow the inputs.

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
            op=layer.op,
            inputs=tuple(t.shape for t in (*layer.inputs, *layer.constants)),
            outputs=tuple(t.shape for t in layer.outputs),
            dtype=tensors[0].dtype,
            attributes=tuple(_attributes(layer, nodes).items()),
        )
        kernels.append(ExecutedKernel(kernel, layer.name, layer.nodes))
    return tuple(kernels)
