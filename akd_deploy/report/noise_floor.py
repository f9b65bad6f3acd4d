"""What a perfect predictor would score on labels this noisy: the ceiling to read every score against.

Labels are measured = true × exp(σ z), z standard normal and independent. All results are expectations in closed form.
"""

from __future__ import annotations

from math import erf, sqrt

import numpy as np

_ERF = np.vectorize(erf, otypes=[float])


def within_ceiling(tolerance: float, sigma: float) -> float:
    """Share of labels within ±`tolerance` of the truth: erf(tolerance / (σ√2))."""
    return erf(tolerance / (sigma * sqrt(2))) if sigma > 0 else 1.0


def _probability_greater(latency_s: np.ndarray, sigma: float) -> np.ndarray:
    """(n, n): probability that the label of i comes out above the label of j."""
    logarithm = np.log(latency_s)
    difference = logarithm[:, None] - logarithm[None, :]
    if sigma == 0:
        return (np.sign(difference) + 1) / 2
    # the difference of two labels' noise has standard deviation σ√2, and Φ(x) = (1 + erf(x/√2)) / 2
    return (1 + _ERF(difference / (2 * sigma))) / 2


def kendall_ceiling(latency_s: np.ndarray, sigma: float) -> float:
    """Expected Kendall τ between (n,) true latencies, n > 1, and their noisy labels.

    A pair in its true order counts +1, a swapped one −1; so τ is the mean of 2 P(in order) − 1.
    """
    i, j = np.triu_indices(len(latency_s), k=1)
    p = _probability_greater(latency_s, sigma)[i, j]
    return float(np.mean(np.abs(2 * p - 1)))


def spearman_ceiling(latency_s: np.ndarray, sigma: float) -> float:
    """Expected Spearman ρ between (n,) distinct true latencies, n > 1, and their noisy labels.

    ρ is linear in the labels' ranks, and the expected rank of i is 1 + Σ_{j≠i} P(label i > label j).
    """
    greater = _probability_greater(latency_s, sigma)
    np.fill_diagonal(greater, 0.0)
    expected_rank = 1 + greater.sum(axis=1)
    true_rank = np.argsort(np.argsort(latency_s)) + 1.0
    centred = true_rank - true_rank.mean()
    return float(centred @ (expected_rank - expected_rank.mean()) / (centred @ centred))
