"""Which channels of a network belong together: its traced graph, and what must be kept or dropped as one.

Every channel of every tensor has a label. Operators that work on each channel alone pass labels on; a sum makes one of
those of its terms, a concatenation puts them side by side, depthwise and grouped convolutions tie what they pair; a
convolution or a linear layer reads its input's labels and writes new ones. What no rule knows, or what mixes channels
in other ways (a layer norm, a softmax, a shuffle), is kept whole, and named.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import fx, nn

from akd_deploy.models.traced_network import shape_of, traced_network

_EACH_ALONE_MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.GELU, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh,
    nn.Softplus, nn.Mish, nn.Identity, nn.Dropout, nn.Dropout2d,
)  # fmt: skip
_OVER_POSITIONS_MODULES = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample)
_EACH_ALONE_FUNCTIONS = frozenset({
    F.relu, F.relu6, F.leaky_relu, F.elu, F.gelu, F.silu, F.hardswish, F.hardsigmoid, F.sigmoid, F.tanh, F.dropout,
    F.softplus, torch.relu, torch.sigmoid, torch.tanh, torch.exp, operator.neg,
})  # fmt: skip
_OVER_POSITIONS_FUNCTIONS = frozenset({
    F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate,
})  # fmt: skip
_EACH_ALONE_METHODS = frozenset({
    "relu", "relu_", "sigmoid", "tanh", "exp", "contiguous", "clone", "detach", "float",
})  # fmt: skip
_JOINING_FUNCTIONS = frozenset({
    operator.add, operator.iadd, operator.sub, operator.mul, operator.imul, torch.add, torch.sub, torch.mul,
})  # fmt: skip
_JOINING_METHODS = frozenset({"add", "add_", "mul", "mul_", "sub", "expand_as"})
_SWAPPED = ("dim0", "dim1")
_NO_TENSORS = frozenset({getattr, operator.getitem, operator.floordiv, operator.truediv})

CONSUMERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
"""Modules that read every channel and write new ones: gates stand before them."""


@dataclass(frozen=True, eq=False)
class Labelled:
    """A tensor's channels: `labels[i]` is the label of the i-th along `axis`."""

    labels: np.ndarray
    axis: int


@dataclass
class ChannelGraph:
    """A network with the labels of all of its tensors.

    `of` maps a node's name to its labels, `called` a module to the node that calls it first, `kept` labels whose
    channels cannot be dropped to why, and `roots[label]` is the label that stands for all that are tied to it.
    """

    module: fx.GraphModule
    input_shape: tuple[int, ...]
    of: dict[str, Labelled] = field(default_factory=dict)
    called: dict[str, fx.Node] = field(default_factory=dict)
    kept: dict[int, str] = field(default_factory=dict)
    _parents: list[int] = field(default_factory=list)

    def root(self, label: int) -> int:
        """The label that stands for all tied to this one."""
        while self._parents[label] != label:
            self._parents[label] = self._parents[self._parents[label]]
            label = self._parents[label]
        return label

    def roots(self, labels: np.ndarray) -> np.ndarray:
        """The same of many."""
        return np.array([self.root(int(label)) for label in labels], dtype=np.int64)

    def fresh(self, count: int) -> np.ndarray:
        first = len(self._parents)
        self._parents += range(first, first + count)
        return np.arange(first, first + count)

    def tie(self, one: np.ndarray, other: np.ndarray) -> None:
        for a, b in zip(one, other, strict=True):
            a, b = self.root(int(a)), self.root(int(b))
            if a != b:
                self._parents[max(a, b)] = min(a, b)

    def keep(self, labels: np.ndarray, why: str) -> None:
        for label in labels:
            self.kept.setdefault(int(label), why)

    def kept_roots(self) -> dict[int, str]:
        """Root → why it is kept."""
        found: dict[int, str] = {}
        for label, why in self.kept.items():
            found.setdefault(self.root(label), why)
        return found

    def is_depthwise(self, node: fx.Node) -> bool:
        """Whether a node is a convolution of each channel alone."""
        module = self.module.get_submodule(str(node.target)) if node.op == "call_module" else None
        return isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels

    def is_of_channels(self, node: fx.Node) -> bool:
        """Whether a module reads and writes channels along the dimension that its weights are of."""
        module, rank = self.module.get_submodule(str(node.target)), len(shape_of(node) or ())
        axis = rank - 1 if isinstance(module, nn.Linear) else 1
        return all(self.of[one.name].axis == axis for one in (node.all_input_nodes[0], node))

    def consumers(self) -> list[fx.Node]:
        """Nodes of convolutions and linear layers, in order."""
        return [
            node
            for node in self.module.graph.nodes
            if node.op == "call_module" and isinstance(self.module.get_submodule(str(node.target)), CONSUMERS)
        ]


