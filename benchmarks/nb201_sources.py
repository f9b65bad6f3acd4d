"""The source devices of the NAS-Bench-201 benchmark: their data, and what each says of cells it never ran."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.nb201_cells import ACCOUNTS, counts_of, with_products

SOURCE_CELLS = 900
DEGENERATE_SHARE = 0.05
"""Labels below this share of the median are of networks that never ran."""
PENALTIES = (0.03, 0.3, 3.0)
"""Of products of counts in a source's ridge regression; counts themselves go almost free."""
FOLDS = 5


@dataclass(frozen=True)
class Cells:
    """All cells: `counts` (cells, 1 + operators) and `features` (cells, 1 + operators + products) by account."""

    counts: dict[str, np.ndarray]
    features: dict[str, np.ndarray]
    latency_s: dict[str, np.ndarray]

    @property
    def running(self) -> np.ndarray:
        """Positions of cells whose output depends on the input under every account."""
        return np.flatnonzero(np.all([counts[:, 0] == 1 for counts in self.counts.values()], axis=0))


def family_of(device: str) -> str:
    """ "1080ti_256" → "1080ti": batches of one card, generations of one brand."""
    return device.split("_")[0]


def read_cells(folder: Path) -> Cells:
    """Read `latency.parquet` of `folder`."""
    import pyarrow.parquet as pq  # noqa: TID251 - the data is not a latency table

    table = pq.read_table(folder / "latency.parquet")
    columns = {name: table[name].to_numpy() for name in table.column_names}
    edges = np.stack([columns.pop(f"edge{e}") for e in range(6)], axis=1)
    counts = {account: counts_of(edges, account) for account in ACCOUNTS}
    return Cells(
        counts,
        {account: with_products(c) for account, c in counts.items()},
        {name: 1e-3 * values.astype(float) for name, values in columns.items()},
    )


def ridge(features: np.ndarray, latency: np.ndarray, plain: int, penalty: float) -> np.ndarray:
    """Coefficients of least squares on relative errors; the columns after the first `plain` are penalised."""
    unit = np.median(latency)
    weight = 1 / np.maximum(latency / unit, 0.2)
    strength = np.r_[np.full(plain, 1e-6), np.full(features.shape[1] - plain, penalty)]
    scaled = features * weight[:, None]
    return unit * np.linalg.solve(scaled.T @ scaled + np.diag(strength), scaled.T @ (latency / unit * weight))


@dataclass(frozen=True)
class Source:
    """A source device: the account and penalty that its cells favour, and the coefficients fitted on all of them."""

    name: str
    account: str
    penalty: float
    coefficients: np.ndarray
    rows: np.ndarray
    latency_s: np.ndarray

    def latencies_s(self, cells: Cells, account: str) -> np.ndarray:
        """(cells,) what it would need if it executed cells by `account`."""
        predicted = cells.features[account] @ self.coefficients
        return np.maximum(predicted, 0.01 * np.median(self.latency_s))


def fit_source(cells: Cells, name: str, rng: np.random.Generator) -> Source:
    """Fit on `SOURCE_CELLS` random cells; account and penalty by cross-validated median relative error."""
    rows = rng.choice(len(cells.latency_s[name]), SOURCE_CELLS, replace=False)
    latency = cells.latency_s[name][rows]
    plain = next(iter(cells.counts.values())).shape[1]
    folds = rng.permutation(SOURCE_CELLS) % FOLDS

    def error(account: str, penalty: float) -> float:
        features, predicted = cells.features[account][rows], np.zeros(len(rows))
        for fold in range(FOLDS):
            kept = folds != fold
            predicted[~kept] = features[~kept] @ ridge(features[kept], latency[kept], plain, penalty)
        scored = latency > DEGENERATE_SHARE * np.median(latency)
        return float(np.abs(predicted / latency - 1)[scored].mean())

    account, penalty = min(((a, p) for a in ACCOUNTS for p in PENALTIES), key=lambda choice: error(*choice))
    return Source(name, account, penalty, ridge(cells.features[account][rows], latency, plain, penalty), rows, latency)
