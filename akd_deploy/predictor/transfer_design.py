"""Probes of a transfer, each chosen after those before it were measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.special import logsumexp

from akd_deploy.errors import UsageError
from akd_deploy.predictor.design import I_OPTIMAL, choose_probes
from akd_deploy.predictor.transfer import Belief, believe
from akd_deploy.predictor.transfer_prior import NOISE_FLOOR, TransferPrior

FIRST_PROBES = 2
"""Chosen together, before anything is known of the target: one tells the scale and little else."""
SCALE_SPREAD = 0.3
"""Of the scale when the first probes are chosen: any probe tells it, so that it must not govern the choice."""
NEGLIGIBLE_SHARE = 1e-6
"""An account less probable than this is no longer worth a probe."""


def prior_regressors(prior: TransferPrior) -> tuple[np.ndarray, float]:
    """Regressors (items, columns) of relative latency with unit prior, and its noise: what `choose_probes` takes.

    Settings enter by their mean squares. A column stands for what tells each account from the first, so that the
    probes chosen can decide between them.
    """
    weights = np.exp(prior.log_weights - logsumexp(prior.log_weights))
    variances = np.array([prior.spread(setting) ** 2 for setting in prior.settings])
    spread = np.sqrt(weights @ variances)
    spread[0] = SCALE_SPREAD
    accounts = np.array([setting.account for setting in prior.settings])
    shares = [float(weights[accounts == i].sum()) for i in range(len(prior.bases))]
    scales = [prior.noise_scale(i) for i in range(len(prior.bases))]
    noise = float(np.exp(weights @ np.log([setting.noise for setting in prior.settings])))
    return _stacked([basis * spread for basis in prior.bases], scales, shares), noise


def regressors_after(belief: Belief) -> tuple[np.ndarray, float]:
    """The same once probes were measured: what is still unknown, and the noise that they suggest."""
    factors, scales = [], []
    for i, basis in enumerate(belief.prior.bases):
        values, vectors = np.linalg.eigh(belief.covariances[i])
        factors.append(basis @ (vectors * np.sqrt(np.maximum(values, 0.0))))
        latency = belief.account_mean_s(i)
        scales.append(np.maximum(latency, NOISE_FLOOR * max(float(latency.mean()), np.finfo(float).tiny)))
    return _stacked(factors, scales, belief.shares.tolist()), belief.noise()


def _stacked(factors: Sequence[np.ndarray], scales: Sequence[np.ndarray], shares: Sequence[float]) -> np.ndarray:
    """Square roots of the accounts' covariances of relative latency side by side, and their means' differences."""
    first = int(np.argmax(shares))
    columns = []
    for i, (factor, scale, share) in enumerate(zip(factors, scales, shares, strict=True)):
        if share < NEGLIGIBLE_SHARE:
            continue
        columns.append(np.sqrt(share) * factor / scale[:, None])
        if i != first:
            columns.append(np.sqrt(share * shares[first]) * np.log(scale / scales[first])[:, None])
    return np.hstack(columns)


def measure_probes(
    prior: TransferPrior,
    measure_s: Callable[[int], float],
    count: int,
    rng: np.random.Generator,
    criterion: str = I_OPTIMAL,
    candidates: Sequence[int] | np.ndarray | None = None,
    known: Sequence[tuple[int, float]] = (),
) -> tuple[np.ndarray, np.ndarray]:
    """Choose and measure items until there are `count`: their positions and latencies in seconds, as measured.

    `measure_s` measures one item by its position. The first two are chosen together, every other one for what those
    before it left unknown.

    Args:
        known: positions and latencies of items that were measured before; they come first and count.

    Raises:
        UsageError: fewer candidates than probes, or a measured latency that is not positive.
    """
    pool = np.arange(prior.items) if candidates is None else np.unique(np.asarray(candidates, dtype=int))
    if not 0 < count <= len(pool):
        raise UsageError(
            asked=f"{count} probes", found=f"{len(pool)} candidates", next="Ask for 1 to as many as there are."
        )
    rows, latency_s = [row for row, _ in known], [seconds for _, seconds in known]
    if not rows:
        regressors, noise = prior_regressors(prior)
        rows = choose_probes(regressors, noise, min(FIRST_PROBES, count), rng, criterion, pool).tolist()
        latency_s = [measure_s(row) for row in rows]
    while len(rows) < count:
        regressors, noise = regressors_after(believe(prior, rows, latency_s))
        left = np.setdiff1d(pool, rows)
        row = int(choose_probes(regressors, noise, 1, rng, criterion, left, starts=1)[0])
        rows.append(row)
        latency_s.append(measure_s(row))
    return np.array(rows), np.array(latency_s)