def trace_channels(network: nn.Module, input_shape: Sequence[int]) -> ChannelGraph:
    """Trace a network and label its channels; arguments and errors are those of `traced_network`."""
    traced = traced_network(network, input_shape)
    graph = ChannelGraph(traced, tuple(input_shape))
    for node in traced.graph.nodes:
        _label(graph, node)
        labelled, shape = graph.of.get(node.name), shape_of(node) or ()
        if labelled is not None and (labelled.axis >= len(shape) or shape[labelled.axis] != len(labelled.labels)):
            graph.keep(labelled.labels, f"{node.name}: it is of another width than what it is made of")
            _opaque(graph, node, f"{node.name}: it is of another width than what it is made of")
    return graph


def _label(graph: ChannelGraph, node: fx.Node) -> None:
    """Give a node's output its labels; a node without a tensor has none."""
    if node.op == "placeholder":
        labels = graph.fresh(graph.input_shape[0])
        graph.keep(labels, "the network's input")
        graph.of[node.name] = Labelled(labels, 1)
    elif node.op == "output":
        for source in node.all_input_nodes:
            _keep_all(graph, source, "the network's output")
    elif node.op == "call_module":
        _label_module(graph, node, graph.module.get_submodule(str(node.target)))
    elif node.op in ("call_function", "call_method"):
        _label_call(graph, node)
    # A parameter that is read by itself gets the labels of what it meets.


def _keep_all(graph: ChannelGraph, node: fx.Node, why: str) -> None:
    if node.name in graph.of:
        graph.keep(graph.of[node.name].labels, why)


def _opaque(graph: ChannelGraph, node: fx.Node, why: str) -> None:
    """Keep all that goes in, and whatever comes out."""
    for source in node.all_input_nodes:
        _keep_all(graph, source, why)
    shape = shape_of(node)
    if shape is not None and len(shape) > 1:
        labels = graph.fresh(shape[1])
        graph.keep(labels, why)
        graph.of[node.name] = Labelled(labels, 1)


def _label_module(graph: ChannelGraph, node: fx.Node, module: nn.Module) -> None:
    source = graph.of.get(node.all_input_nodes[0].name) if node.all_input_nodes else None
    if source is None:
        return _opaque(graph, node, f"{node.target}: its input is not known")
    before = graph.called.setdefault(str(node.target), node)
    if before is not node and module.state_dict():
        return _called_again(graph, node, before, source)
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        if source.axis != 1:
            return _opaque(graph, node, f"{node.target}: channels are not the second dimension")
        if isinstance(module, nn.ConvTranspose2d) and module.groups > 1:
            return _opaque(graph, node, f"{node.target}: a transposed convolution in groups")
        graph.of[node.name] = Labelled(_convolved(graph, module, source.labels), 1)
    elif isinstance(module, nn.Linear):
        rank = len(shape_of(node) or ())
        if source.axis != rank - 1:
            return _opaque(graph, node, f"{node.target}: channels are not the last dimension")
        graph.of[node.name] = Labelled(graph.fresh(module.out_features), rank - 1)
    elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        if source.axis != 1:
            return _opaque(graph, node, f"{node.target}: channels are not the second dimension")
        graph.of[node.name] = source
    elif isinstance(module, _OVER_POSITIONS_MODULES):
        _over_positions(graph, node, source)
    elif isinstance(module, nn.Flatten):
        _flattened(graph, node, source, module.start_dim, module.end_dim)
    elif isinstance(module, _EACH_ALONE_MODULES):
        graph.of[node.name] = source
    else:
        _opaque(graph, node, f"{node.target}: {type(module).__name__} mixes channels")
        if isinstance(module, nn.LayerNorm | nn.GroupNorm):
            graph.of[node.name] = source
    return None


