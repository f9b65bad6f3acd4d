"""What weights cost that have left the caches: seconds per byte, by how much passes through caches between two uses.

A probe finds its weights where its last call left them. Inside a network every other kernel's weights pass through the
caches before a kernel runs again, so its own come from farther away the larger the network is. And through a cache that
a machine shares pass the bytes of others, too, the more of them the longer a call takes. Stacks measure both: copies of
a probe in one model, each with weights of its own. What a stack takes beyond as many probes is regressed on the weights
it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import numpy as np
import scipy  # whose parts load when they are first used: a command that predicts needs few

from akd_deploy.kernel import BYTES_PER_ELEMENT, Kernel
from akd_deploy.predictor.features import CONVOLUTIONS, dimensions

CLASSES = (
    "convolution", "convolution of many positions", "product", "product of many rows", "batched product",
)  # fmt: skip
"""Kernels that have weights: a convolution walks through them otherwise than a matrix product, one that works on
every weight for long waits for it where one of few rows or positions streams them, and where each element of the batch
has a matrix of its own, nothing has been arranged for streaming (ONNX Runtime on an AMD EPYC: 197 constant matrices of
64 × 197, 3 rows each, take 0.58 ms where they are near and 1.9 ms where they are not)."""
MANY_ROWS = 32
"""More rows than this are many (ONNX Runtime's products of 1 to 32 and of 64 to 197 rows are alike each)."""
RIDGE, OWN_RIDGE = 0.01, 0.1
"""Pull to zero of what a step costs a byte of any class, and one class beyond that, in units of the mean over stacks:
what stacks do not tell apart shares what is found of it, and a class that few stacks have costs what others do."""
LABEL_NOISE, RATE_NOISE = 0.02, 0.2
"""How far off a stack's latency may be, as a share of it, and what a byte costs one kernel and not another."""
COLD_NOISE = 0.25
"""How far off, relatively, what cold weights cost may be for one kernel; as much for a network, whose kernels of a
class err together."""
MOST_COLD = 0.9
"""Share of a probe's latency that its own cold weights may take: the rest is left to its kernels."""
PLACE_STEP = 0.5
"""Doublings between places of a level that are tried."""
OTHERS_BYTES_PER_S = (0.0, *(1e9 * 2.0**k for k in range(7)))
"""What others may put into a shared cache; the one that explains stacks best is taken."""


def weight_bytes(kernel: Kernel) -> np.ndarray:
    """(classes,) bytes of the weights that one execution reads; zeros for operators that have none."""
    result = np.zeros(len(CLASSES))
    size = dimensions(kernel)
    many = size.positions > MANY_ROWS
    kind, product = size.kind, CLASSES.index("product of many rows" if many else "product")
    if kind in CONVOLUTIONS:
        weights = [shape for shape in kernel.inputs[1:] if len(shape) < 2]
        weights += [shape for shape in kernel.inputs[1:] if len(shape) >= 3][:1]
        result[CLASSES.index("convolution of many positions" if many else "convolution")] = sum(map(prod, weights))
    elif kind == "shared" and len(kernel.inputs) > 1:
        result[product] = sum(prod(shape) for shape in kernel.inputs[1:] if len(shape) <= 2)
    constants = kernel.attribute("constants")
    if isinstance(constants, tuple):
        product = CLASSES.index("batched product") if kind == "batched" else product
        result[product] += sum(prod(kernel.inputs[i]) for i in constants)
    return result * BYTES_PER_ELEMENT[kernel.dtype]


def network_weights(counts: Mapping[Kernel, int]) -> np.ndarray:
    """(classes,) bytes of weights of a network, from its kernels and how often it executes each."""
    return sum((count * weight_bytes(kernel) for kernel, count in counts.items()), np.zeros(len(CLASSES)))


def tells_of_weights(counts: Mapping[Kernel, int]) -> bool:
    """Whether a stack of such a stretch tells of weights: it has more of them than it puts out.

    Seen with OpenVINO on an AMD EPYC: 352 copies of four convolutions that put out 3.7 times as many bytes as they have
    weights take a quarter longer than as many probes, and as long if all have the same weights. What flows through
    them is presumably what is far away then.
    """
    put_out = sum(n * kernel.output_elements * BYTES_PER_ELEMENT[kernel.dtype] for kernel, n in counts.items())
    return float(network_weights(counts).sum()) >= put_out


@dataclass(frozen=True)
class ColdWeights:
    """What a byte of a network's weights costs more, level by level of the memory.

    A level is left behind where between `held_bytes` (levels,) and twice as many pass through it between two uses of a
    weight, and from then on each byte costs `per_byte_s` (levels, classes) more. What passes are a network's own
    weights and `others_bytes_per_s` (levels,): others' data, in a cache that they share.
    """

    held_bytes: np.ndarray
    others_bytes_per_s: np.ndarray
    per_byte_s: np.ndarray

    def rates(self, total_bytes: np.ndarray, warm_s: np.ndarray) -> np.ndarray:
        """(…,) bytes of weights and (…,) seconds of a call with warm weights → (…, classes) seconds per byte."""
        total, seconds = np.asarray(total_bytes)[..., None], np.asarray(warm_s)[..., None]
        left: np.ndarray = _left(total + self.others_bytes_per_s * seconds, self.held_bytes)
        result: np.ndarray = left @ self.per_byte_s
        return result

    def seconds(self, weights: np.ndarray, warm_s: np.ndarray | float) -> np.ndarray:
        """What a network's weights, (…, classes) bytes, cost beyond those of warm probes: (…, classes) seconds."""
        weights = np.asarray(weights)
        result: np.ndarray = weights * self.rates(weights.sum(-1), np.asarray(warm_s))
        return result

    def scaled(self, by: float) -> ColdWeights:
        """So many times the seconds, where as much passes."""
        return replace(self, per_byte_s=by * self.per_byte_s)


NO_COLD_WEIGHTS = ColdWeights(np.array([1.0]), np.zeros(1), np.zeros((1, len(CLASSES))))
"""Where no stack was measured: weights cost what they do in probes."""


def _left(passing_bytes: np.ndarray, level_bytes: np.ndarray) -> np.ndarray:
    """How far a level is left behind, 0 to 1."""
    result: np.ndarray = np.clip(np.log2(np.maximum(passing_bytes, 1.0) / level_bytes), 0.0, 1.0)
    return result


@dataclass(frozen=True)
class Stacked:
    """A stack beside its probe: `weights` and `alone` (classes,) bytes of both, `warm_s` and `alone_s` what both take
    with warm weights, in seconds, and `beyond_s` what the stack took beyond as many probes."""

    weights: np.ndarray
    alone: np.ndarray
    warm_s: float
    alone_s: float
    beyond_s: float


def fit_cold_weights(stacks: Sequence[Stacked]) -> ColdWeights:
    """From stacks; `NO_COLD_WEIGHTS` without any, or where they take no longer than as many probes.

    What a stack takes beyond as many probes is what its weights cost more there than they do in a probe: in a large
    probe they come from far away already. Two levels are assumed, a cache of one's own and one that others use, too;
    where they lie and what passes besides is what explains the stacks best, with costs by non-negative least squares,
    and leaves of every probe at least 1 − `MOST_COLD`: stacks tell only how much more a byte costs in them than in its
    probe, which any cost can explain that both pay (seen: 240 ps a byte in a probe that takes 45 ps a byte in all).
    """
    if not stacks:
        return NO_COLD_WEIGHTS
    weights, own_weights = (np.array([getattr(stack, name) for stack in stacks]) for name in ("weights", "alone"))
    total, alone = weights.sum(1), own_weights.sum(1)
    warm_s, alone_s = (np.array([getattr(stack, name) for stack in stacks]) for name in ("warm_s", "alone_s"))
    beyond_s = np.array([stack.beyond_s for stack in stacks])
    gain_s = np.maximum(beyond_s, 0.0)
    unit_s = float(gain_s.sum() / max(total.sum(), 1.0))
    if unit_s == 0.0:
        return NO_COLD_WEIGHTS
    scale_s = LABEL_NOISE * (warm_s + beyond_s) + RATE_NOISE * gain_s
    # What a level costs a byte is the same for all classes, and something on top for each.
    shares = np.column_stack([total, weights]) * (unit_s / scale_s[:, None])
    pull = np.diag([RIDGE, *[OWN_RIDGE] * len(CLASSES)] * 2)
    wanted = np.append(beyond_s / scale_s, np.zeros(len(pull)))
    places = 2.0 ** np.arange(np.floor(np.log2(alone.min())), np.log2(total.max()), PLACE_STEP)
    own = {place: _left(total, place) - _left(alone, place) for place in places}
    best, found = np.inf, NO_COLD_WEIGHTS
    for others in OTHERS_BYTES_PER_S:
        all_, all_alone = total + others * warm_s, alone + others * alone_s
        for place in 2.0 ** np.arange(np.log2(places[0]), np.log2(all_.max()), PLACE_STEP):
            shared = _left(all_, place) - _left(all_alone, place)
            for inner in places[places <= place]:
                design = np.hstack([shares * own[inner][:, None], shares * shared[:, None]])
                solution, left = scipy.optimize.nnls(np.vstack([design, pull]), wanted)
                if left < best:
                    common_and_extra = unit_s * solution.reshape(2, -1)
                    per_byte_s = common_and_extra[:, :1] + common_and_extra[:, 1:]
                    tried = ColdWeights(np.array([inner, place]), np.array([0.0, others]), per_byte_s)
                    if (tried.seconds(own_weights, alone_s).sum(-1) <= MOST_COLD * alone_s).all():
                        best, found = left, tried
    return found
