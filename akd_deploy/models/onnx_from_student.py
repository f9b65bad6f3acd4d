"""The ONNX of a student: written operation by operation, batch norms folded, names kept.

No torch is needed for an architecture without trained weights: `onnx_from_architecture` draws them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from akd_deploy.architecture import Architecture
from akd_deploy.search_space import Layer, space_of
from akd_deploy.search_space.operations import INPUT, Operation, operations
from akd_deploy.storage import write_atomically

if TYPE_CHECKING:
    from akd_deploy.models.student import Student

OPSET = 18
IR_VERSION = 10
OUTPUT = "logits"
BATCH_NORM = ("weight", "bias", "running_mean", "running_var")
"""What `torch.nn.BatchNorm2d` keeps, by channel."""

Weights = Callable[[Operation], tuple[np.ndarray, np.ndarray]]
"""Operation → (weight, bias), batch norm folded: (out, in / groups, k, k) or (out, in), and (out,)."""


def random_weights(rng: np.random.Generator) -> Weights:
    """He-normal weights: latency does not depend on values, but denormal or constant ones would.

    Biases are small and not zero: a runtime may leave zeros out, and then executes another kernel than a trained
    network's.
    """

    def draw(step: Operation) -> tuple[np.ndarray, np.ndarray]:
        shape: tuple[int, ...] = (step.out_channels, step.in_channels // step.groups)
        if step.kind == "conv":
            shape += (step.kernel_size, step.kernel_size)
        scale = np.sqrt(2 / np.prod(shape[1:]))
        weight = (rng.standard_normal(shape, dtype=np.float32) * scale).astype(np.float32)
        return weight, np.full(step.out_channels, 0.01, np.float32)

    return draw


def _weights_of(student: Student) -> Weights:
    """The student's own weights, every batch norm folded into its convolution in float64."""
    from akd_deploy.models.student import module_name

    state = {name: tensor.detach().cpu().numpy() for name, tensor in student.state_dict().items()}

    def folded(step: Operation) -> tuple[np.ndarray, np.ndarray]:
        prefix = f"steps.{module_name(step)}"
        if step.kind == "linear":
            return state[f"{prefix}.weight"], state[f"{prefix}.bias"]
        weight = state[f"{prefix}.conv.weight"]
        if not step.batch_norm:
            return weight, state[f"{prefix}.conv.bias"]
        return folded_batch_norm(weight, {key: state[f"{prefix}.norm.{key}"] for key in BATCH_NORM})

    return folded


def folded_batch_norm(weight: np.ndarray, norm: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """(weight, bias) of a convolution without bias and the batch norm after it as one convolution, computed in float64.

    Args:
        weight: (out, in / groups, k, k).
        norm: (out,) for each of `BATCH_NORM`; its epsilon is torch's default.
    """
    wide = {key: array.astype(np.float64) for key, array in norm.items()}
    scale = wide["weight"] / np.sqrt(wide["running_var"] + 1e-5)
    bias = wide["bias"] - wide["running_mean"] * scale
    return (weight * scale[:, None, None, None]).astype(np.float32), bias.astype(np.float32)


def _activation(kind: str, source: str, name: str) -> onnx.NodeProto:
    if kind == "relu":
        return helper.make_node("Relu", [source], [name], name=f"{name}.relu")
    if kind == "hardsigmoid":
        return helper.make_node("HardSigmoid", [source], [name], name=f"{name}.hardsigmoid", alpha=1 / 6, beta=0.5)
    if kind == "hardswish":
        return helper.make_node("HardSwish", [source], [name], name=f"{name}.hardswish")
    raise ValueError(f"{name}: no ONNX for activation {kind!r}")


def graph_nodes(
    steps: Sequence[Operation], weights: Weights, renamed: dict[str, str] | None = None
) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """Nodes and initialisers of a chain of operations.

    Every tensor, and the main node of every operation, carries the operation's name; `renamed` gives some
    tensors other names.
    """
    nodes: list[onnx.NodeProto] = []
    initialisers: list[onnx.TensorProto] = []
    names = renamed or {}
    for step in steps:
        inputs = [names.get(name, name) for name in step.inputs]
        output = names.get(step.name, step.name)
        if step.kind in ("conv", "linear"):
            for label, array in zip(("weight", "bias"), weights(step), strict=True):
                initialisers.append(numpy_helper.from_array(np.ascontiguousarray(array), f"{step.name}.{label}"))
            inputs += [f"{step.name}.weight", f"{step.name}.bias"]
        if step.kind == "conv":
            raw = output if step.activation == "none" else f"{step.name}.conv_out"
            nodes.append(
                helper.make_node(
                    "Conv",
                    inputs,
                    [raw],
                    name=step.name,
                    kernel_shape=[step.kernel_size] * 2,
                    strides=[step.stride] * 2,
                    pads=[step.kernel_size // 2] * 4,
                    group=step.groups,
                )
            )
            if step.activation != "none":
                nodes.append(_activation(step.activation, raw, output))
        elif step.kind == "linear":
            flat = f"{step.name}.flat"
            nodes.append(helper.make_node("Flatten", inputs[:1], [flat], name=flat, axis=1))
            nodes.append(helper.make_node("Gemm", [flat, *inputs[1:]], [output], name=step.name, transB=1))
        elif step.kind in ("pool", "max_pool"):
            window = {"kernel_shape": [3, 3], "strides": [step.stride] * 2, "pads": [1, 1, 1, 1]}
            if step.kind == "pool":
                node = helper.make_node("AveragePool", inputs, [output], name=step.name, **window, count_include_pad=1)
            else:
                node = helper.make_node("MaxPool", inputs, [output], name=step.name, **window)
            nodes.append(node)
        elif step.kind == "concat":
            nodes.append(helper.make_node("Concat", inputs, [output], name=step.name, axis=1))
        else:
            operator = {"global_pool": "GlobalAveragePool", "add": "Add", "scale": "Mul"}[step.kind]
            nodes.append(helper.make_node(operator, inputs, [output], name=step.name))
    return nodes, initialisers


def _output_shape(step: Operation, batch: int) -> list[int]:
    return [batch, step.out_channels] + ([] if step.kind == "linear" else [step.out_size, step.out_size])


def model_of(steps: Sequence[Operation], weights: Weights, batch: int, name: str) -> onnx.ModelProto:
    """The checked network of a chain of operations, input `input`, output `logits`, of static shapes."""
    nodes, initialisers = graph_nodes(steps, weights, {steps[-1].name: OUTPUT})
    first, last = steps[0], steps[-1]
    graph = helper.make_graph(
        nodes,
        name,
        [
            helper.make_tensor_value_info(
                INPUT, TensorProto.FLOAT, [batch, first.in_channels, first.in_size, first.in_size]
            )
        ],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, _output_shape(last, batch))],
        initialisers,
    )
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="akd-deploy"
    )
    onnx.checker.check_model(model)
    return model


