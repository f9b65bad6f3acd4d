"""Which element type each layer of a TensorRT network computes in, read from its tensors and never from a flag.

The runtime's module is handed in as `trt`; nothing is imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from akd_deploy.engines.precision_audit import Layer
from akd_deploy.engines.tensorrt_api import TensorRt
from akd_deploy.engines.tensorrt_inspect import EngineLayer, onnx_nodes
from akd_deploy.errors import BuildError

if TYPE_CHECKING:
    import tensorrt_rtx as api

_MATRIX = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM")
# Layers that move or convert data: they say nothing about what a network computes in.
_MOVES = (
    "CONSTANT", "CAST", "IDENTITY", "SHUFFLE", "SHAPE", "SLICE", "GATHER", "CONCATENATION", "QUANTIZE", "DEQUANTIZE",
    "SQUEEZE", "UNSQUEEZE", "FILL",
)  # fmt: skip
_DTYPES = {
    "FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "FP8": "float8e4m3", "INT8": "int8", "UINT8": "uint8",
    "INT32": "int32", "INT64": "int64", "BOOL": "bool",
}  # fmt: skip
_QUANTISED = ("int8", "float8e4m3")
_FLOATING = ("float32", "float16", "bfloat16")


def dtype_name(dtype: api.DataType) -> str:
    """numpy's name of a `trt.DataType`.

    Raises:
        BuildError: an element type that this project does not account for (4-bit ones).
    """
    if dtype.name not in _DTYPES:
        raise BuildError(
            asked="an element type that can be audited",
            found=f"{dtype.name} tensors",
            next=f"Supported: {', '.join(_DTYPES)}.",
        )
    return _DTYPES[dtype.name]


def network_layers(trt: TensorRt, network: api.INetworkDefinition) -> list[Layer]:
    """The layers of a strongly typed network that compute, under the names of their ONNX nodes.

    A convolution or matrix product whose two operands are dequantised from the same 8-bit type computes
    in that type; every other layer in the type of its output. A network that only moves data
    counts by all its layers.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    layers = [layer for layer in layers if layer.num_outputs and layer.type.name != "CONSTANT"]
    producers = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    computing = [layer for layer in layers if layer.type.name not in _MOVES] or layers
    return [
        Layer(
            name=" + ".join(nodes) or layer.name,
            dtype=_compute_dtype(trt, layer, producers),
            is_matrix=layer.type.name in _MATRIX,
            nodes=nodes,
        )
        for layer, nodes in ((layer, onnx_nodes(layer.metadata or "")) for layer in computing)
    ]


def _compute_dtype(trt: TensorRt, layer: api.ILayer, producers: Mapping[str, api.ILayer]) -> str:
    if layer.type.name in _MATRIX and layer.num_inputs > 1:
        read = {_dequantised_from(trt, layer.get_input(i), producers) for i in (0, 1)}
        if len(read) == 1 and read <= set(_QUANTISED):
            return str(read.pop())
    return dtype_name(layer.get_output(0).dtype)


def _dequantised_from(trt: TensorRt, tensor: api.ITensor | None, producers: Mapping[str, api.ILayer]) -> str | None:
    """The element type a tensor was dequantised from, seen through reshapes and transposes; None if it was not."""
    layer = producers.get(tensor.name) if tensor is not None else None
    while layer is not None and layer.type in (trt.LayerType.SHUFFLE, trt.LayerType.IDENTITY):
        layer = producers.get(layer.get_input(0).name)
    if layer is None or layer.type != trt.LayerType.DEQUANTIZE:
        return None
    return dtype_name(layer.get_input(0).dtype)


def as_built(layers: Sequence[Layer], built: Sequence[EngineLayer]) -> list[Layer]:
    """The same layers, corrected by the kernels that were built where those are known.

    A Q/DQ pair that does not fuse leaves its layer computing in floating point: an 8-bit layer whose kernels read no
    8-bit tensor. A floating layer whose kernels neither read, hold nor write a tensor of its type computes in the
    floating type that they read. A kernel that hides a stretch of the network says nothing about its layers; one with
    casts in it nothing about what lies between those: what it reads and writes is not what it computes in, and a
    strongly typed network keeps the types of its tensors.
    """
    corrected = []
    for layer in layers:
        kernels = [k for k in built if not k.is_opaque and not set(layer.nodes or (layer.name,)).isdisjoint(k.nodes)]
        reads = [tensor.dtype for kernel in kernels for tensor in kernel.inputs]
        # Constants of one dimension are scales, which stay in float32 beside weights of any type.
        held = [tensor for kernel in kernels for tensor in kernel.constants if len(tensor.shape) > 1]
        touched = {*reads, *(t.dtype for t in held), *(t.dtype for kernel in kernels for t in kernel.outputs)}
        floating = [read for read in reads if read in _FLOATING]
        seen = reads if layer.dtype in _QUANTISED else touched
        if not layer.is_matrix and any("cast" in kernel.name.lower() for kernel in kernels):
            corrected.append(layer)
            continue
        is_other = layer.dtype in (*_QUANTISED, *_FLOATING) and layer.dtype not in seen and floating
        corrected.append(replace(layer, dtype=floating[0]) if is_other else layer)
    return corrected
