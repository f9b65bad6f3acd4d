"""A target's predictor from the predictors of other targets and a few measurements of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from akd_deploy.errors import UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, TableRow
from akd_deploy.predictor.conformal import CalibrationPoint, in_place_factor, quantile, score
from akd_deploy.predictor.features import regime
from akd_deploy.predictor.fitting import COVERAGE, MIN_POINTS, _tail_factors
from akd_deploy.predictor.kernel_cost import KernelCostModel
from akd_deploy.predictor.kernel_cost_fit import Observation, fit_kernel_costs
from akd_deploy.predictor.predictor import OUT_OF_DOMAIN_WIDENING, Predictor
from akd_deploy.predictor.scores import scores_of
from akd_deploy.predictor.transfer import believe, predict_items
from akd_deploy.predictor.transfer_prior import Account, TransferPrior, transfer_prior

CALIBRATED_ON = "left-out probes of a transfer"
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


def items_prior(sources: Mapping[str, Predictor], items: Sequence[Item]) -> TransferPrior:
    """The prior that predictors of other targets give for items; pass it to `transfer_design.measure_probes`.

    A source may be the same machine with other threads or clocks. Features are what the sources spend on each
    regime of kernels: a device on which depthwise convolutions alone are slow is then a small step away.

    Raises:
        UsageError: no source or no item.
        UncoveredOperatorError: a source never measured an operator of the items.
    """
    kernels = list(dict.fromkeys(kernel for item in items for kernel, _ in item.kernels))
    if not sources or not kernels:
        raise UsageError(
            asked="a transfer between targets",
            found=f"{len(sources)} sources and items of {len(kernels)} kernels",
            next="Give at least one source, and items that execute something.",
        )
    counts = _counts(items, kernels)
    networks = np.array([item.kind == NETWORK for item in items])
    regimes = sorted({regime(kernel) for kernel in kernels})
    member = np.array([[regime(kernel) == name for name in regimes] for kernel in kernels], dtype=float)
    latencies, features = np.zeros((len(items), len(sources))), np.ones((len(items), 1 + len(regimes)))
    features[:, 1:] = 0.0
    for s, (name, source) in enumerate(sources.items()):
        costs = np.array([cost.mean_s for cost in source.costs(kernels, f"a transfer from target {name}")])
        # A source's costs are those inside a network; a probe meets other caches.
        place = np.where(networks, 1.0, source.factor)
        latencies[:, s] = (source.overhead_s + counts @ costs) / place
        features[:, 1:] += counts @ (costs[:, None] * member) / place[:, None] / latencies[:, s].mean()
    return transfer_prior([Account(latencies, features)], list(sources))


def _counts(items: Sequence[Item], kernels: Sequence[Kernel]) -> np.ndarray:
    """(items, kernels) how often each is executed."""
    position = {kernel: k for k, kernel in enumerate(kernels)}
    counts = np.zeros((len(items), len(kernels)))
    for i, item in enumerate(items):
        for kernel, count in item.kernels:
            counts[i, position[kernel]] = count
    return counts


def transfer_predictor(
    sources: Mapping[str, Predictor],
    items: Sequence[Item],
    table: LatencyTable,
    coverage: float = COVERAGE,
) -> Predictor:
    """The predictor of `table`'s target: its rows are the measured items, by name; the other items are predicted.

    Kernel costs are fitted to the latencies of all items that are probes, so that whatever uses a predictor uses this
    one. The networks among the items give the in-place factor. Width and scores come from the measured items, each
    predicted without itself.

    Raises:
        UsageError: too few measured items to calibrate on, a row that is no item, too few items that are probes.
        UncoveredOperatorError: a source never measured an operator of the items.
    """
    position = {item.name: i for i, item in enumerate(items)}
    strangers = [row.name for row in table.rows if row.name not in position]
    fitted_on = [i for i, item in enumerate(items) if item.kind == PROBE]
    if strangers or len(table.rows) < MIN_POINTS or len(fitted_on) < MIN_POINTS:
        raise UsageError(
            asked=f"a predictor of target {table.header.target.name} by transfer",
            found=f"{len(table.rows)} measured items ({len(strangers)} of them unknown: {strangers[:3]}), "
            f"{len(fitted_on)} items that are probes",
            next=f"Measure at least {MIN_POINTS} of the items, and give at least {MIN_POINTS} probes.",
        )
    prior = items_prior(sources, items)
    rows = np.array([position[row.name] for row in table.rows])
    measured_s = np.array([row.measurement.median_s for row in table.rows])
    transferred = predict_items(believe(prior, rows, measured_s))
    model = fit_kernel_costs(
        [Observation(dict(items[i].kernels), float(transferred.latency_s[i]), TRANSFERRED_NOISE) for i in fitted_on]
    )
    covered = [i for i, item in enumerate(items) if all(model.covered(kernel) for kernel, _ in item.kernels)]
    predicted_s, spread_s = _summed(model, [items[i] for i in covered])
    spread_of = dict(zip(covered, spread_s.tolist(), strict=True))
    factor = in_place_factor(
        [
            CalibrationPoint(items[i].family, float(p), 0.0, float(transferred.latency_s[i]))
            for i, p in zip(covered, predicted_s, strict=True)
            if items[i].kind == NETWORK
        ]
    )
    points = []
    for left_out, row in enumerate(rows.tolist()):
        if row not in spread_of:
            continue
        kept = np.arange(len(rows)) != left_out
        alone = predict_items(believe(prior, rows[kept], measured_s[kept]))
        scale = factor if items[row].kind == NETWORK else 1.0
        points.append(
            CalibrationPoint(
                items[row].family, float(alone.latency_s[row]), scale * spread_of[row], float(measured_s[left_out])
            )
        )
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
        model=model,
        factor=factor,
        width=quantile([score(point) for point in points], coverage),
        coverage=coverage,
        tail_factors=_tail_factors(table.rows),
        sigma=sigma,
        calibrated_on=CALIBRATED_ON,
        left_out=len(rows) - len(points),
        scores=scores_of(
            np.array([p.predicted_s for p in points]), np.array([p.measured_s for p in points]), None, sigma
        ),
    )


def _summed(model: KernelCostModel, items: Sequence[Item]) -> tuple[np.ndarray, np.ndarray]:
    """(items,) sums of the costs of covered kernels in seconds and of their spreads, as a `Predictor` adds them up."""
    kernels = list(dict.fromkeys(kernel for item in items for kernel, _ in item.kernels))
    counts = _counts(items, kernels)
    costs = model.costs(kernels)
    spread = np.array([c.spread_s * (1.0 if c.in_domain else OUT_OF_DOMAIN_WIDENING) for c in costs])
    return model.overhead_s + counts @ np.array([c.mean_s for c in costs]), counts @ spread
