"""Base costs: what kernels of a regime cost, as non-negative combinations of their terms, before any correction.

A regime seen in few probes, beside kernels that cost more, cannot be told apart from them: least squares alone would
give it any cost. So bases are fitted twice: first one combination for each class of regimes (all dense convolutions,
all elementwise operators, …), then one for each regime, drawn towards its class as far as its probes do not object.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy  # whose parts load when they are first used: a command that predicts needs few

from akd_deploy.kernel import Kernel
from akd_deploy.predictor.features import dimensions

PULL = 0.02
"""How far a probe's relative error weighs against a kernel's relative distance from its class: twice the cost its
class would give it counts as much as an error of this share in one probe."""
RIDGE = 1e-2
"""Terms that vary together share their cost instead of one taking it all by chance."""
LEAST = 0.01
"""A class of no cost is taken as this share of the quickest probe where deviations from it are weighed."""


def class_of(kernel: Kernel) -> str:
    """Kernels of one class cost alike to a first approximation, whatever runs them: the kind of work they do."""
    return dimensions(kernel).kind or "elementwise"


def fit_base(
    latency_s: np.ndarray, kernels: Sequence[Kernel], counts: np.ndarray, regime: np.ndarray, terms: np.ndarray
) -> tuple[float, np.ndarray]:
    """Overhead and (regimes, terms) seconds per unit by non-negative least squares (Lawson & Hanson 1974) on relative
    errors.

    Args:
        latency_s: (observations,) positive.
        counts: (observations, kernels) how often each observation holds each kernel.
        regime: (kernels,) positions among the regimes.
        terms: (kernels, terms) as in `TERMS`.
    """
    names = sorted({class_of(kernel) for kernel in kernels})
    member = np.array([names.index(class_of(kernel)) for kernel in kernels])
    regimes = int(regime.max()) + 1
    of_regime = np.zeros(regimes, int)
    of_regime[regime] = member

    design = _design(latency_s, counts, member, terms, len(names))
    classes = _solved(design, np.ones(len(design)), RIDGE)[1:].reshape(len(names), -1)

    prior = classes[of_regime]
    typical = np.array([terms[regime == r].mean(0) for r in range(regimes)])
    size_s = np.maximum((prior * typical).sum(1, keepdims=True), LEAST * latency_s.min())
    pull = np.append(0.0, PULL * typical / size_s)  # the overhead is free
    design = _design(latency_s, counts, regime, terms, regimes)
    wanted = np.concatenate([np.ones(len(design)), pull * np.append(0.0, prior)])
    solution = _solved(np.vstack([design, np.diag(pull)]), wanted, RIDGE / 10)  # what is drawn to zero leaves its class
    return float(solution[0]), solution[1:].reshape(regimes, -1)


def _design(latency_s: np.ndarray, counts: np.ndarray, group: np.ndarray, terms: np.ndarray, groups: int) -> np.ndarray:
    """(observations, 1 + groups × terms): what a unit of each coefficient adds to each relative latency."""
    sums = [counts[:, group == g] @ terms[group == g] for g in range(groups)]
    design: np.ndarray = np.hstack([np.ones((len(latency_s), 1)), *sums]) / latency_s[:, None]
    return design


def _solved(design: np.ndarray, wanted: np.ndarray, ridge: float) -> np.ndarray:
    """Non-negative coefficients, every column of the design scaled to a mean square of one before the ridge; 0 for
    those of nothing but zeros."""
    size = np.sqrt((design**2).mean(0))
    told = np.flatnonzero(size)
    columns = len(told)
    rows = np.vstack([design[:, told] / size[told], ridge * np.eye(columns)])
    found, _ = scipy.optimize.nnls(rows, np.concatenate([wanted, np.zeros(columns)]), maxiter=100 * columns)
    scaled = np.zeros(len(size))
    scaled[told] = found / size[told]
    return scaled
