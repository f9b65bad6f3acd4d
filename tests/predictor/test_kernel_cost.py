"""The posterior against a slow textbook one, and no kernel for free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from synthetic_device import SyntheticDevice, executed_by

from akd_deploy.kernel import Kernel
from akd_deploy.measurement import Measurement
from akd_deploy.predictor.features import coordinates, regime
from akd_deploy.predictor.kernel_cost import (
    BASE_FLOOR,
    NOISE_FLOOR,
    Observation,
    fit_kernel_costs,
    model_from_arrays,
    observation_of,
)
from akd_deploy.profiling.probes import space_probes
from akd_deploy.search_space import load_space


def observations(count: int = 40, noise: float = 0.01) -> list[Observation]:
    rng = np.random.default_rng(5)
    device = SyntheticDevice()
    probes = space_probes(load_space("mobile"), count, rng, candidates=300)
    counts = [Counter(e.kernel for e in executed_by(probe.layers)) for probe in probes]
    return [Observation(c, device.seconds(c) * float(np.exp(rng.normal(0, noise))), noise) for c in counts]


def slow_posterior(
    data: Sequence[Observation], base: dict[Kernel, float], overhead: float, hyper: tuple[float, float, float]
) -> dict[Kernel, tuple[float, float]]:
    """Mean and standard deviation of every kernel's cost, by conditioning one joint Gaussian written out in loops."""
    amplitude, length, own = hyper
    kernels = sorted(base)

    def prior(a: Kernel, b: Kernel) -> float:
        smooth = 0.0
        if regime(a) == regime(b):
            distance = sum((x - y) ** 2 for x, y in zip(coordinates(a), coordinates(b), strict=True))
            smooth = amplitude**2 * np.exp(-distance / (2 * length**2))
        return smooth + own**2 * (a == b)

    g_g = np.array([[prior(a, b) for b in kernels] for a in kernels])
    weights = np.array([[o.counts.get(k, 0) * base[k] / o.latency_s for k in kernels] for o in data])
    y_y = weights @ g_g @ weights.T + np.diag([max(o.noise, NOISE_FLOOR) ** 2 for o in data])
    residual = np.array(
        [(o.latency_s - overhead - sum(n * base[k] for k, n in o.counts.items())) / o.latency_s for o in data]
    )
    gain = g_g @ weights.T @ np.linalg.inv(y_y)
    mean, covariance = gain @ residual, g_g - gain @ weights @ g_g
    return {
        k: (base[k] * (1 + mean[i]), base[k] * float(np.sqrt(max(covariance[i, i], 0)))) for i, k in enumerate(kernels)
    }


def test_posterior_is_that_of_conditioning_the_joint_gaussian() -> None:
    data = observations()
    model = fit_kernel_costs(data)
    base = dict(zip(model.kernels, model.base_s(model._measured), strict=True))
    expected = slow_posterior(data, base, model.overhead_s, (model.amplitude, model.length, model.own))
    for kernel, cost in zip(model.kernels, model.costs(model.kernels), strict=True):
        mean_s, spread_s = expected[kernel]
        assert cost.mean_s == pytest.approx(mean_s, rel=1e-6)
        assert cost.spread_s == pytest.approx(spread_s, rel=1e-4)
        assert cost.in_domain


def test_no_kernel_is_free_even_where_least_squares_gives_its_operator_and_the_call_nothing() -> None:
    # Every latency is proportional to the one Add's elements; the Reshape beside it explains nothing.
    sizes = [64, 128, 256, 512, 1024, 2048, 4096]
    data = []
    for size in sizes:
        shape = (1, size, 8, 8)
        counts = Counter({Kernel("Add", (shape, shape), (shape,)): 1, Kernel("Reshape", ((1, 8),), ((8,),)): 1})
        data.append(Observation(counts, size * 1e-8, 0.0))
    model = fit_kernel_costs(data)
    tiny = Kernel("Reshape", ((1, 1),), ((1,),))
    for cost in model.costs([tiny, Kernel("Reshape", ((1, 8),), ((8,),))]):
        assert cost.mean_s > 0.01 * BASE_FLOOR * 64e-8


def test_no_kernel_of_a_random_space_is_predicted_free() -> None:
    model = fit_kernel_costs(observations())
    space, rng = load_space("mobile"), np.random.default_rng(0)
    kernels = {e.kernel for _ in range(100) for e in executed_by(space.layers(space.sample(rng)))}
    assert all(cost.mean_s > 0 and cost.spread_s >= 0 for cost in model.costs(sorted(kernels)))


def test_a_kernel_measured_more_closely_is_known_more_closely() -> None:
    loose, tight = fit_kernel_costs(observations(noise=0.05)), fit_kernel_costs(observations(noise=0.004))
    spread = [sum(c.spread_s for c in m.costs(m.kernels)) for m in (loose, tight)]
    assert spread[0] > 1.5 * spread[1]


def test_fields_and_arrays_round_trip() -> None:
    model = fit_kernel_costs(observations())
    again = model_from_arrays(*model.as_arrays())
    assert again.costs(model.kernels) == model.costs(model.kernels)
    assert again.overhead_s == model.overhead_s


def test_terms_of_another_version_are_refused() -> None:
    arrays, fields = fit_kernel_costs(observations()).as_arrays()
    with pytest.raises(ValueError, match="terms"):
        model_from_arrays(arrays, {**fields, "terms": ["launch"]})


@pytest.mark.parametrize("bad", [observations()[:4], [*observations()[:5], Observation(Counter(), 0.0, 0.1)]])
def test_too_few_or_impossible_observations_are_refused(bad: list[Observation]) -> None:
    with pytest.raises(ValueError, match="observations"):
        fit_kernel_costs(bad)


def test_noise_of_a_median_of_blocks_shrinks_with_their_number() -> None:
    # Four times ±0.03 about 1: standard deviation √(4 · 0.03² / 3) = 0.06 / √3, halved by four blocks.
    four = Measurement("p", (0.97, 0.97, 1.03, 1.03), (0, 1, 2, 3))
    assert observation_of(Counter(), four).noise == pytest.approx(0.03 / np.sqrt(3))
    assert observation_of(Counter(), four).latency_s == 1.0
    assert observation_of(Counter(), Measurement("p", (1.0,), (0,))).noise == 0
