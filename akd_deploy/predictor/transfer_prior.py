"""What devices that are known say of one that is not: the prior of a transfer.

With μ the mean of the sources' latencies (each brought to mean 1), Δ their deviations from it and F features of the
items, the target's latencies are, in linear space,

    y_i = s (μ_i + a Σ_s Δ_is u_s + b Σ_j F_ij v_j) + ε_i,      u, v ~ N(0, 1),   s nearly free,

a Bayesian linear model (Rasmussen & Williams 2006, section 2.1). a, b, the noise ε and which `Account` of the items
holds (how a runtime executes them) are the `Setting`s that `transfer` sums over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.special import logsumexp

from akd_deploy.errors import UsageError

SOURCE_AMPLITUDES = (0.5, 1.0, 2.0)
"""a: how far a new device may differ from the sources' mean along their own differences, in multiples of those."""
FEATURE_AMPLITUDES = (0.3, 1.0, 3.0)
"""b: how far it may differ along single features, in multiples of how far the sources do: an accelerator on which
pooling costs as much as a convolution is outside what nine GPUs, servers and phones span."""
NOISES = (0.01, 0.02, 0.04, 0.08, 0.16)
"""Relative standard deviation of a label, up to phones with labels in whole milliseconds. Less than the least would let
three probes that happen to agree rule out all but one account."""
SCALE_SPREAD = 1.0
"""Prior spread of the scale around the probes' median ratio to μ: as good as free."""
FEATURE_FLOOR = 0.06
"""A feature's coefficient may move the latency by this share of the mean even where all sources agree on it."""
COLLINEAR_RIDGE = 1e-4
"""Of features of unit size, when their coefficients on the sources are compared."""
NOISE_FLOOR = 0.25
"""Noise is relative to the latency, but to no less than this share of the mean latency."""


@dataclass(frozen=True)
class Account:
    """One account of how the target executes n items.

    `sources` (items, sources): what each source needs for each item if it executes them so, in a unit of the source's
    own that is the same in every account. `features` (items, d), d ≥ 0: what the items are made of, e.g. counts of
    operators with a column of ones. `weight` is the prior probability, relative to the other accounts'.
    """

    sources: np.ndarray
    features: np.ndarray
    weight: float = 1.0


@dataclass(frozen=True)
class Setting:
    """One point of what is summed over; `account` is a position among the accounts."""

    account: int
    source_amplitude: float
    feature_amplitude: float
    noise: float


@dataclass(frozen=True)
class TransferPrior:
    """What the sources say before a probe is measured; one `bases` (items, 1 + sources + d) for each account.

    Columns are μ, the deviations Δ and the scaled features F, all relative to a mean latency of 1. `settings` come
    with `log_weights` (settings,), which need not be normalised.
    """

    bases: tuple[np.ndarray, ...]
    sources: int
    settings: tuple[Setting, ...]
    log_weights: np.ndarray

    @property
    def items(self) -> int:
        return len(self.bases[0])

    def spread(self, setting: Setting) -> np.ndarray:
        """(1 + sources + d,) prior standard deviations of the coefficients of a basis."""
        features = self.bases[0].shape[1] - 1 - self.sources
        amplitudes = (SCALE_SPREAD, setting.source_amplitude, setting.feature_amplitude)
        return np.repeat(amplitudes, (1, self.sources, features))

    def noise_scale(self, account: int) -> np.ndarray:
        """(items,) what the relative noise multiplies."""
        return np.maximum(self.bases[account][:, 0], NOISE_FLOOR)

    def weighted(self, weights: np.ndarray) -> TransferPrior:
        """The same with other weights (settings,), not negative."""
        if np.shape(weights) != (len(self.settings),):
            raise refusal(
                f"weights of shape {np.shape(weights)}", f"Give one for each of {len(self.settings)} settings."
            )
        with np.errstate(divide="ignore"):
            return TransferPrior(self.bases, self.sources, self.settings, np.log(weights))


def refusal(found: str, next: str) -> UsageError:
    """What every refusal of a transfer has in common."""
    return UsageError(asked="a transfer to a new device", found=found, next=next)


def transfer_prior(accounts: Sequence[Account], families: Sequence[str]) -> TransferPrior:
    """The prior that sources give; `families` (sources,) names which of them resemble each other.

    Families count alike, however many sources each has.

    Raises:
        UsageError: no sources, shapes that do not fit, latencies that are not positive, features not finite.
    """
    if not accounts or not families:
        raise refusal(f"{len(accounts)} accounts and {len(families)} sources", "Give at least one of each.")
    shape = (len(accounts[0].sources), len(families))
    for account in accounts:
        if account.sources.shape != shape or account.features.shape != (shape[0], accounts[0].features.shape[1]):
            raise refusal(
                f"sources of shape {account.sources.shape} and features of shape {account.features.shape}",
                f"Every account needs sources {shape} and features ({shape[0]}, d).",
            )
        if not (np.isfinite(account.sources) & (account.sources > 0)).all() or not np.isfinite(account.features).all():
            raise refusal(
                "sources' latencies that are not positive, or features that are not finite", "Leave them out."
            )
    if shape[0] == 0 or not all(account.weight > 0 for account in accounts):
        raise refusal("no items, or an account of no weight", "Give items, and weights above 0.")
    share = np.array([1 / list(families).count(family) for family in families]) / len(set(families))
    unit = accounts[0].sources.mean(0)
    bases = []
    for account in accounts:
        normed = account.sources / unit
        mean = normed @ share
        size = np.sqrt((account.features**2).mean(0))
        features = account.features / np.where(size > 0, size, 1.0)
        # A trace of ridge: of features that vary together none may have a coefficient that another takes back.
        gram = features.T @ features / len(features) + COLLINEAR_RIDGE * np.eye(features.shape[1])
        coefficients = np.linalg.solve(gram, features.T @ normed / len(features))
        spread = np.sqrt((coefficients - (coefficients @ share)[:, None]) ** 2 @ share) + FEATURE_FLOOR
        bases.append(np.column_stack([mean, (normed - mean[:, None]) * np.sqrt(share), features * spread]))
    settings = tuple(
        Setting(*point) for point in product(range(len(accounts)), SOURCE_AMPLITUDES, FEATURE_AMPLITUDES, NOISES)
    )
    log_weights = np.log([accounts[s.account].weight for s in settings])
    return TransferPrior(tuple(bases), shape[1], settings, log_weights - logsumexp(log_weights))
