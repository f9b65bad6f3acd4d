"""Fitting a predictor: on a table's probes, calibrated and scored on its networks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from akd_deploy.errors import UsageError
from akd_deploy.latency_table import NETWORK, PROBE, STACK, LatencyTable, TableRow
from akd_deploy.models.published import FAMILY_OF
from akd_deploy.predictor.cold_weights import (
    COLD_NOISE,
    MOST_COLD,
    NO_COLD_WEIGHTS,
    ColdWeights,
    Stacked,
    fit_cold_weights,
    network_weights,
    tells_of_weights,
)
from akd_deploy.predictor.conformal import (
    CalibrationPoint,
    by_family_quantile,
    in_place_factor,
    network_spread_s,
    score,
    unseen_family_quantile,
)
from akd_deploy.predictor.kernel_cost import Hyperparameters, KernelCostModel
from akd_deploy.predictor.kernel_cost_fit import ROUNDS, fit_kernel_costs, observation_of
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.predictor.scores import Scores, scores_of
from akd_deploy.predictor.tails import tail_factors
from akd_deploy.search_space import SPACES

COVERAGE = 0.9
"""Nominal coverage of intervals."""
MIN_NETWORKS = 10
"""With fewer measured networks, held-out probes calibrate instead."""
MIN_FAMILIES = 9
"""With networks of fewer families, intervals say nothing of families never seen: 90 % of ten places are nine."""
MIN_POINTS = 5
"""Below so few measurements to calibrate on, an interval would be invented."""
FOLDS = 5
MIN_PROBES = 2 * FOLDS
"""Below so few nothing is fitted."""
UNSEEN_FOLDS = 10
"""Of families that networks are predicted without: the fewer a fold leaves out, the less it tells too wide a width."""
WORTH_ANOTHER_FIT = 0.01
"""Share of any probe's latency that its own cold weights take, from which kernel costs are fitted again."""
UNKNOWN_NOISE = 0.9
"""Quantile of the rows' noise that is assumed of a row whose label rests on one block."""


def family_of(row: TableRow) -> str:
    """A published network's family, whatever its row is called; else the row's own."""
    return FAMILY_OF.get(row.family, row.family)


def _covered(model: KernelCostModel, rows: Iterable[TableRow]) -> list[TableRow]:
    """The rows of which the model covers every kernel."""
    return [row for row in rows if all(model.covered(kernel) for kernel, _ in row.kernels)]


def _points(
    model: KernelCostModel, rows: Sequence[TableRow], cold_weights: ColdWeights = NO_COLD_WEIGHTS
) -> list[CalibrationPoint]:
    """Predict rows of which the model covers every kernel."""
    distinct = list(dict.fromkeys(kernel for row in rows for kernel, _ in row.kernels))
    costs = dict(zip(distinct, model.costs(distinct), strict=True))
    points = []
    for row in rows:
        predicted, spread = model.overhead_s, 0.0
        for kernel, count in row.kernels:
            cost = costs[kernel]
            predicted += count * cost.mean_s
            spread += count * cost.told_spread_s
        cold_s = _cold_s(row, cold_weights, predicted)
        spread = float(network_spread_s(np.array(spread), model.hyperparameters.jitter_s, np.array(cold_s)))
        points.append(CalibrationPoint(family_of(row), predicted + cold_s, spread, row.measurement.label_s))
    return points


def _fit(
    rows: Iterable[TableRow],
    cold_weights: ColdWeights = NO_COLD_WEIGHTS,
    start: Hyperparameters | None = None,
    rounds: int = ROUNDS,
) -> KernelCostModel:
    """Kernel costs from probes, of whose latency what their own weights' distance costs is left out; `start` and
    `rounds` as in `fit_kernel_costs`."""
    rows, observations = list(rows), []
    known_noise = [sigma for row in rows if (sigma := row.measurement.label_sigma) is not None]
    unknown = float(np.quantile(known_noise, UNKNOWN_NOISE)) if known_noise else 0.0
    for row in rows:
        seen = observation_of(row.counts(), row.measurement, unknown)
        cold_s = _cold_s(row, cold_weights, seen.latency_s)
        warm_s = max(seen.latency_s - cold_s, (1 - MOST_COLD) * seen.latency_s)
        noise = np.hypot(seen.noise * seen.latency_s, COLD_NOISE * cold_s) / warm_s
        observations.append(replace(seen, latency_s=warm_s, noise=float(noise)))
    return fit_kernel_costs(observations, start, rounds)


def _cold_s(row: TableRow, cold_weights: ColdWeights, warm_s: float) -> float:
    """What a row's cold weights cost it, in seconds; it takes `warm_s` with warm ones."""
    if cold_weights is NO_COLD_WEIGHTS:
        return 0.0
    return float(cold_weights.seconds(network_weights(row.counts()), warm_s).sum())


