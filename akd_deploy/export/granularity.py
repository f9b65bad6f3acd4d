"""How many channels a target's kernels compute at once: read off measured times, else as its engine documents it.

A tile of m channels makes kernels of m·k and of m·(k − 1) + 1 channels cost alike. Times tell m where some of them are
of channels that m does not divide; a fitted predictor does not, having an idea of its own of how channels are padded.
So `granularity_from_rows` asks the rows of a table, and says nothing where they do not decide.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, prod

import numpy as np
import scipy  # whose parts load when they are first used

from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import TableRow
from akd_deploy.target import Target

CPU_BLOCK = 8
"""CPU engines lay channels out in blocks of 8 (AVX2) or 16 (AVX-512); what 8 does not divide fits neither."""

TENSOR_CORE_MULTIPLES: Mapping[str, int] = {"fp32": 1, "tf32": 4, "fp16": 8, "bf16": 8, "int8": 16, "fp8": 16}
"""Channels that fill the 16 bytes a tensor core is fed at once; plain float32 cores take any number."""

CANDIDATES = (1, 4, 8, 16, 32, 64)
"""Tiles that are looked for; 1 is none."""
STEPPED = 0.3
"""Of a sweep's rise beyond a straight line, so much must lie at a tile's edges; picked by eye: a kernel's traffic
grows smoothly whatever its tile."""
NEARLY = 0.75
"""A larger tile explains as much as its halves do; one of twice the size explains half of it."""
BETTER = 0.9
"""A tile is believed where it leaves at most this share of the error (root mean square) of any other one."""
FEWEST_ROWS = 12
"""Rows below which nothing is learnt, and odd ones among them that must tell a tile from the next smaller one."""
FOLDS = 4


@dataclass(frozen=True)
class Granularity:
    """`multiple` channels at once, 1 where any number is as good; `source` says who says so."""

    multiple: int
    source: str


def documented_granularity(target: Target) -> Granularity:
    """What is known of the engine, whatever the device."""
    if target.engine.startswith("tensorrt"):
        return Granularity(TENSOR_CORE_MULTIPLES[target.precision], f"NVIDIA's advice for {target.precision}")
    return Granularity(CPU_BLOCK, "the blocked layouts of CPU engines")


def learned_granularity(cost_s: Callable[[Kernel], float], kernel: Kernel, most: int = 128) -> int | None:
    """The step in a convolution's cost as its output channels grow from 1 to `most`; None where it grows smoothly.

    Args:
        cost_s: seconds of a kernel, measured or of a model that knows no tile beforehand.
        kernel: has its weight (channels first) as second input; all but its output channels is kept.
    """
    return step_of([cost_s(with_channels(kernel, outside=n)) for n in range(1, most + 1)])


def step_of(seconds: Sequence[float]) -> int | None:
    """The tile in the times of 1, 2, 3 … channels; None where they grow smoothly, or not at all."""
    rises = np.diff(np.asarray(seconds, dtype=float))
    total = float(rises.sum())
    if total <= 0:
        return None
    excess = {}
    for multiple in CANDIDATES[1:]:
        at_edges = rises[multiple - 1 :: multiple]  # from multiple·k channels to one more
        if len(at_edges) >= 2:
            excess[multiple] = (float(at_edges.sum()) / total - 1 / multiple) / (1 - 1 / multiple)
    best = max(excess.values(), default=0.0)
    return max(m for m, share in excess.items() if share >= NEARLY * best) if best >= STEPPED else None


def with_channels(kernel: Kernel, inside: int | None = None, outside: int | None = None) -> Kernel:
    """A dense convolution or matrix product with other channels; a kernel of groups, or of no weight, as it is."""
    dense = _dense_channels(kernel)
    if dense is None:
        return kernel
    had_in, had_out = dense
    inside, outside = inside or had_in, outside or had_out
    data, weight, *others = kernel.inputs
    of_weight: tuple[int, ...]
    if len(weight) == 2:
        of_weight = (outside, inside) if weight == (had_out, had_in) else (inside, outside)
        result, read = (*kernel.outputs[0][:-1], outside), (*data[:-1], inside)
    else:
        of_weight = (outside, inside, *weight[2:])
        result, read = _at_1(kernel.outputs[0], outside), _at_1(data, inside)
    rest = tuple(
        (outside,) if shape == (had_out,) else result if shape == kernel.outputs[0] else shape for shape in others
    )
    return replace(kernel, inputs=(read, of_weight, *rest), outputs=(result, *kernel.outputs[1:]))


def granularity_from_rows(rows: Sequence[TableRow], source: str) -> Granularity | None:
    """The tile with which measured probes are explained best, by times that were left out of the fit.

    Each candidate pads channels in a model of overhead, kernels, traffic and multiply-accumulates. None where there are
    few rows, where too few have channels that tell one tile from another, and where no tile is `BETTER` than the rest.
    """
    probes = [row for row in rows if row.kind == "probe" and any(_work(kernel, 1) for kernel, _ in row.kernels)]
    if len(probes) < FEWEST_ROWS:
        return None
    latency = np.array([row.measurement.label_s for row in probes])
    terms = {multiple: np.array([_terms(row, multiple) for row in probes]) for multiple in CANDIDATES}
    errors = {multiple: _held_out_error(terms[multiple], latency) for multiple in CANDIDATES}
    best = min(errors, key=lambda multiple: errors[multiple])
    if best == 1:
        return None
    smaller = CANDIDATES[CANDIDATES.index(best) - 1]
    told_apart = np.count_nonzero((terms[best] > 1.02 * terms[smaller]).any(1))
    rivals = [error for multiple, error in errors.items() if multiple != best]
    if told_apart < FEWEST_ROWS or errors[best] > BETTER * min(rivals):
        return None
    return Granularity(best, f"{len(probes)} measurements in {source}")


def _held_out_error(terms: np.ndarray, latency: np.ndarray) -> float:
    """Root mean square of relative errors of rows left out of a non-negative fit, each once."""
    relative = terms / latency[:, None]
    scale = np.maximum(np.abs(relative).max(0), np.finfo(float).tiny)
    errors = np.empty(len(latency))
    fold = np.arange(len(latency)) % FOLDS
    for out in range(FOLDS):
        weights, _ = scipy.optimize.nnls(relative[fold != out] / scale, np.ones(int((fold != out).sum())))
        errors[fold == out] = relative[fold == out] / scale @ weights - 1
    return float(np.sqrt(np.mean(errors**2)))


def _terms(row: TableRow, multiple: int) -> np.ndarray:
    """One call, its kernels, their bytes, and multiply-accumulates of dense and depthwise work with channels padded."""
    total = np.array([1.0, 0.0, 0.0, 0.0, 0.0])
    for kernel, count in row.kernels:
        dense, depthwise = _work(kernel, multiple) or (0.0, 0.0)
        total[1:] += count * np.array([1.0, kernel.traffic_bytes, dense, depthwise])
    return total


def _work(kernel: Kernel, multiple: int) -> tuple[float, float] | None:
    """(dense, depthwise) multiply-accumulates with channels padded; None for kernels without a weight."""

    def padded(channels: int) -> int:
        return multiple * ceil(channels / multiple)

    dense = _dense_channels(kernel)
    if dense is not None:
        inside, outside = dense
        positions = prod(kernel.outputs[0]) / outside
        return positions * prod(kernel.inputs[1][2:]) * padded(inside) * padded(outside), 0.0
    if len(kernel.inputs) > 1 and kernel.attribute("kernel_size") is not None and len(kernel.inputs[1]) > 2:
        weight, outside = kernel.inputs[1], kernel.outputs[0][1]
        return 0.0, prod(kernel.outputs[0]) / outside * prod(weight[1:]) * padded(outside)
    return None


def _dense_channels(kernel: Kernel) -> tuple[int, int] | None:
    """Input and output channels of a convolution in one group, or of a product with a matrix; None for others."""
    if len(kernel.inputs) < 2 or not kernel.outputs:
        return None
    data, weight, result = kernel.inputs[0], kernel.inputs[1], kernel.outputs[0]
    if len(weight) > 2 and len(weight) == len(data) and kernel.attribute("kernel_size") is not None:
        inside, outside = data[1], weight[0]
        return (inside, outside) if weight[1] == inside and result[1] == outside else None
    if len(weight) == 2 and data and result and set(weight) == {data[-1], result[-1]}:
        return data[-1], result[-1]
    return None


def _at_1(shape: tuple[int, ...], channels: int) -> tuple[int, ...]:
    return (shape[0], channels, *shape[2:])
