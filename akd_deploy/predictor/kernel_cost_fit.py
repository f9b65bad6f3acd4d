"""Fitting kernel costs: bases by non-negative least squares, the Gaussian process by Laplace's approximation.

The mode of the corrections is found by Gauss–Newton steps, each of them one linear Gaussian problem; the
hyper-parameters maximise the marginal likelihood of that problem (Rasmussen & Williams 2006, equation 5.9). K is
block diagonal over regimes, which is what makes both quick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize
from threadpoolctl import threadpool_limits

from akd_deploy.kernel import Kernel
from akd_deploy.measurement import Measurement
from akd_deploy.predictor.features import TERMS, regime
from akd_deploy.predictor.kernel_cost import Features, Hyperparameters, KernelCostModel, distances, matern

NOISE_FLOOR = 0.004
"""Relative noise assumed of a probe's median at least, whatever its blocks say: two processes never agree better."""
BASE_FLOOR = 0.01
"""No kernel's base is below this share of the quickest probe: least squares may give a rare regime, and the overhead,
no cost at all."""
PRIOR_MEDIANS = (0.2, 2.0, 0.05, 0.01, 0.05)
"""Of amplitude, length, own, misfit, and jitter as a share of the quickest probe; each a log-normal of width 1."""
ROUNDS, STEPS = 3, 8
"""Hyper-parameters are fitted this often, with at most this many Gauss–Newton steps after each."""
LONGEST_STEP = 1.0
"""No correction's logarithm moves further in one step."""


@dataclass(frozen=True)
class Observation:
    """One measured sum: kernel → count, the latency in seconds, its relative noise."""

    counts: Mapping[Kernel, int]
    latency_s: float
    noise: float


def observation_of(counts: Counter[Kernel], measurement: Measurement) -> Observation:
    """An observation from a table row; where one block leaves the noise unknown, the least one is assumed."""
    return Observation(counts, measurement.median_s, measurement.label_sigma or 0.0)


@dataclass(frozen=True)
class _Block:
    """One regime: positions of its kernels and of the observations that hold any, and the kernels' distances."""

    kernels: np.ndarray
    observations: np.ndarray
    distance: np.ndarray


