"""A network with a gate on each of its units, and the smaller network that is left once gates are zero.

A unit is a channel, several neighbouring ones, or a residual branch. Channels' gates stand where channels are read,
before convolutions and linear layers: a channel whose gate is 0 might as well not be there, which makes the extracted
network equal to the gated one. (Gu & Tresp 2020, arXiv:2001.11612; gates as in Huang & Wang 2018, arXiv:1707.01213.)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from akd_deploy.errors import MismatchError, UsageError
from akd_deploy.models.channel_costs import live_nodes, multiply_accumulates, parameter_count
from akd_deploy.models.channel_graph import Branch, ChannelGraph, residual_branches, trace_channels
from akd_deploy.models.traced_network import SAME, evaluating, most_different, tensor_of


@dataclass(frozen=True)
class Unit:
    """What is kept or dropped as one: channels (by the roots of their labels), or a branch.

    `layer` is the module that writes the channels first, or the sum that a branch goes into; a layer keeps one unit of
    channels at least.
    """

    layer: str
    roots: tuple[int, ...] = ()
    branch: Branch | None = None


class _Gate(nn.Module):
    """Multiplies channels by the gates of their units; those without one by 1."""

    def __init__(self, gates: nn.Parameter, places: np.ndarray, axis: int) -> None:
        super().__init__()
        # One parameter, registered once by the network that owns it.
        self._gates = [gates]
        self.axis = axis
        self.register_buffer("places", torch.from_numpy(places), persistent=False)

    places: Tensor

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.cat([self._gates[0], self._gates[0].new_ones(1)])
        shape = [1] * x.ndim
        shape[self.axis] = -1
        return x * gates[self.places].view(shape)


class _BranchGate(nn.Module):
    def __init__(self, gates: nn.Parameter, place: int) -> None:
        super().__init__()
        self._gates = [gates]
        self.place = place

    def forward(self, x: Tensor) -> Tensor:
        return x * self._gates[0][self.place]


class GatedNetwork(nn.Module):
    """`gates` (units,) begin at 1; the forward pass is the network's with every unit times its gate.

    The network's own modules are used, not copied: training this one trains those.

    Args:
        network: as for `trace_channels`.
        input_shape: (channels, height, width).
        group: channels to a unit, neighbours of one layer: the target's granularity, or 1.
        branches: whether residual branches are units too.

    Raises:
        UsageError: it cannot be traced, or has nothing that can be gated.
    """

    def __init__(
        self, network: nn.Module, input_shape: Sequence[int], *, group: int = 1, branches: bool = True
    ) -> None:
        super().__init__()
        if group < 1:
            raise UsageError(asked="channels to a unit", found=str(group), next="Write a whole number ≥ 1.")
        self.graph = trace_channels(network, input_shape)
        self.unfollowed: dict[str, int] = {}
        self.units = [*_channel_units(self.graph, group), *(_branch_units(self.graph) if branches else [])]
        self._gate_units(network)
        if branches:
            self._keep_what_is_not_followed(network)

    def _gate_units(self, network: nn.Module) -> None:
        if not self.units:
            raise UsageError(
                asked=f"units of {type(network).__name__} that can be dropped",
                found="none: " + "; ".join(sorted(set(self.graph.kept_roots().values()))[:3]),
                next="Give a network whose channels some rule can follow.",
            )
        self.gates = nn.Parameter(torch.ones(len(self.units)))
        self.unit_of = {root: i for i, unit in enumerate(self.units) for root in unit.roots}
        self.network = self._gated()

    def _keep_what_is_not_followed(self, network: nn.Module) -> None:
        """Branches without which the extracted network is not what their gates say are no units."""
        every = [i for i, unit in enumerate(self.units) if unit.branch is not None]
        if not every or self._is_followed(every):
            return
        wrong = [i for i in every if not self._is_followed([i])] or every
        for i in wrong:
            self.unfollowed[f"{self.units[i].layer}: without its branch it is not what goes around it"] = 1
        self.units = [unit for i, unit in enumerate(self.units) if i not in wrong]
        self._gate_units(network)

    def _is_followed(self, dropped: Sequence[int]) -> bool:
        """Whether the network without some branches is the one with their gates at 0."""
        mask = np.ones(len(self.units), bool)
        mask[list(dropped)] = False
        images = torch.rand(2, *self.graph.input_shape, generator=torch.Generator().manual_seed(0))
        images = images.to(self.gates.device)
        with evaluating(self), torch.no_grad():
            self.gates[list(dropped)] = 0
            gated, small = self(images.clone()), extract(self, mask)(images.clone())
            self.gates.fill_(1)
        return most_different(gated, small) <= SAME

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits

    def _gated(self) -> fx.GraphModule:
        graph = self.graph
        gated = fx.GraphModule(graph.module, copy.deepcopy(graph.module.graph))
        nodes = {node.name: node for node in gated.graph.nodes}
        for number, consumer in enumerate(graph.consumers()):
            source = consumer.all_input_nodes[0]
            labelled = graph.of.get(source.name)
            if labelled is None or graph.is_depthwise(consumer):
                continue  # what works on each channel alone is gated where its output is read
            places = self.places(labelled.labels)
            if (places == len(self.units)).all():
                continue
            gated.add_submodule(f"gate_{number}", _Gate(self.gates, places, labelled.axis))
            node = nodes[consumer.name]
            with gated.graph.inserting_before(node):
                through = gated.graph.call_module(f"gate_{number}", (nodes[source.name],))
            node.replace_input_with(nodes[source.name], through)
        for i, unit in enumerate(self.units):
            if unit.branch is None:
                continue
            node, branch = nodes[unit.branch.node], nodes[unit.branch.branch]
            gated.add_submodule(f"branch_gate_{i}", _BranchGate(self.gates, i))
            with gated.graph.inserting_before(node):
                through = gated.graph.call_module(f"branch_gate_{i}", (branch,))
            node.replace_input_with(branch, through)
        gated.graph.lint()
        gated.recompile()
        return gated

    def places(self, labels: np.ndarray) -> np.ndarray:
        """(n,) labels → (n,) units, the number of units for those without one."""
        return np.array([self.unit_of.get(int(root), len(self.units)) for root in self.graph.roots(labels)], np.int64)

    @property
    def kept_whole(self) -> Mapping[str, int]:
        """Why channels, and branches, are no units → how many."""
        found = dict(self.unfollowed)
        for why in self.graph.kept_roots().values():
            found[why] = found.get(why, 0) + 1
        return found

    def mask(self) -> np.ndarray:
        """(units,) booleans: whose gate is not 0."""
        result: np.ndarray = self.gates.detach().cpu().numpy() != 0
        return result

    def macs(self, mask: np.ndarray | None = None) -> int:
        """Multiply-accumulates of one image with these units alone (None: all of them)."""
        return multiply_accumulates(self.graph, *self._left(mask))

    def parameters_left(self, mask: np.ndarray | None = None) -> int:
        """Weights and biases of convolutions and linear layers, in the same way."""
        return parameter_count(self.graph, *self._left(mask))

    def _left(self, mask: np.ndarray | None) -> tuple:
        if mask is None:
            return None, ()
        wide = np.append(mask, True)
        dropped = [unit.branch for unit, kept in zip(self.units, mask, strict=True) if unit.branch and not kept]
        return (lambda labels: wide[self.places(labels)]), dropped

    def live(self, mask: np.ndarray) -> np.ndarray:
        """The mask without units that are kept for nothing, as those within a branch that is dropped."""
        alive = live_nodes(self.graph, self._left(mask)[1])
        writers: dict[int, list[str]] = {}
        for node in self.graph.consumers():
            for root in dict.fromkeys(self.graph.roots(self.graph.of[node.name].labels).tolist()):
                writers.setdefault(int(root), []).append(node.name)
        lives = [
            unit.branch.node in alive
            if unit.branch is not None
            else any(name in alive for root in unit.roots for name in writers[root])
            for unit in self.units
        ]
        return np.asarray(mask, bool) & np.array(lives)

    def check_mask(self, mask: np.ndarray) -> None:
        """Raise MismatchError where a mask is not one of these units, or leaves a layer nothing."""
        if mask.shape != (len(self.units),):
            raise MismatchError(
                asked=f"a mask of {len(self.units)} units", found=f"one of {mask.shape}", next="Give one value a unit."
            )
        left: dict[str, int] = {}
        for unit, kept in zip(self.units, mask, strict=True):
            if unit.branch is None:
                left[unit.layer] = left.get(unit.layer, 0) + bool(kept)
        empty = [layer for layer, count in left.items() if not count]
        if empty:
            raise MismatchError(
                asked="at least one unit in every layer",
                found=f"none in {', '.join(empty)}",
                next="Keep one, or drop the residual branch that the layer is in.",
            )


def _channel_units(graph: ChannelGraph, group: int) -> list[Unit]:
    kept, taken = graph.kept_roots(), set[int]()
    units = []
    for node in graph.consumers():
        roots = [int(root) for root in dict.fromkeys(graph.roots(graph.of[node.name].labels).tolist())]
        free = [root for root in roots if root not in kept and root not in taken]
        taken.update(free)
        units += [Unit(str(node.target), tuple(free[i : i + group])) for i in range(0, len(free), group)]
    return units


def _branch_units(graph: ChannelGraph) -> list[Unit]:
    return [Unit(branch.node, branch=branch) for branch in residual_branches(graph)]


def extract(gated: GatedNetwork, mask: np.ndarray | None = None) -> fx.GraphModule:
    """The smaller network that is left: dense modules with fewer channels, dropped branches gone, gates folded in.

    In evaluation mode it computes what the gated network does with the gates of `mask` (those that are not 0) and
    zeros for the others. The weights are copies.

    Raises:
        MismatchError: the mask leaves a layer nothing.
    """
    mask = gated.mask() if mask is None else np.asarray(mask, bool)
    gated.check_mask(mask)
    graph = gated.graph
    values = np.append(np.where(mask, gated.gates.detach().cpu().numpy(), 0.0), 1.0).astype(np.float32)
    small = copy.deepcopy(graph.module)
    nodes = {node.name: node for node in small.graph.nodes}
    cut: set[str] = set()
    for node in graph.module.graph.nodes:
        if node.op == "call_module" and str(node.target) not in cut:
            cut.add(str(node.target))
            module = small.get_submodule(str(node.target))
            replaced = _cut(gated, node, module, values)
            if replaced is not module:
                _set_submodule(small, str(node.target), replaced)
        elif node.op == "get_attr" and node.name in graph.of and str(node.target) not in cut:
            cut.add(str(node.target))
            _cut_parameter(small, node, graph.of[node.name].axis, values[gated.places(graph.of[node.name].labels)] != 0)
    # The last sums first: what goes around one may itself be a sum whose branch is dropped.
    for i, unit in reversed(list(enumerate(gated.units))):
        if unit.branch is not None:
            _settle_branch(small, nodes, unit.branch, float(values[i]))
    _drop_repeated(small)
    small.graph.eliminate_dead_code()
    small.delete_all_unused_submodules()
    small.graph.lint()
    small.recompile()
    return small.eval()


def _cut(gated: GatedNetwork, node: fx.Node, module: nn.Module, values: np.ndarray) -> nn.Module:
    """A module with the channels that are kept alone; the gates of those that it reads are folded into its weights."""
    graph = gated.graph
    if node.name not in graph.of or not node.all_input_nodes or node.all_input_nodes[0].name not in graph.of:
        return module
    reads, writes = graph.of[node.all_input_nodes[0].name], graph.of[node.name]
    if not graph.is_of_channels(node):
        return module  # it works along another dimension, and all that it sees is kept
    read, written = values[gated.places(reads.labels)], values[gated.places(writes.labels)]
    inside, outside = torch.from_numpy(np.flatnonzero(read)), torch.from_numpy(np.flatnonzero(written))
    gates = torch.from_numpy(read[read != 0])
    with torch.no_grad():
        if isinstance(module, nn.Linear):
            made = nn.Linear(len(inside), len(outside), bias=module.bias is not None)
            made.weight.copy_(module.weight[outside][:, inside] * gates)
            if module.bias is not None:
                made.bias.copy_(module.bias[outside])
            return made
        if isinstance(module, nn.ConvTranspose2d):
            if module.groups > 1:
                return module  # all that it reads and writes is kept
            return _cut_transposed(module, inside, outside, gates)
        if isinstance(module, nn.Conv2d):
            return _cut_convolution(module, inside, outside, gates)
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            norm = type(module)(
                len(outside), eps=module.eps, momentum=module.momentum, affine=module.affine,
                track_running_stats=module.track_running_stats,
            )  # fmt: skip
            for name in ("weight", "bias", "running_mean", "running_var"):
                tensor = getattr(module, name)
                if tensor is not None:
                    getattr(norm, name).copy_(tensor[outside])
            return norm
    return module


def _like(module: Any, inside: int, outside: int, groups: int) -> Any:
    """A fresh convolution of other widths that is otherwise the same."""
    more = {"output_padding": module.output_padding} if isinstance(module, nn.ConvTranspose2d) else {}
    return type(module)(
        inside, outside, module.kernel_size, stride=module.stride, padding=module.padding, dilation=module.dilation,
        groups=groups, bias=module.bias is not None, padding_mode=module.padding_mode, **more,
    )  # fmt: skip


def _cut_convolution(module: nn.Conv2d, inside: Tensor, outside: Tensor, gates: Tensor) -> nn.Module:
    groups, wide = module.groups, module.in_channels // module.groups
    if groups == 1:
        weight = module.weight[outside][:, inside] * gates[:, None, None]
        made = _like(module, len(inside), len(outside), 1)
    elif wide == 1:
        # Depthwise: its channels are read where its output is, by gates behind it; its own weights stay.
        weight, made = module.weight[outside], _like(module, len(inside), len(outside), len(inside))
    else:
        # Ties make every group keep the same places.
        per_group = inside[inside < wide]
        weight = module.weight[outside][:, per_group]
        each = module.out_channels // groups
        rows = gates.view(groups, -1)[outside // each]
        weight = weight * rows[:, :, None, None]
        made = _like(module, len(inside), len(outside), groups)
    made.weight.copy_(weight)
    if module.bias is not None:
        made.bias.copy_(module.bias[outside])
    return made


def _cut_transposed(module: nn.ConvTranspose2d, inside: Tensor, outside: Tensor, gates: Tensor) -> nn.Module:
    made = _like(module, len(inside), len(outside), 1)
    made.weight.copy_(module.weight[inside][:, outside] * gates[:, None, None, None])
    if module.bias is not None:
        made.bias.copy_(module.bias[outside])
    return made


def _cut_parameter(network: fx.GraphModule, node: fx.Node, axis: int, kept: np.ndarray) -> None:
    """A parameter that is read by itself, such as a scale of channels."""
    tensor = tensor_of(network, node)
    sliced = tensor.detach().index_select(axis, torch.from_numpy(np.flatnonzero(kept)))
    *path, name = str(node.target).split(".")
    owner = network.get_submodule(".".join(path))
    if isinstance(tensor, nn.Parameter):
        setattr(owner, name, nn.Parameter(sliced.clone()))
    else:
        owner.register_buffer(name, sliced.clone())


def _settle_branch(network: fx.GraphModule, nodes: Mapping[str, fx.Node], branch: Branch, gate: float) -> None:
    """Take a branch out of its sum, or scale it by its gate: in its last module's weights where nothing else reads
    it."""
    node, source = nodes[branch.node], nodes[branch.branch]
    if gate == 0:
        node.replace_all_uses_with(nodes[branch.skip])
        return
    if gate == 1:
        return
    module = network.get_submodule(str(source.target)) if source.op == "call_module" else None
    called = [other for other in network.graph.nodes if other.op == "call_module" and other.target == source.target]
    folds = len(source.users) == 1 and len(called) == 1
    if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d) and folds:
        with torch.no_grad():
            if module.weight is not None:
                module.weight.mul_(gate)
            if module.bias is not None:
                module.bias.mul_(gate)
        if module.weight is not None:
            return
    with network.graph.inserting_before(node):
        scaled = network.graph.call_function(torch.mul, (source, gate))
    node.replace_input_with(source, scaled)


_RELUS = (torch.relu, torch.nn.functional.relu, "relu", "relu_")


def _drop_repeated(network: fx.GraphModule) -> None:
    """Take out rectifiers of what a rectifier puts out: those on both sides of a dropped branch meet."""

    def rectifies(node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(network.get_submodule(str(node.target)), nn.ReLU)
        return node.op in ("call_function", "call_method") and node.target in _RELUS

    for node in network.graph.nodes:
        if rectifies(node) and rectifies(node.all_input_nodes[0]):
            node.replace_all_uses_with(node.all_input_nodes[0])


def _set_submodule(network: nn.Module, target: str, module: nn.Module) -> None:
    *path, name = target.split(".")
    setattr(network.get_submodule(".".join(path)), name, module)
