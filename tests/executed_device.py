"""A device on paper that runs what ONNX Runtime executes for published networks, and that is throttled now and then.

Its law is not the predictor's: arithmetic is done in tiles, and as many tiles as there are units take as long as one of
them; copies and layout changes are slower to the byte than the rest; weights that outgrow the cache cost more.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, prod
from pathlib import Path

import numpy as np

from akd_deploy.kernel import Kernel
from akd_deploy.profiling.blocks import Protocol, Taken
from akd_deploy.target import Target

_MOVES = ("Transpose", "Concat", "Split", "Slice", "nchwc.ReorderInput", "nchwc.ReorderOutput")
REFERENCE_S = 1e-4


@dataclass(frozen=True)
class ExecutedDevice:
    """Hidden parameters: seconds of a call, a launch, a tile of 16 outputs by 32 positions and one term, a byte."""

    call_s: float = 6e-6
    launch_s: float = 1.5e-6
    tile_term_s: float = 6e-9
    units: int = 4
    depthwise_s: float = 9e-11
    byte_s: float = 4e-11
    move_byte_s: float = 9e-11
    cache_bytes: float = 8 << 20
    cold_byte_s: float = 3e-11

    def kernel_s(self, kernel: Kernel) -> float:
        """Seconds of one kernel whose weights are warm."""
        moved = 8.0 * kernel.output_elements if kernel.op == "Slice" else kernel.traffic_bytes
        seconds = self.launch_s + moved * (self.move_byte_s if kernel.op in _MOVES else self.byte_s)
        output = kernel.outputs[0]
        weight = next((shape for shape in kernel.inputs[1:] if len(shape) == 4), None)
        if kernel.attribute("kernel_size") is not None and weight is not None:
            terms, positions = prod(weight[1:]), output[0] * prod(output[2:])
            if weight[1] == 1:
                seconds += self.depthwise_s * 16 * ceil(output[1] / 16) * terms * positions
            else:
                seconds += self._waves_s(output[1], positions, terms)
        elif "Gemm" in kernel.op or "MatMul" in kernel.op:
            seconds += self._waves_s(output[-1], prod(output[:-1]), kernel.inputs[0][-1])
        return seconds

    def _waves_s(self, out: int, positions: int, terms: int) -> float:
        tiles = ceil(out / 16) * ceil(positions / 32)
        return self.tile_term_s * terms * ceil(tiles / self.units)

    def seconds(self, counts: Mapping[Kernel, int]) -> float:
        """Seconds of one call."""
        weights = sum(n * _weight_bytes(kernel) for kernel, n in counts.items())
        # Between half a cache of weights, which stay, and two, all of which come from memory.
        share = float(np.clip(np.log2(max(weights, 1.0) / self.cache_bytes) / 2 + 0.5, 0.0, 1.0))
        cold_s = self.cold_byte_s * share * weights
        return self.call_s + cold_s + sum(n * self.kernel_s(kernel) for kernel, n in counts.items())


def _weight_bytes(kernel: Kernel) -> float:
    if kernel.attribute("kernel_size") is not None:
        return 4.0 * sum(prod(shape) for shape in kernel.inputs[1:2] if len(shape) == 4)
    return 4.0 * prod(kernel.inputs[1]) if kernel.op in ("Gemm", "FusedGemm") else 0.0


@dataclass
class ThrottledBench:
    """Stands in for `blocks._run_block`: every now and then models and reference alike are slow for a while."""

    device: ExecutedDevice
    counts: Mapping[str, Mapping[Kernel, int]]
    noise: float = 0.01
    slow: float = 1.6
    taken: int = 0
    taken_slow: int = 0
    _slow_until: int = field(default=0, init=False)

    def run_block(
        self,
        target: Target,
        models: Mapping[str, Path],
        order: Sequence[str],
        protocol: Protocol,
        seed: int,
        *_: object,
    ) -> Generator[tuple[str, Taken], None, None]:
        rng = np.random.default_rng(seed)
        for name in order:
            self.taken += 1
            if self.taken > self._slow_until and rng.random() < 0.01:
                self._slow_until = self.taken + 20
            throttle = self.slow if self.taken <= self._slow_until else 1.0
            self.taken_slow += throttle > 1
            scale = throttle * np.exp(rng.normal(0, self.noise) + rng.normal(0, self.noise / 2, 12))
            samples = tuple((scale * self.device.seconds(self.counts[name])).tolist())
            yield name, Taken(samples, REFERENCE_S * throttle * float(np.exp(rng.normal(0, 0.01))), 0.0)
