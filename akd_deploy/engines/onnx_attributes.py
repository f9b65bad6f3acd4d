"""Read the settings of an ONNX node that a kernel's cost can depend on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from akd_deploy.kernel import AttributeValue, Shape

_ATTRIBUTES = {
    "kernel_shape": "kernel_size", "strides": "strides", "dilations": "dilations", "group": "groups", "pads": "pads",
    "auto_pad": "auto_pad", "activation": "activation", "perm": "perm", "axis": "axis", "axes": "axes",
    "transA": "transpose_a", "transB": "transpose_b", "channels_last": "channels_last", "ceil_mode": "ceil_mode",
    "count_include_pad": "count_include_pad", "mode": "mode", "num_heads": "num_heads", "hidden_size": "hidden_size",
    "direction": "direction", "blocksize": "block_size", "output_padding": "output_padding",
    "transBatchA": "transpose_batch_a", "transBatchB": "transpose_batch_b",
}  # fmt: skip
"""Attributes that a kernel's cost can depend on → the names kernels carry them under."""

_DEFAULTS: Mapping[str, AttributeValue] = {
    "pads": (), "auto_pad": "NOTSET", "transpose_a": 0, "transpose_b": 0, "channels_last": 0, "ceil_mode": 0,
    "count_include_pad": 0, "transpose_batch_a": 0, "transpose_batch_b": 0, "output_padding": (), "activation": "",
}  # fmt: skip
"""Values that mean "as if not written", left out so that equal kernels are equal."""

_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "ConvTranspose")
_WEIGHT_POSITION = {"QLinearConv": 3}


def node_attributes(
    node: onnx.NodeProto, inputs: Sequence[Shape], constants: Mapping[str, onnx.TensorProto]
) -> dict[str, AttributeValue]:
    """What of a node's settings its cost can depend on; `inputs` are the shapes of the inputs it has.

    A convolution always has `kernel_size`, `strides`, `dilations` and `groups`, written or not.
    """
    values: dict[str, AttributeValue] = {}
    for attribute in node.attribute:
        name = _ATTRIBUTES.get(attribute.name)
        if name is not None:
            value = onnx.helper.get_attribute_value(attribute)
            values[name] = value.decode() if isinstance(value, bytes) else _plain(value)
    if node.op_type in _CONVOLUTIONS:
        values.setdefault("kernel_size", inputs[_WEIGHT_POSITION.get(node.op_type, 1)][2:])
        kernel_size = values["kernel_size"]
        assert isinstance(kernel_size, tuple)
        values.setdefault("strides", (1,) * len(kernel_size))
        values.setdefault("dilations", (1,) * len(kernel_size))
        values.setdefault("groups", 1)
        if node.op_type in ("Conv", "FusedConv", "NhwcFusedConv") and len(node.input) > 3 and node.input[3]:
            values["residual"] = 1
    if node.op_type.startswith("Reduce") and len(node.input) > 1 and node.input[1] in constants:
        values["axes"] = _plain(numpy_helper.to_array(constants[node.input[1]]).ravel().tolist())
    pads = values.get("pads")
    if isinstance(pads, tuple) and not any(pads):
        values["pads"] = ()
    return {name: value for name, value in values.items() if _DEFAULTS.get(name) != value}


def _plain(value: object) -> AttributeValue:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(int(n) for n in value)
    assert isinstance(value, int | float | str | np.integer)
    return value if isinstance(value, int | float | str) else int(value)
