"""What weights cost that come from farther away."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.device import cpu_fingerprint
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.latency_table import NETWORK, PROBE, STACK, LatencyTable, TableHeader, TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.predictor.cold_weights import (
    COLD_NOISE,
    MOST_COLD,
    NO_COLD_WEIGHTS,
    PLACE_STEP,
    ColdWeights,
    Stacked,
    fit_cold_weights,
    network_weights,
    tells_of_weights,
    weight_bytes,
)
from akd_deploy.predictor.fitting import calibration_points, fit_predictor, stacked_of
from akd_deploy.target import Target

MIB = 1 << 20
HEADER = TableHeader(Target("t", "cpu", "onnxruntime", "fp32"), cpu_fingerprint(), "1", {}, "2026-01-01T00:00:00+00:00")


def conv(channels: int, side: int = 7) -> Kernel:
    image = (1, channels, side, side)
    return Kernel(
        "nchwc.Conv",
        (image, (channels, channels, 1, 1), (channels,), image),
        (image,),
        attributes=(("groups", 1), ("kernel_size", (1, 1))),
    )


def gemm(size: int, rows: int = 4) -> Kernel:
    return Kernel("Gemm", ((rows, size), (size, size), (size,)), ((rows, size),))


def batched(batch: int) -> Kernel:
    """Products with a constant matrix for each element of the batch."""
    return Kernel("MatMul", ((batch, 3, 64), (batch, 64, 128)), ((batch, 3, 128),), attributes=(("constants", (1,)),))


KERNELS = [conv(c, side) for c in (128, 256, 384, 512, 768) for side in (1, 7)] + [
    gemm(s) for s in (256, 512, 768, 1024, 1536)
]
KERNELS += [gemm(s, rows=64) for s in (256, 512, 768)] + [batched(n) for n in (16, 24, 32)]
TRUE = ColdWeights(
    np.array([1.5, 24]) * MIB,
    np.array([0.0, 4e9]),
    np.array([(20e-12, 25e-12, 30e-12, 10e-12, 15e-12), (30e-12, 60e-12, 20e-12, 60e-12, 120e-12)]),
)


def warm_s(counts: Mapping[Kernel, int]) -> float:
    """A product of many rows works on its weights for longer."""
    per_byte_s = {kernel: 1e-11 * (20 if kernel.op == "Gemm" and kernel.outputs[0][0] > 32 else 1) for kernel in counts}
    return 2e-6 + sum(n * (1e-6 + per_byte_s[k] * float(weight_bytes(k).sum())) for k, n in counts.items())


def cold_s(counts: Mapping[Kernel, int]) -> float:
    return float(TRUE.seconds(network_weights(counts), warm_s(counts)).sum())


def row(kind: str, counts: dict[Kernel, int], name: str) -> TableRow:
    latency_s = warm_s(counts) + cold_s(counts)
    measurement = Measurement(name, (latency_s,) * 30, (0,) * 15 + (1,) * 15)
    return TableRow(kind, "f", tuple(sorted(counts.items())), measurement)


def name_of(kernel: Kernel, times: int = 1) -> str:
    return f"window-{kernel.op}{kernel.outputs[0]}-{times}"


def copies() -> list[tuple[Kernel, int]]:
    """Of kernels that are stacked: what a call costs beside them is known to a tenth of a microsecond at best."""
    amounts = [mib * MIB for mib in (2, 4, 8, 16, 32, 64, 128)]
    bytes_of = {kernel: float(weight_bytes(kernel).sum()) for kernel in KERNELS}
    large = [kernel for kernel in KERNELS if bytes_of[kernel] > 250_000]
    found = [(kernel, round(amount / bytes_of[kernel])) for amount in amounts for kernel in large]
    return [(kernel, number) for kernel, number in found if number > 1]


def table(*kinds: str) -> LatencyTable:
    rows = [row(PROBE, {kernel: n}, name_of(kernel, n)) for kernel in KERNELS for n in (1, 2)]
    rows += [row(STACK, {kernel: n}, f"{name_of(kernel)}-x{n}") for kernel, n in copies()]
    return LatencyTable(HEADER, tuple(one for one in rows if one.kind in kinds))


def stacked() -> list[Stacked]:
    found = []
    for kernel, number in copies():
        one, all_ = {kernel: 1}, {kernel: number}
        alone_s, whole_s = (warm_s(counts) + cold_s(counts) for counts in (one, all_))
        as_many_s = 2e-6 + number * (alone_s - 2e-6)
        found.append(Stacked(network_weights(all_), network_weights(one), as_many_s, alone_s, whole_s - as_many_s))
    return found


def test_weights_are_those_that_a_kernel_reads_and_not_what_flows_through_it() -> None:
    one = 4 * (64 * 64 + 64)
    assert weight_bytes(conv(64, side=1)).tolist() == [one, 0, 0, 0, 0]
    assert weight_bytes(conv(64)).tolist() == [0, one, 0, 0, 0]
    assert weight_bytes(gemm(64)).tolist() == [0, 0, one, 0, 0]
    assert weight_bytes(gemm(64, rows=64)).tolist() == [0, 0, 0, one, 0]
    batched = Kernel("MatMul", ((8, 16, 32), (8, 32, 16)), ((8, 16, 16),))
    added = Kernel("Add", ((1, 64), (1, 64)), ((1, 64),))
    assert not weight_bytes(batched).any()
    assert not weight_bytes(added).any()
    assert network_weights({conv(64): 3, gemm(64): 2}).tolist() == [0, 3 * one, 2 * one, 0, 0]


def test_levels_and_what_each_class_pays_for_them_are_found() -> None:
    fitted = fit_cold_weights(stacked())
    np.testing.assert_allclose(np.log2(fitted.held_bytes), np.log2(TRUE.held_bytes), atol=PLACE_STEP)
    np.testing.assert_allclose(fitted.others_bytes_per_s, TRUE.others_bytes_per_s)
    np.testing.assert_allclose(fitted.per_byte_s, TRUE.per_byte_s, rtol=0.3)


def test_no_probe_pays_more_for_its_own_weights_than_it_takes() -> None:
    """Stacks tell differences only. These were measured (ONNX Runtime on an AMD EPYC), and explained best by weights
    that cost a probe more than half as much again as it takes."""
    mixed, batches = np.array([0, 0, 847_400, 206_080, 0.0]), np.array([0, 0, 0, 0, 9_935_104.0])
    stacks = [
        Stacked(8 * mixed, mixed, 1566.6e-6, 196.5e-6, 76.0e-6),
        Stacked(2 * batches, batches, 922.9e-6, 484.5e-6, 1253.9e-6),
        Stacked(3 * batches, batches, 1278.9e-6, 426.7e-6, 1822.1e-6),
        Stacked(3 * batches, batches, 1378.5e-6, 484.5e-6, 3597.0e-6),
    ]
    fitted = fit_cold_weights(stacks)
    assert fitted.per_byte_s.any()
    for one in stacks:
        assert fitted.seconds(one.alone, one.alone_s).sum() <= MOST_COLD * one.alone_s


def test_what_passes_besides_is_told_from_a_networks_own_bytes() -> None:
    """Two networks of equal weights: the one that takes longer finds them farther away."""
    fitted, weights = fit_cold_weights(stacked()), np.array([0.0, 8.0, 0.0, 0.0, 0.0]) * MIB
    quick_s, slow_s = (float(fitted.seconds(weights, warm).sum()) for warm in (1e-4, 2e-2))
    quick, slow = (float(TRUE.seconds(weights, warm).sum()) for warm in (1e-4, 2e-2))
    assert slow > 2 * quick
    assert (quick_s, slow_s) == (pytest.approx(quick, rel=0.25), pytest.approx(slow, rel=0.25))


def test_a_large_probe_is_cold_itself_so_that_stacks_of_it_say_nothing() -> None:
    """Copies of 64 MiB take as long each as one does; a network of small kernels must not inherit that."""
    large = [one for one in stacked() if one.alone.sum() < MIB]
    weights = np.array([0.0, 0.0, 64.0, 0.0, 0.0]) * MIB
    told = fit_cold_weights([*large, *(Stacked(n * weights, weights, n * 5e-3, 5e-3, 0.0) for n in (2, 3, 4))])
    expected = float(TRUE.seconds(weights, 1e-3).sum())
    assert float(told.seconds(weights, 1e-3).sum()) == pytest.approx(expected, rel=0.25)


def test_a_class_that_no_stack_has_weights_of_costs_what_all_do() -> None:
    fitted = fit_cold_weights([one for one in stacked() if one.weights[0] > 0])
    for other in (1, 3, 4):
        np.testing.assert_allclose(fitted.per_byte_s[:, other], fitted.per_byte_s[:, 2])
    np.testing.assert_allclose(fitted.per_byte_s[:, 2], fitted.per_byte_s[:, 0], rtol=0.2)


def test_without_stacks_nothing_is_said() -> None:
    assert fit_cold_weights([]) is NO_COLD_WEIGHTS
    assert not NO_COLD_WEIGHTS.seconds(np.full(5, 1e9), 1.0).any()
    assert fit_predictor(table(PROBE)).cold_weights is NO_COLD_WEIGHTS


def test_stacks_that_are_quicker_than_their_probes_add_nothing() -> None:
    found = [Stacked(one.weights, one.alone, one.warm_s, one.alone_s, -0.1 * one.warm_s) for one in stacked()]
    assert fit_cold_weights(found) is NO_COLD_WEIGHTS


def test_kernels_that_only_the_stack_has_are_no_part_of_what_its_weights_cost() -> None:
    plain = table(PROBE, STACK)
    ends = Kernel("Erf", ((1, 64),), ((1, 64),))
    probes = [row(PROBE, {ends: n}, name_of(ends, n)) for n in (1, 2, 4, 8)]
    rows = [one for one in plain.rows if one.kind == PROBE] + probes
    for one in plain.of_kind(STACK):
        number = stacked_of(one.name)[1]
        samples = tuple(s + number * 1e-6 for s in one.measurement.samples_s)
        counts = (*one.kernels, (ends, number))
        rows.append(
            TableRow(STACK, "f", tuple(sorted(counts)), Measurement(one.name, samples, one.measurement.block_ids))
        )
    found, before = (fit_predictor(one).cold_weights for one in (LatencyTable(HEADER, tuple(rows)), plain))
    for total in (4, 16, 64):
        weights, warm = total * MIB * np.eye(5), np.full(5, 1e-3)
        np.testing.assert_allclose(found.seconds(weights, warm), before.seconds(weights, warm), rtol=0.2)


@pytest.mark.parametrize(
    ("name", "expected"), [("window-ab12-x7", ("window-ab12", 7)), ("stack", ("", 0)), ("a-xb", ("a", 0))]
)
def test_a_stacks_name_says_what_it_is_copies_of(name: str, expected: tuple[str, int]) -> None:
    assert stacked_of(name) == expected


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(1.0, 10.0), st.floats(0, 1.0))
def test_more_weights_and_more_time_never_cost_less(first: float, other: float, times: float, warm: float) -> None:
    weights = np.array([first, 0.0, other, 0.0, 0.0])
    few = TRUE.seconds(weights, warm)
    assert (few >= 0).all()
    assert (TRUE.seconds(times * weights, warm) >= few * (1 - 1e-12)).all()
    assert (TRUE.seconds(weights, times * warm) >= few * (1 - 1e-12)).all()
    assert not TRUE.seconds(np.array([5e5, 0.0, 5e5, 0.0, 0.0]), 1e-5).any()  # less than the first level holds


def test_a_networks_kernels_share_what_its_weights_cost_and_the_shares_sum_to_the_prediction() -> None:
    warm, predictor = fit_predictor(table(PROBE)), fit_predictor(table(PROBE, STACK))
    counts = {kernel: 4 for kernel in KERNELS}
    executed = [ExecutedKernel(kernel, f"{kernel.op}_{i}") for i in range(4) for kernel in KERNELS]
    cold, before = predictor.predict(executed), warm.predict(executed)
    assert cold_s(counts) > 0.2 * before.latency_s
    assert cold.latency_s == pytest.approx(warm_s(counts) + cold_s(counts), rel=0.1)
    assert cold.overhead_s + sum(layer.latency_s for layer in cold.layers) == pytest.approx(cold.latency_s)
    one = predictor.predict(executed[:1])
    assert one.latency_s == pytest.approx(warm.predict(executed[:1]).latency_s, rel=0.2)  # its weights stay near
    np.testing.assert_allclose(
        predictor.network_cold_s(network_weights(counts)[None], np.array([before.latency_s])),
        predictor.cold_s([e.kernel for e in executed], before.latency_s).sum(),
    )


def test_a_probe_that_is_cold_itself_does_not_make_its_kernel_dear() -> None:
    large = gemm(6144)  # 151 MB of weights in one probe
    whole = table(PROBE, STACK)
    rows = LatencyTable(HEADER, (*whole.rows, row(PROBE, {large: 1}, "large")))
    predicted = fit_predictor(rows).predict([ExecutedKernel(large, "large")]).latency_s
    assert predicted == pytest.approx(warm_s({large: 1}) + cold_s({large: 1}), rel=0.15)


def test_constants_of_batched_products_and_sums_are_weights_and_data_are_not() -> None:
    inputs, output = ((197, 3, 64), (197, 64, 197)), ((197, 3, 197),)
    attention = Kernel("MatMul", inputs, output)
    constant = Kernel("MatMul", inputs, output, attributes=(("constants", (1,)),))
    assert weight_bytes(attention).tolist() == [0, 0, 0, 0, 0]
    assert weight_bytes(constant).tolist() == [0, 0, 0, 0, 4 * 197 * 64 * 197]  # three rows to each matrix
    added = Kernel("Add", ((1, 197, 192),) * 2, ((1, 197, 192),), attributes=(("constants", (1,)),))
    assert weight_bytes(added).sum() == 4 * 197 * 192
    # A matrix that is told to be constant besides is one weight and not two.
    shared = Kernel("MatMul", ((4, 64), (1, 64, 32)), ((4, 32),), attributes=(("constants", (1,)),))
    assert weight_bytes(shared).tolist() == [0, 0, 4 * 64 * 32, 0, 0]


def test_stacks_of_what_puts_out_more_than_it_has_weights_say_nothing_of_weights() -> None:
    wide = conv(128, side=56)  # 64 KiB of weights, 1.5 MiB put out
    assert tells_of_weights({conv(128): 1})
    assert not tells_of_weights({wide: 1})
    assert not tells_of_weights({conv(128): 1, wide: 1})
    plain = table(PROBE, STACK)
    probes = [row(PROBE, {wide: n}, name_of(wide, n)) for n in (1, 2)]
    slow = row(STACK, {wide: 40}, f"{name_of(wide)}-x40")
    slower = Measurement(slow.name, tuple(3 * s for s in slow.measurement.samples_s), slow.measurement.block_ids)
    with_it = LatencyTable(HEADER, (*plain.rows, *probes, TableRow(STACK, "f", slow.kernels, slower)))
    without = LatencyTable(HEADER, (*plain.rows, *probes))
    found, expected = fit_predictor(with_it).cold_weights, fit_predictor(without).cold_weights
    np.testing.assert_allclose(found.per_byte_s, expected.per_byte_s)


def test_what_cold_weights_cost_widens_an_interval() -> None:
    warm, predictor = fit_predictor(table(PROBE)), fit_predictor(table(PROBE, STACK))
    executed = [ExecutedKernel(kernel, f"{kernel.op}_{i}") for i in range(4) for kernel in KERNELS]
    found = predictor.predict(executed)
    spread_s = sum(cost.spread_s for cost in predictor.costs([one.kernel for one in executed]))
    added_s = (
        found.latency_s - predictor.overhead_s - sum(c.mean_s for c in predictor.costs([o.kernel for o in executed]))
    )
    assert added_s > 0.1 * warm.predict(executed).latency_s
    call_s = predictor.factor * predictor.model.hyperparameters.jitter_s
    _, high_s = predictor.interval_s(np.array(found.latency_s), np.array(spread_s + call_s + COLD_NOISE * added_s))
    assert found.upper_s == pytest.approx(float(high_s))
    _, before_s = predictor.interval_s(np.array(found.latency_s), np.array(spread_s))
    assert found.upper_s > before_s + 0.5 * predictor.width * COLD_NOISE * added_s


def test_networks_are_calibrated_on_with_the_intervals_that_they_are_predicted_with() -> None:
    counts = {kernel: 4 for kernel in KERNELS}
    whole = table(PROBE, STACK)
    rows = LatencyTable(HEADER, (*whole.rows, row(NETWORK, counts, "network")))
    predictor = fit_predictor(rows)
    executed = [ExecutedKernel(kernel, f"{kernel.op}_{i}") for kernel, n in rows.rows[-1].kernels for i in range(n)]
    found, (point,) = predictor.predict(executed), calibration_points(predictor, rows)
    assert predictor.cold_weights is not NO_COLD_WEIGHTS
    assert (point["low_s"], point["high_s"]) == (pytest.approx(found.interval_s[0]), pytest.approx(found.upper_s))