@dataclass(frozen=True)
class _Problem:
    """Sums with known bases: `counts` (observations, kernels), `noise` relative; K is made of the blocks."""

    latency_s: np.ndarray
    overhead_s: float
    counts: np.ndarray
    base_s: np.ndarray
    noise: np.ndarray
    blocks: tuple[_Block, ...]

    def linearised(self, correction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """J and z = r + J g at the corrections g, with r the relative residual."""
        shares = self.counts * (self.base_s * np.exp(correction)) / self.latency_s[:, None]
        residual = (self.latency_s - self.overhead_s) / self.latency_s - shares.sum(1)
        return shares, residual + shares @ correction

    def _jitter_shape(self) -> np.ndarray:
        shape: np.ndarray = (self.latency_s.min() / self.latency_s) ** 2
        return shape

    def covariance(self, jacobian: np.ndarray, parameters: np.ndarray) -> np.ndarray:
        """S = J K Jᵀ + noise."""
        amplitude, length, own, misfit, jitter = np.exp(parameters)
        total = np.diag(self.noise**2 + misfit**2 + jitter**2 * self._jitter_shape())
        for block in self.blocks:
            part = jacobian[np.ix_(block.observations, block.kernels)]
            prior = amplitude**2 * matern(block.distance, length) + own**2 * np.eye(len(block.kernels))
            total[np.ix_(block.observations, block.observations)] += part @ prior @ part.T
        return total

    def loss(self, jacobian: np.ndarray, target: np.ndarray, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log of marginal likelihood times prior, and its gradient by the five parameters' logarithms."""
        amplitude, length, own, misfit, jitter = np.exp(parameters)
        try:
            factor = linalg.cholesky(self.covariance(jacobian, parameters), lower=True, check_finite=False)
        except linalg.LinAlgError:
            return 1e12, np.zeros(5)
        inverse = linalg.cho_solve((factor, True), np.eye(len(target)), check_finite=False)
        alpha = inverse @ target
        away = parameters - np.log(PRIOR_MEDIANS)
        value = 0.5 * target @ alpha + np.log(np.diag(factor)).sum() + 0.5 * (away**2).sum()
        slope = inverse - np.outer(alpha, alpha)  # twice the derivative of the value by S
        gradient = away.copy()
        for block in self.blocks:
            part = jacobian[np.ix_(block.observations, block.kernels)]
            inner = part.T @ slope[np.ix_(block.observations, block.observations)] @ part
            scaled = np.sqrt(3.0) * block.distance / length
            gradient[0] += amplitude**2 * (inner * matern(block.distance, length)).sum()
            gradient[1] += 0.5 * amplitude**2 * (inner * scaled**2 * np.exp(-scaled)).sum()
            gradient[2] += own**2 * np.trace(inner)
        gradient[3] += misfit**2 * np.trace(slope)
        gradient[4] += jitter**2 * (np.diag(slope) * self._jitter_shape()).sum()
        return float(value), gradient

    def corrections(
        self, jacobian: np.ndarray, target: np.ndarray, parameters: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """K Jᵀ S⁻¹ z with S⁻¹ z and the factor of S."""
        amplitude, length, own, _, _ = np.exp(parameters)
        factor = linalg.cholesky(self.covariance(jacobian, parameters), lower=True)
        alpha = linalg.cho_solve((factor, True), target)
        pull = jacobian.T @ alpha
        result = own**2 * pull
        for block in self.blocks:
            result[block.kernels] += amplitude**2 * matern(block.distance, length) @ pull[block.kernels]
        return result, alpha, factor


def _fit_base(
    observations: Sequence[Observation], features: Features, counts: np.ndarray, regimes: int
) -> tuple[float, np.ndarray]:
    """Overhead and (regimes, terms) seconds per unit by non-negative least squares on relative errors.

    Lawson & Hanson 1974.
    """
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
    """Fit base costs, then the Gaussian process and its hyper-parameters.

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
    features = Features.of(kernels, regimes)
    overhead_s, terms_s = _fit_base(observations, features, counts, len(regimes))
    latency = np.array([o.latency_s for o in observations])
    floor_s = BASE_FLOOR * float(latency.min())
    base_s = np.maximum((terms_s[features.regime] * features.terms).sum(1), floor_s)
    noise = np.maximum([o.noise for o in observations], NOISE_FLOOR)
    problem = _Problem(latency, overhead_s, counts, base_s, noise, _blocks(features, counts, len(regimes)))
    # Matrices are small: threads that wait for each other cost more than they bring, on a loaded machine tenfold.
    with threadpool_limits(1, user_api="blas"):
        jacobian, alpha, factor, parameters = _mode(problem)
    amplitude, length, own, misfit, jitter = (float(value) for value in np.exp(parameters))
    return KernelCostModel(
        overhead_s,
        floor_s,
        regimes,
        terms_s,
        kernels,
        jacobian,
        alpha,
        factor,
        Hyperparameters(amplitude, length, own, misfit, jitter * float(latency.min())),
    )


def _blocks(features: Features, counts: np.ndarray, regimes: int) -> tuple[_Block, ...]:
    blocks = []
    for r in range(regimes):
        members = np.flatnonzero(features.regime == r)
        place = features.coordinates[members]
        blocks.append(_Block(members, np.flatnonzero(counts[:, members].any(1)), distances(place, place)))
    return tuple(blocks)


def _mode(problem: _Problem) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """J, α and the factor of S at the mode, and the logarithms of the hyper-parameters."""
    parameters = np.log(PRIOR_MEDIANS)
    correction = _settled(problem, np.zeros(len(problem.base_s)), parameters)
    for _ in range(ROUNDS):
        jacobian, target = problem.linearised(correction)
        parameters = optimize.minimize(
            lambda p, j=jacobian, z=target: problem.loss(j, z, p),
            parameters,
            jac=True,
            method="L-BFGS-B",
            bounds=[(low, low + 14.0) for low in np.log(PRIOR_MEDIANS) - 7.0],
            options={"maxiter": 40},
        ).x
        correction = _settled(problem, correction, parameters)
    jacobian, target = problem.linearised(correction)
    _, alpha, factor = problem.corrections(jacobian, target, parameters)
    return jacobian, alpha, factor, parameters


def _settled(problem: _Problem, correction: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """Gauss–Newton steps from `correction` towards the mode."""
    for _ in range(STEPS):
        jacobian, target = problem.linearised(correction)
        step = problem.corrections(jacobian, target, parameters)[0] - correction
        longest = float(np.abs(step).max(initial=0.0))
        correction = correction + step * min(1.0, LONGEST_STEP / max(longest, 1e-12))
        if longest < 1e-4:
            break
    return correction
