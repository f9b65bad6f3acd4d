"""A device that exists on paper: seconds are a fixed function of kernels, so that predictors are tested without timing.

Its law is not the predictor's: windows and strides change what a multiplication costs, traffic has a knee where a
cache would end, and small kernels share a floor with large ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import ceil, prod

import numpy as np

from akd_deploy.device import DeviceFingerprint
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.latency_table import LatencyTable, TableHeader, TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.profiling.probes import Probe, space_networks, space_probes
from akd_deploy.search_space import Layer, SearchSpace
from akd_deploy.search_space.operations import Operation, operations
from akd_deploy.target import Target

_OPERATORS = {"linear": "Gemm", "pool": "AveragePool", "global_pool": "GlobalAveragePool", "add": "Add", "scale": "Mul"}

_LAUNCH_S = {
    "Conv": 1.1e-6, "Gemm": 0.9e-6, "AveragePool": 0.8e-6, "GlobalAveragePool": 0.6e-6, "Add": 0.5e-6, "Mul": 0.7e-6
}  # fmt: skip


def _kernel(step: Operation, batch: int) -> Kernel:
    spatial = (batch, step.in_channels, step.in_size, step.in_size)
    output = (batch, step.out_channels, step.out_size, step.out_size)
    window = (step.kernel_size, step.kernel_size)
    strides = (step.stride, step.stride)
    if step.kind == "conv":
        weight = (step.out_channels, step.in_channels // step.groups, *window)
        attributes = (("kernel_size", window), ("strides", strides), ("groups", step.groups))
        if step.activation != "none":
            attributes += (("activation", step.activation),)
        return Kernel("Conv", (spatial, weight, (step.out_channels,)), (output,), attributes=attributes)
    if step.kind == "linear":
        flat, weight = (batch, step.in_channels), (step.out_channels, step.in_channels)
        return Kernel("Gemm", (flat, weight, (step.out_channels,)), ((batch, step.out_channels),))
    if step.kind == "pool":
        return Kernel("AveragePool", (spatial,), (output,), attributes=(("kernel_size", window), ("strides", strides)))
    factor = (batch, step.out_channels, 1, 1)
    others = {"global_pool": (), "add": (output,), "scale": (factor,)}[step.kind]
    return Kernel(_OPERATORS[step.kind], (spatial, *others), (output,))


@cache
def executed_by(layers: tuple[Layer, ...], batch: int = 1) -> tuple[ExecutedKernel, ...]:
    """One kernel per operation, activations fused: what a simple runtime would execute."""
    return tuple(ExecutedKernel(_kernel(step, batch), step.name, (step.name,)) for step in operations(layers))


def _tiles(channels: int) -> int:
    return 16 * ceil(channels / 16)


@dataclass(frozen=True)
class SyntheticDevice:
    """Hidden parameters in seconds, seconds per multiply-accumulate and seconds per byte."""

    call_s: float = 4e-6
    dense_mac_s: float = 2.2e-11
    depthwise_mac_s: float = 9e-11
    byte_s: float = 4e-11
    cache_bytes: int = 128 * 1024
    stride_penalty: float = 0.25

    def kernel_s(self, kernel: Kernel) -> float:
        """Seconds of one kernel."""
        output = kernel.outputs[0]
        seconds = _LAUNCH_S[kernel.op] + self.byte_s * kernel.traffic_bytes
        seconds += self.byte_s * max(0.0, kernel.traffic_bytes - self.cache_bytes)
        if kernel.op == "Conv":
            window, strides = kernel.attribute("kernel_size"), kernel.attribute("strides")
            assert isinstance(window, tuple)
            assert isinstance(strides, tuple)
            weight = kernel.inputs[1]
            positions = output[0] * prod(output[2:]) * prod(window)
            if weight[1] == 1:
                arithmetic = self.depthwise_mac_s * positions * _tiles(output[1])
            else:
                arithmetic = self.dense_mac_s * positions * _tiles(output[1]) * _tiles(weight[1])
            # Larger windows reuse what they read.
            arithmetic *= 0.8 + 0.2 / prod(window) ** 0.5
            seconds += arithmetic * (1 + self.stride_penalty * (max(strides) > 1))
        elif kernel.op == "Gemm":
            seconds += self.dense_mac_s * _tiles(output[1]) * kernel.inputs[0][1] * output[0]
        return seconds

    def seconds(self, counts: Mapping[Kernel, int]) -> float:
        """Seconds of one call that executes these kernels."""
        return self.call_s + sum(n * self.kernel_s(kernel) for kernel, n in counts.items())


def row_of(
    device: SyntheticDevice,
    probe: Probe,
    noise: float,
    rng: np.random.Generator,
    blocks: int = 3,
    slowdown: float = 1.0,
) -> TableRow:
    """The row a profile would write: blocks scatter by `noise` (relative), samples within a block by half of it."""
    counts = Counter(executed.kernel for executed in executed_by(probe.layers))
    per_block = rng.normal(0, noise, blocks)
    samples = np.exp(per_block[:, None] + rng.normal(0, noise / 2, (blocks, 5))) * device.seconds(counts) * slowdown
    measurement = Measurement(probe.name, tuple(samples.ravel().tolist()), tuple(np.repeat(range(blocks), 5).tolist()))
    return TableRow(probe.kind, probe.family, tuple(sorted(counts.items())), measurement)


def header(name: str = "paper") -> TableHeader:
    """The header of a table of the synthetic device."""
    return TableHeader(
        target=Target(name, device="paper", engine="onnxruntime"),
        device=DeviceFingerprint({"kind": "paper"}),
        engine_version="1.0",
        protocol={"seconds": 0.01},
        created="2026-01-01T00:00:00+00:00",
    )


def table_of(
    device: SyntheticDevice,
    space: SearchSpace,
    *,
    probes: int,
    networks: int,
    seed: int,
    noise: float = 0.01,
    slowdown: float = 1.0,
    more: Sequence[Probe] = (),
) -> LatencyTable:
    """A whole profile; `slowdown` is how much slower kernels are inside networks, `more` are measured besides."""
    rng = np.random.default_rng(seed)
    stretches = [*space_probes(space, probes, rng, candidates=500), *more]
    rows = [row_of(device, probe, noise, rng) for probe in stretches]
    rows += [row_of(device, probe, noise, rng, slowdown=slowdown) for probe in space_networks(space, networks, rng)]
    return LatencyTable(header(), tuple(rows))
