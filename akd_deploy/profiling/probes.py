"""Probes: the small stretches of networks that a profile measures."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from akd_deploy.latency_table import NETWORK, PROBE
from akd_deploy.search_space import Layer, SearchSpace
from akd_deploy.search_space.operations import Operation, operations
from akd_deploy.target import Target

MAX_LAYERS = 3
"""Longest stretch of a network that serves as a probe."""
POOL_PER_PROBE, LEAST_POOL = 1.25, 300
"""Different stretches to choose from, for each probe, and at least. From many more (4,000 draws for 240 probes) the
choice takes single layers nearly always, and of a synthetic device's networks the error was three times as large."""
DRAWS_PER_STRETCH = 13
"""How often to draw for one more different stretch before a space counts as exhausted."""
DRAWS_PER_NETWORK = 20
"""How often to draw for one more different network before a space counts as exhausted."""


@dataclass(frozen=True)
class Probe:
    """A chain of layers to be measured. `kind` and `family` are as in `TableRow`."""

    kind: str
    family: str
    layers: tuple[Layer, ...]

    @property
    def name(self) -> str:
        """Equal for equal chains only, so that a table never takes one probe for another when it is resumed."""
        return f"{self.kind}-{hashlib.sha256(repr(self.layers).encode()).hexdigest()[:12]}"


def _shapes(layers: Sequence[Layer]) -> frozenset[tuple[object, ...]]:
    """What its operations look like, names left out: a cheap stand-in for the kernels they will become."""
    return frozenset(
        (step.kind, step.in_channels, step.out_channels, step.in_size, step.kernel_size, step.stride, step.groups,
         step.activation)
        for step in operations(layers)
    )  # fmt: skip


def _kinds(layers: Sequence[Layer]) -> frozenset[tuple[str, str, str]]:
    """Operation, regime of a convolution, and activation: what must be measured at some size to be predicted at any."""
    return frozenset((step.kind, _regime(step), step.activation) for step in operations(layers))


def _regime(step: Operation) -> str:
    """Kind of a convolution; empty for other operations."""
    if step.kind != "conv":
        return ""
    if step.groups > 1:
        return "depthwise" if step.groups == step.in_channels else "grouped"
    return "pointwise" if step.kernel_size == 1 else "dense"


def space_probes(
    space: SearchSpace, count: int, rng: np.random.Generator, candidates: int | None = None
) -> list[Probe]:
    """Stretches of one to three layers of random architectures, chosen to cover the space's operations.

    The first probes cover every kind of operation. Each next one is the candidate that adds most operations not
    covered yet, sizes told apart, per layer; once everything that was drawn is covered, coverage starts again.

    Args:
        count: how many probes to return; a small space may have fewer.
        candidates: how many stretches to draw and choose from; where None, until `POOL_PER_PROBE` differ.
    """
    enough = max(LEAST_POOL, round(POOL_PER_PROBE * count))
    pool = _drawn(space, candidates or DRAWS_PER_STRETCH * enough, enough if candidates is None else candidates, rng)
    shapes = [_shapes(stretch) for stretch in pool]
    chosen = dict.fromkeys(_one_of_each_kind(pool)[:count])
    covered = {shape for index in chosen for shape in shapes[index]}
    gains = np.array([len(s) / (1 + len(p)) for s, p in zip(shapes, pool, strict=True)])
    gains[list(chosen)] = -1.0
    while len(chosen) < min(count, len(pool)):
        # Gains only shrink while coverage grows, so a stale maximum that still leads after recounting is the maximum.
        while True:
            best = int(gains.argmax())
            fresh = len(shapes[best] - covered) / (1 + len(pool[best]))
            if fresh == gains[best]:
                break
            gains[best] = fresh
        if gains[best] == 0:
            covered.clear()
            gains = np.array([len(s) / (1 + len(p)) for s, p in zip(shapes, pool, strict=True)])
            gains[list(chosen)] = -1.0
            continue
        chosen[best] = None
        covered |= shapes[best]
        gains[best] = -1.0
    return [Probe(PROBE, _family(space, pool[index]), pool[index]) for index in chosen]


