"""Fitting kernel costs: bases (`base_cost`), then the Gaussian process by Laplace's approximation.

The mode of the corrections is found by Gauss–Newton steps, each of them one linear Gaussian problem; the
hyper-parameters maximise the marginal likelihood of that problem (Rasmussen & Williams 2006, equation 5.9). K is
block diagonal over regimes, which is what makes both quick.

A probe that nothing explains, of an operator with an algorithm for some sizes say, must not make all others' sums
uncertain: the noise of an observation that the others predict badly is scaled by the fourth power of how far beyond
`OUTLYING` it is (sharper than Huber 1964, so that it hardly counts), by turns with the hyper-parameters.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

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
OUTLYING = 4.0
"""Deviations from which an observation counts as an outlier."""

NEARLY_ALL = 0.7
"""A regime that more observations hold is added to the covariance of all: picking rows takes longer than zeros do."""

_Indices = tuple[np.ndarray, ...] | tuple[slice, slice]


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
    """One regime: positions of its kernels and of the observations that hold any, and where its square of kernels
    stands in arrays that hold the blocks' squares one after the other, flat."""

    kernels: np.ndarray
    observations: np.ndarray
    square: slice

    def of(self, flat: np.ndarray) -> np.ndarray:
        """(kernels, kernels) of an array of all blocks."""
        return flat[self.square].reshape(len(self.kernels), -1)


@dataclass(frozen=True)
class _Prior:
    """K at one set of hyper-parameters: `distance` in lengths and `near`, the correlation, of all blocks, flat."""

    amplitude: float
    own: float
    misfit: float
    jitter: float
    lengths: np.ndarray
    distance: np.ndarray
    near: np.ndarray


@dataclass(frozen=True)
class _Problem:
    """Sums with known bases: `counts` (observations, kernels), `noise` relative; K is made of the blocks.

    `squares` (groups, entries of all blocks) are squares of the kernels' distances, `itself` the entries that stand for
    a kernel and itself.
    """

    latency_s: np.ndarray
    overhead_s: float
    counts: np.ndarray
    base_s: np.ndarray
    noise: np.ndarray
    blocks: tuple[_Block, ...]
    squares: np.ndarray
    itself: np.ndarray

    def linearised(self, correction: np.ndarray, scales: np.ndarray) -> _Linearised:
        """J and z = r + J g at the corrections g, with r the relative residual."""
        shares = self.counts * (self.base_s * np.exp(correction)) / self.latency_s[:, None]
        residual = (self.latency_s - self.overhead_s) / self.latency_s - shares.sum(1)
        return _Linearised(self, shares, residual + shares @ correction, scales)

    @cached_property
    def jitter_shape(self) -> np.ndarray:
        """(observations,) squares of the quickest probe's share of each."""
        shape: np.ndarray = (self.latency_s.min() / self.latency_s) ** 2
        return shape

    def prior(self, parameters: np.ndarray) -> _Prior:
        """K at the logarithms of hyper-parameters."""
        amplitude, own, misfit, jitter, *lengths = np.exp(parameters).tolist()
        distance = np.sqrt(np.array(lengths) ** -2.0 @ self.squares)
        return _Prior(amplitude, own, misfit, jitter, np.array(lengths), distance, matern(distance))


@dataclass(frozen=True)
class _Linearised:
    """The linear Gaussian problem at some corrections: J (observations, kernels), z and the scales of the noise's
    variances (observations,)."""

    problem: _Problem
    jacobian: np.ndarray
    target: np.ndarray
    scales: np.ndarray

    @cached_property
    def _parts(self) -> list[tuple[_Block, np.ndarray, _Indices]]:
        """Each block with its part of J and where in S its observations' covariances are."""
        everywhere = slice(None), slice(None)
        return [
            (block, self.jacobian[:, block.kernels], everywhere)
            if len(block.observations) > NEARLY_ALL * len(self.target)
            else (block, self.jacobian[np.ix_(block.observations, block.kernels)], np.ix_(*[block.observations] * 2))
            for block in self.problem.blocks
        ]

    def noise_variance(self, prior: _Prior) -> np.ndarray:
        """(observations,) relative."""
        problem = self.problem
        plain = problem.noise**2 + prior.misfit**2 + prior.jitter**2 * problem.jitter_shape
        result: np.ndarray = self.scales * plain
        return result

    def robust_scales(self, prior: _Prior) -> np.ndarray:
        """(observations,) of the noise's variances: more than one where an observation, predicted from the others, is
        off by more than `OUTLYING` of its deviations."""
        _, alpha, factor = self.corrections(prior)
        variance = 1 / np.diag(scipy.linalg.lapack.dpotri(factor, lower=True)[0])
        # Rasmussen & Williams 2006, equations 5.10–5.12: left out, it is off by α / S⁻¹ with the variance 1 / S⁻¹,
        # in which its noise is not scaled.
        unscaled = variance - self.noise_variance(prior) * (1 - 1 / self.scales)
        result: np.ndarray = np.maximum(1.0, (alpha * variance / OUTLYING) ** 2 / unscaled) ** 2
        return result

    def covariance(self, prior: _Prior) -> np.ndarray:
        """S = J K Jᵀ + noise."""
        problem = self.problem
        total = np.diag(self.noise_variance(prior))
        values = prior.amplitude**2 * prior.near
        values[problem.itself] += prior.own**2
        for block, part, there in self._parts:
            total[there] += part @ block.of(values) @ part.T
        return total

    def loss(self, parameters: np.ndarray) -> tuple[float, np.ndarray]:
        """Negative log of marginal likelihood times prior, and its gradient by the parameters' logarithms."""
        problem, prior = self.problem, self.problem.prior(parameters)
        try:
            factor = scipy.linalg.cholesky(self.covariance(prior), lower=True, overwrite_a=True, check_finite=False)
        except scipy.linalg.LinAlgError:
            return 1e12, np.zeros(len(parameters))
        triangle, _ = scipy.linalg.lapack.dpotri(factor, lower=True)
        inverse = triangle + np.tril(triangle, -1).T
        alpha = inverse @ self.target
        away = parameters - np.log(PRIOR_MEDIANS)
        value = 0.5 * self.target @ alpha + np.log(np.diag(factor)).sum() + 0.5 * (away**2).sum()
        slope = inverse - np.outer(alpha, alpha)  # twice the derivative of the value by S
        inner = np.concatenate([(part.T @ slope[there] @ part).ravel() for _, part, there in self._parts])
        fall = inner * np.exp(-np.sqrt(3.0) * prior.distance)
        diagonal = np.diag(slope)
        gradient = away.copy()
        gradient[0] += prior.amplitude**2 * (inner @ prior.near)
        gradient[1] += prior.own**2 * inner[problem.itself].sum()
        gradient[2] += prior.misfit**2 * (diagonal @ self.scales)
        gradient[3] += prior.jitter**2 * (diagonal @ (self.scales * problem.jitter_shape))
        gradient[4:] += 1.5 * prior.amplitude**2 * (problem.squares @ fall) / np.square(prior.lengths)
        return float(value), gradient

    def corrections(self, prior: _Prior) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """K Jᵀ S⁻¹ z with S⁻¹ z and the factor of S."""
        factor = scipy.linalg.cholesky(self.covariance(prior), lower=True, overwrite_a=True)
        alpha = scipy.linalg.cho_solve((factor, True), self.target)
        pull = self.jacobian.T @ alpha
        result = prior.own**2 * pull
        for block in self.problem.blocks:
            result[block.kernels] += prior.amplitude**2 * block.of(prior.near) @ pull[block.kernels]
        return result, alpha, factor


