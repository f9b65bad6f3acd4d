"""Devices with hidden clocks that run what ONNX Runtime executes: they stand in for the processes that measure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from akd_deploy.device import DeviceFingerprint
from akd_deploy.engines import load_engine
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import LatencyTable, TableHeader, TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.predictor.transferred import Item
from akd_deploy.profiling.blocks import Protocol, Taken
from akd_deploy.target import Target

GRAIN_S = 2e-6
"""Work of one thread that is worth another one."""


@dataclass(frozen=True)
class HiddenDevice:
    """Seconds of a call, a kernel, a multiply-accumulate and a byte; `clock` divides them all.

    The work of a kernel, but not its start, is shared among `threads`, and the more of it there is the better: of the
    part w / (w + `GRAIN_S`) of it by Amdahl's law.
    """

    clock: float = 1.0
    call_s: float = 4e-6
    kernel_s: float = 8e-7
    mac_s: float = 2e-11
    depthwise_mac_s: float = 9e-11
    byte_s: float = 4e-11
    threads: int = 1

    def seconds(self, counts: Mapping[Kernel, int]) -> float:
        """Of one call that executes these kernels."""
        return (self.call_s + sum(n * self._kernel(kernel) for kernel, n in counts.items())) / self.clock

    def _kernel(self, kernel: Kernel) -> float:
        seconds = self.byte_s * kernel.traffic_bytes
        if kernel.op.endswith("Conv"):
            weight = kernel.inputs[1]
            macs = prod(kernel.outputs[0]) * prod(weight[1:])
            seconds += macs * (self.depthwise_mac_s if weight[1] == 1 else self.mac_s)
        elif "Gemm" in kernel.op or "MatMul" in kernel.op:
            seconds += self.mac_s * prod(kernel.inputs[0]) * kernel.outputs[0][-1]
        shared = seconds / (seconds + GRAIN_S)
        return self.kernel_s + seconds * (1 - shared + shared / self.threads)


NOISE = 0.01
"""Between blocks; half of it within one."""


def samples_s(device: HiddenDevice, counts: Mapping[Kernel, int], rng: np.random.Generator) -> tuple[float, ...]:
    """Those of one block."""
    scale = np.exp(rng.normal(0, NOISE) + rng.normal(0, NOISE / 2, 20))
    return tuple((scale * device.seconds(counts)).tolist())


def table_of_items(
    device: HiddenDevice, items: Sequence[Item], target: Target, model: str, seed: int = 0
) -> LatencyTable:
    """The table that an ordinary profile of a device of this model would have written."""
    rng = np.random.default_rng(seed)
    rows = []
    for item in items:
        blocks = [samples_s(device, dict(item.kernels), rng) for _ in range(3)]
        ids = tuple(i for i, block in enumerate(blocks) for _ in block)
        measurement = Measurement(item.name, tuple(s for block in blocks for s in block), ids)
        rows.append(TableRow(item.kind, item.family, item.kernels, measurement))
    header = TableHeader(
        target,
        DeviceFingerprint({"kind": "cpu", "model": model}),
        "1.0",
        Protocol().header(),
        "2026-01-01T00:00:00+00:00",
    )
    return LatencyTable(header, tuple(rows))


class Bench:
    """Stands in for `blocks._run_block`: what was measured, block by block, and where to interrupt it."""

    def __init__(self, device: HiddenDevice) -> None:
        self.device = device
        self.taken: list[str] = []
        self.interrupt_after: int | None = None
        self._counts: dict[str, Counter[Kernel]] = {}

    def run_block(
        self,
        target: Target,
        models: Mapping[str, Path],
        order: list[str],
        protocol: Protocol,
        seed: int,
        *rest: object,
    ) -> Generator[tuple[str, Taken], None, None]:
        for name in order:
            if len(self.taken) == self.interrupt_after:
                raise KeyboardInterrupt
            if name not in self._counts:
                executed = load_engine(target).executed_kernels(models[name])
                self._counts[name] = Counter(one.kernel for one in executed)
            self.taken.append(name)
            rng = np.random.default_rng(len(self.taken))
            yield name, Taken(samples_s(self.device, self._counts[name], rng), 1.0, 0.0)
