"""What a certificate asks over the latency at full speed: enough that most of those played through hold."""

from __future__ import annotations

import numpy as np
import pytest

from akd_deploy.certificate import certify
from akd_deploy.latency_table import NETWORK, TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.predictor.tails import CERTIFIED, certificate_factor

CERTIFICATE = (90, 0.99, 20, 50)
"""Percentile, confidence, blocks, samples of each."""


def block(rng: np.random.Generator, slow: float) -> np.ndarray:
    """Relative samples of one process: a little noise, and now and then the machine is slow throughout."""
    return (1.8 if rng.random() < slow else 1.0) * np.exp(rng.normal(0, 0.01, 50))


def rows(slow: float, blocks: int = 5) -> list[TableRow]:
    """Forty networks of different latencies, each measured in so many processes."""
    rng = np.random.default_rng(1)
    found = []
    for i in range(40):
        samples = 1e-5 * (i + 1) * np.concatenate([block(rng, slow) for _ in range(blocks)])
        ids = np.repeat(np.arange(blocks), 50)
        name = f"n{i}"
        measurement = Measurement(name, tuple(samples.tolist()), tuple(ids.tolist()))
        found.append(TableRow(NETWORK, name, (), measurement))
    return found


def factor(slow: float) -> float:
    found = certificate_factor(rows(slow), *CERTIFICATE, np.random.default_rng(0))
    assert found is not None
    return found


def test_where_processes_are_alike_a_certificate_asks_little_more_than_the_percentile() -> None:
    assert np.exp(1.28 * 0.01) < factor(0.0) < 1.04


def test_where_some_processes_are_slow_it_asks_for_more_than_they_take() -> None:
    assert 1.8 < factor(0.3) < 4


@pytest.mark.parametrize("slow", [0.0, 0.3])
def test_of_students_at_their_bound_as_many_are_certified_as_was_promised(slow: float) -> None:
    budget, rng = factor(slow), np.random.default_rng(2)
    percentile, confidence, blocks, _ = CERTIFICATE
    held = [
        certify({i: block(rng, slow) for i in range(blocks)}, budget, percentile, confidence).ok for _ in range(200)
    ]
    assert np.mean(held) == pytest.approx(CERTIFIED, abs=0.15)


def test_it_is_the_same_every_time_and_unknown_where_rows_are_single_numbers() -> None:
    assert factor(0.3) == factor(0.3)
    row = rows(0.0)[0]
    single = TableRow(NETWORK, row.family, (), Measurement(row.name, (1e-3,), (0,)))
    assert certificate_factor([single] * 20, *CERTIFICATE, np.random.default_rng(0)) is None
