"""Baselines that add up kernels: a lookup table (Once-for-All, ProxylessNAS) and a forest per kernel (nn-Meter).

Both have the overhead per call that the probes show, and the median factor between measured networks and their sums
where the table has networks, as ours has: what differs is how a kernel's cost is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.ensemble import RandomForestRegressor
from sklearn.neighbors import KNeighborsRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from akd_deploy.errors import UncoveredOperatorError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, TableRow
from benchmarks.predictors import Predict, Predicted
from benchmarks.predictors.attribution import attribute_costs
from benchmarks.predictors.features import kernel_features, kernel_type

TREES = 60
SEED = 0


def fit_table_sum(table: LatencyTable) -> Predict:
    """Look every kernel up; one that is missing costs what the nearest of its type costs.

    Cai et al. 2019 (arXiv:1812.00332) and 2020 (arXiv:1908.09791). Nearest by standardised logarithms of features.
    """
    return _fit_sum(
        table,
        lambda: make_pipeline(FunctionTransformer(np.log1p), StandardScaler(), KNeighborsRegressor(n_neighbors=1)),
        looked_up=True,
    )


def fit_kernel_forests(table: LatencyTable) -> Predict:
    """A random forest for each type of kernel on nn-Meter's features (Zhang et al. 2021, MobiSys)."""
    return _fit_sum(table, lambda: RandomForestRegressor(TREES, random_state=SEED), looked_up=False)


def _fit_sum(table: LatencyTable, new_regressor: Callable[[], RegressorMixin], *, looked_up: bool) -> Predict:
    attributed = attribute_costs(table.of_kind(PROBE))
    by_type: dict[str, list[Kernel]] = {}
    for kernel in attributed.costs_s:
        by_type.setdefault(kernel_type(kernel), []).append(kernel)
    regressors = {
        name: new_regressor().fit(_features(kernels), [attributed.costs_s[kernel] for kernel in kernels])
        for name, kernels in by_type.items()
    }
    known = attributed.costs_s if looked_up else {}

    def sum_s(counts: Mapping[Kernel, int]) -> float:
        total = attributed.overhead_s + sum(
            known[kernel] * count for kernel, count in counts.items() if kernel in known
        )
        asked: dict[str, list[Kernel]] = {}
        for kernel in counts:
            if kernel not in known:
                asked.setdefault(kernel_type(kernel), []).append(kernel)
        if missing := asked.keys() - regressors.keys():
            raise UncoveredOperatorError(missing, asked="a latency prediction", next="Profile them.")
        for name, kernels in asked.items():
            costs = regressors[name].predict(_features(kernels))
            total += float(costs @ np.array([counts[kernel] for kernel in kernels]))
        return total

    factor = _median_factor(sum_s, table.of_kind(NETWORK))
    return lambda counts: Predicted(factor * sum_s(counts))


def _features(kernels: Sequence[Kernel]) -> np.ndarray:
    return np.array([kernel_features(kernel) for kernel in kernels])


def _median_factor(sum_s: Callable[[Mapping[Kernel, int]], float], networks: Sequence[TableRow]) -> float:
    """Median of measured over summed latency; 1 where no network is known or summed."""
    ratios = []
    for row in networks:
        try:
            ratios.append(row.measurement.label_s / sum_s(row.counts()))
        except UncoveredOperatorError:
            continue  # the factor comes from the others; what is asked about it later says so itself
    return float(np.median(ratios)) if ratios else 1.0