def _called_again(graph: ChannelGraph, node: fx.Node, before: fx.Node, source: Labelled) -> None:
    """The same weights for another input: the same channels of it, and of what comes out."""
    first = graph.of[before.all_input_nodes[0].name]
    if len(first.labels) != len(source.labels) or before.name not in graph.of:
        return _opaque(graph, node, f"{node.target}: it is called with inputs of two widths")
    graph.tie(first.labels, source.labels)
    graph.of[node.name] = Labelled(graph.of[before.name].labels, graph.of[before.name].axis)
    return None


def _convolved(graph: ChannelGraph, module: nn.Conv2d | nn.ConvTranspose2d, labels: np.ndarray) -> np.ndarray:
    groups, out = module.groups, module.out_channels
    if groups == 1:
        return graph.fresh(out)
    if groups == len(labels) and out % groups == 0:
        return np.repeat(labels, out // groups)  # depthwise: each channel makes its own
    # Every group keeps the channels of the same places, so that all stay as wide.
    written = graph.fresh(out)
    for rows in (labels.reshape(groups, -1), written.reshape(groups, -1)):
        for other in rows[1:]:
            graph.tie(rows[0], other)
    return written


def _over_positions(graph: ChannelGraph, node: fx.Node, source: Labelled) -> None:
    """What is done over the last two dimensions, of which channels are none."""
    if source.axis != 1 or len(shape_of(node.all_input_nodes[0]) or ()) != 4:
        return _opaque(graph, node, f"{node.name}: channels are not the second of four dimensions")
    graph.of[node.name] = source
    return None


def _flattened(graph: ChannelGraph, node: fx.Node, source: Labelled, start: int, end: int) -> None:
    before = shape_of(node.all_input_nodes[0])
    if before is None or source.axis != 1 or start != 1 or end not in (-1, len(before) - 1):
        return _opaque(graph, node, f"{node.name}: another flattening than of all but the batch")
    graph.of[node.name] = Labelled(np.repeat(source.labels, int(np.prod(before[2:], dtype=int))), 1)
    return None


def _label_call(graph: ChannelGraph, node: fx.Node) -> None:
    target, shape = node.target, shape_of(node)
    args: Any = node.args
    sources = [source for source in node.all_input_nodes if source.name in graph.of]
    if target in (operator.getitem, getattr) and shape is None:
        return None
    if target is operator.getitem and "parts" in args[0].meta:
        graph.of[node.name] = args[0].meta["parts"][args[1]]
        return None
    if shape is None and not isinstance(node.meta.get("tensor_meta"), tuple | list):
        return None  # sizes and the like
    if not sources:
        return None
    first = graph.of[sources[0].name]
    if target in _EACH_ALONE_FUNCTIONS or (node.op == "call_method" and target in _EACH_ALONE_METHODS):
        graph.of[node.name] = first
        return None
    if target in _OVER_POSITIONS_FUNCTIONS:
        return _over_positions(graph, node, first)
    if target in _JOINING_FUNCTIONS or (node.op == "call_method" and target in _JOINING_METHODS):
        return _joined(graph, node, sources)
    if target in (torch.cat, torch.concat):
        return _concatenated(graph, node, sources)
    if target in (torch.chunk, torch.split) or target in ("chunk", "split"):
        return _split(graph, node, first)
    if target is torch.flatten or target == "flatten":
        arguments = [*args[1:], *node.kwargs.values()]
        return _flattened(
            graph, node, first, int(arguments[0]) if arguments else 0, int(arguments[1]) if len(arguments) > 1 else -1
        )
    if target in ("view", "reshape") or target is torch.reshape:
        return _reshaped(graph, node, first)
    if target in ("mean", torch.mean) or target in ("sum", torch.sum):
        return _reduced(graph, node, first)
    if target in ("permute", torch.permute):
        order = node.kwargs.get("dims", args[1] if len(args) == 2 else args[1:])
        rank = len(shape or ())
        places = [int(axis) % rank for axis in order]
        graph.of[node.name] = Labelled(first.labels, places.index(first.axis))
        return None
    if target in ("transpose", torch.transpose):
        a, b = (
            int(axis) % len(shape or ())
            for axis in (*args[1:3], *(node.kwargs[k] for k in _SWAPPED if k in node.kwargs))
        )
        graph.of[node.name] = Labelled(first.labels, {a: b, b: a}.get(first.axis, first.axis))
        return None
    return _opaque(graph, node, f"{node.name}: {getattr(target, '__name__', target)} is not known")


def _joined(graph: ChannelGraph, node: fx.Node, sources: Sequence[fx.Node]) -> None:
    """Elementwise: channels in the same place are one; a parameter that is read by itself joins with its own."""
    # A parameter that is labelled already was joined with something else before.
    sources = [source for source in sources if source.op != "get_attr"]
    if not sources:
        return None
    known = [graph.of[source.name] for source in sources]
    rank, wide = len(shape_of(node) or ()), max(known, key=lambda one: len(one.labels))
    for source, one in zip(sources, known, strict=True):
        shape = shape_of(source) or ()
        if len(shape) != rank or one.axis != wide.axis or len(one.labels) not in (1, len(wide.labels)):
            return _opaque(graph, node, f"{node.name}: shapes that are not joined channel by channel")
        if len(one.labels) == len(wide.labels):
            graph.tie(wide.labels, one.labels)
        else:
            graph.keep(one.labels, f"{node.name}: one channel for all")
    for source in node.all_input_nodes:
        beside = shape_of(source)
        if source in sources or beside is None:
            continue
        place = wide.axis - rank + len(beside)
        if place < 0 or beside[place] == 1:
            continue  # the same for all channels
        if beside[place] != len(wide.labels) or not _joins_as_parameter(graph, source, place, wide.labels):
            return _opaque(graph, node, f"{node.name}: a tensor whose channels are not known")
    graph.of[node.name] = wide
    return None


def _joins_as_parameter(graph: ChannelGraph, node: fx.Node, place: int, labels: np.ndarray) -> bool:
    """Label a parameter that is read by itself, perhaps brought to shape on the way, so that along `place` of `node` it
    has these channels; False where it is something else, or where its shape is written down in numbers."""
    shape = shape_of(node) or ()
    if node.op != "get_attr" and any(size != 1 for i, size in enumerate(shape) if i != place):
        return False
    base = node
    while base.op != "get_attr":
        args: Any = base.args
        inputs = base.all_input_nodes
        if len(inputs) != 1 or args[0] is not inputs[0] or base.kwargs:
            return False
        sizes = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
        brings = (
            (base.target in ("view", "reshape") and -1 in sizes)
            or base.target in ("unsqueeze", torch.unsqueeze)
            or (base.target is operator.getitem and all(i is None or i == slice(None) for i in sizes))
            or base.target in _EACH_ALONE_FUNCTIONS
            or base.target in _EACH_ALONE_METHODS
        )
        if not brings:
            return False
        base = inputs[0]
    found = shape_of(base) or ()
    places = [i for i, size in enumerate(found) if size == len(labels)] if base is not node else [place]
    if len(places) != 1 or (base is not node and any(size != 1 for i, size in enumerate(found) if i != places[0])):
        return False
    same = [other for other in graph.module.graph.nodes if other.op == "get_attr" and other.target == base.target]
    for other in same:
        known = graph.of.get(other.name)
        if known is not None and (known.axis != places[0] or len(known.labels) != len(labels)):
            return False
        if known is not None:
            graph.tie(known.labels, labels)
    graph.of[base.name] = Labelled(labels, places[0])
    return True


def _concatenated(graph: ChannelGraph, node: fx.Node, sources: Sequence[fx.Node]) -> None:
    rank = len(shape_of(node) or ())
    args: Any = node.args
    kwargs: Any = node.kwargs
    axis = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else 0))
    listed = args[0] if args else kwargs["tensors"]
    parts = [graph.of.get(part.name) for part in listed] if isinstance(listed, tuple | list) else [None]
    if any(part is None for part in parts) or len(parts) < len(sources):
        return _opaque(graph, node, f"{node.name}: a part of it is not known")
    place = int(axis) % rank
    first = parts[0]
    assert first is not None
    if place == first.axis:
        graph.of[node.name] = Labelled(np.concatenate([part.labels for part in parts if part]), place)
        return None
    for part in parts[1:]:
        assert part is not None
        graph.tie(first.labels, part.labels)
    graph.of[node.name] = first
    return None


