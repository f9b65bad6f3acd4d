"""Fitting kernel costs: bases (`base_cost`), then the Gaussian process by Laplace's approximation.

The mode of the corrections is found by Gauss–Newton steps, each of them one linear Gaussian problem; the
hyper-parameters maximise the marginal likelihood of that problem (Rasmussen & Williams 2006, equation 5.9). K is
block diagonal over regimes, which is what makes both quick.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # whose parts load when they are first used: a command that predicts needs few
from threadpoolctl import threadpool_limits

from akd_deploy.kernel import Kernel
from akd_deploy.measurement import Measurement
from akd_deploy.predictor.base_cost import fit_base
from akd_deploy.predictor.features import regime
from akd_deploy.predictor.kernel_cost import Features, Hyperparameters, KernelCostModel, matern, squared_distances

NOISE_FLOOR = 0.004
"""Relative noise assumed of a probe's median at least, whatever its blocks say: two processes never agree better."""
BASE_FLOOR = 0.01
"""No kernel's base is below this share of the quickest probe: least squares may give a rare regime, and the overhead,
no cost at all."""
PRIOR_MEDIANS = (0.2, 0.05, 0.01, 0.05, 2.0, 2.0, 2.0)
"""Of amplitude, own, misfit, jitter as a share of the quickest probe, and the lengths of `GROUP_NAMES`; each a
log-normal of width 1."""
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


def observation_of(counts: Counter[Kernel], measurement: Measurement, unknown_noise: float = 0.0) -> Observation:
    """An observation from a table row; its noise is `unknown_noise` where its label rests on one block."""
    noise = measurement.label_sigma
    return Observation(counts, measurement.label_s, unknown_noise if noise is None else noise)


@dataclass(frozen=True)
class _Block:
    """One regime: positions of its kernels and of the observations that hold any, and (groups, kernels, kernels)
    squares of the kernels' distances."""

    kernels: np.ndarray
    observations: np.ndarray
    squares: np.ndarray

    def distance(self, lengths: np.ndarray) -> np.ndarray:
        """(kernels, kernels) distances in lengths."""
        return np.sqrt(np.tensordot(lengths**-2.0, self.squares, 1))


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
        amplitude, own, misfit, jitter, *lengths = np.exp(parameters)
        total = np.diag(self.noise**2 + misfit**2 + jitter**2 * self._jitter_shape())
        for block in self.blocks:
            part = jacobian[np.ix_(block.observations, block.kernels)]
            near = matern(block.distance(np.array(lengths)))
            prior = amplitude**2 * near + own**2 * np.eye(len(block.kernels))
            total[np.ix_(block.observations, block.observations)] += part @ prior @ part.T
        return total

    def loss(self, jacobian: np.ndarray, target: np.ndarray, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log of marginal likelihood times prior, and its gradient by the parameters' logarithms."""
        amplitude, own, misfit, jitter, *lengths = np.exp(parameters)
        try:
            factor = scipy.linalg.cholesky(self.covariance(jacobian, parameters), lower=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return 1e12, np.zeros(len(parameters))
        inverse = scipy.linalg.cho_solve((factor, True), np.eye(len(target)), check_finite=False)
        alpha = inverse @ target
        away = parameters - np.log(PRIOR_MEDIANS)
        value = 0.5 * target @ alpha + np.log(np.diag(factor)).sum() + 0.5 * (away**2).sum()
        slope = inverse - np.outer(alpha, alpha)  # twice the derivative of the value by S
        gradient = away.copy()
        for block in self.blocks:
            part = jacobian[np.ix_(block.observations, block.kernels)]
            inner = part.T @ slope[np.ix_(block.observations, block.observations)] @ part
            distance = block.distance(np.array(lengths))
            gradient[0] += amplitude**2 * (inner * matern(distance)).sum()
            gradient[1] += own**2 * np.trace(inner)
            fall = inner * np.exp(-np.sqrt(3.0) * distance)
            gradient[4:] += 1.5 * amplitude**2 * np.tensordot(block.squares, fall) / np.square(lengths)
        gradient[2] += misfit**2 * np.trace(slope)
        gradient[3] += jitter**2 * (np.diag(slope) * self._jitter_shape()).sum()
        return float(value), gradient

    def corrections(
        self, jacobian: np.ndarray, target: np.ndarray, parameters: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """K Jᵀ S⁻¹ z with S⁻¹ z and the factor of S."""
        amplitude, own, _, _, *lengths = np.exp(parameters)
        factor = scipy.linalg.cholesky(self.covariance(jacobian, parameters), lower=True)
        alpha = scipy.linalg.cho_solve((factor, True), target)
        pull = jacobian.T @ alpha
        result = own**2 * pull
        for block in self.blocks:
            near = matern(block.distance(np.array(lengths)))
            result[block.kernels] += amplitude**2 * near @ pull[block.kernels]
        return result, alpha, factor


def fit_kernel_costs(observations: Sequence[Observation], known: Hyperparameters | None = None) -> KernelCostModel:
    """Fit base costs, then the Gaussian process and its hyper-parameters, unless these are `known`.

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
    latency = np.array([o.latency_s for o in observations])
    overhead_s, terms_s = fit_base(latency, kernels, counts, features.regime, features.terms)
    floor_s = BASE_FLOOR * float(latency.min())
    overhead_s = max(overhead_s, floor_s)
    base_s = np.maximum((terms_s[features.regime] * features.terms).sum(1), floor_s)
    noise = np.maximum([o.noise for o in observations], NOISE_FLOOR)
    problem = _Problem(latency, overhead_s, counts, base_s, noise, _blocks(features, counts, len(regimes)))
    # Matrices are small: threads that wait for each other cost more than they bring, on a loaded machine tenfold.
    with threadpool_limits(1, user_api="blas"):
        jacobian, alpha, factor, parameters = _mode(problem, known)
    amplitude, own, misfit, jitter, *lengths = (float(value) for value in np.exp(parameters))
    return KernelCostModel(
        overhead_s,
        floor_s,
        regimes,
        terms_s,
        kernels,
        jacobian,
        alpha,
        factor,
        Hyperparameters(amplitude, tuple(lengths), own, misfit, jitter * float(latency.min())),
    )


def _blocks(features: Features, counts: np.ndarray, regimes: int) -> tuple[_Block, ...]:
    blocks = []
    for r in range(regimes):
        members = np.flatnonzero(features.regime == r)
        squares = squared_distances(features.coordinates[members])
        blocks.append(_Block(members, np.flatnonzero(counts[:, members].any(1)), squares))
    return tuple(blocks)


def _mode(problem: _Problem, known: Hyperparameters | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """J, α and the factor of S at the mode, and the logarithms of the hyper-parameters."""
    parameters = np.log(PRIOR_MEDIANS)
    if known is not None:
        jitter = known.jitter_s / float(problem.latency_s.min())
        parameters = np.log([known.amplitude, known.own, known.misfit, jitter, *known.lengths])
    correction = _settled(problem, np.zeros(len(problem.base_s)), parameters)
    for _ in range(ROUNDS if known is None else 0):
        jacobian, target = problem.linearised(correction)
        parameters = scipy.optimize.minimize(
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