def onnx_from_architecture(architecture: Architecture, rng: np.random.Generator, batch: int = 1) -> onnx.ModelProto:
    """The network of an architecture with random weights: what latency is measured and predicted on."""
    steps = operations(space_of(architecture).layers(architecture))
    return model_of(steps, random_weights(rng), batch, architecture.digest)


def onnx_from_layers(layers: Sequence[Layer], rng: np.random.Generator, batch: int = 1) -> onnx.ModelProto:
    """A stretch of a network with random weights, input `input`, output `logits`."""
    return model_of(operations(layers), random_weights(rng), batch, "stretch")


CHAIN_SEPARATOR = "/"
"""In `onnx_from_chains`, the nodes of chain 3 are named `3/…`."""


def onnx_from_chains(chains: Sequence[Sequence[Layer]], batch: int = 1) -> onnx.ModelProto:
    """Many stretches side by side in one model, to read off the kernels of all of them at once.

    Weights are constant: such a model is not meant to be timed.
    """

    def constant(step: Operation) -> tuple[np.ndarray, np.ndarray]:
        shape: tuple[int, ...] = (step.out_channels, step.in_channels // step.groups)
        if step.kind == "conv":
            shape += (step.kernel_size, step.kernel_size)
        return np.full(shape, 0.01, np.float32), np.full(step.out_channels, 0.01, np.float32)

    nodes: list[onnx.NodeProto] = []
    initialisers: list[onnx.TensorProto] = []
    inputs, outputs = [], []
    for i, chain in enumerate(chains):
        prefix = f"{i}{CHAIN_SEPARATOR}"
        steps = operations([replace(layer, name=prefix + layer.name) for layer in chain], source=prefix + INPUT)
        first, last = steps[0], steps[-1]
        more_nodes, more_initialisers = graph_nodes(steps, constant)
        nodes += more_nodes
        initialisers += more_initialisers
        size = [batch, first.in_channels, first.in_size, first.in_size]
        inputs.append(helper.make_tensor_value_info(prefix + INPUT, TensorProto.FLOAT, size))
        outputs.append(helper.make_tensor_value_info(last.name, TensorProto.FLOAT, _output_shape(last, batch)))
    graph = helper.make_graph(nodes, "chains", inputs, outputs, initialisers)
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="akd-deploy"
    )


def onnx_from_student(student: Student, path: Path, batch: int = 1) -> Path:
    """Write a trained student to `path` (input `input`, output `logits`, static batch) and return the path."""
    model = model_of(student.operations, _weights_of(student), batch, student.architecture.digest)
    write_atomically(path, model.SerializeToString())
    return path
