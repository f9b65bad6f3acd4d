"""The ceilings against a simulation of the noise they describe."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from akd_deploy.report.noise_floor import kendall_ceiling, spearman_ceiling, within_ceiling


@pytest.mark.parametrize("sigma", [0.02, 0.15, 0.6])
def test_ceilings_are_the_average_over_noisy_labels(sigma):
    rng = np.random.default_rng(3)
    true_s = rng.permutation(np.geomspace(1e-4, 3e-4, 9))
    labels = true_s * np.exp(sigma * rng.standard_normal((3000, 9)))
    i, j = np.triu_indices(9, 1)
    tau = (np.sign(labels[:, i] - labels[:, j]) * np.sign(true_s[i] - true_s[j])).mean(1)
    moved = labels.argsort(1).argsort(1) - true_s.argsort().argsort()
    rho = 1 - 6 * (moved**2).sum(1) / (9 * (9**2 - 1))
    for label, own_tau, own_rho in zip(labels[:20], tau, rho, strict=False):  # these are what they are called
        assert own_tau == pytest.approx(stats.kendalltau(true_s, label).statistic)
        assert own_rho == pytest.approx(stats.spearmanr(true_s, label).statistic)
    assert kendall_ceiling(true_s, sigma) == pytest.approx(tau.mean(), abs=0.015)
    assert spearman_ceiling(true_s, sigma) == pytest.approx(rho.mean(), abs=0.015)


def test_two_networks_by_hand():
    # ln 2 apart, σ = ln 2 / √2: their labels differ by one standard deviation, Φ(1) = 0.841345 in order
    pair_s = np.array([1e-3, 2e-3])
    assert kendall_ceiling(pair_s, np.log(2) / np.sqrt(2)) == pytest.approx(2 * 0.841345 - 1, abs=1e-5)
    assert spearman_ceiling(pair_s, np.log(2) / np.sqrt(2)) == pytest.approx(2 * 0.841345 - 1, abs=1e-5)


def test_without_noise_a_perfect_predictor_is_perfect():
    true_s = np.array([3e-3, 1e-3, 2e-3])
    assert kendall_ceiling(true_s, 0.0) == 1
    assert spearman_ceiling(true_s, 0.0) == pytest.approx(1)
    assert within_ceiling(0.05, 0.0) == 1


def test_within_ceiling_is_the_normal_probability():
    assert within_ceiling(0.05, 0.05) == pytest.approx(0.6826895)
