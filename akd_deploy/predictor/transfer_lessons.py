"""Planning a transfer: what sources teach about it, each of them in turn playing the target by its own measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, TransferSource
from akd_deploy.predictor.design import I_OPTIMAL
from akd_deploy.predictor.fitting import COVERAGE, MIN_NETWORKS, MIN_POINTS
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.predictor.transfer import believe, predict_items
from akd_deploy.predictor.transfer_calibration import (
    HeldOut,
    Rehearsal,
    calibrated_width,
    learned_weights,
    mean_error,
    rehearse_designs,
)
from akd_deploy.predictor.transfer_design import measure_probes
from akd_deploy.predictor.transfer_plan import TransferPlan
from akd_deploy.predictor.transferred import Item, item_costs, items_prior, shared_cold_weights


@dataclass(frozen=True)
class Source:
    """A known target. Sources of one `family` resemble each other: none of them helps when another plays the target."""

    predictor: Predictor
    table: LatencyTable
    family: str

    @property
    def described(self) -> TransferSource:
        """For the headers of tables that build on it."""
        header = self.table.header
        return TransferSource(header.target.name, header.device.digest, self.table.digest())


@dataclass(frozen=True)
class _Played:
    """A source that can play the target: its measured rows as items, beside what the other families say of them."""

    items: tuple[Item, ...]
    held_out: HeldOut


def plan_transfer(
    sources: Mapping[str, Source],
    items: Sequence[Item],
    probes: int,
    rng: np.random.Generator,
    coverage: float = COVERAGE,
) -> TransferPlan:
    """Learn settings, design and intervals where sources play the target, and lay down the prior of the items.

    Sources of one family alone teach nothing of it: settings then count as often as the prior says, and intervals are
    left to the target's own measurements.

    Args:
        sources: name → source, as messages call them.
        probes: how many items will be measured.

    Raises:
        UsageError: no source or no item.
        UncoveredOperatorError: a source never measured an operator of the items.
    """
    families = {name: source.family for name, source in sources.items()}
    prior = items_prior({name: source.predictor for name, source in sources.items()}, items, families)
    played = [one for name in sources if (one := _played(name, sources, probes)) is not None]
    criterion, width = I_OPTIMAL, None
    if len({one.held_out.family for one in played}) > 1:
        held_out = [one.held_out for one in played]
        weights = learned_weights(held_out, rng)
        prior = prior.weighted(weights)
        designs = rehearse_designs(held_out, weights, probes, rng)
        criterion = min(designs, key=lambda name: mean_error(designs[name]))
        rehearsals = [_rehearsed(one, weights, probes, criterion, rng) for one in played]
        width = calibrated_width(rehearsals, coverage)
    described = tuple(source.described for source in sources.values())
    cold_weights = shared_cold_weights({name: source.predictor for name, source in sources.items()}, items)
    return TransferPlan(tuple(items), prior, criterion, width, described, coverage, cold_weights)


def _played(name: str, sources: Mapping[str, Source], probes: int) -> _Played | None:
    """None where no other family is there, or shares too few rows' kernels with this source."""
    source = sources[name]
    others = {other: known for other, known in sources.items() if known.family != source.family}
    rows = [
        row
        for row in source.table.rows
        if row.kind in (PROBE, NETWORK)
        and all(known.predictor.model.covered(kernel) for known in others.values() for kernel, _ in row.kernels)
    ]
    enough = len(rows) >= probes + max(MIN_POINTS, 2) and sum(row.kind == PROBE for row in rows) >= MIN_POINTS
    if not others or not enough:
        return None
    items = tuple(Item.of(row) for row in rows)
    prior = items_prior(
        {other: known.predictor for other, known in others.items()},
        items,
        {other: known.family for other, known in others.items()},
    )
    medians_s = np.array([row.measurement.label_s for row in rows])
    return _Played(items, HeldOut(source.family, prior, np.arange(len(rows)), medians_s))


def _rehearsed(
    played: _Played, weights: np.ndarray, probes: int, criterion: str, rng: np.random.Generator
) -> Rehearsal:
    """As for a real target up to the predictor of kernels; scored on networks where there are enough."""
    device = played.held_out
    prior = device.prior.weighted(weights)
    rows, latency_s = measure_probes(prior, lambda row: float(device.latency_s[row]), probes, rng, criterion)
    costs = item_costs(played.items, predict_items(believe(prior, rows, latency_s)).latency_s)
    fresh = ~np.isin(costs.covered, rows)
    networks = fresh & np.array([played.items[i].kind == NETWORK for i in costs.covered])
    chosen = networks if networks.sum() >= MIN_NETWORKS else fresh
    measured_s = device.latency_s[costs.covered]
    return Rehearsal(device.family, measured_s[chosen], costs.predicted_s[chosen], costs.spread_s[chosen])
