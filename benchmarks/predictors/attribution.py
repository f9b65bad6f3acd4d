"""Costs of single kernels where only sums were measured: what lookup tables and per-kernel regressors are made of.

The methods these serve measure every kernel alone. A row of a latency table is the sum of several, so a kernel's cost
is read off where a row repeats it alone and inferred from the sums elsewhere, in two least squares on relative errors:
first non-negative seconds per kernel, MAC and byte of each type of kernel, and an overhead per call; then a relative
correction of each kernel, with a ridge penalty chosen by generalised cross-validation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.linear_model import LinearRegression, RidgeCV

from akd_deploy.errors import UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import TableRow
from akd_deploy.predictor.features import macs
from benchmarks.predictors.features import kernel_type

MIN_ROWS = 5
"""Fewer sums say nothing about their parts."""
LEAST_SHARE = 0.01
"""No kernel costs less than this share of the quickest row: least squares may give a rare type nothing at all."""
LEAST_CORRECTION = -0.9
PENALTIES = tuple(10.0 ** np.arange(-3, 2.5, 0.5))


@dataclass(frozen=True)
class KernelCosts:
    """Seconds of an empty call, and of every kernel that a row has."""

    overhead_s: float
    costs_s: Mapping[Kernel, float]


def attribute_costs(rows: Sequence[TableRow]) -> KernelCosts:
    """What each kernel of these rows costs.

    Raises:
        UsageError: fewer than `MIN_ROWS` rows.
    """
    if len(rows) < MIN_ROWS:
        raise UsageError(
            asked="costs of single kernels", found=f"{len(rows)} probes", next=f"Give a table with {MIN_ROWS} or more."
        )
    kernels = sorted({kernel for row in rows for kernel, _ in row.kernels})
    position = {kernel: i for i, kernel in enumerate(kernels)}
    counts = np.zeros((len(rows), len(kernels)))
    for i, row in enumerate(rows):
        for kernel, count in row.kernels:
            counts[i, position[kernel]] = count
    latency = np.array([row.measurement.label_s for row in rows])
    overhead, base = _by_type(kernels, counts, latency)
    least = LEAST_SHARE * float(latency.min())
    base = np.maximum(base, least)

    shares = counts * base / latency[:, None]
    residual = 1 - overhead / latency - shares.sum(1)
    correction = RidgeCV(PENALTIES, fit_intercept=False).fit(shares, residual).coef_
    costs = dict(zip(kernels, (base * (1 + np.maximum(correction, LEAST_CORRECTION))).tolist(), strict=True))
    costs.update({kernel: max(cost, least) for kernel, cost in _alone(rows, overhead).items()})
    return KernelCosts(overhead, costs)


def _by_type(kernels: Sequence[Kernel], counts: np.ndarray, latency_s: np.ndarray) -> tuple[float, np.ndarray]:
    """Overhead and (kernels,) seconds: non-negative per kernel, MAC and byte of each type."""
    types = sorted({kernel_type(kernel) for kernel in kernels})
    terms = np.zeros((len(kernels), len(types), 3))
    for i, kernel in enumerate(kernels):
        terms[i, types.index(kernel_type(kernel))] = (1.0, macs(kernel), kernel.traffic_bytes)
    flat = terms.reshape(len(kernels), -1)
    design = np.hstack([np.ones((len(counts), 1)), counts @ flat]) / latency_s[:, None]
    size = np.sqrt((design**2).mean(0))
    size[size == 0] = 1.0
    fitted = LinearRegression(positive=True, fit_intercept=False).fit(design / size, np.ones(len(counts)))
    solution = fitted.coef_ / size
    return float(solution[0]), flat @ solution[1:]


def _alone(rows: Sequence[TableRow], overhead_s: float) -> dict[Kernel, float]:
    """Mean cost of every kernel that is the only one of a row."""
    seconds: dict[Kernel, list[float]] = {}
    for row in rows:
        if len(row.kernels) == 1:
            ((kernel, count),) = row.kernels
            seconds.setdefault(kernel, []).append((row.measurement.label_s - overhead_s) / count)
    return {kernel: float(np.mean(values)) for kernel, values in seconds.items()}
