"""The offline benchmark of search strategies: on a table made here, and on the published one where it is at hand."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np
import pytest

from akd_deploy.search.strategies import STRATEGIES
from benchmarks.controllers import DEPTHS, Bench, Known, main, read_table

DATA = "AKD_BENCHMARK_DATA"
"""The variable that names a folder of other people's measurements."""


def made() -> dict[tuple[int, ...], Known]:
    """The deeper the later stages, the better under a teacher; under labels the earlier ones."""
    found = {}
    for depths in itertools.product(DEPTHS, repeat=3):
        kd = 0.6 + 0.02 * float(np.dot(np.log(depths), (1, 2, 4)))
        ce = 0.6 + 0.02 * float(np.dot(np.log(depths), (4, 2, 1)))
        found[depths] = Known(kd, ce, 10.0 + 4 * sum(depths))
    return found


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_searches_it_and_regret_falls_with_evaluations(strategy: str) -> None:
    bench = Bench(made())
    few, many = (bench.regret(strategy, "kd", 60.0, trials, 5).points.mean() for trials in (2, 14))
    assert 0 <= many <= few
    assert many < 2.0


def test_a_reward_of_labels_leads_elsewhere() -> None:
    bench = Bench(made())
    kd, ce = (bench.regret("constrained_evolution", by, 50.0, 40, 8).points.mean() for by in ("kd", "ce"))
    assert kd < 0.2 < ce


def test_the_published_table_is_read_and_searched(capsys: pytest.CaptureFixture[str]) -> None:
    published = Path(os.environ.get(DATA, "")) / "diswot_s0_cifar100_kd_vs_ce.csv"
    if not published.is_file():
        pytest.skip(f"{published.name} is not in this repository; {DATA} may name a folder that has it")
    known = read_table(published)
    assert len(known) == 64
    assert known[1, 1, 1] == Known(0.6187, 0.602, 12.507)
    main(str(published), seeds="2")
    printed = capsys.readouterr().out
    assert printed.startswith("64 networks")
    assert all(printed.count(f"  {strategy} ") == 6 for strategy in STRATEGIES)
