"""How OpenVINO's CPU plug-in lays a graph's tensors in memory and in which precision, and the reorders between them."""

from __future__ import annotations

from dataclasses import dataclass

from akd_deploy.fusion.rules_openvino_layers import Layer, LayerGraph
from akd_deploy.fusion.rules_openvino_snippets import ELEMENTWISE
from akd_deploy.kernel import Shape

LETTERS = "abcdefgh"
_CHANNELS_LAST = frozenset({"Convolution", "Deconvolution"})
_PLANAR = frozenset({"Reshape", "Gather", "HardSigmoid", "FullyConnected", "MatMul", "RMS", "Convert"})
_SIGNIFICANT = frozenset({"Convolution", "FullyConnected", "MatMul", "Interpolate"})
"""Layers for whose sake a network is computed in a lower precision, with all that leads to them."""

_ELEMENTWISE_KINDS = {False: ("last", "planar"), True: ("last", "blocked", "planar")}
_NARROW = 3
"""Channels up to which no pooling has code for planar tensors; with AVX2 none has."""
_WIDE = 16

_FLOAT_ONLY = frozenset({"HardSigmoid"})


def planar(rank: int) -> str:
    """Dimensions in their own order."""
    return LETTERS[:rank]


def channels_last(rank: int) -> str:
    """Dimensions with the channels innermost; the same as planar below three dimensions."""
    return planar(rank) if rank < 3 else f"a{LETTERS[2:rank]}b"


def layout(kind: str, rank: int, block: int) -> str:
    """The layout of a tensor for a layer that works "planar", with channels "last", or with them "blocked"."""
    if kind == "blocked" and rank > 2:
        return f"aB{LETTERS[2:rank]}{block}b"
    return channels_last(rank) if kind == "last" else planar(rank)


def _is_blocked(name: str) -> bool:
    return name != name.lower()


def _without_ones(name: str, shape: Shape) -> list[str]:
    return [letter for letter in name if shape[LETTERS.index(letter)] != 1]


@dataclass(frozen=True)
class Form:
    """How a tensor lies in memory."""

    layout: str
    dtype: str