def _drawn(space: SearchSpace, draws: int, enough: int, rng: np.random.Generator) -> list[tuple[Layer, ...]]:
    """Different stretches, of one layer as often as of three: what so many draws find, until they are enough."""
    drawn: dict[tuple[Layer, ...], None] = {}
    for _ in range(draws):
        if len(drawn) == enough:
            break
        layers = space.layers(space.sample(rng))
        length = int(rng.integers(1, min(MAX_LAYERS, len(layers) - 1) + 1))
        start = int(rng.integers(0, len(layers) - length + 1))
        drawn[_renamed(layers[start : start + length])] = None
    return list(drawn)


def _one_of_each_kind(pool: Sequence[Sequence[Layer]]) -> list[int]:
    """Positions of stretches that together hold every kind of operation in the pool; most new kinds per layer first."""
    kinds = [_kinds(stretch) for stretch in pool]
    missing = set().union(*kinds)
    chosen = []
    while missing:
        best = max(range(len(pool)), key=lambda i: len(kinds[i] & missing) / (1 + len(pool[i])))
        chosen.append(best)
        missing -= kinds[best]
    return chosen


def space_networks(space: SearchSpace, count: int, rng: np.random.Generator) -> list[Probe]:
    """Different whole networks, uniform over encodings: a predictor is calibrated and scored on them, never fitted.

    A small space may have fewer than `count`.
    """
    drawn: dict[tuple[Layer, ...], None] = {}
    for _ in range(DRAWS_PER_NETWORK * count):
        if len(drawn) == count:
            break
        drawn[space.layers(space.sample(rng))] = None
    return [Probe(NETWORK, f"{space.name}-network", layers) for layers in drawn]


def _family(space: SearchSpace, layers: Sequence[Layer]) -> str:
    return f"{space.name}-{'+'.join(sorted({layer.op for layer in layers}))}"


def _renamed(layers: Sequence[Layer]) -> tuple[Layer, ...]:
    """Layers named by position, so that equal stretches give equal files."""
    return tuple(replace(layer, name=f"l{i}") for i, layer in enumerate(layers))


def as_written(path: Path) -> Path:
    """The file itself: the precision a probe is written in is the one that ships."""
    return path


@dataclass(frozen=True)
class ProbeWriter:
    """(probe, folder) → the model file that a target's engine reads; plain data, so other processes can be sent it.

    The engine torch is given `torch.export` archives in the target's precision, the others float32 ONNX that `typed`
    turns into what the target ships. Weights are a function of the seed and the probe.
    """

    engine: str
    batch: int
    precision: str
    seed: int
    typed: Callable[[Path], Path] = as_written

    def __call__(self, probe: Probe, folder: Path) -> Path:
        seed = (self.seed, int(hashlib.sha256(probe.name.encode()).hexdigest()[:8], 16))
        if self.engine == "torch":
            from akd_deploy.models.export_archive import archive_from_layers

            drawn = int(np.random.default_rng(seed).integers(2**31))
            path = folder / f"{probe.name}.pt2"
            return self.typed(archive_from_layers(probe.layers, path, self.batch, drawn, self.precision))
        import onnx

        from akd_deploy.models.onnx_from_student import onnx_from_layers

        path = folder / f"{probe.name}.onnx"
        onnx.save_model(onnx_from_layers(probe.layers, np.random.default_rng(seed), self.batch), path)
        return self.typed(path)


def probe_writer(target: Target, rng: np.random.Generator, typed: Callable[[Path], Path] = as_written) -> ProbeWriter:
    """How probes become files for a target's engine.

    Args:
        typed: a float32 ONNX file → the file in the precision the target ships.
    """
    return ProbeWriter(target.engine, target.batch, target.precision, int(rng.integers(2**31)), typed)
