"""The cost of one kernel: a non-negative combination of its terms, corrected by a Gaussian process.

Only sums are observed: a probe's latency is an overhead per call plus the costs of its kernels. With c_k the
cost of kernel k, b_k ≥ 0 its base (non-negative least squares on `features.cost_terms`, Lawson & Hanson 1974) and
g_k its relative correction,

    y_i = o + Σ_k n_ik b_k (1 + g_k) + ε_i,        g ~ GP(0, K),

which is linear in g, so the posterior is exact (Rasmussen & Williams 2006, equations 2.23–2.24). K is zero between
regimes; within one it is a squared exponential of the kernels' coordinates plus a term of each kernel's own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy import linalg, optimize

from akd_deploy.kernel import Kernel, kernel_from_signature
from akd_deploy.measurement import Measurement
from akd_deploy.predictor.features import TERMS, coordinates, cost_terms, regime

NOISE_FLOOR = 0.004
"""Relative noise assumed of a probe's median at least, whatever its blocks say: two processes never agree better."""
BASE_FLOOR = 0.01
"""No kernel's base is below this share of the quickest probe: least squares may give a rare regime, and the overhead,
no cost at all."""
CORRECTION_FLOOR = 0.05
"""No kernel costs less than this share of its base: a correction of −100 % or less would make it free."""


@dataclass(frozen=True)
class Observation:
    """One measured sum: kernel → count, the latency in seconds, its relative noise."""

    counts: Mapping[Kernel, int]
    latency_s: float
    noise: float


@dataclass(frozen=True)
class KernelCost:
    """Posterior of one kernel's cost in seconds. `in_domain`: within the range of its regime's measurements."""

    mean_s: float
    spread_s: float
    in_domain: bool


@dataclass(frozen=True)
class _Features:
    """Features of n kernels: `regime` (n,) positions among the regimes, `terms` (n, terms), `coordinates` (n, d)."""

    regime: np.ndarray
    terms: np.ndarray
    coordinates: np.ndarray

    @staticmethod
    def of(kernels: Sequence[Kernel], regimes: Sequence[str]) -> _Features:
        index = {name: i for i, name in enumerate(regimes)}
        return _Features(
            np.array([index[regime(kernel)] for kernel in kernels]),
            np.array([cost_terms(kernel) for kernel in kernels]),
            np.array([coordinates(kernel) for kernel in kernels]),
        )


@dataclass(frozen=True)
class KernelCostModel:
    """The fitted model, as plain arrays. `kernels` are the observed ones, in the order of the rows below.

    `terms_s` (regimes, terms): seconds per unit; `floor_s` bounds base costs from below. `alpha` (observations,)
    and `factor` (observations, observations) are K_y⁻¹ r and the lower Cholesky factor; `weights` (observations,
    kernels) are n b / y.
    """

    overhead_s: float
    floor_s: float
    regimes: tuple[str, ...]
    terms_s: np.ndarray
    kernels: tuple[Kernel, ...]
    weights: np.ndarray
    alpha: np.ndarray
    factor: np.ndarray
    amplitude: float
    length: float
    own: float

    @cached_property
    def _measured(self) -> _Features:
        return _Features.of(self.kernels, self.regimes)

    @cached_property
    def _bounds(self) -> tuple[np.ndarray, np.ndarray]:
        """(regimes, coordinates) least and greatest measured coordinate, half a doubling wider."""
        measured = self._measured
        members = [measured.coordinates[measured.regime == r] for r in range(len(self.regimes))]
        return np.array([m.min(0) - 0.5 for m in members]), np.array([m.max(0) + 0.5 for m in members])

    def covered(self, kernel: Kernel) -> bool:
        """Whether any kernel of its regime was measured."""
        return regime(kernel) in self.regimes

    def costs(self, kernels: Sequence[Kernel]) -> list[KernelCost]:
        """The posterior of each kernel on its own; every one must be `covered`."""
        if not kernels:
            return []
        asked = _Features.of(kernels, self.regimes)
        base = self.base_s(asked)
        own = _same(kernels, self.kernels) * self.own**2
        cross = (smooth_covariance(asked, self._measured, self.amplitude, self.length) + own) @ self.weights.T
        mean = cross @ self.alpha
        solved = linalg.solve_triangular(self.factor, cross.T, lower=True)
        variance = np.maximum(self.amplitude**2 + self.own**2 - (solved**2).sum(0), 0.0)
        mean_s = base * np.maximum(1 + mean, CORRECTION_FLOOR)
        spread_s = base * np.sqrt(variance)
        low, high = self._bounds
        x = asked.coordinates
        inside = ((x >= low[asked.regime]) & (x <= high[asked.regime])).all(1)
        return [KernelCost(float(m), float(s), bool(i)) for m, s, i in zip(mean_s, spread_s, inside, strict=True)]

    def base_s(self, features: _Features) -> np.ndarray:
        """(n,) base costs in seconds."""
        return np.maximum((self.terms_s[features.regime] * features.terms).sum(1), self.floor_s)

    def as_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, object]]:
        """Arrays and JSON fields; `model_from_arrays` reads them back."""
        arrays = {"terms_s": self.terms_s, "weights": self.weights, "alpha": self.alpha, "factor": self.factor}
        fields = {
            "overhead_s": self.overhead_s,
            "floor_s": self.floor_s,
            "regimes": list(self.regimes),
            "terms": list(TERMS),
            "kernels": [kernel.signature for kernel in self.kernels],
            "amplitude": self.amplitude,
            "length": self.length,
            "own": self.own,
        }
        return arrays, fields