class Forms:
    """The form in which every tensor that is no constant is written.

    `low` is what floats are computed in, `block` how many channels a block has: as many floats as registers are made
    for, 16 with AVX-512 and 8 with AVX2.
    """

    def __init__(self, graph: LayerGraph, low: str, block: int) -> None:
        self.graph = graph
        self.low = low
        self.block = block
        self.of = {name: Form(planar(len(t.shape)), t.dtype) for name, t in graph.inputs.items()}
        self.computed: dict[int, str] = {}
        """Layer → what it computes in."""
        self._reordered: dict[tuple[str, Form], str] = {}
        self._tail = self._behind_significant()

    def assign(self) -> None:
        """Choose a form for every layer's output in turn, and add the reorders its inputs need."""
        for layer in self.graph.layers():
            kind = self._kind(layer)
            dtype = self._dtype(layer)
            is_direct = any(self._is_read_directly(layer, name) for name in layer.inputs)
            self.computed[id(layer)] = "float32" if is_direct and dtype == self.low else dtype
            for i, name in enumerate(list(layer.inputs)):
                form = self.of.get(name)
                if form is None:
                    continue
                rank = len(self.graph.shape(name))
                wanted = Form(layout(kind, rank, self.block), self._read_as(layer, name, dtype))
                if form != wanted:
                    self.graph.set_input(layer, i, self._reorder(name, wanted))
            for name in layer.outputs:
                rank = len(self.graph.shape(name))
                keeps = rank == len(self.graph.shape(layer.inputs[0]))
                written = self._written(layer, name)
                self.of[name] = Form(layout(kind, rank, self.block) if keeps else planar(rank), written)
        for name in self.graph.outputs:
            wanted = Form(planar(len(self.graph.shape(name))), self.graph.types[name].dtype)
            if name in self.of and self.of[name] != wanted:
                self._reorder_output(name, wanted)

    # --- precision ------------------------------------------------------------------------------------------

    def _behind_significant(self) -> set[int]:
        """The layers from which some way to an output meets no significant one: they compute in full precision."""
        tail: set[int] = set()
        for layer in reversed(self.graph.layers()):
            is_end = any(name in self.graph.outputs for name in layer.outputs)
            readers = [reader for name in layer.outputs for reader in self.graph.readers(name)]
            if layer.op not in _SIGNIFICANT and (is_end or any(id(reader) in tail for reader in readers)):
                tail.add(id(layer))
        return tail

    def _is_low(self, layer: Layer) -> bool:
        """Whether the floats a layer works with are of the lower precision."""
        is_table = layer.op == "Gather" and layer.inputs[0] in self.graph.constants
        return id(layer) not in self._tail and layer.op not in _FLOAT_ONLY and not is_table

    def _dtype(self, layer: Layer) -> str:
        if layer.op == "Convert":
            return self.graph.types[layer.inputs[0]].dtype
        dtype = self.graph.types[layer.outputs[0]].dtype
        return self.low if dtype == "float32" and self._is_low(layer) else dtype

    def _is_read_directly(self, layer: Layer, name: str) -> bool:
        """Whether a layer reads floats of the network's input as they are: elementwise ones convert on their way."""
        is_elementwise = layer.op == "Subgraph" or layer.op in ELEMENTWISE
        return is_elementwise and name in self.graph.inputs and self.of[name].dtype == "float32"

    def _read_as(self, layer: Layer, name: str, dtype: str) -> str:
        form = self.of[name]
        if self._is_read_directly(layer, name):
            return form.dtype
        return dtype if form.dtype in ("float32", "bfloat16") and dtype in ("float32", "bfloat16") else form.dtype

    def _written(self, layer: Layer, name: str) -> str:
        own = self.graph.types[name].dtype
        if own != "float32" or not self._is_low(layer):
            return own
        if layer.op == "Reduce" and not layer.fused:
            return own
        if layer.op in ("FullyConnected", "Convolution"):
            readers = self.graph.readers(name)
            ends = all(id(reader) in self._tail for reader in readers) if layer.fused else not readers
            if ends and (layer.fused or layer.op == "FullyConnected"):
                return own
        return self.low

    # --- layouts --------------------------------------------------------------------------------------------

    def _kind(self, layer: Layer) -> str:
        """How a layer works: as most of its inputs come, else as it would rather."""
        data = [name for name in layer.inputs if name in self.of]
        kinds = self._possible(layer, data)
        dtype = self._dtype(layer)

        def fitting(kind: str) -> tuple[int, int]:
            fits = [name for name in data if self._fits(layer, name, kind, dtype)]
            exact = [
                name for name in fits if self.of[name].layout == layout(kind, len(self.graph.shape(name)), self.block)
            ]
            return len(fits), len(exact)

        return max(kinds, key=fitting)

    def _fits(self, layer: Layer, name: str, kind: str, dtype: str) -> bool:
        """Whether a tensor lies as a layer of this kind would read it, where its dimensions of 1 may lie anywhere."""
        form, shape = self.of[name], self.graph.shape(name)
        wanted = layout(kind, len(shape), self.block)
        if form.dtype != self._read_as(layer, name, dtype):
            return False
        if kind == "blocked" or _is_blocked(form.layout):
            return form.layout == wanted
        return _without_ones(form.layout, shape) == _without_ones(wanted, shape)

    def _possible(self, layer: Layer, data: list[str]) -> tuple[str, ...]:
        """The ways a layer can work, those it prefers first."""
        graph = self.graph
        if layer.op in _CHANNELS_LAST:
            return ("last",)
        ranks = {len(graph.shape(name)) for name in (*data, *layer.outputs)}
        if layer.op in _PLANAR or not data or len(ranks) != 1 or not 3 <= min(ranks) <= 5:
            return ("planar",)
        if layer.op == "Subgraph" or layer.op in ELEMENTWISE:
            if len({len(graph.shape(name)) for name in layer.inputs} | ranks) > 1:
                return ("planar",)
            return _ELEMENTWISE_KINDS[all(graph.shape(name)[1] > 1 for name in layer.inputs)]
        if layer.op == "MVN" and min(ranks) == 3:
            return ("planar",)
        if layer.op == "Interpolate":
            return ("last", "blocked")
        if layer.op == "Reduce":
            kinds = ("planar", "last", "blocked") if self.block == _WIDE else ("planar", "last")
            return kinds if layer.integer("keepdims", 1) else ("planar",)
        if layer.op == "Split" and not all(graph.uses(name) for name in layer.outputs):
            return ("planar",)
        if layer.op in ("MaxPool", "AvgPool"):
            is_planar = self.block == _WIDE and graph.shape(layer.inputs[0])[1] > _NARROW
            return ("blocked", "last", "planar") if is_planar else ("blocked", "last")
        is_mixed = layer.op == "Concatenation" and any(_is_blocked(self.of[name].layout) for name in data)
        return ("planar", "last") if layer.op == "Transpose" or is_mixed else ("last", "planar")

    # --- reorders -------------------------------------------------------------------------------------------

    def _reorder(self, name: str, form: Form) -> str:
        """The tensor in another form, one for all that want it so."""
        key = (name, form)
        if key not in self._reordered:
            self._reordered[key] = self.add_reorder(name, self.graph.new_tensor(name), form)
        return self._reordered[key]

    def add_reorder(self, source: str, output: str, form: Form) -> str:
        layer = Layer("Reorder", [source], [output], f"Reorder/{output}")
        self.graph.add(layer)
        self.of[output] = form
        self.computed[id(layer)] = self.of[source].dtype
        return output

    def _reorder_output(self, name: str, form: Form) -> None:
        graph = self.graph
        writer = graph.layer(name)
        assert writer is not None, f"{name} is written by nothing"
        inner = graph.new_tensor(name)
        self.of[inner] = self.of[name]
        graph.set_output(writer, writer.outputs.index(name), inner)
        graph.read_instead(name, inner)
        self.add_reorder(inner, name, form)
