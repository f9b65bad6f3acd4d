"""The simulations' own report; what they show is asserted where the statistics are tested."""

from __future__ import annotations

import json

from benchmarks import simulations


def test_every_table_is_printed_and_a_seed_gives_the_same_figures(capsys, monkeypatch):
    monkeypatch.setattr(simulations, "detections", lambda s, e, paired, runs, rng: simulations.Comparisons(
        s, e, paired, 6, 1.0, 1.0
    ))  # fmt: skip
    simulations.main(["--runs", "3", "--json"])
    tables = json.loads(capsys.readouterr().out)
    assert tables.pop("runs") == 3
    assert {len(rows) for rows in tables.values() if isinstance(rows, list)} == {6, 10, 20}
    simulations.main(["--runs", "3", "--json"])
    assert json.loads(capsys.readouterr().out) == {"runs": 3, **tables}
    simulations.main(["--runs", "3"])
    shown = capsys.readouterr().out
    assert all(title in shown for title in tables if title != "seed")