def _split(graph: ChannelGraph, node: fx.Node, source: Labelled) -> None:
    """Parts of a split along channels must stay as wide as they are written: kept whole."""
    _keep_all(graph, node.all_input_nodes[0], f"{node.name}: it is split by position")
    metas = node.meta["tensor_meta"]
    widths = [tuple(meta.shape)[source.axis] for meta in metas]
    ends = np.cumsum(widths)
    if ends[-1] == len(source.labels):
        node.meta["parts"] = [
            Labelled(source.labels[end - width : end], source.axis) for width, end in zip(widths, ends, strict=True)
        ]
    else:
        node.meta["parts"] = [source for _ in widths]


def _width_of(graph: ChannelGraph, size: object) -> Labelled | None:
    """The labels that a size counts: that of the second dimension of a tensor whose channels these are."""
    if not isinstance(size, fx.Node):
        return None
    args: Any = size.args
    of = None
    if size.target == "size" and len(args) == 2 and args[1] == 1:
        of = args[0]
    elif size.target is operator.getitem and args[1] == 1 and isinstance(args[0], fx.Node):
        whole: Any = args[0].args
        if args[0].target == "size" or (args[0].target is getattr and whole[1] == "shape"):
            of = whole[0]
    found = None if of is None else graph.of.get(of.name)
    return found if found is not None and found.axis == 1 else None


