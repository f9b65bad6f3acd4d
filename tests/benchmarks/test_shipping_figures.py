"""The table of promises: what keeps one, what breaks it, and that the figures are counted."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from akd_deploy.errors import MissingRuntimeError
from benchmarks import fuzz, shipping, shipping_figures, simulations

BLOCK = {"target": "t", "network": "n", "seconds": 6.0, "why_not": None}
SIMULATED = {
    "runs": 2_000,
    "false_alarms": [{"paired": True, "blocks": 10, "runs": 20_000, "rate": 0.05, "upper_95": 0.0525}],
    "slow_downs_of_3_percent": [{"paired": True, "sigma": 0.02, "blocks": 10, "power": 0.96}],
    "coverage_of_95_percent_bounds": [{"percentile": 90, "between": 0.01, "coverage": 0.95, "excess": 0.01}],
}
FUZZED = {"mutations": 10_000, "accepted": 0, "crashed": 0}
LINTED = {
    "bad": {"networks": 30, "found": 30},
    "second": {"networks": 2, "found": 2},
    "clean": {"networks": 10, "findings": 0},
    "resnet50_cpu_s": 1.0,
}


def rows(simulated=SIMULATED, fuzzed=FUZZED, linted=LINTED):
    return [
        *shipping_figures.bench_rows(simulated, BLOCK),
        *shipping_figures.fuzz_rows(fuzzed),
        *shipping_figures.lint_rows(linted),
    ]


def test_promises_are_kept_at_their_limits():
    assert len(rows()) == 9
    assert all(row.ok for row in rows())


@pytest.mark.parametrize(
    ("place", "value", "broken"),
    [
        (("simulated", "runs"), 1_999, 3),  # too few runs show nothing
        (("simulated", "false_alarms", 0, "upper_95"), 0.061, 1),
        (("simulated", "slow_downs_of_3_percent", 0, "power"), 0.949, 1),
        (("simulated", "coverage_of_95_percent_bounds", 0, "coverage"), 0.939, 1),
        (("fuzzed", "mutations"), 9_999, 2),
        (("fuzzed", "accepted"), 1, 1),
        (("fuzzed", "crashed"), 1, 1),
        (("linted", "bad", "found"), 29, 1),
        (("linted", "bad", "networks"), 31, 1),
        (("linted", "second", "found"), 1, 1),
        (("linted", "clean", "findings"), 1, 1),
        (("linted", "clean", "networks"), 9, 1),
        (("linted", "resnet50_cpu_s"), 5.0, 1),
    ],
)
def test_each_figure_can_break_its_promise(place, value, broken):
    given = copy.deepcopy({"simulated": SIMULATED, "fuzzed": FUZZED, "linted": LINTED})
    inside = given
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = value
    assert [row.ok for row in rows(**given)].count(False) == broken


def test_the_cost_of_finding_a_slow_down_is_its_blocks_times_what_one_took():
    (row,) = [row for row in rows() if row.promise.startswith("a slow-down")]
    assert "10 blocks in turn, 1.0 min" in row.promise
    untimed = shipping_figures.bench_rows(SIMULATED, BLOCK | {"seconds": None})
    assert not any("min" in row.promise for row in untimed)


def test_mutations_of_every_kind_are_counted_and_all_are_found():
    found = fuzz.figures(52)
    assert (found["mutations"], found["accepted"], found["crashed"]) == (52, 0, 0)
    assert sum(found["kinds"].values()) == 52
    assert len(found["kinds"]) == 13


def test_a_mutation_that_passes_and_one_that_crashes_are_counted(monkeypatch):
    verify, calls = fuzz.verify_bundle, iter(range(1_000))

    def careless(path: Path, **proof):
        call = next(calls)
        if call == 2:
            raise KeyError("version")
        return SimpleNamespace(ok=True, authentic=False) if call == 3 else verify(path, **proof)

    monkeypatch.setattr(fuzz, "verify_bundle", careless)
    found = fuzz.figures(24)
    assert (found["accepted"], found["crashed"]) == (1, 1)
    assert "number 4" in found["first"][0]
    assert "number 3: KeyError: 'version'" in found["first"][1]


def test_a_verifier_that_refuses_everything_shows_nothing(monkeypatch):
    monkeypatch.setattr(fuzz, "verify_bundle", lambda path, **proof: SimpleNamespace(ok=False, authentic=False))
    with pytest.raises(AssertionError, match="untouched"):
        fuzz.figures(4)


@pytest.mark.parametrize("accepted", [0, 1])
def test_the_command_writes_one_record_and_one_table_and_says_whether_all_is_kept(
    tmp_path, monkeypatch, capsys, accepted
):
    monkeypatch.setattr(simulations, "figures", lambda runs: SIMULATED | {"runs": runs})
    monkeypatch.setattr(fuzz, "figures", lambda mutations: FUZZED | {"mutations": mutations, "accepted": accepted})
    monkeypatch.setattr(shipping_figures, "lint_figures", lambda: LINTED)
    monkeypatch.setattr(shipping_figures, "block_cost", lambda: BLOCK)
    assert shipping.main(["figures", str(tmp_path / "f.json")]) == 3 * accepted
    record = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    table = (tmp_path / "f.md").read_text(encoding="utf-8")
    assert record["ok"] == (accepted == 0)
    assert (record["simulations"]["runs"], record["fuzz"]["mutations"]) == (2_000, 10_000)
    assert table == capsys.readouterr().out
    assert table.count("| kept |") == len(record["rows"]) - accepted
    assert ("**NOT kept**" in table) == bool(accepted)


def test_a_block_that_cannot_be_measured_here_has_a_reason_and_no_cost(monkeypatch):
    def refuse(*_args):
        raise MissingRuntimeError(asked="a", found="no runtime", next="b")

    monkeypatch.setattr(shipping_figures, "measure_blocks", refuse)
    cost = shipping_figures.block_cost()
    assert (cost["seconds"], cost["why_not"]) == (None, "no runtime")
    table = shipping_figures.markdown({"rows": [], "block": cost, "device": {}, "date": "d", "seconds": 1.0})
    assert "no block was timed: no runtime" in table


@pytest.mark.slow
def test_lints_figures_are_counted_in_its_corpus():
    pytest.importorskip("onnxruntime")
    found = shipping_figures.lint_figures()
    assert found["bad"] == {"networks": found["bad"]["networks"], "found": found["bad"]["networks"], "missed": []}
    assert found["clean"]["networks"] >= 10
    assert all(row.ok for row in shipping_figures.lint_rows(found))
