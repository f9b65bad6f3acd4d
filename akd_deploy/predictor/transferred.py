"""A target's predictor from what predictors of other targets say of items and a few of them measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from akd_deploy.errors import UncoveredOperatorError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, TableRow
from akd_deploy.predictor.cold_weights import CLASSES, NO_COLD_WEIGHTS, ColdWeights, network_weights
from akd_deploy.predictor.conformal import CalibrationPoint, in_place_factor, network_spread_s, quantile, score
from akd_deploy.predictor.features import regime
from akd_deploy.predictor.fitting import COVERAGE, MIN_POINTS
from akd_deploy.predictor.kernel_cost import KernelCostModel
from akd_deploy.predictor.kernel_cost_fit import Observation, fit_kernel_costs
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.predictor.scores import scores_of
from akd_deploy.predictor.tails import tail_factors
from akd_deploy.predictor.transfer import believe, predict_items
from akd_deploy.predictor.transfer_prior import Account, TransferPrior, transfer_prior

LEFT_OUT_PROBES, REHEARSED = "left-out probes of a transfer", "transfers between its sources"
"""What intervals are calibrated on: the target's own few, or what happened where each source played the target."""
TRANSFERRED_NOISE = 0.01
"""Relative noise of a transferred latency as an observation of kernel costs. How unsure the transfer is does not show
here, for all items err together, but in the intervals' width."""


@dataclass(frozen=True)
class Item:
    """What can be measured on the target: a probe or network, and the kernels that it executes there."""

    name: str
    kind: str
    family: str
    kernels: tuple[tuple[Kernel, int], ...]

    @staticmethod
    def of(row: TableRow) -> Item:
        return Item(row.name, row.kind, row.family, row.kernels)


def items_prior(
    sources: Mapping[str, Predictor], items: Sequence[Item], families: Mapping[str, str] | None = None
) -> TransferPrior:
    """The prior that predictors of other targets give for items; pass it to `transfer_design.measure_probes`.

    A source may be the same machine with other threads or clocks. Features are what the sources spend on each
    regime of kernels: a device on which depthwise convolutions alone are slow is then a small step away.

    Args:
        families: source → which of them resemble each other; each is its own where None.

    Raises:
        UsageError: no source or no item.
        UncoveredOperatorError: a source never measured an operator of the items; names source, operators and a kernel.
    """
    kernels = list(dict.fromkeys(kernel for item in items for kernel, _ in item.kernels))
    if not sources or not kernels:
        raise UsageError(
            asked="a transfer between targets",
            found=f"{len(sources)} sources and items of {len(kernels)} kernels",
            next="Give at least one source, and items that execute something.",
        )
    counts = _counts(items, kernels)
    weights = np.array([network_weights(dict(item.kernels)) for item in items])
    networks = np.array([item.kind == NETWORK for item in items])
    own = [regime(kernel) for kernel in kernels]
    regimes = sorted(set(own))
    member = np.array([[name == other for other in regimes] for name in own], dtype=float)
    latencies, features = np.zeros((len(items), len(sources))), np.ones((len(items), 1 + len(regimes)))
    features[:, 1:] = 0.0
    for s, (name, source) in enumerate(sources.items()):
        missing = [kernel for kernel in kernels if not source.model.covered(kernel)]
        if missing:
            raise UncoveredOperatorError(
                (kernel.op for kernel in missing),
                asked=f"a transfer from {name}",
                next=f"Leave that source out, or profile there what executes them, such as {missing[0].signature}.",
            )
        costs = np.array([cost.mean_s for cost in source.costs(kernels)])
        # A source's costs are those inside a network; a probe meets other caches.
        place = np.where(networks, 1.0, source.factor)
        latencies[:, s] = (source.overhead_s + counts @ costs) / place
        latencies[:, s] += np.where(networks, source.network_cold_s(weights, latencies[:, s]), 0.0)
        features[:, 1:] += counts @ (costs[:, None] * member) / place[:, None] / latencies[:, s].mean()
    names = [(families or {}).get(name, name) for name in sources]
    return transfer_prior([Account(latencies, features)], names)


