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
from dataclasses import dataclass, replace

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


Counts = Mapping[Kernel, int]


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


@dataclass(frozen=True)
class Beliefs:
    """What is believed of probes and networks before any of the probes is measured.

    Attributes:
        carried: (kernels, probes) covariance of kernels' costs with what each probe tells, noise left out.
        between: (probes, probes) the same of what two probes tell.
        of_networks: (networks, probes) the same of networks' latencies with it.
        variance: (networks,) of networks' latencies.
        weight: (kernels,) their mean share of a network, and a whisper for those that no network has.
    """

    carried: np.ndarray
    between: np.ndarray
    of_networks: np.ndarray
    variance: np.ndarray
    weight: np.ndarray

    def of(self, probes: Sequence[int]) -> Beliefs:
        """Of these probes alone, in this order."""
        chosen = list(probes)
        between = self.between[np.ix_(chosen, chosen)]
        return replace(self, carried=self.carried[:, chosen], between=between, of_networks=self.of_networks[:, chosen])


def beliefs(probes: Sequence[Counts], networks: Sequence[Counts], known: Sequence[Counts] = ()) -> Beliefs:
    """The prior's, and what `known` measurements leave of it. All arguments are kernel → count of each."""
    kernels = sorted({kernel for counts in (*probes, *networks, *known) for kernel in counts})
    position = {kernel: k for k, kernel in enumerate(kernels)}
    cost_s = np.array([expected_s(kernel) for kernel in kernels])
    shares = _shares([*probes, *known], position, cost_s)
    wanted = _shares(networks, position, cost_s)
    covariance = _prior(kernels)
    carried = covariance @ shares.T
    between, of_networks = shares @ carried, wanted @ carried
    variance = np.einsum("nk,kl,nl->n", wanted, covariance, wanted, optimize=True)
    weight = (wanted.mean(0) if len(wanted) else np.zeros(len(kernels))) + 1e-6
    if known:
        new, old = slice(0, len(probes)), slice(len(probes), None)
        noisy = between[old, old] + NOISE**2 * np.eye(len(known))
        variance = variance - np.einsum("nk,kn->n", of_networks[:, old], _solved(noisy, of_networks[:, old].T))
        told = _solved(noisy, between[old, new])
        of_networks = of_networks[:, new] - of_networks[:, old] @ told
        carried = carried[:, new] - carried[:, old] @ told
        between = between[new, new] - between[new, old] @ told
    return Beliefs(np.ascontiguousarray(carried), between, of_networks, variance, weight)


class Outlook:
    """What is expected of networks while probes are measured one after the other.

    Updates are kept as factors, `told` for probes: what is now believed `between` them is what was before, less
    told @ told.T.
    """

    def __init__(self, before: Beliefs) -> None:
        self.measured: list[int] = []
        self._before = before
        self._variance = before.variance.copy()
        self._unsure = np.diagonal(before.between).copy()
        self._told = np.empty_like(before.between)
        self._told_networks = np.empty_like(before.of_networks)

    @property
    def error(self) -> float:
        """Root mean square over the networks of their expected relative errors; 0 without networks."""
        return float(np.sqrt(np.maximum(self._variance, 0.0).mean())) if len(self._variance) else 0.0

    @property
    def told(self) -> np.ndarray:
        """(probes, measured) of each measured probe about every one, in units of its own deviation."""
        return self._told[:, : len(self.measured)]

    def deviation(self, probe: int) -> float:
        """Of what the probe will tell, noise included."""
        return float(np.sqrt(max(self._unsure[probe], 0.0) + NOISE**2))

    def noisy(self) -> np.ndarray:
        """(probes,) the squares of `deviation`."""
        result: np.ndarray = np.maximum(self._unsure, 0.0) + NOISE**2
        return result

    def measure(self, probe: int) -> float:
        """The expected error once this one is measured, too; once more it tells nothing new."""
        if probe in self.measured:
            return self.error
        done, deviation = len(self.measured), self.deviation(probe)
        earlier = self.told[probe]
        seen = (self._before.between[:, probe] - self.told @ earlier) / deviation
        known = (self._before.of_networks[:, probe] - self._told_networks[:, :done] @ earlier) / deviation
        self._told[:, done], self._told_networks[:, done] = seen, known
        self._unsure -= seen**2
        self._variance -= known**2
        self.measured.append(probe)
        return self.error


def choose_probes(
    candidates: Sequence[Counts],
    networks: Sequence[Counts],
    seconds: Sequence[float] | None = None,
) -> Iterator[Choice]:
    """All candidates, the most telling for their time first.

    Args:
        candidates: kernel → count of what can be measured.
        networks: kernel → count of what is to be predicted.
        seconds: what measuring each candidate takes; equal where None.
    """
    return choose(beliefs(candidates, networks), seconds) if any(candidates) else iter(())


def choose(before: Beliefs, seconds: Sequence[float] | None = None, first: Sequence[int] = ()) -> Iterator[Choice]:
    """All probes: those that are to come `first`, in their order, and then the most telling for their time."""
    outlook, count = Outlook(before), len(before.between)
    duration = np.ones(count) if seconds is None else np.asarray(seconds)
    kernels_told = np.empty_like(before.carried)
    # Kernels' weighted variance that each probe would take away, times that of what it tells.
    gain = before.weight @ before.carried**2
    left = np.ones(count, bool)
    for number in range(count):
        ahead = np.where(left, gain / outlook.noisy() / duration, -1.0)
        best = first[number] if number < len(first) else int(np.argmax(ahead))
        left[best] = False
        earlier = kernels_told[:, :number]
        told = (before.carried[:, best] - earlier @ outlook.told[best]) / outlook.deviation(best)
        weighted = before.weight * told
        along = weighted @ before.carried - outlook.told @ (weighted @ earlier)
        error = outlook.measure(best)
        seen = outlook.told[:, number]
        gain = gain - 2 * seen * along + seen**2 * float(weighted @ told)
        kernels_told[:, number] = told
        yield Choice(best, error)


def _solved(matrix: np.ndarray, right: np.ndarray) -> np.ndarray:
    result: np.ndarray = linalg.cho_solve(linalg.cho_factor(matrix, lower=True), right)
    return result


def _shares(rows: Sequence[Counts], position: Mapping[Kernel, int], cost_s: np.ndarray) -> np.ndarray:
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
