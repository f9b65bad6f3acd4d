"""Latency predictors side by side: what each must offer, and which there are.

A predictor is fitted on a latency table and then told the kernels of a network, never its measurement.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import LatencyTable


@dataclass(frozen=True)
class Predicted:
    """A network's latency, and the interval of those predictors that give one."""

    latency_s: float
    interval_s: tuple[float, float] | None = None


Predict = Callable[[Mapping[Kernel, int]], Predicted]
"""Kernel → count of one network to its latency; UncoveredOperatorError where it knows nothing of an operator."""
Fit = Callable[[LatencyTable], Predict]
"""Fits on what the table has; UsageError where that is too little."""


@dataclass(frozen=True)
class Contender:
    """A predictor by the name it has in results.

    `from_networks`: it learns from whole networks. On a table without any it takes probes for small networks.
    `calibrated_on_networks`: it learns from probes, and makes use of networks where there are some.
    """

    name: str
    fit: Fit
    from_networks: bool = False
    calibrated_on_networks: bool = False


def _of(module: str, function: str) -> Fit:
    def fit(table: LatencyTable) -> Predict:
        return getattr(importlib.import_module(f"benchmarks.predictors.{module}"), function)(table)

    return fit


_ALL = (
    Contender("ours", _of("ours", "fit_ours"), calibrated_on_networks=True),
    Contender("table sum", _of("additive", "fit_table_sum")),
    Contender("forest per kernel", _of("additive", "fit_kernel_forests")),
    Contender("affine in MACs", _of("whole_network", "fit_affine_in_macs"), from_networks=True),
    Contender("boosted graph features", _of("whole_network", "fit_boosted_graph"), from_networks=True),
)
CONTENDERS: Mapping[str, Contender] = MappingProxyType({contender.name: contender for contender in _ALL})
