"""What transfers between known devices teach: the weights of settings, the design, the width of intervals.

Every source family in turn plays the new device, predicted from the others. Nothing here sees the true target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy  # whose parts load when they are first used: a command that predicts needs few

from akd_deploy.errors import UsageError
from akd_deploy.predictor.conformal import CalibrationPoint, quantile, score
from akd_deploy.predictor.design import D_OPTIMAL, I_OPTIMAL
from akd_deploy.predictor.transfer import believe, predict_items
from akd_deploy.predictor.transfer_design import measure_probes
from akd_deploy.predictor.transfer_prior import Account, TransferPrior, transfer_prior

UNIFORM_SHARE = 0.2
"""Of the learned weights: few families cannot rule a setting out."""
EVIDENCE_ITEMS = 60
"""Measured items of a held-out device that its evidence is taken from; more make a setting no clearer."""
WIDEST_QUANTILES = 200
"""Quantiles of its scores by which a family enters the calibration, so that families count alike."""


@dataclass(frozen=True)
class HeldOut:
    """A known device that plays the target: measured `latency_s` (rows,) at the items `rows`, and the others' prior."""

    family: str
    prior: TransferPrior
    rows: np.ndarray
    latency_s: np.ndarray


def leave_one_family_out(
    accounts: Sequence[Account], families: Sequence[str], measured: Sequence[tuple[np.ndarray, np.ndarray]]
) -> list[HeldOut]:
    """One held-out device for each source; `measured` (sources,) are its items' positions and latencies in seconds.

    Raises:
        UsageError: all sources are of one family, or `measured` is not one pair for each source.
    """
    if len(set(families)) < 2 or len(measured) != len(families):
        raise UsageError(
            asked="what leaving sources out teaches",
            found=f"{len(set(families))} families, {len(families)} sources, measurements of {len(measured)}",
            next="Give sources of two families or more, and the measurements of each.",
        )
    result = []
    for family, (rows, latency_s) in zip(families, measured, strict=True):
        kept = [i for i, other in enumerate(families) if other != family]
        prior = transfer_prior(
            [Account(a.sources[:, kept], a.features, a.weight) for a in accounts], [families[i] for i in kept]
        )
        result.append(HeldOut(family, prior, np.asarray(rows), np.asarray(latency_s, dtype=float)))
    return result


def learned_weights(held_out: Sequence[HeldOut], rng: np.random.Generator) -> np.ndarray:
    """(settings,) how often each setting held on held-out devices, families counting alike; sums to 1."""
    by_family: dict[str, list[np.ndarray]] = {}
    for device in held_out:
        picked = rng.permutation(len(device.rows))[:EVIDENCE_ITEMS]
        weights = believe(device.prior, device.rows[picked], device.latency_s[picked]).weights
        by_family.setdefault(device.family, []).append(weights)
    mean = np.mean([np.mean(found, axis=0) for found in by_family.values()], axis=0)
    return (1 - UNIFORM_SHARE) * mean + UNIFORM_SHARE / len(mean)


@dataclass(frozen=True)
class Rehearsal:
    """One held-out device predicted from probes: what was measured of the items that were no probes, and predicted."""

    family: str
    measured_s: np.ndarray
    predicted_s: np.ndarray
    spread_s: np.ndarray


def rehearse(
    held_out: Sequence[HeldOut], weights: np.ndarray, probes: int, criterion: str, rng: np.random.Generator
) -> list[Rehearsal]:
    """Choose and use `probes` items of each held-out device as for a real target.

    Raises:
        UsageError: a device has fewer measured items than two more than the probes.
    """
    result = []
    for device in held_out:
        if len(device.rows) < probes + 2:
            raise UsageError(
                asked=f"a rehearsal with {probes} probes",
                found=f"{len(device.rows)} measured items of a source of family {device.family}",
                next="Ask for fewer probes, or leave that source out.",
            )
        prior = device.prior.weighted(weights)
        labels = dict(zip(device.rows.tolist(), device.latency_s.tolist(), strict=True))
        rows, latency_s = measure_probes(prior, labels.__getitem__, probes, rng, criterion, device.rows)
        predicted = predict_items(believe(prior, rows, latency_s))
        rest = ~np.isin(device.rows, rows)
        items = device.rows[rest]
        result.append(
            Rehearsal(device.family, device.latency_s[rest], predicted.latency_s[items], predicted.spread_s[items])
        )
    return result


def rehearse_designs(
    held_out: Sequence[HeldOut], weights: np.ndarray, probes: int, rng: np.random.Generator
) -> dict[str, list[Rehearsal]]:
    """`rehearse` by criterion; the one of the least `mean_error` is the one to use."""
    return {criterion: rehearse(held_out, weights, probes, criterion, rng) for criterion in (I_OPTIMAL, D_OPTIMAL)}


def _over_families(rehearsals: Sequence[Rehearsal], value: Callable[[Rehearsal], float]) -> float:
    """Averaged within families, then over them."""
    by_family: dict[str, list[float]] = {}
    for rehearsal in rehearsals:
        by_family.setdefault(rehearsal.family, []).append(value(rehearsal))
    return float(np.mean([np.mean(found) for found in by_family.values()]))


def mean_error(rehearsals: Sequence[Rehearsal]) -> float:
    """Mean absolute relative error, families counting alike."""
    return _over_families(rehearsals, lambda r: float(np.abs(r.predicted_s / r.measured_s - 1).mean()))


def mean_spearman(rehearsals: Sequence[Rehearsal]) -> float:
    """Spearman correlation of measured and predicted, families counting alike."""
    return _over_families(rehearsals, lambda r: float(scipy.stats.spearmanr(r.measured_s, r.predicted_s).statistic))


def calibrated_width(rehearsals: Sequence[Rehearsal], coverage: float) -> float:
    """The multiple of an interval's scale that covers held-out devices as often as `coverage` says.

    Items of one device err together, so the guarantee of conformal prediction holds over devices like the sources,
    not item by item on one device; families count alike, each by quantiles of its scores.
    """
    by_family: dict[str, list[float]] = {}
    for r in rehearsals:
        for measured, predicted, spread in zip(r.measured_s, r.predicted_s, r.spread_s, strict=True):
            point = CalibrationPoint(r.family, float(predicted), float(spread), float(measured))
            by_family.setdefault(r.family, []).append(score(point))
    levels = (np.arange(WIDEST_QUANTILES) + 0.5) / WIDEST_QUANTILES
    pooled = np.concatenate([np.quantile(scores, levels) for scores in by_family.values()])
    return quantile(pooled.tolist(), coverage)
