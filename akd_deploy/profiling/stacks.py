"""Stacks: copies of a window in one model, each with weights of its own, so that together they outgrow the caches.

Only one element of what a copy makes leaves the model, so that its memory is the next one's: inside a network, too,
what flows from kernel to kernel stays near.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from akd_deploy.latency_table import STACK
from akd_deploy.models.onnx_skeleton import filled
from akd_deploy.profiling.windows import Window

SLICES_BY_INPUTS = 10
"""The operator set from which a Slice takes its bounds as inputs."""


@dataclass(frozen=True, eq=False)
class Stack:
    """`copies` of a window beside each other, all fed the same inputs."""

    window: Window
    copies: int
    kind: str = STACK

    @property
    def family(self) -> str:
        """The window's."""
        return self.window.family

    @cached_property
    def name(self) -> str:
        """Equal for equal windows and as many copies only."""
        return f"{self.window.name}-x{self.copies}"

    def write(self, folder: Path) -> Path:
        """Write it as ONNX, other weights in every copy, the same ones for the same stack."""
        bare = self.window.model
        fed = {value.name for value in bare.graph.input}
        graph = onnx.GraphProto(name="stack", input=bare.graph.input)
        opset = next((one.version for one in bare.opset_import if one.domain in ("", "ai.onnx")), SLICES_BY_INPUTS)
        ranks: set[int] = set()
        rng = np.random.default_rng(int(self.window.name.rpartition("-")[2], 16))
        for copy in range(self.copies):
            own = filled(bare, rng).graph
            for value in (*own.initializer, *own.output):
                value.name = f"c{copy}_{value.name}"
            for node in own.node:
                node.name = f"c{copy}_{node.name}"
                node.input[:] = [name if name in fed or not name else f"c{copy}_{name}" for name in node.input]
                node.output[:] = [name and f"c{copy}_{name}" for name in node.output]
            graph.node.extend(own.node)
            graph.initializer.extend(own.initializer)
            for value in own.output:
                tensor = value.type.tensor_type
                rank = len(tensor.shape.dim)
                first = f"{value.name}_first"
                graph.node.append(_first_element(value.name, first, rank, opset))
                graph.output.append(helper.make_tensor_value_info(first, tensor.elem_type, [1] * rank))
                ranks.add(rank)
        if opset >= SLICES_BY_INPUTS:
            graph.initializer.extend(
                numpy_helper.from_array(np.array(values, np.int64), f"{name}_{rank}")
                for rank in sorted(ranks)
                for name, values in (("zeros", [0] * rank), ("ones", [1] * rank))
            )
        model = helper.make_model(
            graph,
            opset_imports=list(bare.opset_import),
            ir_version=bare.ir_version,
            functions=list(bare.functions),
            producer_name="akd-deploy",
        )
        path = folder / f"{self.name}.onnx"
        onnx.save_model(model, path)
        return path


def _first_element(value: str, first: str, rank: int, opset: int) -> onnx.NodeProto:
    if opset >= SLICES_BY_INPUTS:
        return helper.make_node("Slice", [value, f"zeros_{rank}", f"ones_{rank}"], [first], name=first)
    return helper.make_node("Slice", [value], [first], name=first, starts=[0] * rank, ends=[1] * rank)
