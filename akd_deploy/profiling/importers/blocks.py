"""A block that another tool measured as one, written as ONNX with the kernels it stands for beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import onnx
from onnx import helper, numpy_helper

from akd_deploy.engines.onnx_attributes import node_attributes
from akd_deploy.kernel import AttributeValue, Kernel, Shape


@dataclass(frozen=True)
class Tensor:
    """A tensor of a block: its name and shape (batch, channels, height, width)."""

    name: str
    shape: Shape


@dataclass
class Block:
    """One block under construction: each method adds an operation and returns its output, shapes in batch-first order.

    `kernels` are the operations as a plain runtime would execute them, batch norms folded and activations fused;
    what a given engine executes it says itself, of the models in `block_models`. Activations are "none", "relu",
    "relu6", "hardswish" and "hardsigmoid".
    """

    name: str
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Shape] = field(default_factory=dict)
    inputs: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    kernels: list[Kernel] = field(default_factory=list)

    @property
    def weight_bytes(self) -> int:
        """Of all weights as float32."""
        return 4 * sum(prod(shape) for shape in self.weights.values())

    def input(self, *shape: int) -> Tensor:
        """A tensor that the block is fed."""
        tensor = Tensor(f"input{len(self.inputs)}", shape)
        self.inputs.append(tensor)
        return tensor

    def conv(
        self, x: Tensor, channels: int, kernel_size: int, stride: int = 1, groups: int = 1, activation: str = "none"
    ) -> Tensor:
        """A convolution with bias that keeps the size but for its stride ("same" padding), then an activation."""
        batch, in_channels, height, width = x.shape
        size = tuple(-(-n // stride) for n in (height, width))
        return self._add(
            "Conv",
            [x],
            (batch, channels, *size),
            {"weight": (channels, in_channels // groups, kernel_size, kernel_size), "bias": (channels,)},
            activation,
            kernel_shape=[kernel_size] * 2,
            strides=[stride] * 2,
            pads=_same_padding((height, width), size, kernel_size, stride),
            group=groups,
        )

    def pool(self, x: Tensor, operator: str, kernel_size: int, stride: int) -> Tensor:
        """MaxPool or AveragePool with "same" padding."""
        batch, channels, height, width = x.shape
        size = tuple(-(-n // stride) for n in (height, width))
        return self._add(
            operator,
            [x],
            (batch, channels, *size),
            kernel_shape=[kernel_size] * 2,
            strides=[stride] * 2,
            pads=_same_padding((height, width), size, kernel_size, stride),
        )

    def global_pool(self, x: Tensor) -> Tensor:
        """The average over height and width, which become 1."""
        return self._add("GlobalAveragePool", [x], (*x.shape[:2], 1, 1))

    def linear(self, x: Tensor, features: int) -> Tensor:
        """A fully connected layer with bias; what has a height and width is flattened before."""
        if len(x.shape) > 2:
            x = self._add("Flatten", [x], (x.shape[0], prod(x.shape[1:])), axis=1)
        weights = {"weight": (features, x.shape[1]), "bias": (features,)}
        return self._add("Gemm", [x], (x.shape[0], features), weights, transB=1)

    def batch_norm(self, x: Tensor, activation: str = "none") -> Tensor:
        """A batch norm that no convolution stands before."""
        channels = (x.shape[1],)
        weights = {name: channels for name in ("scale", "shift", "mean", "variance")}
        return self._add("BatchNormalization", [x], x.shape, weights, activation)

    def activation(self, x: Tensor, kind: str) -> Tensor:
        """An activation on its own."""
        output, node = self._activation(x, kind)
        self._note(node, [x], output)
        return output

    def binary(self, operator: str, a: Tensor, b: Tensor, activation: str = "none") -> Tensor:
        """Add or Mul; the shape is that of `a`."""
        return self._add(operator, [a, b], a.shape, None, activation)

    def concat(self, parts: Sequence[Tensor]) -> Tensor:
        """Join along the channels."""
        first = parts[0].shape
        return self._add("Concat", parts, (first[0], sum(part.shape[1] for part in parts), *first[2:]), axis=1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Two halves of the channels, the first the smaller where their number is odd."""
        smaller = x.shape[1] // 2
        halves = tuple(
            Tensor(f"half{i}", (x.shape[0], channels, *x.shape[2:]))
            for i, channels in enumerate((smaller, x.shape[1] - smaller))
        )
        node = helper.make_node("Split", [x.name], [h.name for h in halves], name="split", axis=1, num_outputs=2)
        self.nodes.append(node)
        self._note(node, [x], *halves)
        return halves[0], halves[1]

    def transpose_channels(self, x: Tensor, groups: int) -> Tensor:
        """A channel shuffle: channels seen as (channels / groups, groups), transposed."""
        batch, channels, height, width = x.shape
        x = self._reshape(x, (batch, channels // groups, groups, height, width))
        perm = [0, 2, 1, 3, 4]
        x = self._add("Transpose", [x], tuple(x.shape[i] for i in perm), perm=perm)
        return self._reshape(x, (batch, channels, height, width))

    def finish(self, *outputs: Tensor) -> Block:
        """Say what the block's outputs are."""
        self.outputs = list(outputs)
        return self

    # --- inside ---------------------------------------------------------------------------------------------

    def _reshape(self, x: Tensor, shape: Shape) -> Tensor:
        name = f"reshape{len(self.nodes)}"
        values = numpy_helper.from_array(np.array(shape, np.int64))
        self.nodes.append(helper.make_node("Constant", [], [f"{name}.shape"], name=f"{name}.constant", value=values))
        node = helper.make_node("Reshape", [x.name, f"{name}.shape"], [name], name=name)
        self.nodes.append(node)
        self._note(node, [x, Tensor(f"{name}.shape", (len(shape),))], Tensor(name, shape))
        return Tensor(name, shape)

    def _add(
        self,
        operator: str,
        inputs: Sequence[Tensor],
        shape: Shape,
        weights: Mapping[str, Shape] | None = None,
        activation: str = "none",
        **attributes: object,
    ) -> Tensor:
        name = f"{operator.lower()}{len(self.nodes)}"
        held = [Tensor(f"{name}.{key}", dims) for key, dims in (weights or {}).items()]
        self.weights |= {tensor.name: tensor.shape for tensor in held}
        output = Tensor(name, shape)
        read = [*inputs, *held]
        node = helper.make_node(operator, [tensor.name for tensor in read], [name], name=name, **attributes)
        self.nodes.append(node)
        self._note(node, read, output, activation=activation)
        return output if activation == "none" else self._activation(output, activation)[0]

    def _activation(self, x: Tensor, kind: str) -> tuple[Tensor, onnx.NodeProto]:
        output = Tensor(f"{kind}{len(self.nodes)}", x.shape)
        names = [x.name], [output.name]
        if kind == "relu":
            node = helper.make_node("Relu", *names, name=output.name)
        elif kind == "hardswish":
            node = helper.make_node("HardSwish", *names, name=output.name)
        elif kind == "hardsigmoid":
            node = helper.make_node("HardSigmoid", *names, name=output.name, alpha=1 / 6, beta=0.5)
        else:
            assert kind == "relu6", kind
            for bound, value in (("least", 0.0), ("most", 6.0)):
                constant = numpy_helper.from_array(np.array(value, np.float32))
                label = f"{output.name}.{bound}"
                self.nodes.append(helper.make_node("Constant", [], [label], name=label, value=constant))
            read = [x.name, f"{output.name}.least", f"{output.name}.most"]
            node = helper.make_node("Clip", read, [output.name], name=output.name)
        self.nodes.append(node)
        return output, node

    def _note(self, node: onnx.NodeProto, read: Sequence[Tensor], *written: Tensor, activation: str = "none") -> None:
        """Add the kernel that a node and its activation stand for."""
        shapes = [tensor.shape for tensor in read]
        attributes: dict[str, AttributeValue] = node_attributes(node, shapes, {})
        if activation != "none":
            attributes["activation"] = activation
        self.kernels.append(
            Kernel(node.op_type, tuple(shapes), tuple(t.shape for t in written), attributes=tuple(attributes.items()))
        )


def _same_padding(size: tuple[int, ...], out: tuple[int, ...], kernel_size: int, stride: int) -> list[int]:
    """ONNX pads (begins, then ends) with which `size` becomes `out`; the odd one goes to the end, as in TensorFlow."""
    total = [max(0, (after - 1) * stride + kernel_size - before) for before, after in zip(size, out, strict=True)]
    return [n // 2 for n in total] + [n - n // 2 for n in total]