def model_from_arrays(arrays: Mapping[str, np.ndarray], fields: Mapping[str, object]) -> KernelCostModel:
    """The inverse of `KernelCostModel.as_arrays`; ValueError when the terms are another version's."""
    if fields["terms"] != list(TERMS):
        raise ValueError(f"terms {fields['terms']}, this program has {list(TERMS)}")
    kernels, regimes = fields["kernels"], fields["regimes"]
    if not isinstance(kernels, list) or not isinstance(regimes, list):
        raise ValueError("kernels or regimes that are no lists")
    return KernelCostModel(
        overhead_s=float(str(fields["overhead_s"])),
        floor_s=float(str(fields["floor_s"])),
        regimes=tuple(regimes),
        terms_s=arrays["terms_s"],
        kernels=tuple(kernel_from_signature(text) for text in kernels),
        weights=arrays["weights"],
        alpha=arrays["alpha"],
        factor=arrays["factor"],
        amplitude=float(str(fields["amplitude"])),
        length=float(str(fields["length"])),
        own=float(str(fields["own"])),
    )


def _same(a: Sequence[Kernel], b: Sequence[Kernel]) -> np.ndarray:
    """(len(a), len(b)) 1.0 where the kernels are equal; those of `b` are distinct."""
    index = {kernel: j for j, kernel in enumerate(b)}
    result = np.zeros((len(a), len(b)))
    for i, kernel in enumerate(a):
        if kernel in index:
            result[i, index[kernel]] = 1.0
    return result


def smooth_covariance(a: _Features, b: _Features, amplitude: float, length: float) -> np.ndarray:
    """(a, b) prior covariance of relative corrections, the kernels' own terms left out."""
    alike = a.regime[:, None] == b.regime[None, :]
    return amplitude**2 * np.exp(-0.5 * _squared_distances(a, b) / length**2) * alike


def _fit_base(
    observations: Sequence[Observation], features: _Features, counts: np.ndarray, regimes: int
) -> tuple[float, np.ndarray]:
    """Overhead and (regimes, terms) seconds per unit by non-negative least squares on relative errors."""
    member = np.eye(regimes)[features.regime]
    design = np.einsum("ik,kr,kt->irt", counts, member, features.terms, optimize=True).reshape(len(observations), -1)
    design = np.hstack([np.ones((len(observations), 1)), design])
    latency = np.array([o.latency_s for o in observations])
    scaled = design / latency[:, None]
    size = np.sqrt((scaled**2).mean(0))
    size[size == 0] = 1.0
    # A whisper of ridge: terms that vary together share their cost instead of one taking it all by chance.
    ridge = 1e-2 * np.eye(design.shape[1])
    solution, _ = optimize.nnls(
        np.vstack([scaled / size, ridge]), np.concatenate([np.ones(len(latency)), np.zeros(design.shape[1])])
    )
    solution = solution / size
    return float(solution[0]), solution[1:].reshape(regimes, len(TERMS))


