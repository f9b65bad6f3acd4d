"""How good predictions are: errors, ranks and coverage, beside the noise of the labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy  # whose parts load when they are first used: a command that predicts needs few

POOR_MAPE = 0.25
"""Mean error above which a predictor warns of itself."""


@dataclass(frozen=True)
class Scores:
    """Of predictions against measurements. Rates are fractions.

    `sigma` is the relative noise of the labels: a median of several blocks scatters by σ / √blocks, not by the σ
    between blocks. `floor_mape` is 0.8 of it, what a perfect model would score on such labels. Rank correlations
    are None where all predictions or all measurements are equal, coverage where no interval was there.
    """

    items: int
    mape: float
    within_5: float
    within_10: float
    worst: float
    kendall_tau: float | None
    spearman: float | None
    coverage: float | None
    sigma: float | None
    floor_mape: float | None

    def warnings(self) -> list[str]:
        """What to make of a predictor with these scores where it is no good; nothing else."""
        if self.mape <= POOR_MAPE:
            return []
        why = "too few measurements, or ones unlike each other; decide nothing by it"
        return [f"the predictor's own mean error is {self.mape:.0%}: {why}"]


def scores_of(
    predicted_s: np.ndarray, measured_s: np.ndarray, covered: np.ndarray | None = None, sigma: float | None = None
) -> Scores:
    """Score (items,) predictions against (items,) measurements, both in seconds."""
    error = np.abs(predicted_s / measured_s - 1)
    ranked = len(set(predicted_s)) > 1 and len(set(measured_s)) > 1
    return Scores(
        items=len(error),
        mape=float(error.mean()),
        within_5=float((error <= 0.05).mean()),
        within_10=float((error <= 0.10).mean()),
        worst=float(error.max()),
        kendall_tau=float(scipy.stats.kendalltau(predicted_s, measured_s).statistic) if ranked else None,
        spearman=float(scipy.stats.spearmanr(predicted_s, measured_s).statistic) if ranked else None,
        coverage=float(np.mean(covered)) if covered is not None else None,
        sigma=sigma,
        floor_mape=0.8 * sigma if sigma is not None else None,
    )