def _reshaped(graph: ChannelGraph, node: fx.Node, source: Labelled) -> None:
    """All but the batch into one dimension whose size is left open, or dimensions behind the channels that come or go,
    the number of channels read off a tensor; nothing else."""
    before, after = shape_of(node.all_input_nodes[0]), shape_of(node)
    args: Any = node.args
    sizes = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
    if before is not None and after is not None and len(sizes) > 1 and source.axis == 1:
        width = source if sizes[1] == -1 else _width_of(graph, sizes[1])
        alike = before[:2] == after[:2] and width is not None and len(width.labels) == len(source.labels)
        if alike and width is not None:
            graph.tie(source.labels, width.labels)
            graph.of[node.name] = Labelled(source.labels, 1)
            return None
    open_ended = len(sizes) == 2 and sizes[1] == -1
    if (
        before is None
        or after is None
        or len(after) != 2
        or after[0] != before[0]
        or source.axis != 1
        or not open_ended
    ):
        return _opaque(graph, node, f"{node.name}: a reshape that is no flattening")
    graph.of[node.name] = Labelled(np.repeat(source.labels, int(np.prod(before[2:], dtype=int))), 1)
    return None


def _reduced(graph: ChannelGraph, node: fx.Node, source: Labelled) -> None:
    """Over positions alone."""
    before, after = shape_of(node.all_input_nodes[0]) or (), shape_of(node) or ()
    args: Any = node.args
    axes: Any = node.kwargs.get("dim", args[1] if len(args) > 1 else None)
    listed = [axes] if isinstance(axes, int) else list(axes or range(len(before)))
    places = [int(axis) % len(before) for axis in listed]
    if source.axis in places:
        return _opaque(graph, node, f"{node.name}: a reduction over channels")
    gone = 0 if len(after) == len(before) else sum(place < source.axis for place in places)
    graph.of[node.name] = Labelled(source.labels, source.axis - gone)
    return None


ADDS = frozenset({operator.add, operator.iadd, torch.add})


@dataclass(frozen=True)
class Branch:
    """A residual sum: `node` adds what `branch` gives to what goes around it, `skip`."""

    node: str
    branch: str
    skip: str


def residual_branches(graph: ChannelGraph) -> list[Branch]:
    """Plain sums of which one term is made from the other: without their branch they are what goes around."""
    found = []
    for node in graph.module.graph.nodes:
        terms = [term for term in node.args[:2] if isinstance(term, fx.Node)]
        if node.op == "call_function" and node.target in ADDS and len(terms) == 2 and not node.kwargs:
            for branch, skip in (terms, terms[::-1]):
                if skip in _ancestors(branch) and shape_of(branch) == shape_of(skip):
                    found.append(Branch(node.name, branch.name, skip.name))
                    break
    return found


def _ancestors(node: fx.Node) -> set[fx.Node]:
    seen: set[fx.Node] = set()
    waiting = [node]
    while waiting:
        for source in waiting.pop().all_input_nodes:
            if source not in seen:
                seen.add(source)
                waiting.append(source)
    return seen