def fit_kernel_costs(observations: Sequence[Observation]) -> KernelCostModel:
    """Fit base costs, then the Gaussian process with its three hyper-parameters by marginal likelihood.

    Raises:
        ValueError: fewer than five observations, or one whose latency is not positive.
    """
    if len(observations) < 5 or any(o.latency_s <= 0 for o in observations):
        raise ValueError(f"{len(observations)} observations; at least 5 with positive latencies are needed")
    kernels = tuple(sorted({kernel for o in observations for kernel in o.counts}))
    position = {kernel: k for k, kernel in enumerate(kernels)}
    counts = np.zeros((len(observations), len(kernels)))
    for i, o in enumerate(observations):
        for kernel, n in o.counts.items():
            counts[i, position[kernel]] = n
    regimes = tuple(sorted({regime(kernel) for kernel in kernels}))
    features = _Features.of(kernels, regimes)
    overhead_s, terms_s = _fit_base(observations, features, counts, len(regimes))
    latency = np.array([o.latency_s for o in observations])
    floor_s = BASE_FLOOR * float(latency.min())
    bare = KernelCostModel(
        overhead_s,
        floor_s,
        regimes,
        terms_s,
        kernels,
        counts,
        np.zeros(0),
        np.zeros((0, 0)),
        amplitude=0.2,
        length=1.0,
        own=0.05,
    )
    base = bare.base_s(features)
    weights = counts * base / latency[:, None]
    residual = (latency - overhead_s - counts @ base) / latency
    noise = np.maximum([o.noise for o in observations], NOISE_FLOOR)

    squared = _squared_distances(features, features)
    alike = features.regime[:, None] == features.regime[None, :]

    def factored(parameters: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
        amplitude, length, own = np.exp(parameters)
        prior = amplitude**2 * np.exp(-0.5 * squared / length**2) * alike + own**2 * np.eye(len(kernels))
        total = weights @ prior @ weights.T + np.diag(noise**2)
        try:
            factor = linalg.cholesky(total, lower=True)
        except linalg.LinAlgError:
            return None
        return factor, linalg.cho_solve((factor, True), residual)

    def negative_log_likelihood(parameters: np.ndarray) -> float:
        result = factored(parameters)
        if result is None:
            return 1e12
        factor, alpha = result
        # Weak log-normal priors keep the three parameters sane where data say little.
        prior = 0.5 * (((parameters - np.log([0.2, 2.0, 0.05])) / np.array([1.0, 1.0, 1.0])) ** 2).sum()
        return float(0.5 * residual @ alpha + np.log(np.diag(factor)).sum() + prior)

    best = optimize.minimize(
        negative_log_likelihood,
        np.log([0.2, 2.0, 0.05]),
        method="Nelder-Mead",
        options={"maxfev": 80, "xatol": 0.05, "fatol": 0.1},
    ).x
    final = factored(best)
    assert final is not None
    amplitude, length, own = (float(v) for v in np.exp(best))
    return KernelCostModel(
        overhead_s, floor_s, regimes, terms_s, kernels, weights, final[1], final[0], amplitude, length, own
    )


def _squared_distances(a: _Features, b: _Features) -> np.ndarray:
    return ((a.coordinates[:, None, :] - b.coordinates[None, :, :]) ** 2).sum(2)


def observation_of(counts: Counter[Kernel], measurement: Measurement) -> Observation:
    """An observation from a table row; where one block leaves the noise unknown, the least one is assumed."""
    return Observation(counts, measurement.median_s, measurement.label_sigma or 0.0)
