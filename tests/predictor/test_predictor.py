"""What the predictor promises, on a device whose every latency is known."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from synthetic_device import SyntheticDevice, executed_by, row_of, table_of

from akd_deploy.errors import CorruptFileError, UncoveredOperatorError, UsageError
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable, TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.predictor import cache
from akd_deploy.predictor.cache import predictor_of, read_predictor, save_predictor
from akd_deploy.predictor.conformal import CalibrationPoint
from akd_deploy.predictor.fitting import _probe_width, calibration_points, fit_predictor
from akd_deploy.predictor.predictor import Prediction, Predictor
from akd_deploy.predictor.scores import scores_of
from akd_deploy.predictor.tails import tail_factors
from akd_deploy.profiling.probes import Probe, space_networks
from akd_deploy.search_space import load_space

SPACE = load_space("mobile")
DEVICE = SyntheticDevice()


@pytest.fixture(scope="module")
def table() -> LatencyTable:
    return table_of(DEVICE, SPACE, probes=180, networks=40, seed=0)


@pytest.fixture(scope="module")
def predictor(table: LatencyTable) -> Predictor:
    return fit_predictor(table)


@pytest.fixture(scope="module")
def unseen() -> list[Probe]:
    return space_networks(SPACE, 60, np.random.default_rng(99))


def true_s(networks: Sequence[Probe], device: SyntheticDevice = DEVICE) -> np.ndarray:
    return np.array([device.seconds(Counter(e.kernel for e in executed_by(n.layers))) for n in networks])


def predictions(predictor: Predictor, networks: Sequence[Probe]) -> list[Prediction]:
    return [predictor.predict(executed_by(network.layers)) for network in networks]


# --- accuracy ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_networks_never_measured_are_predicted_within_little_more_than_the_noise(
    seed: int, unseen: list[Probe]
) -> None:
    fitted = fit_predictor(table_of(DEVICE, SPACE, probes=180, networks=40, seed=seed, noise=0.01))
    predicted = np.array([p.latency_s for p in predictions(fitted, unseen)])
    scores = scores_of(predicted, true_s(unseen))
    # Seen over six seeds: MAPE 0.45–0.67 %, worst 2.7 %, τ ≥ 0.979.
    assert scores.mape < 0.012
    assert scores.within_5 >= 0.95
    assert scores.within_10 == 1.0
    assert scores.kendall_tau is not None
    assert scores.kendall_tau > 0.96


def test_the_law_is_found_on_another_device_and_a_larger_space() -> None:
    device = SyntheticDevice(call_s=2e-5, dense_mac_s=5e-12, depthwise_mac_s=6e-11, byte_s=9e-11, stride_penalty=0.5)
    space = load_space(
        "mobile", {"resolution": 64, "in_channels": 3, "stem_stride": 2, "widths": [16, 32, 64], "strides": [1, 2, 2]}
    )
    fitted = fit_predictor(table_of(device, space, probes=180, networks=40, seed=3))
    networks = space_networks(space, 60, np.random.default_rng(98))
    scores = scores_of(np.array([p.latency_s for p in predictions(fitted, networks)]), true_s(networks, device))
    assert scores.mape < 0.015
    assert scores.within_10 >= 0.98


def test_scores_told_are_those_an_outsider_finds(predictor: Predictor, unseen: list[Probe]) -> None:
    predicted = np.array([p.latency_s for p in predictions(predictor, unseen)])
    outsider = scores_of(predicted, true_s(unseen))
    assert predictor.scores.items == 40
    assert predictor.left_out == 0
    # The table's own labels carry noise of about a half per cent besides.
    assert predictor.scores.mape == pytest.approx(outsider.mape, abs=0.008)
    assert predictor.calibrated_on == "networks"


def test_kernels_slower_inside_networks_move_the_factor_and_not_the_probes() -> None:
    fitted = fit_predictor(table_of(DEVICE, SPACE, probes=100, networks=30, seed=4, slowdown=1.15))
    plain = fit_predictor(table_of(DEVICE, SPACE, probes=100, networks=30, seed=4))
    assert fitted.factor / plain.factor == pytest.approx(1.15, rel=0.01)
    assert fitted.model.overhead_s == plain.model.overhead_s


def test_no_network_helps_to_predict_itself() -> None:
    # Of twelve networks one is ten times slower: left out of its own calibration, it must be missed.
    table = table_of(DEVICE, SPACE, probes=60, networks=12, seed=6, noise=0.001)
    networks = list(table.of_kind(NETWORK))
    rng = np.random.default_rng(0)
    stray = row_of(DEVICE, Probe(NETWORK, "stray", SPACE.layers(SPACE.sample(rng))), 0.001, rng, slowdown=10.0)
    fitted = fit_predictor(LatencyTable(table.header, (*table.of_kind(PROBE), *networks[1:], stray)))
    assert fitted.scores.coverage == pytest.approx(11 / 12)
    assert fitted.scores.worst > 0.8


# --- explanation ------------------------------------------------------------------------------------------------


def test_terms_and_overhead_sum_to_the_prediction(predictor: Predictor, unseen: list[Probe]) -> None:
    for network, prediction in zip(unseen, predictions(predictor, unseen), strict=True):
        executed = executed_by(network.layers)
        assert [layer.name for layer in prediction.layers] == [e.name for e in executed]
        total = prediction.overhead_s + sum(layer.latency_s for layer in prediction.layers)
        assert total == pytest.approx(prediction.latency_s, rel=1e-12)
        assert all(layer.latency_s > 0 for layer in prediction.layers)
        assert prediction.overhead_s >= 0


def test_a_kernel_more_costs_more(predictor: Predictor, unseen: list[Probe]) -> None:
    executed = executed_by(unseen[0].layers)
    assert predictor.predict(executed).latency_s > predictor.predict(executed[:-1]).latency_s
    assert predictor.predict(()).latency_s == predictor.overhead_s


def test_order_of_kernels_does_not_matter(predictor: Predictor, unseen: list[Probe]) -> None:
    executed = executed_by(unseen[0].layers)
    backwards = predictor.predict(executed[::-1])
    assert backwards.latency_s == pytest.approx(predictor.predict(executed).latency_s, rel=1e-12)


# --- what it does not know --------------------------------------------------------------------------------------


def test_an_unknown_operator_is_named_and_never_free(predictor: Predictor, unseen: list[Probe]) -> None:
    shape = (1, 8, 4, 4)
    strangers = [Kernel("Softmax", (shape,), (shape,)), Kernel("Gelu", (shape,), (shape,))]
    executed = [*executed_by(unseen[0].layers), *(ExecutedKernel(k, k.op) for k in strangers)]
    with pytest.raises(UncoveredOperatorError) as caught:
        predictor.predict(executed, asked="the latency of net.onnx")
    assert caught.value.uncovered == ["Gelu", "Softmax"]
    assert caught.value.as_dict()["uncovered"] == ["Gelu", "Softmax"]
    assert "net.onnx" in str(caught.value)
    assert "`akd-deploy profile --target paper --onnx … --resume`" in caught.value.next


def test_a_known_operator_of_another_kind_is_not_covered(predictor: Predictor) -> None:
    # Four groups: neither dense nor depthwise, and none was measured.
    grouped = Kernel(
        "Conv",
        ((1, 16, 4, 4), (16, 4, 3, 3), (16,)),
        ((1, 16, 4, 4),),
        attributes=(("groups", 4), ("kernel_size", (3, 3)), ("strides", (1, 1))),
    )
    with pytest.raises(UncoveredOperatorError, match="Conv"):
        predictor.predict([ExecutedKernel(grouped, "grouped")])


def test_a_kernel_out_of_range_clears_in_domain_and_widens(predictor: Predictor, unseen: list[Probe]) -> None:
    executed = executed_by(unseen[0].layers)
    inside = predictor.predict(executed)
    assert inside.in_domain
    large = load_space("mobile", {"resolution": 96, "widths": [256]} | {"strides": [1], "layers": [[1]]})
    outside = predictor.predict(executed_by(large.layers(large.sample(np.random.default_rng(0)))))
    assert not outside.in_domain
    assert relative_width(outside) > 2 * relative_width(inside)


def added(channels: int, size: int = 6) -> Kernel:
    shape = (1, channels, size, size)
    return Kernel("Add", (shape, shape), (shape,))


def test_outside_the_measured_range_the_models_own_spread_is_trusted_the_less_the_farther(predictor: Predictor) -> None:
    kernels = [added(16), added(4096, 64)]
    inside, outside = predictor.costs(kernels)
    assert (inside.in_domain, outside.in_domain) == (True, False)
    assert inside.told_spread_s == inside.spread_s
    assert outside.told_spread_s == pytest.approx(outside.spread_s * (1 + outside.beyond / 4))
    assert outside.beyond > 4
    for cost, bare in zip((inside, outside), predictor.model.costs(kernels), strict=True):
        assert cost.spread_s == pytest.approx(predictor.factor * bare.spread_s)
        assert cost.mean_s == pytest.approx(predictor.factor * bare.mean_s)


def test_intervals_widen_without_a_jump_and_without_an_end_where_sizes_leave_the_range(predictor: Predictor) -> None:
    growing = [predictor.predict([ExecutedKernel(added(16, 3 * 2**i), "add")]) for i in range(1, 9)]
    widths = [relative_width(one) for one in growing if not one.in_domain]
    assert 5 <= len(widths) < len(growing)
    assert all(b > 1.1 * a for a, b in itertools.pairwise(widths))
    # Around the border of the domain: channels grow by a twentieth or less at each step.
    steps = [ExecutedKernel(added(round(16 * 1.05**i), 8), "add") for i in range(60)]
    found = [predictor.predict([step]) for step in steps]
    assert {one.in_domain for one in found} == {True, False}
    near = [relative_width(one) for one in found]
    assert max(b / a for a, b in itertools.pairwise(near)) < 1.1


def test_what_leaves_the_range_is_named_with_the_range(predictor: Predictor, unseen: list[Probe]) -> None:
    known = executed_by(unseen[0].layers)
    prediction = predictor.predict([*known, ExecutedKernel(added(4096, 64), "huge")])
    assert [layer.name for layer in prediction.layers if layer.outside] == ["huge"]
    outside = {one.dimension: one for one in prediction.layers[-1].outside}
    moved = outside["elements moved"]
    assert moved.value == 3 * 4096 * 64 * 64
    measured = [k for k in predictor.model.kernels if k.op == "Add"]
    assert moved.measured == pytest.approx(
        (min(k.traffic_bytes for k in measured) / 4, max(k.traffic_bytes for k in measured) / 4)
    )
    assert str(moved) == "elements moved 50,331,648 (measured: 648 to 8,640)"
    assert "batch" not in outside


def test_the_smallest_networks_are_as_unsure_as_a_call_is(predictor: Predictor) -> None:
    jitter_s = predictor.factor * predictor.model.hyperparameters.jitter_s
    nothing = predictor.predict(())
    floor_s = 0.005 * nothing.latency_s
    assert nothing.upper_s - nothing.latency_s == pytest.approx(predictor.width * (jitter_s + floor_s))
    assert jitter_s > 0


def test_one_strange_kernel_among_many_is_enough_to_leave_the_domain(predictor: Predictor, unseen: list[Probe]) -> None:
    executed = executed_by(unseen[0].layers)
    shape = (1, 4096, 64, 64)
    huge = ExecutedKernel(Kernel("Add", (shape, shape), (shape,)), "huge")
    assert not predictor.predict([*executed, huge]).in_domain


def test_a_network_of_the_table_that_is_not_covered_is_left_out_and_not_guessed(table: LatencyTable) -> None:
    shape = (1, 8, 4, 4)
    kernels = ((Kernel("Softmax", (shape,), (shape,)), 1),)
    strange = TableRow(NETWORK, "strange", kernels, Measurement("strange", (1e-3,), (0,)))
    widened = LatencyTable(table.header, (*table.rows, strange))
    fitted = fit_predictor(widened)
    assert fitted.scores.items == 40
    assert fitted.left_out == 1
    points = calibration_points(fitted, widened)
    assert [point["name"] for point in points] == [row.name for row in table.of_kind(NETWORK)]


# --- intervals --------------------------------------------------------------------------------------------------


def relative_width(prediction: Prediction) -> float:
    low, high = prediction.interval_s
    return (high - low) / prediction.latency_s


def test_more_noise_gives_wider_intervals(unseen: list[Probe]) -> None:
    widths = []
    for noise in (0.003, 0.03):
        fitted = fit_predictor(table_of(DEVICE, SPACE, probes=100, networks=40, seed=7, noise=noise))
        widths.append(np.median([relative_width(p) for p in predictions(fitted, unseen)]))
    assert widths[1] > 1.5 * widths[0]


def test_intervals_hold_their_centre_and_their_promise_of_ninety_per_cent() -> None:
    shares = []
    for seed in range(12):
        fitted = fit_predictor(table_of(DEVICE, SPACE, probes=60, networks=30, seed=100 + seed, noise=0.02))
        rng = np.random.default_rng(500 + seed)
        networks = space_networks(SPACE, 40, rng)
        measured = [row_of(DEVICE, network, 0.02, rng).measurement.median_s for network in networks]
        within = []
        for prediction, latency_s in zip(predictions(fitted, networks), measured, strict=True):
            low, high = prediction.interval_s
            assert 0 <= low < prediction.latency_s < high == prediction.upper_s
            assert prediction.coverage == 0.9
            assert prediction.calibrated_on == fitted.calibrated_on == "networks"
            within.append(low <= latency_s <= high)
        shares.append(np.mean(within))
    assert 0.85 <= np.mean(shares) <= 0.95


def test_without_networks_held_out_probes_calibrate_and_it_says_so() -> None:
    fitted = fit_predictor(table_of(DEVICE, SPACE, probes=60, networks=5, seed=8))
    assert fitted.calibrated_on == "held-out probes"
    assert fitted.factor == 1.0
    assert 40 < fitted.scores.items <= 60


def test_of_published_networks_whole_families_are_held_out_and_count_alike() -> None:
    table = table_of(DEVICE, SPACE, probes=60, networks=0, seed=8)
    rows = tuple(replace(row, family=f"family{i % 12}") for i, row in enumerate(table.rows))
    fitted = fit_predictor(LatencyTable(table.header, rows))
    assert fitted.calibrated_on == "held-out probes"
    assert 40 < fitted.scores.items <= 60
    assert fitted.scores.mape < 0.1
    # One family of many stretches that are predicted well says no more than one of a single stretch.
    many = [CalibrationPoint("many", 1.0, 0.1, 1.01)] * 190
    single = [CalibrationPoint(f"single {i}", 1.0, 0.1, 1.2) for i in range(10)]
    by_family, pooled = (_probe_width([*many, *single], 0.9, by_family=alike) for alike in (True, False))
    assert by_family == pytest.approx(0.2 / 0.105)
    assert pooled == pytest.approx(0.01 / 0.105)


@pytest.mark.parametrize(("networks", "calibrated_on"), [(12, "networks"), (5, "held-out probes")])
def test_scores_stand_beside_the_noise_of_the_labels_they_are_scored_on(networks: int, calibrated_on: str) -> None:
    small = table_of(DEVICE, SPACE, probes=40, networks=networks, seed=10)
    # Blocks at 0.97, 1 and 1.03 of the median have σ = 0.03, and the label rests on three of them.
    blocks = {NETWORK: (0.97, 1.0, 1.03), PROBE: (0.99, 1.0, 1.01)}
    fitted = fit_predictor(LatencyTable(small.header, tuple(scattered(row, blocks[row.kind]) for row in small.rows)))
    sigma = {"networks": 0.03, "held-out probes": 0.01}[calibrated_on] / np.sqrt(3)
    assert fitted.calibrated_on == calibrated_on
    assert fitted.scores.sigma == pytest.approx(sigma)
    assert fitted.scores.floor_mape == pytest.approx(0.8 * sigma)


# --- tails ------------------------------------------------------------------------------------------------------


def scattered(row: TableRow, factors: Sequence[float]) -> TableRow:
    """The row with one sample a block, at these multiples of its median."""
    samples = tuple(factor * row.measurement.median_s for factor in factors)
    return replace(row, measurement=Measurement(row.name, samples, tuple(range(len(factors)))))


def with_tail(rows: Sequence[TableRow], samples: int, last: float = 2.0) -> list[TableRow]:
    """The rows with so many samples: all equal, but for a tenth of them at the end."""
    tail = samples // 10
    return [scattered(row, [1.0] * (samples - tail) + [last] * tail) for row in rows]


@pytest.mark.parametrize(
    ("samples", "known"),
    [
        (4, ()),
        (5, (50,)),
        (10, (50,)),
        (28, (50, 75)),
        (29, (50, 75, 90)),
        (58, (50, 75, 90)),
        (59, (50, 75, 90, 95)),
        (298, (50, 75, 90, 95)),
        (299, (50, 75, 90, 95, 99)),
    ],
)
def test_a_tail_factor_needs_samples_enough_for_its_percentile(
    samples: int, known: tuple[float, ...], table: LatencyTable
) -> None:
    assert tuple(tail_factors(with_tail(table.of_kind(NETWORK)[:8], samples))) == known


def test_each_percentile_has_its_own_factor_of_all_rows_samples_of_equal_weight(table: LatencyTable) -> None:
    rows = table.of_kind(NETWORK)
    # A tenth of each row is slow. Two of the three that speak of p99 are twice as slow then; the fourth is too short.
    mixed = [*with_tail(rows[:2], 300, 2.0), *with_tail(rows[2:3], 3_000, 7.0), *with_tail(rows[3:4], 100, 1.5)]
    factors = tail_factors(mixed)
    assert factors == pytest.approx({50: 1, 75: 1, 90: factors[90], 95: 2, 99: 7})
    assert 1 <= factors[90] <= 1.5


def test_slow_spells_that_most_rows_missed_count_as_often_as_they_came(table: LatencyTable) -> None:
    """Four rows in five never saw one: half of a fifth of all samples is slow, so p90 is just not, and p95 is."""
    rows = table.of_kind(NETWORK)
    calm, met = (
        [scattered(row, [1.0] * 60) for row in rows[:8]],
        [scattered(row, [1.0] * 30 + [1.8] * 30) for row in rows[8:10]],
    )
    factors = tail_factors([*calm, *met])
    assert (factors[75], factors[95]) == pytest.approx((1, 1.8))


def test_a_tail_is_not_thinner_further_out_because_only_calm_networks_speak_of_it(table: LatencyTable) -> None:
    rows = table.of_kind(NETWORK)
    factors = tail_factors([*with_tail(rows[:11], 100, last=5.0), *with_tail(rows[11:12], 300, last=1.0)])
    assert factors[95] == pytest.approx(5)
    assert factors[99] == factors[95]


def test_networks_speak_of_tails_and_probes_where_there_are_none() -> None:
    small = table_of(DEVICE, SPACE, probes=40, networks=12, seed=11)
    probes, networks = with_tail(small.of_kind(PROBE), 60, 3.0), with_tail(small.of_kind(NETWORK), 60, 2.0)
    for rows, factor in (([*probes, *networks], 2.0), (probes, 3.0)):
        assert fit_predictor(LatencyTable(small.header, tuple(rows))).tail_factor(95) == pytest.approx(factor)


def test_the_next_known_percentile_serves_those_between(predictor: Predictor) -> None:
    fitted = replace(predictor, tail_factors={99: 2.0, 50: 1.0, 90: 1.5})
    asked = [(1, 1.0), (50, 1.0), (50.1, 1.5), (75, 1.5), (90, 1.5), (90.5, 2.0), (99, 2.0)]
    assert [fitted.tail_factor(percentile) for percentile, _ in asked] == [factor for _, factor in asked]


@pytest.mark.parametrize("percentile", [99.1, 99.9, 100, 0, -1, float("nan")])
def test_a_percentile_beyond_the_samples_is_refused_with_what_to_do(predictor: Predictor, percentile: float) -> None:
    fitted = replace(predictor, tail_factors={50: 1.0, 99: 2.0})
    with pytest.raises(UsageError, match="p99 at most") as caught:
        fitted.tail_factor(percentile)
    assert "more samples" in caught.value.next
    assert "lower the percentile" in caught.value.next
    with pytest.raises(UsageError, match="too few samples"):
        replace(predictor, tail_factors={}).tail_factor(50)


# --- files ------------------------------------------------------------------------------------------------------


def test_saved_and_read_predictors_predict_the_same(predictor: Predictor, unseen: list[Probe], tmp_path: Path) -> None:
    again = read_predictor(save_predictor(predictor, tmp_path))
    assert predictions(again, unseen[:10]) == predictions(predictor, unseen[:10])
    assert again.scores == predictor.scores
    assert again.device == predictor.device
    for field in ("target", "table_digest", "factor", "width", "coverage", "tail_factors", "sigma", "calibrated_on"):
        assert getattr(again, field) == getattr(predictor, field)
    assert read_predictor(save_predictor(replace(predictor, left_out=3), tmp_path)).left_out == 3
    assert again.tail_factor(75) == predictor.tail_factor(75)


def test_a_cached_predictor_is_used_again(
    table: LatencyTable, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_predictor(predictor, tmp_path)
    monkeypatch.setattr(cache, "fit_predictor", lambda table: pytest.fail("fitted again"))
    assert predictor_of(table, tmp_path).table_digest == table.digest()


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.95, "not a zip", "flipped"])
def test_a_corrupt_cached_predictor_is_refused_by_name_and_fitted_again(
    keep: float | str, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: LatencyTable
) -> None:
    path = save_predictor(predictor, tmp_path)
    content = path.read_bytes()
    if keep == "flipped":
        middle = len(content) // 2
        torn = content[:middle] + bytes(byte ^ 0xFF for byte in content[middle : middle + 64]) + content[middle + 64 :]
    else:
        torn = b"not a zip" if isinstance(keep, str) else content[: int(keep * len(content))]
    path.write_bytes(torn)
    with pytest.raises(CorruptFileError, match=path.name):
        read_predictor(path)
    monkeypatch.setattr(cache, "fit_predictor", lambda table: predictor)
    assert predictor_of(table, tmp_path) is predictor
    assert read_predictor(path).width == predictor.width


def test_a_cached_predictor_without_a_field_is_refused_by_name(predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "predictor-0.npz"
    np.savez(path, json=np.array(json.dumps({"format_version": cache.FORMAT_VERSION})))
    with pytest.raises(CorruptFileError, match="predictor-0"):
        read_predictor(path)
    np.savez(path, json=np.array('{"format_version": 99}'))
    with pytest.raises(CorruptFileError, match="format version 99"):
        read_predictor(path)


def test_a_changed_table_is_fitted_again_and_the_stale_predictor_goes(
    table: LatencyTable, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stale = save_predictor(predictor, tmp_path)
    row = table.rows[0]
    slower = Measurement(row.name, tuple(1.5 * s for s in row.measurement.samples_s), row.measurement.block_ids)
    changed = LatencyTable(table.header, (replace(row, measurement=slower), *table.rows[1:]))
    fresh = replace(predictor, table_digest=changed.digest())
    monkeypatch.setattr(cache, "fit_predictor", lambda table: fresh)
    assert predictor_of(changed, tmp_path) is fresh
    assert not stale.exists()
    assert [path.name for path in tmp_path.glob("*.npz")] == [f"predictor-{changed.digest()}.npz"]


def test_a_place_that_cannot_be_written_still_gives_a_predictor(
    table: LatencyTable, predictor: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setattr(cache, "fit_predictor", lambda table: predictor)
    assert predictor_of(table, blocked / "tables") is predictor


def test_too_few_probes_are_refused_with_what_to_do() -> None:
    with pytest.raises(UsageError, match="9 probes"):
        fit_predictor(table_of(DEVICE, SPACE, probes=9, networks=40, seed=9))


def test_nothing_to_calibrate_on_is_refused_with_what_to_do(table: LatencyTable) -> None:
    # Ten probes of ten different operators: held out, none of them is covered.
    shape = (1, 8, 4, 4)
    rows = tuple(
        TableRow(PROBE, "odd", ((Kernel(f"Op{i}", (shape,), (shape,)), 1),), Measurement(f"p{i}", (1e-5,), (0,)))
        for i in range(10)
    )
    with pytest.raises(UsageError, match="calibrate"):
        fit_predictor(LatencyTable(table.header, rows))
