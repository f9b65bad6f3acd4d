"""Which kernels an engine executes for blocks, asked of it with many of them side by side in one model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from akd_deploy.errors import MismatchError
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.profiling.importers.blocks import Block

OPSET = 18
IR_VERSION = 10
BLOCKS_PER_MODEL = 64
"""How many blocks share one model; more slow an engine's optimiser down."""
BYTES_PER_MODEL = 256 * 2**20
"""Weights of the blocks that share one model come to this at most, one block's own excepted."""
SEPARATOR = "/"


def blocks_model(blocks: Sequence[Block]) -> onnx.ModelProto:
    """Blocks side by side in one model; the nodes of the fourth are named `3/…`. Weights are zero: not to be timed."""
    nodes, weights, inputs, outputs = [], [], [], []
    for i, block in enumerate(blocks):
        prefix = f"{i}{SEPARATOR}"
        for node in block.nodes:
            renamed = onnx.NodeProto()
            renamed.CopyFrom(node)
            renamed.name = prefix + node.name
            renamed.input[:] = [prefix + name for name in node.input]
            renamed.output[:] = [prefix + name for name in node.output]
            nodes.append(renamed)
        weights += [
            numpy_helper.from_array(np.zeros(shape, np.float32), prefix + name) for name, shape in block.weights.items()
        ]
        inputs += [helper.make_tensor_value_info(prefix + t.name, TensorProto.FLOAT, t.shape) for t in block.inputs]
        outputs += [helper.make_tensor_value_info(prefix + t.name, TensorProto.FLOAT, t.shape) for t in block.outputs]
    graph = helper.make_graph(nodes, "blocks", inputs, outputs, weights)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="akd-deploy"
    )


def batches(blocks: Sequence[Block]) -> list[list[Block]]:
    """Blocks in order, as many together as may share one model."""
    result: list[list[Block]] = []
    for block in blocks:
        full = not result or len(result[-1]) == BLOCKS_PER_MODEL
        if full or sum(b.weight_bytes for b in [*result[-1], block]) > BYTES_PER_MODEL:
            result.append([])
        result[-1].append(block)
    return result


def executed_by(
    blocks: Sequence[Block], executed: Callable[[Path], Sequence[ExecutedKernel]], folder: Path
) -> list[tuple[Kernel, ...]]:
    """What an engine executes for each block.

    Args:
        executed: a model file → its kernels, each with the nodes it came from.
        folder: for the model files, which are removed.

    Raises:
        MismatchError: the engine does not say which block a kernel belongs to.
    """
    result: list[tuple[Kernel, ...]] = []
    path = folder / "blocks.onnx"
    for batch in batches(blocks):
        onnx.save_model(blocks_model(batch), path)
        found: list[list[Kernel]] = [[] for _ in batch]
        for kernel in executed(path):
            if not kernel.nodes:
                raise MismatchError(
                    asked=f"the block that kernel {kernel.name} belongs to",
                    found="none",
                    next="Import with --kernels onnx, and report the model.",
                )
            found[int(kernel.nodes[0].partition(SEPARATOR)[0])].append(kernel.kernel)
        path.unlink()
        result += [tuple(kernels) for kernels in found]
    return result
