"""Which items to measure: Bayesian optimal designs by greedy choice and exchange."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from akd_deploy.errors import UnknownNameError, UsageError

D_OPTIMAL, I_OPTIMAL = "D", "I"
"""D: the most information about the coefficients. I: the least variance of predictions, averaged over all items."""
SWEEPS = 10
"""Exchange ends here at the latest; it usually ends by itself after three or four passes over the probes."""
GAIN = 1e-9
"""A swap must better the criterion by this share: rounding must not keep the exchange going."""


def choose_probes(
    regressors: np.ndarray,
    noise: np.ndarray | float,
    count: int,
    rng: np.random.Generator,
    criterion: str = D_OPTIMAL,
    candidates: Sequence[int] | np.ndarray | None = None,
    starts: int = 2,
) -> np.ndarray:
    """`count` distinct rows of `regressors` (items, coefficients) to measure, in ascending order.

    The model is y = regressors · w + ε with w ~ N(0, 1) (scale the columns by their prior spread) and the noise's
    standard deviation `noise`, per item or for all. Maximised is log det(1 + Zᵀ N⁻¹ Z) for D, minimised is the mean
    posterior variance of regressors · w over all items for I (Chaloner & Verdinelli 1995, section 2). The first start
    is greedy, the others are random; each is improved by exchanging one probe at a time (Fedorov 1972).

    Args:
        candidates: the rows to choose from; all by default. I averages over all rows whatever they are.

    Raises:
        UsageError: fewer candidates than probes, none asked for, or numbers that are not finite.
        UnknownNameError: a criterion that is neither D nor I.
    """
    if criterion not in (D_OPTIMAL, I_OPTIMAL):
        raise UnknownNameError("criterion", criterion, (D_OPTIMAL, I_OPTIMAL))
    if regressors.ndim != 2 or not np.isfinite(regressors).all():
        raise UsageError(
            asked="a design", found=f"regressors of shape {regressors.shape}, or not finite", next="Give (items, d)."
        )
    deviation = np.broadcast_to(np.asarray(noise, dtype=float), (len(regressors),))
    if not (np.isfinite(deviation) & (deviation > 0)).all():
        raise UsageError(
            asked="a design", found="noise that is not positive and finite", next="Give standard deviations > 0."
        )
    pool = np.arange(len(regressors)) if candidates is None else np.unique(np.asarray(candidates, dtype=int))
    if not 0 < count <= len(pool):
        raise UsageError(
            asked=f"{count} probes", found=f"{len(pool)} candidates", next="Ask for 1 to as many as there are."
        )
    rows, variance = regressors[pool], deviation[pool] ** 2
    moment = regressors.T @ regressors / len(regressors)

    def gains(covariance: np.ndarray) -> np.ndarray:
        """(pool,) how much measuring each candidate betters the criterion, given the covariance of w so far."""
        cross = rows @ covariance
        predictive = np.einsum("ij,ij->i", cross, rows)
        if criterion == D_OPTIMAL:
            return np.log1p(predictive / variance)
        return np.einsum("ij,jk,ik->i", cross, moment, cross, optimize=True) / (variance + predictive)

    def covariance_of(chosen: list[int]) -> np.ndarray:
        z = rows[chosen]
        return np.linalg.inv(np.eye(rows.shape[1]) + (z / variance[chosen, None]).T @ z)

    def value(chosen: list[int]) -> float:
        """Larger is better."""
        covariance = covariance_of(chosen)
        return float(-np.linalg.slogdet(covariance)[1] if criterion == D_OPTIMAL else -np.sum(covariance * moment))

    found = []
    for start in range(max(starts, 1)):
        chosen = _greedy(gains, covariance_of, count) if start == 0 else list(rng.permutation(len(pool))[:count])
        found.append(_exchanged(chosen, gains, covariance_of))
    return np.sort(pool[max(found, key=value)])


def _greedy(
    gains: Callable[[np.ndarray], np.ndarray], covariance_of: Callable[[list[int]], np.ndarray], count: int
) -> list[int]:
    """The best candidate, then the best beside it, and so on."""
    chosen: list[int] = []
    for _ in range(count):
        gain = gains(covariance_of(chosen))
        gain[chosen] = -np.inf
        chosen.append(int(np.argmax(gain)))
    return chosen


def _exchanged(
    chosen: list[int], gains: Callable[[np.ndarray], np.ndarray], covariance_of: Callable[[list[int]], np.ndarray]
) -> list[int]:
    """Every probe in turn replaced by the candidate that is best beside the others, until none is."""
    chosen = list(chosen)
    for _ in range(SWEEPS):
        before = list(chosen)
        for position, present in enumerate(before):
            others = chosen[:position] + chosen[position + 1 :]
            gain = gains(covariance_of(others))
            gain[others] = -np.inf
            best = int(np.argmax(gain))
            if gain[best] > gain[present] * (1 + GAIN):
                chosen[position] = best
        if chosen == before:
            break
    return chosen