def fit_kernel_costs(
    observations: Sequence[Observation], start: Hyperparameters | None = None, rounds: int = ROUNDS
) -> KernelCostModel:
    """Fit base costs, then the Gaussian process and its hyper-parameters.

    Args:
        start: hyper-parameters to begin with; the prior's medians by default.
        rounds: how often they are fitted; 0 keeps them.

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
    problem = _problem(latency, overhead_s, counts, base_s, noise, features)
    # Matrices are small: threads that wait for each other cost more than they bring, on a loaded machine tenfold.
    with threadpool_limits(1, user_api="blas"):
        jacobian, alpha, factor, parameters = _mode(problem, start, rounds)
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


def _problem(
    latency_s: np.ndarray,
    overhead_s: float,
    counts: np.ndarray,
    base_s: np.ndarray,
    noise: np.ndarray,
    features: Features,
) -> _Problem:
    """With a block of each regime."""
    blocks, squares, itself, at = [], [], [], 0
    for r in np.unique(features.regime):
        members = np.flatnonzero(features.regime == r)
        square = slice(at, at + len(members) ** 2)
        blocks.append(_Block(members, np.flatnonzero(counts[:, members].any(1)), square))
        squares.append(squared_distances(features.coordinates[members]).reshape(-1, len(members) ** 2))
        itself.append(np.arange(square.start, square.stop, len(members) + 1))
        at = square.stop
    flat = np.hstack(squares), np.concatenate(itself)
    return _Problem(latency_s, overhead_s, counts, base_s, noise, tuple(blocks), *flat)


def _mode(
    problem: _Problem, start: Hyperparameters | None, rounds: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """J, α and the factor of S at the mode, and the logarithms of the hyper-parameters."""
    parameters = np.log(PRIOR_MEDIANS)
    if start is not None:
        jitter = start.jitter_s / float(problem.latency_s.min())
        parameters = np.log([start.amplitude, start.own, start.misfit, jitter, *start.lengths])
    scales = np.ones(len(problem.latency_s))
    correction = _settled(problem, np.zeros(len(problem.base_s)), parameters, scales)
    for number in range(rounds + 1):
        # What is an outlier is asked of the hyper-parameters before they are fitted to it.
        before, scales = scales, problem.linearised(correction, scales).robust_scales(problem.prior(parameters))
        if number < rounds:
            parameters = scipy.optimize.minimize(
                problem.linearised(correction, scales).loss,
                parameters,
                jac=True,
                method="L-BFGS-B",
                bounds=[(low, low + 14.0) for low in np.log(PRIOR_MEDIANS) - 7.0],
                options={"maxiter": 40},
            ).x
        if number < rounds or (scales != before).any():
            correction = _settled(problem, correction, parameters, scales)
    at_mode = problem.linearised(correction, scales)
    _, alpha, factor = at_mode.corrections(problem.prior(parameters))
    return at_mode.jacobian, alpha, factor, parameters


def _settled(problem: _Problem, correction: np.ndarray, parameters: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Gauss–Newton steps from `correction` towards the mode."""
    prior = problem.prior(parameters)
    for _ in range(STEPS):
        step = problem.linearised(correction, scales).corrections(prior)[0] - correction
        longest = float(np.abs(step).max(initial=0.0))
        correction = correction + step * min(1.0, LONGEST_STEP / max(longest, 1e-12))
        if longest < 1e-4:
            break
    return correction
