"""The latency predictor of one target: additive over executed kernels, calibrated on measured networks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import UncoveredOperatorError, UsageError
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.predictor.cold_weights import NO_COLD_WEIGHTS, ColdWeights, weight_bytes
from akd_deploy.predictor.conformal import ends_s, network_spread_s, scale_s
from akd_deploy.predictor.kernel_cost import KernelCost, KernelCostModel, OutOfRange
from akd_deploy.predictor.scores import Scores


@dataclass(frozen=True)
class LayerCost:
    """One executed kernel's share of a prediction, in seconds; shares and the overhead sum to the latency.

    `outside` are its dimensions outside the measured range; none of a kernel within.
    """

    name: str
    kernel: Kernel
    latency_s: float
    nodes: tuple[str, ...] = ()
    outside: tuple[OutOfRange, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A predicted latency at full speed (`Measurement.label_s`). `interval_s` holds the measured one with probability
    `coverage`.

    `kernels_from` is who said that these kernels are executed, "runtime" or "rules"; None where the caller knew them.
    `calibrated_on` is what the interval rests on, as in a `Predictor`.
    """

    latency_s: float
    interval_s: tuple[float, float]
    coverage: float
    in_domain: bool
    overhead_s: float
    layers: tuple[LayerCost, ...]
    calibrated_on: str
    kernels_from: str | None = None

    @property
    def upper_s(self) -> float:
        return self.interval_s[1]


@dataclass(frozen=True)
class Predictor:
    """Fitted on a table's probes; `factor` and `width` come from its networks, `cold_weights` from its stacks.

    `tail_factors` are percentile / median by percentile, for those the table has samples enough for. `left_out` is
    the number of its networks that some kernel without a measured cost kept from calibration and scores.
    """

    target: str
    device: DeviceFingerprint
    table_digest: str
    model: KernelCostModel
    factor: float
    width: float
    coverage: float
    tail_factors: Mapping[float, float]
    sigma: float | None
    calibrated_on: str
    left_out: int
    scores: Scores
    cold_weights: ColdWeights = NO_COLD_WEIGHTS

    def __post_init__(self) -> None:
        object.__setattr__(self, "tail_factors", MappingProxyType(dict(sorted(self.tail_factors.items()))))

    def tail_factor(self, percentile: float) -> float:
        """What a budget on this percentile (0 to 100) adds to a prediction: the factor at or next above it.

        Raises:
            UsageError: the table has no samples enough for this percentile.
        """
        for known, factor in self.tail_factors.items():
            if 0 < percentile <= known:
                return factor
        highest = f"samples for p{max(self.tail_factors):g} at most" if self.tail_factors else "too few samples for any"
        raise UsageError(
            asked=f"the p{percentile:g} of latencies on target {self.target}",
            found=f"{highest} in its latency table",
            next="Profile with more samples, or lower the percentile.",
        )

    def costs(self, kernels: Sequence[Kernel], asked: str = "a latency prediction") -> list[KernelCost]:
        """Costs of kernels inside a network (the in-place factor applied), in seconds.

        Raises:
            UncoveredOperatorError: names every operator no measured kernel resembles.
        """
        uncovered = {kernel.op for kernel in set(kernels) if not self.model.covered(kernel)}
        if uncovered:
            raise UncoveredOperatorError(
                uncovered,
                asked=asked,
                next=f"Profile a network that has them: `akd-deploy profile --target {self.target} --onnx … --resume`.",
            )
        different = list(dict.fromkeys(kernels))  # networks repeat their blocks
        result = {}
        for kernel, cost in zip(different, self.model.costs(different), strict=True):
            result[kernel] = KernelCost(self.factor * cost.mean_s, self.factor * cost.spread_s, cost.beyond)
        return [result[kernel] for kernel in kernels]

    def cold_s(self, kernels: Sequence[Kernel], warm_s: float) -> np.ndarray:
        """(kernels,) what each of a network's kernels costs more because the others' weights pass, and time, between
        two uses of its own, in seconds; `warm_s` is what the network takes otherwise."""
        if not kernels:
            return np.zeros(0)
        weights = np.array([weight_bytes(kernel) for kernel in kernels])
        rates = self.factor * self.cold_weights.rates(weights.sum(), np.array(warm_s))
        extra: np.ndarray = weights @ rates
        return extra

    def network_cold_s(self, weights: np.ndarray, warm_s: np.ndarray) -> np.ndarray:
        """(n, classes) bytes of networks' weights, (n,) seconds → (n,) what `cold_s` adds to each, in seconds."""
        extra: np.ndarray = self.factor * self.cold_weights.seconds(weights, warm_s).sum(-1)
        return extra

    @property
    def overhead_s(self) -> float:
        """What one call costs beside its kernels."""
        return self.factor * self.model.overhead_s

    def spread_s(self, kernels_s: np.ndarray, cold_s: np.ndarray) -> np.ndarray:
        """Spread of networks, any shape, in seconds: of their kernels together, what a call differs by beside them,
        and the share of what cold weights cost that is unsure."""
        return network_spread_s(kernels_s, self.factor * self.model.hyperparameters.jitter_s, cold_s)

    def interval_s(self, latency_s: np.ndarray, spread_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end for summed latencies and spreads, any shape."""
        return ends_s(latency_s, self.width * scale_s(latency_s, spread_s))

    def predict(
        self,
        executed: Sequence[ExecutedKernel],
        asked: str = "a latency prediction",
        kernels_from: str | None = None,
    ) -> Prediction:
        """Predict one network from the kernels it executes, in order; `kernels_from` as in a `Prediction`.

        Raises:
            UncoveredOperatorError: names every operator no measured kernel resembles.
        """
        costs = self.costs([e.kernel for e in executed], asked)
        warm_s = self.overhead_s + sum(c.mean_s for c in costs)
        cold_s = self.cold_s([e.kernel for e in executed], warm_s)
        latency = warm_s + float(cold_s.sum())
        spread = self.spread_s(np.array(sum(c.told_spread_s for c in costs)), cold_s.sum())
        low, high = self.interval_s(np.array(latency), spread)
        return Prediction(
            latency_s=latency,
            interval_s=(float(low), float(high)),
            coverage=self.coverage,
            in_domain=all(c.in_domain for c in costs),
            overhead_s=self.overhead_s,
            layers=tuple(
                LayerCost(
                    e.name, e.kernel, c.mean_s + cold, e.nodes, () if c.in_domain else self.model.outside(e.kernel)
                )
                for e, c, cold in zip(executed, costs, cold_s.tolist(), strict=True)
            ),
            calibrated_on=self.calibrated_on,
            kernels_from=kernels_from,
        )
