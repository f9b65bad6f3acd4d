"""Small networks under construction, their weights as skeletons have them (`onnx_skeleton.filled` draws values)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET, IR_VERSION = 23, 11


class Graph:
    """A network under construction: call it with an operator and its inputs to get the name of its first output.

    What there is so far is `x`: a sequence of `extent` tokens of `width`, or a feature map of `width` channels and
    `extent` rows and columns.
    """

    def __init__(self, batch: int, width: int, extent: int) -> None:
        self.batch, self.width, self.extent = batch, width, extent
        self.x = ""
        self.nodes: list[onnx.NodeProto] = []
        self.inputs: list[onnx.ValueInfoProto] = []
        self.constants: list[TensorProto] = []

    def __call__(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        return self.all_of(operator, *inputs, outputs=outputs, **attributes)[0]

    def all_of(self, operator: str, *inputs: str, outputs: int = 1, **attributes: Any) -> list[str]:
        """The names of all outputs."""
        names = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(operator, inputs, names, f"n{len(self.nodes)}", **attributes))
        return names

    def given(self, *shape: int, kind: int = TensorProto.FLOAT) -> str:
        """An input; its batch comes first and is not in `shape`."""
        name = f"x{len(self.inputs)}"
        self.inputs.append(helper.make_tensor_value_info(name, kind, [self.batch, *shape]))
        return name

    def weight(self, *shape: int) -> str:
        """Values like a trained layer's, drawn when the model is written: mean, deviation, least."""
        tensor = TensorProto(name=f"w{len(self.constants)}", data_type=TensorProto.FLOAT, dims=shape)
        tensor.doc_string = "0 0.1 -0.5"
        self.constants.append(tensor)
        return tensor.name

    def constant(self, value: object, kind: type = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, kind), f"w{len(self.constants)}"))
        return self.constants[-1].name

    def whole(self, *values: int) -> str:
        return self.constant(values, np.int64)

    def conv(self, x: str, channels: int, out: int, window: int = 1, dilation: int = 1, **attributes: Any) -> str:
        groups = attributes.get("group", 1)
        return self(
            "Conv", x, self.weight(out, channels // groups, window, window), self.weight(out),
            kernel_shape=[window] * 2, pads=[dilation * (window // 2)] * 4, dilations=[dilation] * 2, **attributes,
        )  # fmt: skip

    def dense(self, x: str, width: int, out: int) -> str:
        return self("Add", self("MatMul", x, self.weight(width, out)), self.weight(out))

    def model(self, output: str) -> onnx.ModelProto:
        graph = helper.make_graph(
            self.nodes, "operator", self.inputs, [onnx.ValueInfoProto(name=output)], self.constants
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="akd-deploy"
        )
        inferred = onnx.shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)
        del inferred.graph.value_info[:]
        return inferred


Recipe = Callable[[Graph], str]
"""A graph with something in it → what comes after that."""
