"""Our predictor as a contender."""

from __future__ import annotations

from collections.abc import Mapping

from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.latency_table import LatencyTable
from akd_deploy.predictor.fitting import fit_predictor
from benchmarks.predictors import Predict, Predicted


def fit_ours(table: LatencyTable) -> Predict:
    """Kernel costs from the probes; factor and intervals from the networks, or from held-out probes without any."""
    predictor = fit_predictor(table)

    def predict(counts: Mapping[Kernel, int]) -> Predicted:
        executed = [
            ExecutedKernel(kernel, f"{kernel.op}_{i}") for kernel, count in counts.items() for i in range(count)
        ]
        prediction = predictor.predict(executed)
        return Predicted(prediction.latency_s, prediction.interval_s)

    return predict
