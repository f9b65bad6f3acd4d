"""What weights cost that come from farther away."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.device import cpu_fingerprint
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.latency_table import PROBE, STACK, LatencyTable, TableHeader, TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.predictor.cold_weights import (
    NO_COLD_WEIGHTS,
    ColdWeights,
    fit_cold_weights,
    network_weights,
    weight_bytes,
)
from akd_deploy.predictor.fitting import fit_predictor
from akd_deploy.target import Target

MIB = 1 << 20
HEADER = TableHeader(Target("t", "cpu", "onnxruntime", "fp32"), cpu_fingerprint(), "1", {}, "2026-01-01T00:00:00+00:00")


def conv(channels: int) -> Kernel:
    return Kernel(
        "nchwc.Conv",
        ((1, channels, 7, 7), (channels, channels, 1, 1), (channels,), (1, channels, 7, 7)),
        ((1, channels, 7, 7),),
        attributes=(("groups", 1), ("kernel_size", (1, 1))),
    )


def gemm(size: int) -> Kernel:
    return Kernel("Gemm", ((4, size), (size, size), (size,)), ((4, size),))


KERNELS = [conv(c) for c in (128, 192, 256, 384, 512, 768)] + [gemm(s) for s in (256, 512, 768, 1024, 1536)]
TRUE = ColdWeights(
    np.array([8, 16, 32, 64]) * float(MIB),
    np.array([(1e-12, 2e-12), (5e-12, 6e-12), (20e-12, 10e-12), (40e-12, 20e-12)]),
)


def warm_s(counts: Mapping[Kernel, int]) -> float:
    return 2e-6 + sum(n * (1e-6 + 1e-11 * float(weight_bytes(kernel).sum())) for kernel, n in counts.items())


def cold_s(counts: Mapping[Kernel, int]) -> float:
    return float(TRUE.seconds(network_weights(counts)).sum())


def row(kind: str, counts: dict[Kernel, int]) -> TableRow:
    name = f"{kind}{sorted(counts.items())}"
    latency_s = warm_s(counts) + cold_s(counts)
    measurement = Measurement(name, (latency_s,) * 30, (0,) * 15 + (1,) * 15)
    return TableRow(kind, "f", tuple(sorted(counts.items())), measurement)


def stacks() -> list[dict[Kernel, int]]:
    copies = [(k, round(amount / float(weight_bytes(k).sum()))) for amount in TRUE.total_bytes for k in KERNELS[2:]]
    return [{kernel: number} for kernel, number in copies if number > 1]


def table(*kinds: str) -> LatencyTable:
    rows = [row(PROBE, {kernel: n}) for kernel in KERNELS for n in (1, 2)] + [row(STACK, one) for one in stacks()]
    return LatencyTable(HEADER, tuple(one for one in rows if one.kind in kinds))


def test_weights_are_those_that_a_kernel_reads_and_not_what_flows_through_it() -> None:
    assert weight_bytes(conv(64)).tolist() == [4 * (64 * 64 + 64), 0]
    assert weight_bytes(gemm(64)).tolist() == [0, 4 * (64 * 64 + 64)]
    batched = Kernel("MatMul", ((8, 16, 32), (8, 32, 16)), ((8, 16, 16),))
    added = Kernel("Add", ((1, 64), (1, 64)), ((1, 64),))
    assert not weight_bytes(batched).any()
    assert not weight_bytes(added).any()
    assert network_weights({conv(64): 3, gemm(64): 2}).tolist() == [3 * 4 * (64 * 64 + 64), 2 * 4 * (64 * 64 + 64)]


def test_seconds_per_byte_of_both_classes_are_found() -> None:
    found = stacks()
    beyond = np.array([cold_s(one) for one in found])
    fitted = fit_cold_weights(found, beyond, np.array([warm_s(one) for one in found]))
    np.testing.assert_allclose(fitted.total_bytes, TRUE.total_bytes, rtol=0.15)  # copies are whole numbers
    np.testing.assert_allclose(fitted.per_byte_s, TRUE.per_byte_s, rtol=0.25)


def test_a_class_that_no_stack_has_weights_of_costs_what_the_other_does() -> None:
    found = [one for one in stacks() if next(iter(one)).op == "nchwc.Conv"]
    fitted = fit_cold_weights(found, np.array([cold_s(one) for one in found]), np.ones(len(found)))
    np.testing.assert_array_equal(fitted.per_byte_s[:, 1], fitted.per_byte_s[:, 0])


def test_without_stacks_nothing_is_said() -> None:
    assert fit_cold_weights([], np.zeros(0), np.zeros(0)) is NO_COLD_WEIGHTS
    assert not NO_COLD_WEIGHTS.seconds(np.array([1e9, 1e9])).any()
    assert fit_predictor(table(PROBE)).cold_weights is NO_COLD_WEIGHTS


def test_a_dip_between_amounts_and_a_gain_are_smoothed_so_that_more_bytes_never_cost_less() -> None:
    one = float(weight_bytes(conv(512)).sum())
    found = [{conv(512): round(amount * MIB / one)} for amount in (8, 16, 32, 64)]
    weights = np.array([network_weights(counts).sum() for counts in found])
    fitted = fit_cold_weights(found, np.array([-3e-12, 6e-12, 4e-12, 9e-12]) * weights, weights)
    np.testing.assert_allclose(fitted.per_byte_s[:, 0], [0, 5e-12, 5e-12, 9e-12], rtol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_costs_of_a_byte_are_the_rising_ones_that_scikit_learn_finds(seed: int) -> None:
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(seed)
    found = [{(conv if rng.random() < 0.7 else gemm)(512): int(rng.integers(1, 60))} for _ in range(8)]
    weights = np.array([network_weights(one) for one in found])
    total, warm = weights.sum(1), rng.uniform(1e-4, 1e-3, 8)
    beyond = rng.normal(2e-12, 3e-12, 8) * total
    fitted = fit_cold_weights(found, beyond, warm)
    steps = np.round(np.log2(total))
    for column in (0, 1):
        own = weights[:, column] > 0
        if own.any():
            regression = IsotonicRegression(y_min=0.0, out_of_bounds="clip")
            regression.fit(steps[own], (beyond / total)[own], sample_weight=((total / warm) ** 2)[own])
            expected = regression.predict(np.unique(steps))
            np.testing.assert_allclose(fitted.per_byte_s[:, column], expected, rtol=1e-9, atol=1e-20)


@given(st.floats(0, 1e9), st.floats(0, 1e9), st.floats(1.0, 10.0))
def test_more_weights_never_cost_less(convolutions: float, products: float, times: float) -> None:
    few = TRUE.seconds(np.array([convolutions, products]))
    assert (few >= 0).all()
    assert (TRUE.seconds(times * np.array([convolutions, products])) >= few * (1 - 1e-12)).all()
    assert not TRUE.seconds(np.array([2e6, 2e6])).any()  # less than half the least amount


def test_a_networks_kernels_share_what_its_weights_cost_and_the_shares_sum_to_the_prediction() -> None:
    warm, predictor = fit_predictor(table(PROBE)), fit_predictor(table(PROBE, STACK))
    counts = {kernel: 4 for kernel in KERNELS}
    executed = [ExecutedKernel(kernel, f"{kernel.op}_{i}") for i in range(4) for kernel in KERNELS]
    cold, before = predictor.predict(executed), warm.predict(executed)
    assert cold_s(counts) > 0.2 * before.latency_s
    assert cold.latency_s == pytest.approx(warm_s(counts) + cold_s(counts), rel=0.1)
    assert cold.overhead_s + sum(layer.latency_s for layer in cold.layers) == pytest.approx(cold.latency_s)
    one = predictor.predict(executed[:1])
    assert one.latency_s == pytest.approx(warm.predict(executed[:1]).latency_s, rel=0.01)  # its weights stay near
    np.testing.assert_allclose(
        predictor.network_cold_s(network_weights(counts)[None]), predictor.cold_s([e.kernel for e in executed]).sum()
    )


def test_a_probe_that_is_cold_itself_does_not_make_its_kernel_dear() -> None:
    large = gemm(6144)  # 151 MB of weights in one probe
    whole = table(PROBE, STACK)
    rows = LatencyTable(HEADER, (*whole.rows, row(PROBE, {large: 1})))
    predicted = fit_predictor(rows).predict([ExecutedKernel(large, "large")]).latency_s
    assert predicted == pytest.approx(warm_s({large: 1}) + cold_s({large: 1}), rel=0.15)


def test_constants_of_batched_products_and_sums_are_weights_and_data_are_not() -> None:
    inputs, output = ((197, 3, 64), (197, 64, 197)), ((197, 3, 197),)
    attention = Kernel("MatMul", inputs, output)
    constant = Kernel("MatMul", inputs, output, attributes=(("constants", (1,)),))
    assert weight_bytes(attention).tolist() == [0, 0]
    assert weight_bytes(constant).tolist() == [0, 4 * 197 * 64 * 197]
    added = Kernel("Add", ((1, 197, 192),) * 2, ((1, 197, 192),), attributes=(("constants", (1,)),))
    assert weight_bytes(added).tolist() == [0, 4 * 197 * 192]
    # A matrix that is told to be constant besides is one weight and not two.
    shared = Kernel("MatMul", ((4, 64), (1, 64, 32)), ((4, 32),), attributes=(("constants", (1,)),))
    assert weight_bytes(shared).tolist() == [0, 4 * 64 * 32]
