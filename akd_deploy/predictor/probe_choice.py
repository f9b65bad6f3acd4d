"""Which probes to measure: those that tell most about networks' latencies for the time they take.

Before anything is measured the logarithms of kernels' costs have a Gaussian prior: `kernel_cost`'s process, and an
offset shared by each regime. A probe observes the sum of its kernels, each weighted by its expected share of the
probe's time, with relative noise. What a set of probes leaves uncertain then depends on its kernels and not on what
will be measured, so probes can be chosen beforehand: greedily, each the one that lowers the networks' expected variance
most per second of measuring (A-optimal design; Krause, Singh & Guestrin 2008, JMLR 9, for greedy choice under
Gaussian processes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg

from akd_deploy.kernel import Kernel
from akd_deploy.predictor.features import coordinates, cost_terms, regime
from akd_deploy.predictor.kernel_cost import distances, matern

OFFSET, AMPLITUDE, OWN, NOISE = 0.5, 0.2, 0.03, 0.03
LENGTHS = (0.7, 4.0, 4.0)
"""The prior: of a regime's offset, of the process and of a probe. Rounded from what fits found on two devices."""
CALL_S, MAC_S, BYTE_S = 1e-6, 2e-11, 1e-10
"""Expected cost of a kernel for existing, and per multiply-accumulate and byte: only ratios matter, and little."""


@dataclass(frozen=True)
class Choice:
    """One probe, by its position among the candidates, and what is expected once it and those before it are measured.

    `error` is the root mean square over the networks of their expected relative errors.
    """

    index: int
    error: float


def expected_s(kernel: Kernel) -> float:
    """What a kernel is taken to cost before anything is known of the device, in seconds."""
    _, macs, padded, traffic, *_ = cost_terms(kernel)
    return CALL_S + MAC_S * 0.5 * (macs + padded) + BYTE_S * traffic


def choose_probes(
    candidates: Sequence[Mapping[Kernel, int]],
    networks: Sequence[Mapping[Kernel, int]],
    seconds: Sequence[float] | None = None,
) -> Iterator[Choice]:
    """All candidates, the most telling for their time first.

    Args:
        candidates: kernel → count of what can be measured.
        networks: kernel → count of what is to be predicted.
        seconds: what measuring each candidate takes; equal where None.
    """
    kernels = sorted({kernel for counts in (*candidates, *networks) for kernel in counts})
    if not candidates or not kernels:
        return
    position = {kernel: k for k, kernel in enumerate(kernels)}
    cost_s = np.array([expected_s(kernel) for kernel in kernels])
    probes = _shares(candidates, position, cost_s)
    wanted = _shares(networks, position, cost_s)
    duration = np.ones(len(candidates)) if seconds is None else np.asarray(seconds)
    covariance = _prior(kernels)
    # Kernels are weighted by their mean share of a network; a whisper for those that no network has.
    weight = wanted.mean(0) if len(wanted) else np.zeros(len(kernels))
    weight = weight + 1e-6
    carried = covariance @ probes.T  # (kernels, candidates)
    between = probes @ carried  # (candidates, candidates)
    of_networks = wanted @ carried  # (networks, candidates)
    variance = np.einsum("nk,kl,nl->n", wanted, covariance, wanted, optimize=True)
    del covariance
    left = np.ones(len(candidates), bool)
    for _ in range(len(candidates)):
        noisy = np.maximum(np.diagonal(between), 0.0) + NOISE**2
        gain = np.where(left, weight @ carried**2 / noisy / duration, -1.0)
        best = int(np.argmax(gain))
        left[best] = False
        root = np.sqrt(noisy[best])
        told, seen, known = carried[:, best] / root, between[:, best] / root, of_networks[:, best] / root
        carried -= np.outer(told, seen)
        between -= np.outer(seen, seen)
        of_networks -= np.outer(known, seen)
        variance -= known**2
        yield Choice(best, float(np.sqrt(np.maximum(variance, 0.0).mean())) if len(variance) else 0.0)


def _shares(rows: Sequence[Mapping[Kernel, int]], position: Mapping[Kernel, int], cost_s: np.ndarray) -> np.ndarray:
    """(rows, kernels) each kernel's expected share of each row's time."""
    shares = np.zeros((len(rows), len(position)))
    for i, row in enumerate(rows):
        for kernel, count in row.items():
            shares[i, position[kernel]] = count * cost_s[position[kernel]]
    total = shares.sum(1, keepdims=True)
    result: np.ndarray = shares / np.where(total > 0, total, 1.0)
    return result


def _prior(kernels: Sequence[Kernel]) -> np.ndarray:
    """(kernels, kernels) covariance of their costs' logarithms."""
    regimes = [regime(kernel) for kernel in kernels]
    place = np.array([coordinates(kernel) for kernel in kernels])
    blocks, order = [], []
    for name in dict.fromkeys(regimes):
        members = [k for k, own in enumerate(regimes) if own == name]
        near = matern(distances(place[members], place[members], LENGTHS))
        blocks.append(OFFSET**2 + AMPLITUDE**2 * near + OWN**2 * np.eye(len(members)))
        order += members
    covariance = np.empty((len(kernels), len(kernels)))
    covariance[np.ix_(order, order)] = linalg.block_diag(*blocks)
    return covariance
