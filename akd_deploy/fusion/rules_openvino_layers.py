"""The graph OpenVINO's rules rewrite: ONNX's graph with a layer for every node of its own model of the network."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx

from akd_deploy.errors import UsageError
from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Constant, Node, TensorType
from akd_deploy.kernel import Shape


class Layer(Node):
    """One node of OpenVINO's model.

    `origins` are the ONNX nodes (or parts of them) it is known to come from, `fused` the layers computed on its way
    out, in order.
    """

    __slots__ = ("fused", "origins", "skipped")

    def __init__(
        self,
        op: str,
        inputs: Iterable[str],
        outputs: Iterable[str],
        name: str,
        origins: Sequence[str] = (),
        attributes: Mapping[str, onnx.AttributeProto] | None = None,
        **more: object,
    ) -> None:
        super().__init__(op, inputs, outputs, name, "", attributes, **more)
        self.origins = list(origins)
        self.fused: list[Layer] = []
        self.skipped = False
        """Whether no subgraph may take it in: the plug-in means to fuse it with a convolution or product."""


class LayerGraph(Graph):
    """A graph of layers; `unstored` are the constants whose values the file does not hold."""

    def __init__(self, graph: Graph, unstored: set[str]) -> None:
        super().__init__(graph.inputs, graph.outputs, graph.opset)
        self.types.update(graph.types)
        self.constants = dict(graph.constants)
        self.unstored = unstored
        self.narrowed: dict[str, str] = {}
        """Inputs of 64-bit numbers → what stands for them in 32 bits."""

    def _sort(self) -> None:
        """Order the layers as OpenVINO's model does: depth first from the last output, first inputs first."""
        self._nodes = [node for node in self.in_model_order() if isinstance(node, Node)]
        self._is_sorted = True

    def in_model_order(self) -> list[Node | str]:
        """Layers, and outputs of the network where the model has them, from the last output on."""
        return self._depth_first(self.outputs[::-1])

    def in_execution_order(self) -> list[Layer]:
        """Layers as the plug-in runs them, from the first output on."""
        return [node for node in self._depth_first(self.outputs) if isinstance(node, Layer)]

    def _depth_first(self, outputs: Sequence[str]) -> list[Node | str]:
        kept = set(self.outputs)
        alive = [node for node in self._nodes if node.alive]
        unread = [node for node in alive if not any(self._readers.get(n) or n in kept for n in node.outputs)]
        entered: set[int] = set()
        done: set[int] = set()
        order: list[Node | str] = []
        goals: list[Node | str] = [*outputs, *unread]
        for goal in goals:
            root = self.writer(goal) if isinstance(goal, str) else goal
            stack = [] if root is None or id(root) in done else [(root, iter(root.inputs))]
            while stack:
                node, inputs = stack[-1]
                for name in inputs:
                    writer = self._writers.get(name)
                    if writer is not None and id(writer) not in done:
                        assert id(writer) not in entered, "the graph has a circle"
                        entered.add(id(writer))
                        stack.append((writer, iter(writer.inputs)))
                        break
                else:
                    stack.pop()
                    done.add(id(node))
                    order.append(node)
            if isinstance(goal, str):
                order.append(goal)
        assert len(done) == len(alive), "the graph has layers that lead nowhere"
        return order

    def stand_in(self, layer: Layer, name: str) -> bool:
        """Let the tensor `name` stand for a layer's one output, and the layer go; what now writes an output of the
        network has the name of what wrote it before. False where that cannot be."""
        output = layer.output
        if output not in self.outputs:
            self.read_instead(output, name)
            self.remove(layer)
            return True
        writer = self.layer(name)
        if writer is None or len(writer.outputs) != 1 or name in self.outputs:
            return False
        self.remove(layer)
        self.set_output(writer, 0, output)
        self.read_instead(name, output)
        writer.origins = layer.origins
        return True

    def layers(self, *ops: str) -> list[Layer]:
        """Layers of these types, all where none is named, in order."""
        return [node for node in self.nodes if isinstance(node, Layer) and (not ops or node.op in ops)]

    def layer(self, name: str) -> Layer | None:
        """What writes a tensor."""
        writer = self.writer(name)
        return writer if isinstance(writer, Layer) else None

    def child(self, layer: Layer) -> Layer | None:
        """The one layer that alone reads the first output, which is no output of the network."""
        reader = self.only_reader(layer)
        return reader if isinstance(reader, Layer) else None

    def is_constant(self, name: str) -> bool:
        return name in self.constants

    def data(self, layer: Layer) -> list[str]:
        """The inputs that depend on the network's input."""
        return [name for name in layer.inputs if name and name not in self.constants]

    def value(self, name: str) -> np.ndarray | None:
        """A constant's value; None for what is no constant, or one whose value is not stored."""
        constant = self.constants.get(name)
        return None if constant is None or name in self.unstored else constant.value

    def is_all(self, name: str, value: float) -> bool:
        """Whether a constant is known to be this number everywhere."""
        values = self.value(name)
        return values is not None and values.size > 0 and bool((values == value).all())

    def constant_like(self, stem: str, shape: Shape, *sources: str, of: Callable[[], np.ndarray] | None = None) -> str:
        """A new constant of the type of `sources[0]`; `of` computes it where all sources are stored."""
        name = self.unused_name(stem)
        type_ = TensorType(self.types[sources[0]].element, shape)
        self.constants[name] = Constant(type_, of or (lambda: np.ones(shape, np.float32)))
        self.types[name] = type_
        if of is None or any(source in self.unstored for source in sources):
            self.unstored.add(name)
        return name

    def reshaped(self, name: str, shape: Shape) -> str:
        """A constant in another shape."""
        constant = self.constants[name]
        return self.constant_like(name, shape, name, of=lambda: constant.value.reshape(shape))

    def new_tensor(self, like: str, shape: Shape | None = None) -> str:
        """A name for a tensor of the type of another."""
        name = self.unused_name("inner")
        type_ = self.types[like]
        self.types[name] = type_ if shape is None else TensorType(type_.element, shape)
        return name


def unstored_constants(model: onnx.ModelProto, graph: Graph) -> set[str]:
    """Constants without a value: initialisers whose values are not here, and what would be computed from them."""
    unstored = {
        tensor.name
        for tensor in model.graph.initializer
        if all(tensor.dims)
        and (
            (tensor.data_location == onnx.TensorProto.EXTERNAL and tensor.data_type == onnx.TensorProto.FLOAT)
            or not any(
                map(
                    len,
                    (tensor.raw_data, tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.external_data),
                )
            )
        )
    }
    for node in graph.nodes:
        if node.op not in ("Shape", "Size") and any(name in unstored for name in node.inputs):
            unstored.update(name for name in node.outputs if name in graph.constants)
    return unstored


def unknown(layer: Node, found: str) -> UsageError:
    """What to say of a node that no rule is made for."""
    return UsageError(
        asked="the kernels OpenVINO executes, by fusion rules",
        found=f"{found}: node {layer.name!r} ({layer.op})",
        next="Read the kernels off the runtime on a machine that has OpenVINO.",
    )
