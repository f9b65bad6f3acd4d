"""The comparison of predictors, on the table of a device that adds kernels up and whose law is known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from math import prod
from pathlib import Path

import numpy as np
import pytest
from synthetic_device import header

from akd_deploy.errors import UncoveredOperatorError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, TableRow, write_table
from akd_deploy.measurement import Measurement
from benchmarks.predictor import main
from benchmarks.predictors import CONTENDERS, Contender, Predict, Predicted
from benchmarks.predictors.attribution import attribute_costs
from benchmarks.predictors.features import KERNEL_FEATURES, GraphFeatures, kernel_features, kernel_type, network_macs
from benchmarks.predictors.protocols import (
    FAMILY_OUT,
    ON_OTHER_NETWORKS,
    ON_PROBES,
    PROBES_ONLY,
    UNSEEN_KINDS,
    Line,
    family_of,
    lines_of,
    run_protocol,
)

CALL_S = 4e-6
NAMES = (
    "resnet18", "resnet34", "vgg11", "vgg11_bn", "mobilenet_v1", "mobilenet_v2", "bert_mini", "bert_tiny",
    "regnetx_400mf", "regnety_400mf", "squeezenet1_1", "ghostnet",
)  # fmt: skip
ADDITIVE = ("ours", "table sum", "forest per kernel")
STRANGE = Kernel("Strange", ((1, 8),), ((1, 8),))
SIDES, CHANNELS = (14, 28, 56), (16, 32, 64)


def convolution(channels: int, out_channels: int, side: int, window: int = 3, groups: int = 1) -> Kernel:
    image, output = (1, channels, side, side), (1, out_channels, side, side)
    weight = (out_channels, channels // groups, window, window)
    settings = (("kernel_size", (window, window)), ("strides", (1, 1)), ("groups", groups))
    return Kernel("Conv", (image, weight, (out_channels,)), (output,), attributes=settings)


def elementwise(op: str, channels: int, side: int) -> Kernel:
    image = (1, channels, side, side)
    return Kernel(op, (image, image) if op == "Add" else (image,), (image,))


def kernel_s(kernel: Kernel) -> float:
    """The hidden law: what a multiplication costs depends on the kind of convolution, and traffic counts for all."""
    seconds = {"Conv": 2e-6, "Add": 3e-6, "Sigmoid": 5e-6}.get(kernel.op, 1e-6) + 2e-11 * kernel.traffic_bytes
    if kernel.op == "Conv":
        weight = kernel.inputs[1]
        seconds += (4e-10 if weight[1] == 1 else 1e-11) * prod(kernel.outputs[0]) * prod(weight[1:])
    return seconds


def row(kind: str, family: str, counts: Mapping[Kernel, int], name: str) -> TableRow:
    """Measured in two blocks, one per cent below and above the true latency."""
    seconds = CALL_S + sum(count * kernel_s(kernel) for kernel, count in counts.items())
    measurement = Measurement(name, (0.99 * seconds, 1.01 * seconds), (0, 1))
    return TableRow(kind, family, tuple(sorted(counts.items())), measurement)


def drawn_kernel(rng: np.random.Generator, depthwise: float) -> Kernel:
    """`depthwise` is the share of depthwise among convolutions: networks differ in more than their size."""
    channels, out_channels, side = (int(rng.choice(values)) for values in (CHANNELS, CHANNELS, SIDES))
    if rng.random() < 0.5:
        return elementwise(str(rng.choice(["Add", "Sigmoid"])), channels, side)
    if rng.random() < depthwise:
        return convolution(channels, channels, side, 3, groups=channels)
    return convolution(channels, out_channels, side, int(rng.choice([1, 3])))


def network_counts(rng: np.random.Generator) -> dict[Kernel, int]:
    depthwise, length = float(rng.choice([0.1, 0.9])), int(rng.integers(6, 14))
    return {drawn_kernel(rng, depthwise): int(rng.integers(1, 4)) for _ in range(length)}


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    """Twelve networks of seven families, eight stretches of each, two kernels measured alone."""
    rng = np.random.default_rng(3)
    rows = []
    for name in NAMES:
        counts = network_counts(rng)
        rows.append(row(NETWORK, name, counts, f"network-{name}"))
        kernels = list(counts)
        for i in range(8):
            start = int(rng.integers(0, len(kernels) - 2))
            stretch = {kernel: 1 for kernel in kernels[start : start + int(rng.integers(2, 5))]}
            rows.append(row(PROBE, name, stretch, f"window-{name}-{i}"))
    for i, kernel in enumerate((convolution(16, 16, 7), elementwise("Add", 16, 7))):
        rows.append(row(PROBE, "resnet18", {kernel: 2}, f"alone-{i}"))
    return LatencyTable(header(), tuple(rows))


def quietly(_: str) -> None:
    """Hears of no progress."""


def lines(protocol: str, table: LatencyTable, *contenders: Contender) -> dict[tuple[str, str], Line]:
    found = run_protocol(protocol, table, contenders or CONTENDERS.values(), quietly)
    return {(line.predictor, line.fitted_on): line for line in found}


# Protocols


@pytest.mark.parametrize("protocol", [PROBES_ONLY, FAMILY_OUT])
def test_what_adds_kernels_up_beats_a_line_in_macs_on_a_device_that_adds_them_up(
    protocol: str, table: LatencyTable
) -> None:
    found = lines(protocol, table)
    mape: dict[str, float] = {}
    for line in found.values():
        assert line.scores is not None
        assert line.scores.items == len(NAMES)
        assert line.common_mape == pytest.approx(line.scores.mape)
        assert (line.scores.coverage is not None) == (line.predictor == "ours")
        mape[line.predictor] = min(line.scores.mape, mape.get(line.predictor, np.inf))
    assert set(mape) == set(CONTENDERS)
    assert max(mape[name] for name in ADDITIVE) < 0.75 * mape["affine in MACs"]


def test_an_unknown_operator_is_named_and_its_network_counts_as_missed_and_not_dropped(table: LatencyTable) -> None:
    counts = {**table.of_kind(NETWORK)[0].counts(), STRANGE: 1}
    widened = LatencyTable(table.header, (*table.rows, row(NETWORK, "densenet121", counts, "network-odd")))
    contenders = [CONTENDERS[name] for name in (*ADDITIVE, "affine in MACs")]
    found = lines(PROBES_ONLY, widened, *contenders)
    for name in ADDITIVE:
        line = found[name, ON_PROBES]
        assert line.unpredicted == {"densenet121": "Strange"}
        assert line.scores is not None
        assert (line.scores.items, len(line.networks)) == (len(NAMES), len(NAMES) + 1)
        assert line.within_10 == pytest.approx(line.scores.within_10 * len(NAMES) / (len(NAMES) + 1))
    affine = found["affine in MACs", ON_OTHER_NETWORKS]
    assert affine.unpredicted == {}
    assert affine.common == len(NAMES)


def test_probes_only_shows_no_network_and_families_left_out_are_gone_in_full(table: LatencyTable) -> None:
    seen: list[LatencyTable] = []

    def fit(given: LatencyTable) -> Predict:
        seen.append(given)
        return lambda counts: Predicted(1e-3)

    stub = Contender("stub", fit)
    lines(PROBES_ONLY, table, stub)
    assert [t.rows for t in seen] == [table.of_kind(PROBE)]

    seen.clear()
    lines(FAMILY_OUT, table, stub)
    families = {family_of(r) for r in table.rows}
    left_out = [families - {family_of(r) for r in t.rows} for t in seen]
    assert sorted(map(tuple, left_out)) == sorted((family,) for family in families)
    assert not any(t.of_kind(NETWORK) for t in seen)

    seen.clear()
    lines(FAMILY_OUT, table, replace(stub, calibrated_on_networks=True))
    assert [bool(t.of_kind(NETWORK)) for t in seen] == [False] * len(families) + [True] * len(families)
    assert not any(t.of_kind(NETWORK) and {family_of(r) for r in t.rows} == families for t in seen)

    seen.clear()
    lines(PROBES_ONLY, table, replace(stub, from_networks=True))
    assert len(seen) == 1 + len(NAMES)
    for tested, t in zip(table.of_kind(NETWORK), seen[1:], strict=True):
        assert set(table.rows) - set(t.rows) == {tested}


def test_networks_of_unseen_kinds_are_tested_by_themselves_and_nothing_is_fitted_on_them(table: LatencyTable) -> None:
    strange = row(NETWORK, "lenet5", {elementwise("Add", 16, 7): 3}, "network-lenet5")
    widened = LatencyTable(table.header, (*table.rows, strange))
    seen: list[LatencyTable] = []

    def fit(given: LatencyTable) -> Predict:
        seen.append(given)
        return lambda counts: Predicted(1e-3)

    stub = Contender("stub", fit)
    for protocol, whole in ((UNSEEN_KINDS, ("lenet5",)), (PROBES_ONLY, NAMES), (FAMILY_OUT, NAMES)):
        for contender in (stub, replace(stub, from_networks=True), replace(stub, calibrated_on_networks=True)):
            for line in lines(protocol, widened, contender).values():
                assert line.networks == whole
    assert not any(strange in t.rows for t in seen)
    seen.clear()
    (line,) = lines(UNSEEN_KINDS, widened, replace(stub, from_networks=True)).values()
    assert [len(t.of_kind(NETWORK)) for t in seen] == [len(NAMES)]
    seen.clear()
    (line,) = lines(UNSEEN_KINDS, widened, stub).values()
    assert line.fitted_on == ON_PROBES
    assert [t.rows for t in seen] == [table.of_kind(PROBE)]


def test_each_network_is_predicted_by_the_fit_that_left_it_out(table: LatencyTable) -> None:
    """A predictor that says how much it was fitted on tells the fits apart."""
    stub = Contender("stub", lambda given: lambda counts: Predicted(float(len(given.rows))))
    (line,) = lines(FAMILY_OUT, table, stub).values()
    for tested, answer in zip(table.of_kind(NETWORK), line.answers, strict=True):
        kept = [r for r in table.of_kind(PROBE) if family_of(r) != family_of(tested)]
        assert isinstance(answer, Predicted)
        assert answer.latency_s == len(kept)


def test_families_are_those_of_the_published_networks_and_spaces_are_one_each() -> None:
    counts = {elementwise("Add", 16, 7): 1}
    families = ("wide_resnet50_2", "mobile-network", "mobile-conv+pool", "my-own", "my_own")
    rows = [row(PROBE, family, counts, family) for family in families]
    assert [family_of(r) for r in rows] == ["resnet", "mobile", "mobile", "my-own", "my_own"]


def test_a_refused_fit_is_told_for_every_network(table: LatencyTable) -> None:
    few = LatencyTable(table.header, (*table.of_kind(PROBE)[:2], *table.of_kind(NETWORK)))
    for line in lines(PROBES_ONLY, few, CONTENDERS["table sum"], CONTENDERS["ours"]).values():
        assert line.scores is None
        assert (line.within_5, line.within_10, line.over_floor, line.common) == (0.0, 0.0, None, 0)
        assert set(line.unpredicted) == set(NAMES)
        assert line.predictor == "ours" or set(line.unpredicted.values()) == {"2 probes"}


# Scores


def known_rows() -> list[TableRow]:
    """Four networks of 1 ms; two blocks each at ±2 %, ±1 %, ±3 %, and one block of which no noise is known."""
    result = []
    for name, half in zip(NAMES, (0.02, 0.01, 0.03, None), strict=False):
        shares = (1.0,) if half is None else (1 - half, 1 + half)
        samples = tuple(1e-3 * share for share in shares)
        counts = ((elementwise("Add", 16, 7), 1),)
        result.append(TableRow(NETWORK, name, counts, Measurement(name, samples, tuple(range(len(samples))))))
    return result


def test_noise_floor_and_coverage_are_those_worked_out_by_hand() -> None:
    unknown = UncoveredOperatorError(["Strange"], asked="a prediction", next="Profile it.")
    answers = [
        Predicted(1.04e-3, (0.99e-3, 1.1e-3)),
        Predicted(0.98e-3, (0.97e-3, 0.99e-3)),
        unknown,
        Predicted(1.08e-3, (1.0e-3, 1.2e-3)),
    ]
    (line,) = lines_of(known_rows(), [("stub", ON_PROBES, answers)])
    scores = line.scores
    assert scores is not None
    # Two blocks at 1 ± h have a standard deviation of √2 h, and their median scatters by 1/√2 of it: h.
    # The third network is not predicted and the fourth's noise is not known: the median of 2 % and 1 %.
    assert scores.sigma == pytest.approx(0.015)
    assert scores.mape == pytest.approx((0.04 + 0.02 + 0.08) / 3)
    assert line.over_floor == pytest.approx(scores.mape / (0.8 * 0.015))
    assert scores.coverage == pytest.approx(2 / 3)
    assert (line.within_5, line.within_10) == (pytest.approx(2 / 4), pytest.approx(3 / 4))
    assert scores.worst == pytest.approx(0.08)
    assert line.unpredicted == {NAMES[2]: "Strange"}


def test_common_errors_are_of_networks_that_every_line_predicts() -> None:
    unknown = UncoveredOperatorError(["Strange"], asked="a prediction", next="Profile it.")
    first = [Predicted(1.1e-3), Predicted(1.2e-3), Predicted(1.3e-3), unknown]
    second = [unknown, Predicted(1.0e-3), Predicted(1.1e-3), Predicted(1.5e-3)]
    one, two = lines_of(known_rows(), [("one", ON_PROBES, first), ("two", ON_PROBES, second)])
    assert (one.common, two.common) == (2, 2)
    assert one.common_mape == pytest.approx(0.25)
    assert two.common_mape == pytest.approx(0.05)


# Baselines


def test_kernel_features_are_those_of_a_convolution_worked_out_by_hand() -> None:
    features = dict(zip(KERNEL_FEATURES, kernel_features(convolution(16, 32, 14)), strict=True))
    assert features == {
        "size": 14, "in_channels": 16, "out_channels": 32, "window": 3, "stride": 1, "groups": 1,
        "macs": 32 * 14 * 14 * 16 * 9, "parameters": 32 * 16 * 9 + 32, "in_elements": 16 * 14 * 14,
        "out_elements": 32 * 14 * 14,
    }  # fmt: skip
    depthwise = convolution(16, 16, 14, groups=16)
    assert kernel_type(depthwise) == "Conv/depthwise"
    assert kernel_type(convolution(16, 16, 14, groups=4)) == kernel_type(convolution(1, 8, 14)) == "Conv"
    assert network_macs({depthwise: 3}) == 3 * 16 * 14 * 14 * 9


def test_graph_features_add_up_and_count_unknown_types_in_the_totals_alone() -> None:
    add, odd = elementwise("Add", 16, 7), STRANGE
    features = GraphFeatures.fitted([{add: 1}])
    both, alone = np.expm1(features.of({add: 2, odd: 1})), np.expm1(features.of({add: 2}))
    np.testing.assert_allclose(alone, [2, 0, 2 * add.traffic_bytes, 1, 2, 0, 2 * add.traffic_bytes])
    np.testing.assert_allclose(both - alone, [1, 0, odd.traffic_bytes, 1, 0, 0, 0], atol=1e-9)


def test_attributed_costs_add_up_to_the_rows_and_kernels_alone_are_read_off(table: LatencyTable) -> None:
    probes = table.of_kind(PROBE)
    attributed = attribute_costs(probes)
    assert attributed.overhead_s == pytest.approx(CALL_S, rel=0.5)
    for probe in probes:
        total = attributed.overhead_s + sum(n * attributed.costs_s[kernel] for kernel, n in probe.kernels)
        assert total == pytest.approx(probe.measurement.median_s, rel=0.1)
    alone = [probe for probe in probes if len(probe.kernels) == 1]
    assert alone
    for probe in alone:
        ((kernel, count),) = probe.kernels
        assert count * attributed.costs_s[kernel] == pytest.approx(probe.measurement.median_s - attributed.overhead_s)


def with_kernel(table: LatencyTable, kernel: Kernel, seconds: float, *, alone: bool) -> LatencyTable:
    """Six more probes of `kernel`, each beside another one unless it is `alone`."""
    others = [k for k, _ in table.of_kind(NETWORK)[0].kernels][:6]
    rows = []
    for i, other in enumerate(others):
        counts = {kernel: 1} if alone else {kernel: 1, other: 1}
        total = CALL_S + seconds + (0.0 if alone else kernel_s(other))
        rows.append(TableRow(PROBE, "more", tuple(sorted(counts.items())), Measurement(f"{alone}-{i}", (total,), (0,))))
    return LatencyTable(table.header, (*table.rows, *rows))


def test_a_kernel_that_costs_more_than_its_type_is_told_by_its_sums_and_best_by_itself(table: LatencyTable) -> None:
    kernel = replace(elementwise("Sigmoid", 64, 28), attributes=(("activation", "slow"),))
    twice = 2 * kernel_s(kernel)
    inferred = attribute_costs(with_kernel(table, kernel, twice, alone=False).of_kind(PROBE)).costs_s[kernel]
    assert inferred == pytest.approx(twice, rel=0.15)
    both = with_kernel(with_kernel(table, kernel, twice, alone=False), kernel, 3 * twice, alone=True)
    attributed = attribute_costs(both.of_kind(PROBE))
    assert attributed.costs_s[kernel] == pytest.approx(CALL_S + 3 * twice - attributed.overhead_s)


def test_a_table_sum_tells_kernels_apart_that_have_the_same_features(table: LatencyTable) -> None:
    plain = elementwise("Sigmoid", 64, 28)
    slow = replace(plain, attributes=(("activation", "slow"),))
    assert kernel_features(plain) == kernel_features(slow)
    widened = with_kernel(
        with_kernel(table, slow, 2 * kernel_s(plain), alone=False), plain, kernel_s(plain), alone=True
    )
    predict = CONTENDERS["table sum"].fit(LatencyTable(widened.header, widened.of_kind(PROBE)))
    assert predict({slow: 1}).latency_s - predict({plain: 1}).latency_s == pytest.approx(kernel_s(plain), rel=0.2)


def test_a_table_sum_takes_the_nearest_of_its_type_for_what_is_missing(table: LatencyTable) -> None:
    probes = LatencyTable(table.header, table.of_kind(PROBE))
    known = {kernel for probe in probes.rows for kernel, _ in probe.kernels if kernel.op == "Sigmoid"}
    predict = CONTENDERS["table sum"].fit(probes)
    missing = Kernel("Sigmoid", ((1, 64, 57, 57),), ((1, 64, 57, 57),))
    near = elementwise("Sigmoid", 64, 56)
    assert near in known
    assert predict({missing: 2}).latency_s == pytest.approx(predict({near: 2}).latency_s)
    with pytest.raises(UncoveredOperatorError, match="Strange"):
        predict({STRANGE: 1})


def test_networks_give_additive_baselines_their_median_factor(table: LatencyTable) -> None:
    """All networks made 1.5 times as slow: sums of probes follow."""
    slower = [
        replace(r, measurement=replace(r.measurement, samples_s=tuple(1.5 * s for s in r.measurement.samples_s)))
        for r in table.of_kind(NETWORK)
    ]
    counts = slower[0].counts()
    for name in ("table sum", "forest per kernel"):
        fit = CONTENDERS[name].fit
        plain = fit(table)(counts).latency_s
        assert fit(LatencyTable(table.header, (*table.of_kind(PROBE), *slower)))(counts).latency_s == pytest.approx(
            1.5 * plain
        )


def test_a_line_in_macs_is_found_where_there_is_one() -> None:
    rows = []
    for i, side in enumerate(SIDES):
        kernel = convolution(16, 16, side)
        seconds = 1e-5 + 2e-11 * network_macs({kernel: 1})
        rows.append(TableRow(NETWORK, NAMES[i], ((kernel, 1),), Measurement(NAMES[i], (seconds,), (0,))))
    predict = CONTENDERS["affine in MACs"].fit(LatencyTable(header(), tuple(rows)))
    asked = {convolution(64, 64, 28): 3, convolution(16, 64, 28): 1, convolution(64, 16, 28): 1}
    assert predict(asked).latency_s == pytest.approx(1e-5 + 2e-11 * network_macs(asked))
    probes = [row(PROBE, "resnet18", {asked_kernel: 1}, f"window-{i}") for i, asked_kernel in enumerate(asked)]
    for name in ("affine in MACs", "boosted graph features"):
        fit = CONTENDERS[name].fit
        beside = fit(LatencyTable(header(), (*rows, *probes)))
        assert beside(asked) == fit(LatencyTable(header(), tuple(rows)))(asked), "probes are left aside"
    with pytest.raises(UsageError, match="2 rows"):
        CONTENDERS["affine in MACs"].fit(LatencyTable(header(), tuple(rows[:2])))


# The command


def test_the_command_prints_and_writes_a_table_for_each_protocol(
    table: LatencyTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    counts = {**table.of_kind(NETWORK)[0].counts(), STRANGE: 1}
    widened = LatencyTable(table.header, (*table.rows, row(NETWORK, "densenet121", counts, "network-odd")))
    write_table(widened, tmp_path / "table")
    only = ["--only", "table sum", "affine in MACs"]
    files = ["--json", str(tmp_path / "r.json"), "--markdown", str(tmp_path / "r.md")]
    assert main([str(tmp_path / "table"), *only, *files]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "r.md").read_text() == printed
    for text in (PROBES_ONLY, FAMILY_OUT, "12 of 13", "densenet121: Strange", "MAPE / 0.8 σ", "affine in MACs"):
        assert text in printed
    (result,) = json.loads((tmp_path / "r.json").read_text())
    assert result["digest"] == widened.digest()
    assert list(result["protocols"]) == [FAMILY_OUT, PROBES_ONLY]
    for found in result["protocols"].values():
        for line in found:
            assert len(line["predictions"]) + len(line["unpredicted"]) == line["networks"] == len(NAMES) + 1
            errors = [abs(p["predicted_s"] / p["measured_s"] - 1) for p in line["predictions"]]
            assert line["scores"]["mape"] == pytest.approx(np.mean(errors))


def test_the_command_refuses_what_is_no_table_and_a_table_without_networks(
    table: LatencyTable, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "nothing")]) == 2
    assert "no header.json" in capsys.readouterr().err
    write_table(LatencyTable(table.header, table.of_kind(PROBE)), tmp_path / "probes")
    assert main([str(tmp_path / "probes"), "--protocol", "probes"]) == 2
    assert "no whole network" in capsys.readouterr().err
