"""Stacks: copies of a window in one model, each with weights of its own, so that together they outgrow the caches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import onnx
from onnx import helper

from akd_deploy.latency_table import STACK
from akd_deploy.models.onnx_skeleton import filled
from akd_deploy.profiling.windows import Window


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
            graph.output.extend(own.output)
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
