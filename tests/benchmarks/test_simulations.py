"""The simulations' own report; what they show is asserted where the statistics are tested."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import stats

from benchmarks import simulations


def test_every_table_is_printed_and_a_seed_gives_the_same_figures(capsys, monkeypatch):
    monkeypatch.setattr(simulations, "detections", lambda s, e, paired, runs, rng: simulations.Comparisons(
        s, e, paired, 6, 1.0, 1.0
    ))  # fmt: skip
    simulations.main(["--runs", "3", "--json"])
    tables = json.loads(capsys.readouterr().out)
    assert tables.pop("runs") == 3
    assert {len(rows) for rows in tables.values() if isinstance(rows, list)} == {6, 10, 12, 20}
    simulations.main(["--runs", "3", "--json"])
    assert json.loads(capsys.readouterr().out) == {"runs": 3, **tables}
    simulations.main(["--runs", "3"])
    shown = capsys.readouterr().out
    assert all(title in shown for title in tables if title != "seed")


def test_a_second_speed_is_certified_away_and_its_bound_holds():
    """What is said of it in the documents: no test of ten processes can know of a share of 15 %."""
    rng = np.random.default_rng(0)
    found = simulations.two_speeds(0.15, 10, 400, rng)
    assert 0.12 < found.false < 0.28
    assert found.bounded >= 0.98
    assert simulations.two_speeds(0.0, 10, 100, rng).false <= 0.02


def test_figures_are_of_as_many_runs_as_they_say(monkeypatch):
    """Each simulation is given a result: what comes out is that, of the runs that were asked for."""
    asked = []

    def alarms(paired, blocks, runs, rng):
        asked.append(runs)
        return simulations.Comparisons(0.02, 0.0, paired, blocks, 0.05, 0.025)

    def detections(sigma, effect, paired, runs, rng):
        asked.append(runs)
        return simulations.Comparisons(sigma, effect, paired, 12, 1.0, 0.96)

    monkeypatch.setattr(simulations, "false_alarms", alarms)
    monkeypatch.setattr(simulations, "detections", detections)
    monkeypatch.setattr(
        simulations, "bound_coverage", lambda s, p, runs, rng: simulations.Coverage(s, p, 0.5, 0.97, runs / 1e5)
    )
    found = simulations.figures(2_000)
    assert set(asked) == {2_000, 20_000}
    alarm, slow = found["false_alarms"][0], found["slow_downs_of_3_percent"][0]
    assert (alarm["rate"], alarm["runs"]) == (0.05, 20_000)
    assert alarm["upper_95"] == pytest.approx(stats.beta.ppf(0.95, 1_001, 19_000))
    assert (slow["power"], slow["blocks"]) == (0.96, 12)
    assert {c["coverage"] for c in found["coverage_of_95_percent_bounds"]} == {0.97}
    assert {c["excess"] for c in found["coverage_of_95_percent_bounds"]} == {0.02}
