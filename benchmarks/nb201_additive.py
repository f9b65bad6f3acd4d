"""One device from N of its own random cells: an additive model of operators as executed, with CV+ intervals."""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

from benchmarks.nb201_sources import DEGENERATE_SHARE

TRAINING_CELLS = (50, 300)
FOLDS = 10
COVERAGE = 0.9
TESTED_CELLS = 2_000
"""Of the cells that were not trained on, drawn anew in every draw."""
STEPS = 12
"""Of iteratively reweighted least squares towards least absolute relative errors."""
LEAST_ERROR = 0.003
"""Relative errors below this weigh alike: a label that fits exactly must not take all the weight."""


def fit_additive(counts: np.ndarray, latency_s: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Coefficients (columns,) in seconds that minimise mean absolute relative errors, in linear space.

    Least squares on relative errors, reweighted by 1 / |error| (Schlossmacher 1973); a trace of ridge keeps columns
    that are always zero (an operator the account never executes) at zero.
    """
    weight = 1 / latency_s
    for _ in range(steps):
        scaled = counts * weight[:, None]
        ridge = 1e-9 * np.trace(scaled.T @ scaled) * np.eye(counts.shape[1])
        solution = np.linalg.solve(scaled.T @ scaled + ridge, scaled.T @ (latency_s * weight))
        error = np.abs(counts @ solution / latency_s - 1)
        weight = 1 / latency_s / np.sqrt(np.maximum(error, LEAST_ERROR))
    return solution


def cv_plus(
    fold_predictions: np.ndarray, fold: np.ndarray, scores: np.ndarray, coverage: float
) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper ends (items,) of CV+ intervals (Barber et al. 2021, arXiv:1905.02928, section 3).

    `fold_predictions` (items, folds) by the models without each fold, `fold` (n,) and relative errors `scores` (n,)
    of the training cells by the model without them; errors are relative to the prediction.
    """
    spread = fold_predictions[:, fold] * scores
    low, high = fold_predictions[:, fold] - spread, fold_predictions[:, fold] + spread
    n = len(scores)
    rank = min(ceil((n + 1) * coverage - 1e-9), n)
    return np.partition(low, n - rank, axis=1)[:, n - rank], np.partition(high, rank - 1, axis=1)[:, rank - 1]


def _cross_validated(
    counts: np.ndarray, latency_s: np.ndarray, fold: np.ndarray, steps: int = STEPS
) -> tuple[np.ndarray, np.ndarray]:
    """Models without each fold (folds, columns), and relative errors (n,) of each cell under the model without it."""
    models = np.array([fit_additive(counts[fold != f], latency_s[fold != f], steps) for f in range(FOLDS)])
    predicted = np.maximum((counts * models[fold]).sum(1), 1e-2 * np.median(latency_s))
    return models, np.abs(latency_s / predicted - 1)


def ceiling(counts: np.ndarray, latency_s: np.ndarray) -> np.ndarray:
    """(cells,) relative errors of the best that any function of the counts can do: leave-one-out medians.

    Cells of the same counts differ by noise alone as far as such a function can know; each is predicted by the median
    of the others of its group, cells alone in theirs are left out (NaN).
    """
    error = np.full(len(latency_s), np.nan)
    _, group = np.unique(counts, axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(group.ravel()[order])) + 1):
        if len(members) < 2:
            continue
        values = np.sort(latency_s[members])
        rank = np.searchsorted(values, latency_s[members])
        n = len(values) - 1  # the others; their median without sorting again
        lower, upper = (n - 1) // 2, n // 2
        without = [0.5 * (values[lower + (lower >= r)] + values[upper + (upper >= r)]) for r in rank]
        error[members] = np.abs(np.array(without) / latency_s[members] - 1)
    return error


def additive_scores(
    counts: dict[str, np.ndarray], latency_s: dict[str, np.ndarray], draws: int, seed: int
) -> list[dict[str, Any]]:
    """A row for each device and number of training cells; shares and errors are means over draws.

    The account is the one of least cross-validated error of least squares on the training cells alone; the row names
    the commonest, and has the mean of that error by account.
    """
    rows: list[dict[str, Any]] = []
    if draws < 1:
        return rows
    for device, latency in latency_s.items():
        sound = np.flatnonzero(latency > DEGENERATE_SHARE * np.median(latency))
        best = {a: ceiling(c[sound], latency[sound]) for a, c in counts.items()}
        for cells in TRAINING_CELLS:
            found: list[tuple[float, float, float, float]] = []
            accounts: list[str] = []
            compared: list[dict[str, float]] = []
            for draw in range(draws):
                rng = np.random.default_rng([seed, cells, draw])
                drawn = rng.permutation(sound)[: cells + TESTED_CELLS]
                train, test = drawn[:cells], drawn[cells:]
                fold = np.arange(cells) % FOLDS
                rough = {
                    a: float(_cross_validated(c[train], latency[train], fold, steps=1)[1].mean())
                    for a, c in counts.items()
                }
                account = min(rough, key=lambda name: rough[name])
                chosen = counts[account]
                models, scores = _cross_validated(chosen[train], latency[train], fold)
                predicted = chosen[test] @ fit_additive(chosen[train], latency[train])
                low, high = cv_plus(chosen[test] @ models.T, fold, scores, COVERAGE)
                error = np.abs(predicted / latency[test] - 1)
                covered = (low <= latency[test]) & (latency[test] <= high)
                found.append(
                    (error.mean(), (error <= 0.05).mean(), covered.mean(), ((high - low) / predicted).mean() / 2)
                )
                accounts.append(account)
                compared.append(rough)
            account = max(set(accounts), key=accounts.count)
            known = best[account][~np.isnan(best[account])]
            mape, within_5, coverage, width = np.mean(found, axis=0)
            rows.append(
                {
                    "device": device,
                    "cells": cells,
                    "account": account,
                    "mape": float(mape),
                    "mape_sd": float(np.std([f[0] for f in found])),
                    "within_5": float(within_5),
                    "coverage": float(coverage),
                    "coverage_sd": float(np.std([f[2] for f in found])),
                    "width": float(width),
                    "mape_by_account": {a: float(np.mean([c[a] for c in compared])) for a in counts},
                    "ceiling_mape": float(known.mean()),
                    "ceiling_within_5": float((known <= 0.05).mean()),
                }
            )
    return rows