def fit_costs(table: LatencyTable) -> tuple[KernelCostModel, ColdWeights]:
    """Kernel costs from a table's probes and what cold weights cost from its stacks.

    A probe with weights of many megabytes is cold itself: once that is known, kernel costs are fitted again.
    """
    probes = table.of_kind(PROBE)
    model = _fit(probes)
    cold_weights = cold_weights_of(model, table)
    label_s = [row.measurement.label_s for row in probes]
    if any(_cold_s(row, cold_weights, s) > WORTH_ANOTHER_FIT * s for row, s in zip(probes, label_s, strict=True)):
        model = _fit(probes, cold_weights, model.hyperparameters, rounds=1)
        cold_weights = cold_weights_of(model, table)  # which rest on what a call costs beside its kernels
    return model, cold_weights


def _held_out(
    rows: Sequence[TableRow], model: KernelCostModel, cold_weights: ColdWeights
) -> tuple[list[TableRow], list[CalibrationPoint]]:
    """Every probe predicted by a model that did not see its fold, with the hyper-parameters of one that did; what it
    does not cover is left out.

    Where there are families of networks enough, a fold is whole families: predictions will be asked for kernels of
    families that nobody measured. A search space's probes are like what will be asked for already.
    """
    fold_of = _family_folds(rows)
    folds = [fold_of[family_of(row)] if fold_of else i % FOLDS for i, row in enumerate(rows)]
    kept: list[TableRow] = []
    points: list[CalibrationPoint] = []
    for fold in range(FOLDS):
        rest = (row for row, own in zip(rows, folds, strict=True) if own != fold)
        without = _fit(rest, cold_weights, model.hyperparameters, rounds=0)
        covered = _covered(without, (row for row, own in zip(rows, folds, strict=True) if own == fold))
        kept += covered
        points += _points(without, covered, cold_weights)
    return kept, points


def _is_of_a_space(family: str) -> bool:
    """Rows of a space say which of its networks; a family of published networks may be called as a space is."""
    space, dash, _ = family.partition("-")
    return bool(dash) and space in SPACES


def _family_folds(rows: Iterable[TableRow], folds: int = FOLDS) -> dict[str, int]:
    """Family → fold, where there are families enough to hold some out; none for probes of a search space."""
    families = sorted({family_of(row) for row in rows})
    if len(families) < MIN_NETWORKS or any(map(_is_of_a_space, families)):
        return {}
    return {family: i % folds for i, family in enumerate(families)}


def _of_unseen_families(
    probes: Sequence[TableRow], networks: Sequence[TableRow], model: KernelCostModel, cold_weights: ColdWeights
) -> list[CalibrationPoint]:
    """Networks predicted by models that saw no stretch of their families, with the hyper-parameters of one that did.

    Predictions will be asked for networks of other families than those measured, and err more there than where
    stretches of the network itself were measured.
    """
    fold_of = _family_folds(probes, UNSEEN_FOLDS)
    points: list[CalibrationPoint] = []
    for fold in range(UNSEEN_FOLDS):
        tested = [row for row in networks if fold_of.get(family_of(row)) == fold]
        if tested:
            kept = [row for row in probes if fold_of[family_of(row)] != fold]
            without = _fit(kept, cold_weights, model.hyperparameters, rounds=0)
            points += _points(without, _covered(without, tested), cold_weights)
    return points


def _width(
    points: Sequence[CalibrationPoint], unseen: Sequence[CalibrationPoint], coverage: float, factor: float
) -> float:
    """That of networks as they are predicted, and of families never seen where enough of them say something."""
    width = by_family_quantile(points, coverage, factor)
    if len({point.family for point in unseen}) < MIN_FAMILIES:
        return width
    return max(width, unseen_family_quantile(unseen, coverage, factor))


def _probe_width(points: Sequence[CalibrationPoint], coverage: float, *, by_family: bool) -> float:
    """That of held-out probes, each by itself; with `by_family` of families that were left out, every one alike.

    A network has few different kernels many times, whose errors do not cancel out as those of a family's stretches do:
    90 % intervals of 60 networks held 55, 63 and 63 % of the time by sums of families, and 85, 95 and 97 % by single
    stretches (ONNX Runtime with all optimisations, extended, OpenVINO).
    """
    return unseen_family_quantile(points, coverage, 1.0) if by_family else by_family_quantile(points, coverage, 1.0)


def cold_weights_of(model: KernelCostModel, table: LatencyTable) -> ColdWeights:
    """What a table's stacks take beyond the probes that they are copies of.

    Kernels that only the stack has, or fewer times than there are copies, cost what the model says.
    """
    probes = {row.name: row for row in table.of_kind(PROBE)}
    stacks = []
    for row in _covered(model, table.of_kind(STACK)):
        window, copies = stacked_of(row.name)
        probe = probes.get(window)
        if probe is None or not copies or not tells_of_weights(probe.counts()):
            continue
        others = row.counts()
        for kernel, count in probe.kernels:
            others[kernel] -= copies * count
        own = [(kernel, count) for kernel, count in others.items() if count]
        extra_s = sum(
            count * cost.mean_s
            for (_, count), cost in zip(own, model.costs([kernel for kernel, _ in own]), strict=True)
        )
        alone_s, whole_s = (one.measurement.label_s for one in (probe, row))
        warm_s = model.overhead_s + copies * (alone_s - model.overhead_s) + extra_s
        stacks.append(
            Stacked(network_weights(row.counts()), network_weights(probe.counts()), warm_s, alone_s, whole_s - warm_s)
        )
    return fit_cold_weights(stacks)


