"""Baselines that see a whole network at once: a straight line in its MACs, and boosted trees on totals of its graph."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.ensemble import GradientBoostingRegressor
from sklearn.linear_model import LinearRegression

from akd_deploy.errors import UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, TableRow
from benchmarks.predictors import Predict, Predicted
from benchmarks.predictors.features import GraphFeatures, network_macs

MIN_ROWS = 3
SEED = 0


def _rows(table: LatencyTable) -> tuple[list[Mapping[Kernel, int]], np.ndarray]:
    """Counts and latencies in seconds of the table's networks; of its probes where it has no network."""
    rows: tuple[TableRow, ...] = table.of_kind(NETWORK) or table.of_kind(PROBE)
    if len(rows) < MIN_ROWS:
        raise UsageError(
            asked="a predictor of whole networks",
            found=f"{len(rows)} rows",
            next=f"Give a table of {MIN_ROWS} or more.",
        )
    return [row.counts() for row in rows], np.array([row.measurement.label_s for row in rows])


def fit_affine_in_macs(table: LatencyTable) -> Predict:
    """Latency as a + b × MACs, by least squares on relative errors.

    What a latency constraint amounts to that interpolates whole models' latencies over their FLOPs, as in NVIDIA's
    TensorRT Model Optimizer.
    """
    networks, latency = _rows(table)
    macs = np.array([[network_macs(counts)] for counts in networks])
    line = LinearRegression().fit(macs, latency, sample_weight=latency**-2)
    return lambda counts: Predicted(float(line.predict([[network_macs(counts)]])[0]))


def fit_boosted_graph(table: LatencyTable) -> Predict:
    """Gradient-boosted trees from `GraphFeatures` to the logarithm of the latency."""
    networks, latency = _rows(table)
    features = GraphFeatures.fitted(networks)
    trees = GradientBoostingRegressor(
        n_estimators=200, learning_rate=0.05, max_depth=3, subsample=0.8, random_state=SEED
    ).fit(np.array([features.of(counts) for counts in networks]), np.log(latency))
    return lambda counts: Predicted(float(np.exp(trees.predict([features.of(counts)])[0])))
