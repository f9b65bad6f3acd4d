"""Small random networks, drawn step by step: whatever they are made of, rules and runtime must agree on them."""

from __future__ import annotations

import numpy as np
import onnx
from engines.engine_graphs import Graph
from hypothesis import strategies as st

from akd_deploy.kernel import Shape

CHANNELS = (3, 4, 6, 8, 12, 16, 18, 20, 24, 32, 40, 48)
ACTIVATIONS = ("Relu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "Elu", "Softplus")


class _Network:
    """A graph that grows from tensor to tensor; `draw` chooses."""

    def __init__(self, draw: st.DrawFn, shape: Shape) -> None:
        self.draw = draw
        self.graph = Graph()
        self.shapes: dict[str, Shape] = {"x": shape}

    def one_of(self, options):
        return self.draw(st.sampled_from(list(options)))

    def note(self, name: str, shape: Shape) -> None:
        self.shapes[name] = tuple(int(n) for n in shape)

    def like(self, shape: Shape) -> str:
        return self.one_of([name for name, other in self.shapes.items() if other == shape])

    def model(self, opset: int) -> onnx.ModelProto:
        used = {name for node in self.graph.nodes for name in node.input}
        outputs = [name for name in self.shapes if name not in used and name != "x"]
        return self.graph.model({"x": list(self.shapes["x"])}, outputs, opset=opset)

    def convolution(self, x: str) -> None:
        _, channels, height, width = self.shapes[x]
        out, window, stride = self.one_of(CHANNELS), self.one_of((1, 3)), self.one_of((1, 1, 2))
        is_depthwise = self.one_of((False, False, True))
        if is_depthwise:
            out = channels
        y = self.graph.conv(x, channels, out, window, stride, channels if is_depthwise else 1)
        self.note(y, (1, out, -(-height // stride), -(-width // stride)))

    def activation(self, x: str) -> None:
        kind = self.one_of((*ACTIVATIONS, "silu", "hard swish", "gelu"))
        if kind == "silu":
            y = self.graph("Mul", x, self.graph("Sigmoid", x))
        elif kind == "hard swish":
            y = self.graph("Mul", self.graph("HardSigmoid", x, alpha=1 / 6, beta=0.5), x)
        elif kind == "gelu":
            scaled = self.graph("Div", x, self.graph.constant(np.float32(2**0.5)))
            gate = self.graph("Add", self.graph("Erf", scaled), self.graph.constant(np.float32(1)))
            y = self.graph("Mul", self.graph("Mul", x, gate), self.graph.constant(np.float32(0.5)))
        else:
            y = self.graph(kind, x)
        self.note(y, self.shapes[x])

    def norm(self, x: str) -> None:
        self.note(self.graph.batch_norm(x, self.shapes[x][1]), self.shapes[x])

    def addition(self, x: str) -> None:
        operands = (x, self.like(self.shapes[x]))
        self.note(self.graph(self.one_of(("Add", "Mul")), *self.draw(st.permutations(operands))), self.shapes[x])

    def constant(self, x: str) -> None:
        channels = self.shapes[x][1]
        factor = self.graph.weight(*self.one_of(((channels, 1, 1), (1, channels, 1, 1), ())))
        operands = self.draw(st.permutations((x, factor)))
        self.note(self.graph(self.one_of(("Add", "Mul")), *operands), self.shapes[x])

    def pool(self, x: str) -> None:
        y = self.graph(self.one_of(("MaxPool", "AveragePool")), x, kernel_shape=[3, 3], pads=[1] * 4, strides=[1, 1])
        self.note(y, self.shapes[x])

    def squeeze_excite(self, x: str) -> None:
        channels = self.shapes[x][1]
        gate = self.graph("Relu", self.graph.conv(self.graph("GlobalAveragePool", x), channels, 8, 1))
        gate = self.graph(self.one_of(("Sigmoid", "HardSigmoid")), self.graph.conv(gate, 8, channels, 1))
        self.note(self.graph("Mul", *self.draw(st.permutations((x, gate)))), self.shapes[x])

    def concatenation(self, x: str) -> None:
        batch, channels, *sizes = self.shapes[x]
        other = self.one_of([name for name, shape in self.shapes.items() if list(shape[2:]) == sizes])
        self.note(self.graph("Concat", x, other, axis=1), (batch, channels + self.shapes[other][1], *sizes))

    def halves(self, x: str) -> None:
        batch, channels, *sizes = self.shapes[x]
        if channels < 2:
            return
        half = channels // 2
        for start, end in ((0, half), (half, channels)):
            bounds = (self.graph.constant(np.asarray([n])) for n in (start, end, 1))
            self.note(self.graph("Slice", x, *bounds), (batch, end - start, *sizes))

    def channels_last(self, x: str) -> None:
        channels = self.shapes[x][1]
        y = self.graph("Transpose", x, perm=[0, 2, 3, 1])
        if self.one_of((True, False)):
            y = self.graph("LayerNormalization", y, self.graph.weight(channels), self.graph.weight(channels))
        else:
            y = self.graph(self.one_of(("Relu", "Softplus")), y)
        self.note(self.graph("Transpose", y, perm=[0, 3, 1, 2]), self.shapes[x])

    # --- steps for tensors of any rank ----------------------------------------------------------------------

    def transposition(self, x: str) -> None:
        shape = self.shapes[x]
        perm = self.draw(st.permutations(range(len(shape))))
        self.note(self.graph("Transpose", x, perm=list(perm)), tuple(shape[i] for i in perm))

    def linear(self, x: str) -> None:
        shape = self.shapes[x]
        y = self.graph("MatMul", x, self.graph.weight(shape[-1], 6))
        if self.one_of((True, True, False)):
            y = self.graph("Add", y, self.graph.weight(6))
        self.note(y, (*shape[:-1], 6))

    def layer_norm(self, x: str) -> None:
        width = self.shapes[x][-1]
        if self.one_of((True, False)):
            x = self.graph("Add", x, self.like(self.shapes[x]))
            self.note(x, (*self.shapes[self.graph.nodes[-1].input[0]],))
        y = self.graph("LayerNormalization", x, self.graph.weight(width), self.graph.weight(width))
        self.note(y, self.shapes[x])

    def reshape(self, x: str) -> None:
        shape = self.shapes[x]
        axis = self.draw(st.integers(0, len(shape) - 1))
        options = [(*shape[:axis], 1, *shape[axis:])] if len(shape) < 5 else []
        if axis and len(shape) > 2:
            options.append((*shape[: axis - 1], shape[axis - 1] * shape[axis], *shape[axis + 1 :]))
        if shape[axis] % 2 == 0 and len(shape) < 5:
            options.append((*shape[:axis], 2, shape[axis] // 2, *shape[axis + 1 :]))
        if options:
            to = self.one_of(options)
            self.note(self.graph("Reshape", x, self.graph.constant(np.asarray(to))), to)

    def picks(self, x: str) -> None:
        shape = self.shapes[x]
        axis = self.draw(st.integers(0, len(shape) - 1))
        if len(shape) > 2 and shape[axis] <= 4:
            for i in range(shape[axis]):
                y = self.graph("Gather", x, self.graph.constant(np.asarray(i)), axis=axis)
                self.note(y, (*shape[:axis], *shape[axis + 1 :]))

    def scale(self, x: str) -> None:
        y = self.graph(self.one_of(("Mul", "Div")), x, self.graph.constant(np.float32(8)))
        self.note(y, self.shapes[x])

    def elementwise(self, x: str) -> None:
        self.note(self.graph(self.one_of(("Relu", "Exp", "Softplus", "Erf")), x), self.shapes[x])

    def product(self, x: str) -> None:
        shape = self.shapes[x]
        fitting = [n for n, s in self.shapes.items() if len(s) > 1 and s[:-2] == shape[:-2] and s[-2] == shape[-1]]
        if fitting:
            other = self.one_of(fitting)
            self.note(self.graph("MatMul", x, other), (*shape[:-1], self.shapes[other][-1]))

    def mean(self, x: str) -> None:
        shape = self.shapes[x]
        axis = self.draw(st.integers(0, len(shape) - 1))
        keepdims = self.one_of((0, 1)) if len(shape) > 2 else 1
        y = self.graph("ReduceMean", x, axes=[axis], keepdims=keepdims)
        self.note(y, (*shape[:axis], *([1] if keepdims else []), *shape[axis + 1 :]))


def _grown(draw: st.DrawFn, shape: Shape, steps: tuple[str, ...], most: int) -> onnx.ModelProto:
    network = _Network(draw, shape)
    network.elementwise("x")
    for _ in range(draw(st.integers(1, most))):
        latest = list(network.shapes)[-1]
        x = latest if draw(st.booleans()) else network.one_of(network.shapes)
        getattr(network, network.one_of(steps))(x)
    return network.model(draw(st.sampled_from((17, 20))) if "mean" not in steps else 17)


@st.composite
def convolutional(draw: st.DrawFn) -> onnx.ModelProto:
    steps = ("convolution", "convolution", "activation", "activation", "norm", "addition", "constant", "pool",
             "squeeze_excite", "concatenation", "halves", "channels_last")  # fmt: skip
    return _grown(draw, (1, draw(st.sampled_from(CHANNELS)), 6, 6), steps, 8)


@st.composite
def rearranging(draw: st.DrawFn) -> onnx.ModelProto:
    steps = ("transposition", "transposition", "transposition", "linear", "layer_norm", "reshape", "reshape", "picks",
             "scale", "elementwise", "product", "mean", "addition")  # fmt: skip
    return _grown(draw, draw(st.sampled_from(((2, 6, 8), (1, 3, 4, 8), (2, 1, 4, 6), (4, 8)))), steps, 9)