def stacked_of(name: str) -> tuple[str, int]:
    """The probe that a stack is copies of, by the stack's name, and how many; 0 of them where the name does not say."""
    probe, _, copies = name.rpartition("-x")
    return probe, int(copies) if copies.isdecimal() else 0


def _label_sigma(rows: Iterable[TableRow]) -> float | None:
    """The rows' median noise of a label; None where no row has two blocks."""
    values = [sigma for row in rows if (sigma := row.measurement.label_sigma) is not None]
    return float(np.median(values)) if values else None


def _scored(
    points: Sequence[CalibrationPoint],
    calibrated_without: Callable[[CalibrationPoint, Sequence[CalibrationPoint]], tuple[float, float]],
    sigma: float | None,
) -> Scores:
    """Each point predicted with the factor and the width that are calibrated without it, given it and the others."""
    predicted, measured, covered = [], [], []
    for i, point in enumerate(points):
        factor, width = calibrated_without(point, [*points[:i], *points[i + 1 :]])
        predicted.append(factor * point.predicted_s)
        measured.append(point.measured_s)
        covered.append(score(point, factor) <= width)
    return scores_of(np.array(predicted), np.array(measured), np.array(covered), sigma)


def _profile_more(table: LatencyTable) -> str:
    name, tool = table.header.target.name, table.header.imported_from
    if tool is not None:
        return f"Import more of the same: `akd-deploy import-table {tool} FILES --target {name} --append`."
    return (
        f"Profile more of the same: `akd-deploy profile --target {name} --resume`, its networks or space, `--probes N`."
    )


def fit_predictor(table: LatencyTable, coverage: float = COVERAGE) -> Predictor:
    """Fit on the table's probes, calibrate and score on its networks (on held-out probes where they are few).

    Scores are leave-one-out: no network helps to predict itself.

    Raises:
        UsageError: too few probes to fit anything.
    """
    probes, networks = table.of_kind(PROBE), table.of_kind(NETWORK)
    if len(probes) < MIN_PROBES:
        raise UsageError(
            asked=f"a predictor of target {table.header.target.name}",
            found=f"{len(probes)} probes in its latency table",
            next=_profile_more(table),
        )
    model, cold_weights = fit_costs(table)
    scored = covered = _covered(model, networks)
    points, calibrated_on = _points(model, covered, cold_weights), "networks"
    if len(points) < MIN_NETWORKS:
        (scored, points), calibrated_on = _held_out(probes, model, cold_weights), "held-out probes"
    if len(points) < MIN_POINTS:
        raise UsageError(
            asked=f"an interval for predictions of target {table.header.target.name}",
            found=f"{len(points)} measurements to calibrate it on",
            next=_profile_more(table),
        )
    if calibrated_on == "networks":
        factor, unseen = in_place_factor(points), _of_unseen_families(probes, covered, model, cold_weights)
        width = _width(points, unseen, coverage, factor)

        def without(point: CalibrationPoint, others: Sequence[CalibrationPoint]) -> tuple[float, float]:
            own_factor = in_place_factor(others)
            others_unseen = [one for one in unseen if one.family != point.family]
            return own_factor, _width(others, others_unseen, coverage, own_factor)
    else:
        factor, by_family, widths = 1.0, bool(_family_folds(probes)), dict[str, float]()
        width = _probe_width(points, coverage, by_family=by_family)

        def without(point: CalibrationPoint, others: Sequence[CalibrationPoint]) -> tuple[float, float]:
            if not by_family:
                return 1.0, _probe_width(others, coverage, by_family=False)
            if point.family not in widths:
                rest = [one for one in others if one.family != point.family]
                widths[point.family] = _probe_width(rest, coverage, by_family=True)
            return 1.0, widths[point.family]

    return Predictor(
        target=table.header.target.name,
        device=table.header.device,
        table_digest=table.digest(),
        model=model,
        factor=factor,
        width=width,
        coverage=coverage,
        tail_factors=tail_factors(networks or probes),
        sigma=table.sigma,
        calibrated_on=calibrated_on,
        left_out=len(networks) - len(covered),
        scores=_scored(points, without, _label_sigma(scored)),
        cold_weights=cold_weights,
    )


def calibration_points(predictor: Predictor, table: LatencyTable) -> list[dict[str, float | str]]:
    """Every network of the table that it covers as the predictor sees it, beside its measurement; seconds."""
    rows = _covered(predictor.model, table.of_kind(NETWORK) or table.of_kind(PROBE))
    result: list[dict[str, float | str]] = []
    for row, point in zip(rows, _points(predictor.model, rows, predictor.cold_weights), strict=True):
        latency = predictor.factor * point.predicted_s
        low, high = predictor.interval_s(np.array(latency), np.array(predictor.factor * point.spread_s))
        result.append(
            {
                "name": row.name,
                "predicted_s": latency,
                "low_s": float(low),
                "high_s": float(high),
                "measured_s": point.measured_s,
            }
        )
    return result