def shared_cold_weights(sources: Mapping[str, Predictor], items: Sequence[Item]) -> ColdWeights | None:
    """What a byte of weights costs more in large networks, as a share of the items' mean latency: the sources' median.

    None where no source knows. A new target is measured on too little to tell; its scale is that of its items.
    """
    known = {name: source.cold_weights for name, source in sources.items() if source.cold_weights.per_byte_s.any()}
    if not known:
        return None
    levels = max(len(cold.held_bytes) for cold in known.values())
    known = {name: cold for name, cold in known.items() if len(cold.held_bytes) == levels}
    kernels = list(dict.fromkeys(kernel for item in items for kernel, _ in item.kernels))
    counts = _counts(items, kernels)
    per_byte = []
    for name, source in sources.items():
        mean_s = float((source.overhead_s + counts @ [cost.mean_s for cost in source.costs(kernels)]).mean())
        cold = known.get(name)
        seconds = np.zeros((levels, len(CLASSES))) if cold is None else source.factor * cold.per_byte_s
        per_byte.append(seconds / mean_s)
    return ColdWeights(
        2.0 ** np.median([np.log2(cold.held_bytes) for cold in known.values()], axis=0),
        np.median([cold.others_bytes_per_s for cold in known.values()], axis=0),
        np.median(per_byte, axis=0),
    )


def _counts(items: Sequence[Item], kernels: Sequence[Kernel]) -> np.ndarray:
    """(items, kernels) how often each is executed."""
    position = {kernel: k for k, kernel in enumerate(kernels)}
    counts = np.zeros((len(items), len(kernels)))
    for i, item in enumerate(items):
        for kernel, count in item.kernels:
            counts[i, position[kernel]] = count
    return counts


@dataclass(frozen=True)
class ItemCosts:
    """Kernel costs fitted to the latencies of items, and what they say of the items themselves.

    `covered` (n,) are positions of the items whose kernels all have a cost, `predicted_s` and `spread_s` (n,) what a
    `Predictor` says of them, in seconds.
    """

    model: KernelCostModel
    factor: float
    cold_weights: ColdWeights
    covered: np.ndarray
    predicted_s: np.ndarray
    spread_s: np.ndarray


def item_costs(items: Sequence[Item], latency_s: np.ndarray, cold_weights: ColdWeights | None = None) -> ItemCosts:
    """Fit kernel costs to the items that are probes; the networks among them give the in-place factor.

    Args:
        cold_weights: as `shared_cold_weights` says.

    Raises:
        UsageError: too few items are probes.
    """
    probes = [i for i, item in enumerate(items) if item.kind == PROBE]
    if len(probes) < MIN_POINTS:
        raise UsageError(
            asked="kernel costs from a transfer",
            found=f"{len(probes)} items that are probes",
            next=f"Give at least {MIN_POINTS} of them.",
        )
    model = fit_kernel_costs(
        [Observation(dict(items[i].kernels), float(latency_s[i]), TRANSFERRED_NOISE) for i in probes]
    )
    covered = np.array([i for i, one in enumerate(items) if all(model.covered(kernel) for kernel, _ in one.kernels)])
    sums_s, kernels_s = _summed(model, [items[i] for i in covered])
    networks = np.array([items[i].kind == NETWORK for i in covered])
    cold_s = np.zeros(len(covered))
    if cold_weights is not None:
        cold_weights = cold_weights.scaled(float(latency_s.mean()))
        weights = np.array([network_weights(dict(items[i].kernels)) for i in covered])
        cold_s = np.where(networks, cold_weights.seconds(weights, sums_s).sum(-1), 0.0)
    factor = in_place_factor(
        [
            CalibrationPoint(items[i].family, float(sum_s), 0.0, float(latency_s[i]) - float(extra_s))
            for i, sum_s, extra_s in zip(covered[networks], sums_s[networks], cold_s[networks], strict=True)
        ]
    )
    place = np.where(networks, factor, 1.0)
    spread_s = network_spread_s(place * kernels_s, place * model.hyperparameters.jitter_s, cold_s)
    cold = NO_COLD_WEIGHTS
    if cold_weights is not None:
        cold = cold_weights.scaled(1 / factor)
    return ItemCosts(model, factor, cold, covered, place * sums_s + cold_s, spread_s)


