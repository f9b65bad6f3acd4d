"""A predictor compiled for a search space: costs tabulated per segment, so that scoring is a lookup.

Every distinct layer is costed once, between plain neighbours. What a runtime inserts where two layers meet (layout
changes) can depend on both, so a table is close to the prediction of the whole network and not equal to it:
`compile_space` measures how close on random networks, and the bounds are widened by that.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from akd_deploy.architecture import Architecture
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.predictor.cold_weights import CLASSES, weight_bytes
from akd_deploy.predictor.kernel_cost import KernelCost
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.search_space import Layer, SearchSpace

KernelsOf = Callable[[Sequence[Sequence[Layer]]], list[tuple[ExecutedKernel, ...]]]
"""Chains of layers → the kernels each executes, their `nodes` named after the layers' operations."""


Exactly = Callable[[Architecture], float]
"""An architecture → its latency in seconds as predicted from its whole network."""

COLUMNS = 2 + len(CLASSES)
CHECKED = 48
"""Random architectures predicted both ways."""
CHECK_QUANTILE = 0.9
"""The bound covers this share of the checked differences."""


@dataclass(frozen=True)
class CompiledSpace:
    """Latencies of a whole space by table lookup.

    `tables[s]` has shape (options of choice 1, …, options of choice n, 2 + classes) for segment s: seconds of
    latency and of spread, and bytes of each class of weights. `columns[s]` are the positions of those choices among
    the tokens. `slack` is the relative difference to predictions of whole networks that bounds allow for.
    """

    space: SearchSpace
    predictor: Predictor
    tables: tuple[np.ndarray, ...]
    columns: tuple[tuple[int, ...], ...]
    slack: float = 0.0

    def latencies_s(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, choices) tokens → (n,) latency and (n,) upper bound of the interval, seconds."""
        total = np.zeros((len(tokens), COLUMNS))
        for table, columns in zip(self.tables, self.columns, strict=True):
            total += table[tuple(tokens[:, column] for column in columns)] if columns else table
        warm = total[:, 0] + self.predictor.overhead_s
        cold = self.predictor.network_cold_s(total[:, 2:], warm)
        latency, spread = warm + cold, self.predictor.spread_s(total[:, 1], cold)
        return latency, (1 + self.slack) * self.predictor.interval_s(latency, spread)[1]

    def predict(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        """(n,) latency and (n,) upper bound in seconds; what a search is handed."""
        return self.latencies_s(self.space.tokens_of(architectures))


def compile_space(
    space: SearchSpace, predictor: Predictor, kernels_of: KernelsOf, exactly: Exactly, rng: np.random.Generator
) -> CompiledSpace:
    """Tabulate every segment's cost over the options of the choices it depends on.

    Args:
        kernels_of: how the engine executes stretches of networks.
        exactly: predictions of whole networks, which the table is checked against on `CHECKED` random ones.

    Raises:
        UncoveredOperatorError: the space holds operators the latency table says nothing about.
    """
    positions = {name: i for i, name in enumerate(space.choices)}
    stretches: list[list[tuple[Layer, ...]]] = []
    for segment in space.segments:
        combinations = itertools.product(*(space.choices[name] for name in segment.choices))
        stretches.append(
            [space.segment_layers(segment, dict(zip(segment.choices, values, strict=True))) for values in combinations]
        )
    distinct = list(dict.fromkeys(layer for segment in stretches for layers in segment for layer in layers))
    chains = [_in_context(layer) for layer in distinct]
    inside = {
        layer: _kernels_of_layer(layer, executed) for layer, executed in zip(distinct, kernels_of(chains), strict=True)
    }
    kernels = list(dict.fromkeys(kernel for found in inside.values() for kernel in found))
    costs = dict(zip(kernels, predictor.costs(kernels, f"latencies of space {space.name}"), strict=True))
    summed = {
        layer: sum((_columns(kernel, costs[kernel]) for kernel in found), np.zeros(COLUMNS))
        for layer, found in inside.items()
    }
    tables, columns = [], []
    for segment, layers_of in zip(space.segments, stretches, strict=True):
        shape = tuple(len(space.choices[name]) for name in segment.choices)
        rows = [sum((summed[layer] for layer in layers), np.zeros(COLUMNS)) for layers in layers_of]
        tables.append(np.array(rows).reshape(*shape, COLUMNS))
        columns.append(tuple(positions[name] for name in segment.choices))
    compiled = CompiledSpace(space, predictor, tuple(tables), tuple(columns))
    return replace(compiled, slack=_slack(compiled, exactly, rng))


def _columns(kernel: Kernel, cost: KernelCost) -> np.ndarray:
    return np.array([cost.mean_s, cost.told_spread_s, *weight_bytes(kernel)])


def _slack(compiled: CompiledSpace, exactly: Exactly, rng: np.random.Generator) -> float:
    """How far whole networks lie above the table, relatively, for all but a few of the checked ones; at least 0."""
    architectures = [compiled.space.sample(rng) for _ in range(CHECKED)]
    table_s, _ = compiled.predict(architectures)
    whole_s = np.array([exactly(architecture) for architecture in architectures])
    return max(0.0, float(np.quantile(whole_s / table_s - 1, CHECK_QUANTILE)))


def _in_context(layer: Layer) -> tuple[Layer, ...]:
    """The layer after and before a plain convolution: inside a network, not at its rim."""
    before: tuple[Layer, ...] = ()
    after: tuple[Layer, ...] = ()
    if layer.op != "stem":
        before = (_plain("before", layer.in_channels, layer.in_size),)
    if layer.op != "head":
        after = (_plain("after", layer.out_channels, layer.out_size),)
    return (*before, layer, *after)


def _plain(name: str, channels: int, size: int) -> Layer:
    return Layer(name, "conv", channels, channels, size, kernel_size=1)


def _kernels_of_layer(layer: Layer, executed: Sequence[ExecutedKernel]) -> tuple[Kernel, ...]:
    """The kernels whose first node belongs to the layer."""
    return tuple(e.kernel for e in executed if e.nodes and e.nodes[0].startswith(f"{layer.name}."))
