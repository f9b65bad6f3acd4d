"""Networks of nothing but additions."""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def added(path: Path, *shape: int | str, terms: int = 1) -> Path:
    """A network of so many additions."""
    given, result = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in ("x", "y"))
    nodes = [helper.make_node("Add", ["x", "x"], [f"h{terms - 1}" if terms > 1 else "y"], "sum")]
    nodes += [
        helper.make_node("Add", [f"h{i}", "x"], [f"h{i - 1}" if i > 1 else "y"], f"sum{i}")
        for i in range(terms - 1, 0, -1)
    ]
    graph = helper.make_graph(nodes, "g", [given], [result])
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