def left_out_points(
    prior: TransferPrior, items: Sequence[Item], rows: np.ndarray, measured_s: np.ndarray, costs: ItemCosts
) -> list[CalibrationPoint]:
    """Each measured item that kernel costs cover, predicted by the transfer without it."""
    spread_of = dict(zip(costs.covered.tolist(), costs.spread_s.tolist(), strict=True))
    points = []
    for left_out, row in enumerate(rows.tolist()):
        if row in spread_of:
            kept = np.arange(len(rows)) != left_out
            alone = float(predict_items(believe(prior, rows[kept], measured_s[kept])).latency_s[row])
            points.append(CalibrationPoint(items[row].family, alone, spread_of[row], float(measured_s[left_out])))
    return points


def transfer_predictor(
    prior: TransferPrior,
    items: Sequence[Item],
    table: LatencyTable,
    coverage: float = COVERAGE,
    width: float | None = None,
    cold_weights: ColdWeights | None = None,
) -> Predictor:
    """The predictor of `table`'s target: its rows are the measured items, by name; the other items are predicted.

    Kernel costs are fitted to the latencies of all items that are probes, so that whatever uses a predictor uses this
    one. Scores come from the measured items, each predicted without itself.

    Args:
        prior: what other targets say of the items (`items_prior`), its settings weighted or not.
        width: of intervals, from transfers that were rehearsed; from the measured items where None.
        cold_weights: as `shared_cold_weights` says of the sources.

    Raises:
        UsageError: too few measured items to calibrate on, a row that is no item, too few items that are probes.
    """
    position = {item.name: i for i, item in enumerate(items)}
    strangers = [row.name for row in table.rows if row.name not in position]
    if strangers or len(table.rows) < MIN_POINTS:
        raise UsageError(
            asked=f"a predictor of target {table.header.target.name} by transfer",
            found=f"{len(table.rows)} measured items ({len(strangers)} of them unknown: {strangers[:3]})",
            next=f"Measure at least {MIN_POINTS} of the items; `profile --resume` goes on with a killed one.",
        )
    rows = np.array([position[row.name] for row in table.rows])
    measured_s = np.array([row.measurement.label_s for row in table.rows])
    costs = item_costs(items, predict_items(believe(prior, rows, measured_s)).latency_s, cold_weights)
    points = left_out_points(prior, items, rows, measured_s, costs)
    if len(points) < MIN_POINTS:
        raise UsageError(
            asked=f"an interval for predictions of target {table.header.target.name}",
            found=f"{len(points)} measured items made of kernels that probes among the items have",
            next="Measure more of them, or give items that are probes of every operator.",
        )
    sigma = table.sigma
    return Predictor(
        target=table.header.target.name,
        device=table.header.device,
        table_digest=table.digest(),
        model=costs.model,
        factor=costs.factor,
        width=quantile([score(point) for point in points], coverage) if width is None else width,
        coverage=coverage,
        tail_factors=tail_factors(table.rows),
        sigma=sigma,
        calibrated_on=LEFT_OUT_PROBES if width is None else REHEARSED,
        left_out=len(rows) - len(points),
        scores=scores_of(
            np.array([p.predicted_s for p in points]), np.array([p.measured_s for p in points]), None, sigma
        ),
        cold_weights=costs.cold_weights,
    )


def _summed(model: KernelCostModel, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """(items,) sums of the costs of covered kernels in seconds and of their spreads, as a `Predictor` adds them up."""
    kernels = list(dict.fromkeys(kernel for item in items for kernel, _ in item.kernels))
    counts = _counts(items, kernels)
    costs = model.costs(kernels)
    spread = np.array([c.told_spread_s for c in costs])
    return model.overhead_s + counts @ np.array([c.mean_s for c in costs]), counts @ spread
