"""What weights cost that have left the caches: seconds per byte, by how many bytes of weights a network has.

A probe finds its weights where its last call left them. Inside a network every other kernel's weights pass through the
caches before a kernel runs again, so its own come from farther away the larger the network is. Stacks measure that:
copies of a probe in one model, each with weights of its own. What a stack takes beyond what its kernels take in probes
is regressed on the weights it reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import scipy  # whose parts load when they are first used: a command that predicts needs few

from akd_deploy.kernel import BYTES_PER_ELEMENT, Kernel
from akd_deploy.predictor.features import CONVOLUTIONS, dimensions

CLASSES = ("convolution", "product")
"""Kernels that have weights: a convolution walks through them otherwise than a matrix product."""
STEPS_PER_DOUBLING = 1
"""Stacks of about equally many bytes of weights are taken together."""


def weight_bytes(kernel: Kernel) -> np.ndarray:
    """(classes,) bytes of the weights that one execution reads; zeros for operators that have none."""
    result = np.zeros(len(CLASSES))
    kind = dimensions(kernel).kind
    if kind in CONVOLUTIONS:
        weights = [shape for shape in kernel.inputs[1:] if len(shape) < 2]
        weights += [shape for shape in kernel.inputs[1:] if len(shape) >= 3][:1]
        result[0] = sum(map(prod, weights))
    elif kind == "shared" and len(kernel.inputs) > 1:
        result[1] = sum(prod(shape) for shape in kernel.inputs[1:] if len(shape) <= 2)
    constants = kernel.attribute("constants")
    if isinstance(constants, tuple):
        result[1] += sum(prod(kernel.inputs[i]) for i in constants)
    return result * BYTES_PER_ELEMENT[kernel.dtype]


@dataclass(frozen=True)
class ColdWeights:
    """`per_byte_s` (amounts, classes): seconds a byte of weights costs more in a network of `total_bytes` (amounts,),
    rising, of them; neither falls with the amount."""

    total_bytes: np.ndarray
    per_byte_s: np.ndarray

    def seconds(self, weights: np.ndarray) -> np.ndarray:
        """What a network's weights, (..., classes) bytes, cost beyond those of warm probes: (..., classes) seconds.

        Between measured amounts the logarithm of the amount is interpolated; and below half the least one
        nothing is added.
        """
        total = np.maximum(np.asarray(weights).sum(-1), 1.0)
        amounts = np.log2(np.concatenate([self.total_bytes[:1] / 2, self.total_bytes]))
        per_byte = np.vstack([np.zeros(len(CLASSES)), self.per_byte_s])
        rates = [np.interp(np.log2(total), amounts, per_byte[:, c]) for c in range(len(CLASSES))]
        result: np.ndarray = np.stack(rates, -1) * weights
        return result


NO_COLD_WEIGHTS = ColdWeights(np.array([1.0]), np.zeros((1, len(CLASSES))))
"""Where no stack was measured: weights cost what they do in probes."""


def fit_cold_weights(counts: Sequence[Mapping[Kernel, int]], beyond_s: np.ndarray, warm_s: np.ndarray) -> ColdWeights:
    """From stacks; `NO_COLD_WEIGHTS` without any.

    Args:
        counts: kernel → count of each stack.
        beyond_s: (stacks,) what each took beyond `warm_s`.
        warm_s: (stacks,) what its kernels take in probes, positive.
    """
    if not counts:
        return NO_COLD_WEIGHTS
    weights = np.array([network_weights(one) for one in counts])
    total = weights.sum(1)
    step = np.round(np.log2(np.maximum(total, 1.0)) * STEPS_PER_DOUBLING)
    amounts = np.unique(step)
    per_byte: list[np.ndarray | None] = []
    for column in range(len(CLASSES)):
        own = weights[:, column] > 0.5 * total
        if not own.any():
            per_byte.append(None)
            continue
        # What a stack says of a byte is as certain as its weights are a part of its time.
        rate, certainty = beyond_s[own] / total[own], (total[own] / warm_s[own]) ** 2
        per_byte.append(_rising(step[own], rate, certainty, amounts))
    known = [column for column in per_byte if column is not None]
    if not known:
        return NO_COLD_WEIGHTS
    # A class that no stack has weights of costs what the other one does.
    columns = [known[0] if column is None else column for column in per_byte]
    mean_bytes = np.array([np.exp(np.log(total[step == amount]).mean()) for amount in amounts])
    return ColdWeights(mean_bytes, np.stack(columns, -1))


def _rising(x: np.ndarray, y: np.ndarray, weights: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """(n,) three times, (m,) → (m,): the non-negative function that never falls and is nearest to y, weighted squares
    summed; between the x it is a line, and beyond them what it is at the last one."""
    places, which = np.unique(x, return_inverse=True)
    total = np.bincount(which, weights)
    mean = np.bincount(which, weights * y) / total
    rising = scipy.optimize.isotonic_regression(mean, weights=total).x
    result: np.ndarray = np.interp(asked, places, np.maximum(rising, 0.0))
    return result


def network_weights(counts: Mapping[Kernel, int]) -> np.ndarray:
    """(classes,) bytes of weights of a network, from its kernels and how often it executes each."""
    return sum((count * weight_bytes(kernel) for kernel, count in counts.items()), np.zeros(len(CLASSES)))
