"""A predictor compiled for a search space: costs tabulated per segment, so that scoring is a lookup.

A segment's kernels depend on its own few choices only, except that a runtime may insert layout changes where
segments meet. Every distinct stretch of layers is therefore compiled between the neighbours it will have.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from akd_deploy.architecture import Architecture
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.search_space import Layer, SearchSpace, Segment
from akd_deploy.search_space.base import Value

KernelsOf = Callable[[Sequence[Sequence[Layer]]], list[tuple[ExecutedKernel, ...]]]
"""Chains of layers → the kernels each executes, their `nodes` named after the layers' operations."""


@dataclass(frozen=True)
class CompiledSpace:
    """Latencies of a whole space by table lookup.

    `tables[s]` has shape (options of choice 1, …, options of choice n, 2) for segment s: seconds of
    latency and of spread. `columns[s]` are the positions of those choices among the tokens.
    """

    space: SearchSpace
    predictor: Predictor
    tables: tuple[np.ndarray, ...]
    columns: tuple[tuple[int, ...], ...]

    def latencies_s(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n, choices) tokens → (n,) latency and (n,) upper bound of the interval, seconds."""
        total = np.zeros((len(tokens), 2))
        for table, columns in zip(self.tables, self.columns, strict=True):
            total += table[tuple(tokens[:, column] for column in columns)] if columns else table
        latency = total[:, 0] + self.predictor.overhead_s
        return latency, self.predictor.interval_s(latency, total[:, 1])[1]

    def predict(self, architectures: Sequence[Architecture]) -> tuple[np.ndarray, np.ndarray]:
        """(n,) latency and (n,) upper bound in seconds; what a search is handed."""
        return self.latencies_s(np.stack([self.space.tokens(a) for a in architectures]))


def compile_space(space: SearchSpace, predictor: Predictor, kernels_of: KernelsOf) -> CompiledSpace:
    """Tabulate every segment's cost over the options of the choices it depends on.

    Raises:
        UncoveredOperatorError: the space holds operators the latency table says nothing about.
    """
    positions = {name: i for i, name in enumerate(space.choices)}
    probes: dict[tuple[str, tuple[Layer, ...]], tuple[Layer, ...]] = {}
    plans: list[tuple[Segment, list[tuple[Value, ...]], list[tuple[Layer, ...]]]] = []
    for index, segment in enumerate(space.segments):
        combinations = list(itertools.product(*(space.choices[name] for name in segment.choices)))
        stretches = []
        for combination in combinations:
            values = {name: options[0] for name, options in space.choices.items()}
            values.update(zip(segment.choices, combination, strict=True))
            layers = space.segment_layers(segment, values)
            stretches.append(layers)
            if (segment.name, layers) not in probes:
                probes[segment.name, layers] = _in_context(space, index, values)
        plans.append((segment, combinations, stretches))
    keys = list(probes)
    executed = dict(zip(keys, kernels_of([probes[key] for key in keys]), strict=True))
    inside = {key: _kernels_inside(key[1], kernels) for key, kernels in executed.items()}
    distinct = list(dict.fromkeys(kernel for kernels in inside.values() for kernel in kernels))
    costs = dict(zip(distinct, predictor.costs(distinct, f"latencies of space {space.name}"), strict=True))
    summed = {
        key: (sum(costs[k].mean_s for k in kernels), sum(costs[k].spread_s for k in kernels))
        for key, kernels in inside.items()
    }
    tables, columns = [], []
    for segment, _combinations, stretches in plans:
        shape = tuple(len(space.choices[name]) for name in segment.choices)
        tables.append(np.array([summed[segment.name, layers] for layers in stretches]).reshape(*shape, 2))
        columns.append(tuple(positions[name] for name in segment.choices))
    return CompiledSpace(space, predictor, tuple(tables), tuple(columns))


def _in_context(space: SearchSpace, index: int, values: Mapping[str, Value]) -> tuple[Layer, ...]:
    """The segment's layers between the last layer before them and the first one after."""
    before = space.segment_layers(space.segments[index - 1], values)[-1:] if index > 0 else ()
    own = space.segment_layers(space.segments[index], values)
    after = space.segment_layers(space.segments[index + 1], values)[:1] if index + 1 < len(space.segments) else ()
    return (*before, *own, *after)


def _kernels_inside(layers: Sequence[Layer], executed: Sequence[ExecutedKernel]) -> tuple[Kernel, ...]:
    """The kernels whose nodes belong to these layers."""
    prefixes = tuple(f"{layer.name}." for layer in layers)
    return tuple(e.kernel for e in executed if e.nodes and e.nodes[0].startswith(prefixes))
