"""The latency predictor of one target: additive over executed kernels, calibrated on measured networks."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import CorruptFileError, StorageError, UncoveredOperatorError, UsageError
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, TableRow
from akd_deploy.predictor.conformal import (
    CalibrationPoint,
    by_family_quantile,
    in_place_factor,
    scale_s,
    score,
)
from akd_deploy.predictor.kernel_cost import (
    KernelCost,
    KernelCostModel,
    fit_kernel_costs,
    model_from_arrays,
    observation_of,
)
from akd_deploy.predictor.scores import Scores, scores_of
from akd_deploy.storage import write_atomically

COVERAGE = 0.9
"""Nominal coverage of intervals."""
OUT_OF_DOMAIN_WIDENING = 2.0
"""Spread of a kernel outside the measured range is multiplied by this (picked by eye)."""
MIN_NETWORKS = 10
"""With fewer measured networks, held-out probes calibrate instead."""
MIN_POINTS = 5
"""Below so few measurements to calibrate on, an interval would be invented."""
FOLDS = 5
FORMAT_VERSION = 1


@dataclass(frozen=True)
class LayerCost:
    """One executed kernel's share of a prediction, in seconds; shares and the overhead sum to the latency."""

    name: str
    kernel: Kernel
    latency_s: float
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A predicted median latency. `interval_s` holds the measured one with probability `coverage`."""

    latency_s: float
    interval_s: tuple[float, float]
    coverage: float
    in_domain: bool
    overhead_s: float
    layers: tuple[LayerCost, ...]

    @property
    def upper_s(self) -> float:
        return self.interval_s[1]


@dataclass(frozen=True)
class Predictor:
    """Fitted on a table's probes; `factor` and `width` come from its networks; `tail_factor` is p90 / median."""

    target: str
    device: DeviceFingerprint
    table_digest: str
    model: KernelCostModel
    factor: float
    width: float
    coverage: float
    tail_factor: float
    sigma: float | None
    calibrated_on: str
    scores: Scores

    def costs(self, kernels: Sequence[Kernel], asked: str = "a latency prediction") -> list[KernelCost]:
        """Costs of kernels inside a network (the in-place factor applied), in seconds.

        Raises:
            UncoveredOperatorError: names every operator no measured kernel resembles.
        """
        uncovered = {kernel.op for kernel in kernels if not self.model.covered(kernel)}
        if uncovered:
            raise UncoveredOperatorError(
                uncovered,
                asked=asked,
                next=f"Profile them: `akd-deploy profile --target {self.target} --onnx MODEL`.",
            )
        result = []
        for cost in self.model.costs(kernels):
            widening = 1.0 if cost.in_domain else OUT_OF_DOMAIN_WIDENING
            result.append(KernelCost(self.factor * cost.mean_s, self.factor * widening * cost.spread_s, cost.in_domain))
        return result

    @property
    def overhead_s(self) -> float:
        """What one call costs beside its kernels."""
        return self.factor * self.model.overhead_s

    def interval_s(self, latency_s: np.ndarray, spread_s: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end for summed latencies and spreads, any shape."""
        half = self.width * scale_s(latency_s, spread_s)
        return np.maximum(latency_s - half, 0.0), latency_s + half

    def predict(self, executed: Sequence[ExecutedKernel], asked: str = "a latency prediction") -> Prediction:
        """Predict one network from the kernels it executes, in order.

        Raises:
            UncoveredOperatorError: names every operator no measured kernel resembles.
        """
        costs = self.costs([e.kernel for e in executed], asked)
        latency = self.overhead_s + sum(c.mean_s for c in costs)
        low, high = self.interval_s(np.array(latency), np.array(sum(c.spread_s for c in costs)))
        return Prediction(
            latency_s=latency,
            interval_s=(float(low), float(high)),
            coverage=self.coverage,
            in_domain=all(c.in_domain for c in costs),
            overhead_s=self.overhead_s,
            layers=tuple(LayerCost(e.name, e.kernel, c.mean_s, e.nodes) for e, c in zip(executed, costs, strict=True)),
        )


def _covered(model: KernelCostModel, rows: Iterable[TableRow]) -> list[TableRow]:
    """The rows of which the model covers every kernel."""
    return [row for row in rows if all(model.covered(kernel) for kernel, _ in row.kernels)]


def _points(model: KernelCostModel, rows: Sequence[TableRow]) -> list[CalibrationPoint]:
    """Predict rows of which the model covers every kernel."""
    distinct = list(dict.fromkeys(kernel for row in rows for kernel, _ in row.kernels))
    costs = dict(zip(distinct, model.costs(distinct), strict=True))
    points = []
    for row in rows:
        predicted, spread = model.overhead_s, 0.0
        for kernel, count in row.kernels:
            cost = costs[kernel]
            predicted += count * cost.mean_s
            spread += count * cost.spread_s * (1.0 if cost.in_domain else OUT_OF_DOMAIN_WIDENING)
        points.append(CalibrationPoint(row.family, predicted, spread, row.measurement.median_s))
    return points


def _fit(rows: Iterable[TableRow]) -> KernelCostModel:
    return fit_kernel_costs(
        [
            observation_of(
                Counter(dict(row.kernels)),
                row.measurement.median_s,
                row.measurement.sigma,
                len(row.measurement.blocks),
            )
            for row in rows
        ]
    )


def _held_out_points(rows: Sequence[TableRow]) -> list[CalibrationPoint]:
    """Every probe predicted by a model that did not see its fold."""
    points = []
    for fold in range(FOLDS):
        model = _fit(row for i, row in enumerate(rows) if i % FOLDS != fold)
        points += _points(model, _covered(model, (row for i, row in enumerate(rows) if i % FOLDS == fold)))
    return points


def _scored_without_itself(points: Sequence[CalibrationPoint], coverage: float, sigma: float | None) -> Scores:
    """Each point predicted with factor and width calibrated on the others."""
    predicted, measured, covered = [], [], []
    for i, point in enumerate(points):
        others = [*points[:i], *points[i + 1 :]]
        factor = in_place_factor(others)
        width = by_family_quantile(others, coverage, factor)
        predicted.append(factor * point.predicted_s)
        measured.append(point.measured_s)
        covered.append(score(point, factor) <= width)
    return scores_of(np.array(predicted), np.array(measured), np.array(covered), sigma)


def fit_predictor(table: LatencyTable, coverage: float = COVERAGE) -> Predictor:
    """Fit on the table's probes, calibrate and score on its networks (on held-out probes where they are few).

    Scores are leave-one-out: no network helps to predict itself.

    Raises:
        UsageError: too few probes to fit anything.
    """
    probes, networks = table.of_kind(PROBE), table.of_kind(NETWORK)
    if len(probes) < 2 * FOLDS:
        raise UsageError(
            asked=f"a predictor of target {table.header.target.name}",
            found=f"{len(probes)} probes in its latency table",
            next="Profile more: `akd-deploy profile --minutes 2`.",
        )
    model = _fit(probes)
    points = _points(model, _covered(model, networks))
    calibrated_on = "networks"
    if len(points) < MIN_NETWORKS:
        points, calibrated_on = _held_out_points(probes), "held-out probes"
    if len(points) < MIN_POINTS:
        raise UsageError(
            asked=f"an interval for predictions of target {table.header.target.name}",
            found=f"{len(points)} measurements to calibrate it on",
            next="Profile more: `akd-deploy profile --minutes 2`.",
        )
    factor = in_place_factor(points) if calibrated_on == "networks" else 1.0
    return Predictor(
        target=table.header.target.name,
        device=table.header.device,
        table_digest=table.digest(),
        model=model,
        factor=factor,
        width=by_family_quantile(points, coverage, factor),
        coverage=coverage,
        tail_factor=float(np.median([row.measurement.tail_factor for row in networks or probes])),
        sigma=table.sigma,
        calibrated_on=calibrated_on,
        scores=_scored_without_itself(points, coverage, table.sigma),
    )


def calibration_points(predictor: Predictor, table: LatencyTable) -> list[dict[str, float | str]]:
    """Every network of the table that it covers as the predictor sees it, beside its measurement; seconds."""
    rows = _covered(predictor.model, table.of_kind(NETWORK) or table.of_kind(PROBE))
    result: list[dict[str, float | str]] = []
    for row, point in zip(rows, _points(predictor.model, rows), strict=True):
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


def save_predictor(predictor: Predictor, directory: Path) -> Path:
    """Write `predictor-<table digest>.npz` (arrays and one JSON text; no pickle); other ones there are removed."""
    arrays, fields = predictor.model.as_arrays()
    document = {
        "format_version": FORMAT_VERSION,
        "target": predictor.target,
        "device": dict(predictor.device.facts),
        "table_digest": predictor.table_digest,
        "factor": predictor.factor,
        "width": predictor.width,
        "coverage": predictor.coverage,
        "tail_factor": predictor.tail_factor,
        "sigma": predictor.sigma,
        "calibrated_on": predictor.calibrated_on,
        "scores": asdict(predictor.scores),
        "model": fields,
    }
    path = directory / f"predictor-{predictor.table_digest}.npz"
    content = io.BytesIO()
    np.savez_compressed(content, json=np.array(json.dumps(document)), **arrays)  # type: ignore[arg-type]
    write_atomically(path, content.getvalue())
    for old in directory.glob("predictor-*.npz"):
        if old != path:
            old.unlink(missing_ok=True)
    return path


def read_predictor(path: Path) -> Predictor:
    """Read what `save_predictor` wrote.

    Raises:
        CorruptFileError: the file is torn or another version's; it can simply be deleted.
    """
    try:
        # numpy leaves a file open that it opened itself and found torn.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            document: Mapping[str, object] = json.loads(str(archive["json"]))
            arrays = {name: archive[name] for name in archive.files if name != "json"}
        if document["format_version"] != FORMAT_VERSION:
            raise ValueError(f"format version {document['format_version']}")
        values = {
            name: document[name]
            for name in (
                "target",
                "table_digest",
                "factor",
                "width",
                "coverage",
                "tail_factor",
                "sigma",
                "calibrated_on",
            )
        }
        return Predictor(
            device=DeviceFingerprint(document["device"]),  # type: ignore[arg-type]
            model=model_from_arrays(arrays, document["model"]),  # type: ignore[arg-type]
            scores=Scores(**document["scores"]),  # type: ignore[arg-type]
            **values,  # type: ignore[arg-type]
        )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise CorruptFileError(
            asked=f"a predictor in {path}",
            found=f"{type(error).__name__}: {error}",
            next="Delete it; it is fitted again.",
        ) from error


def predictor_of(table: LatencyTable, directory: Path) -> Predictor:
    """The predictor cached beside the table when its key is the table's, else a fitted one, cached if possible."""
    path = directory / f"predictor-{table.digest()}.npz"
    if path.is_file():
        try:
            return read_predictor(path)
        except CorruptFileError:
            path.unlink(missing_ok=True)
    predictor = fit_predictor(table)
    try:
        save_predictor(predictor, directory)
    except StorageError:
        # A read-only place for tables is legitimate; the predictor is only a cache.
        return predictor
    return predictor
