"""A new device from a handful of probes: latencies of all items from those of a few and from other devices.

The model is linear and its prior comes from the sources (`transfer_prior`). The noise is relative and of Student's t,
so that one disturbed probe does not carry the rest away. Settings are not estimated but summed over, weighted by the
evidence of the probes and by how often they held on sources that were left out (`transfer_calibration`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import logsumexp

from akd_deploy.predictor.conformal import ends_s, scale_s
from akd_deploy.predictor.transfer_prior import Setting, TransferPrior, refusal

DEGREES_OF_FREEDOM = 4.0
"""Of the noise: the usual robust choice (Lange, Little & Taylor 1989)."""
EM_STEPS = 5
LATENCY_FLOOR = 0.05
"""No prediction falls below this share of the scaled sources' mean: a linear model may extrapolate to nothing."""


@dataclass(frozen=True)
class _Posterior:
    """Of the coefficients of one setting's basis, in multiples of `scale_s`."""

    mean: np.ndarray
    covariance: np.ndarray
    log_evidence: float
    scale_s: float


def _posterior(prior: TransferPrior, setting: Setting, rows: np.ndarray, latency_s: np.ndarray) -> _Posterior:
    """Condition on probes; the noise's weights by expectation maximisation (Lange, Little & Taylor 1989)."""
    basis = prior.bases[setting.account][rows]
    scale = float(np.median(latency_s / basis[:, 0]))
    variance = (setting.noise * prior.noise_scale(setting.account)[rows]) ** 2
    spread = prior.spread(setting)
    scaled = basis * spread
    residual = latency_s / scale - basis[:, 0]
    prior_covariance = scaled @ scaled.T
    trust = np.ones(len(rows))
    nu = DEGREES_OF_FREEDOM
    for step in range(EM_STEPS):
        noise = variance / trust
        inverse = np.linalg.inv(prior_covariance + np.diag(noise))
        if step < EM_STEPS - 1:
            squared = (noise * (inverse @ residual)) ** 2 + noise - noise**2 * np.diag(inverse)
            trust = (nu + 1) / (nu + squared / variance)
    log_evidence = 0.5 * (
        np.linalg.slogdet(inverse)[1] - residual @ inverse @ residual + nu * np.sum(np.log(trust) - trust + 1)
    )
    gain = scaled.T @ inverse
    mean = spread * (gain @ residual)
    mean[0] += 1.0
    covariance = (np.eye(len(spread)) - gain @ scaled) * np.outer(spread, spread)
    return _Posterior(mean, covariance, float(log_evidence), scale)


@dataclass(frozen=True)
class Belief:
    """What probes leave of a prior: `weights` (settings,) sum to 1, `shares` (accounts,) are theirs by account.

    Coefficients of a basis in seconds have `means` (accounts, columns) and `covariances` (accounts, columns, columns);
    `noise_s` (accounts,) is the root mean square of the noise where `TransferPrior.noise_scale` is 1, `scale_s`
    (accounts,) the probes' median ratio to the sources' mean.
    """

    prior: TransferPrior
    weights: np.ndarray
    shares: np.ndarray
    means: np.ndarray
    covariances: np.ndarray
    noise_s: np.ndarray
    scale_s: np.ndarray

    def account_mean_s(self, account: int) -> np.ndarray:
        """(items,) latencies if this account holds, floored."""
        basis = self.prior.bases[account]
        return np.maximum(basis @ self.means[account], LATENCY_FLOOR * self.scale_s[account] * basis[:, 0])

    def noise(self) -> float:
        """Relative standard deviation of a label, the settings' geometric mean."""
        return float(np.exp(self.weights @ np.log([s.noise for s in self.prior.settings])))


def _checked(
    prior: TransferPrior, rows: Sequence[int] | np.ndarray, latency_s: Sequence[float] | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    rows, latency_s = np.asarray(rows), np.asarray(latency_s, dtype=float)
    if rows.ndim != 1 or len(rows) == 0 or rows.dtype.kind not in "iu" or latency_s.shape != rows.shape:
        raise refusal(f"probes of shape {rows.shape}, latencies of shape {latency_s.shape}", "Give one latency each.")
    if rows.min() < 0 or rows.max() >= prior.items or len(set(rows.tolist())) != len(rows):
        raise refusal(f"probes {rows.tolist()[:5]} of {prior.items} items", "Give distinct positions among the items.")
    if not (np.isfinite(latency_s) & (latency_s > 0)).all():
        raise refusal("a measured latency that is not positive", "Measure that probe again, or choose another.")
    return rows, latency_s


def believe(prior: TransferPrior, rows: Sequence[int] | np.ndarray, latency_s: Sequence[float] | np.ndarray) -> Belief:
    """Condition the prior on the measured `latency_s` (probes,) of the items at `rows` (probes,).

    Raises:
        UsageError: no probes, positions that are none, or a latency that is not positive.
    """
    rows, latency_s = _checked(prior, rows, latency_s)
    posteriors = [_posterior(prior, s, rows, latency_s) for s in prior.settings]
    evidence = np.array([p.log_evidence for p in posteriors]) + prior.log_weights
    weights = np.exp(evidence - logsumexp(evidence))
    accounts, columns = len(prior.bases), prior.bases[0].shape[1]
    shares, noise, scale = np.zeros(accounts), np.zeros(accounts), np.zeros(accounts)
    first, second = np.zeros((accounts, columns)), np.zeros((accounts, columns, columns))
    for weight, setting, p in zip(weights, prior.settings, posteriors, strict=True):
        i = setting.account
        shares[i] += weight
        first[i] += weight * p.scale_s * p.mean
        second[i] += weight * p.scale_s**2 * (p.covariance + np.outer(p.mean, p.mean))
        noise[i] += weight * (p.scale_s * setting.noise) ** 2
        scale[i] = p.scale_s  # the same for all settings of an account
    held = np.maximum(shares, np.finfo(float).tiny)
    means = first / held[:, None]
    covariances = second / held[:, None, None] - np.einsum("ai,aj->aij", means, means)
    return Belief(prior, weights, shares, means, covariances, np.sqrt(noise / held), scale)


@dataclass(frozen=True)
class Transferred:
    """Predictions for all items on the target, (items,); `spread_s` is the standard deviation of a measurement."""

    latency_s: np.ndarray
    spread_s: np.ndarray

    def interval_s(self, width: float) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper ends (items,); `width` comes from `transfer_calibration.calibrated_width`."""
        return ends_s(self.latency_s, width * scale_s(self.latency_s, self.spread_s))


def predict_items(belief: Belief) -> Transferred:
    """Mean and spread of all items, the accounts mixed by their shares."""
    mean, second = np.zeros(belief.prior.items), np.zeros(belief.prior.items)
    for i, basis in enumerate(belief.prior.bases):
        latency = belief.account_mean_s(i)
        variance = np.einsum("ij,jk,ik->i", basis, belief.covariances[i], basis, optimize=True)
        noise = belief.noise_s[i] * belief.prior.noise_scale(i)
        mean += belief.shares[i] * latency
        second += belief.shares[i] * (latency**2 + np.maximum(variance, 0.0) + noise**2)
    return Transferred(mean, np.sqrt(np.maximum(second - mean**2, 0.0)))
