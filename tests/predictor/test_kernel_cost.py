"""The posterior against a slow textbook one, and no kernel for free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from scipy import optimize
from synthetic_device import SyntheticDevice, executed_by

from akd_deploy.kernel import Kernel
from akd_deploy.measurement import Measurement
from akd_deploy.predictor import kernel_cost_fit
from akd_deploy.predictor.features import COORDINATE_GROUPS, coordinates, macs, regime
from akd_deploy.predictor.kernel_cost import KernelCostModel, model_from_arrays
from akd_deploy.predictor.kernel_cost_fit import (
    BASE_FLOOR,
    NOISE_FLOOR,
    PRIOR_MEDIANS,
    Observation,
    _Block,
    _Problem,
    fit_kernel_costs,
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


def slow_posterior(data: Sequence[Observation], model: KernelCostModel) -> dict[Kernel, tuple[float, float]]:
    """Cost and spread of every kernel: the mode by minimising the negative log posterior, the covariance there by
    inverting its Gauss–Newton Hessian, both written out in loops over one joint prior."""
    h = model.hyperparameters
    base = dict(zip(model.kernels, model.base_s(model.features), strict=True))
    kernels = sorted(base)

    def prior(a: Kernel, b: Kernel) -> float:
        smooth = 0.0
        if regime(a) == regime(b):
            pairs = zip(coordinates(a), coordinates(b), COORDINATE_GROUPS, strict=True)
            scaled = np.sqrt(3 * sum(((x - y) / h.lengths[group]) ** 2 for x, y, group in pairs))
            smooth = h.amplitude**2 * (1 + scaled) * np.exp(-scaled)
        return smooth + h.own**2 * (a == b)

    precision = np.linalg.inv(np.array([[prior(a, b) for b in kernels] for a in kernels]))
    variance = [max(o.noise, NOISE_FLOOR) ** 2 + h.misfit**2 + (h.jitter_s / o.latency_s) ** 2 for o in data]

    def residuals(g: np.ndarray) -> np.ndarray:
        cost = {k: base[k] * np.exp(g[i]) for i, k in enumerate(kernels)}
        sums = [model.overhead_s + sum(n * cost[k] for k, n in o.counts.items()) for o in data]
        return np.array([(o.latency_s - y) / o.latency_s for o, y in zip(data, sums, strict=True)])

    def jacobian(g: np.ndarray) -> np.ndarray:
        return np.array(
            [[o.counts.get(k, 0) * base[k] * np.exp(g[i]) / o.latency_s for i, k in enumerate(kernels)] for o in data]
        )

    def loss(g: np.ndarray) -> tuple[float, np.ndarray]:
        r = residuals(g)
        return 0.5 * float(r**2 @ (1 / np.array(variance)) + g @ precision @ g), (
            precision @ g - jacobian(g).T @ (r / variance)
        )

    mode = optimize.minimize(loss, np.zeros(len(kernels)), jac=True, method="L-BFGS-B", options={"maxiter": 5000}).x
    hessian = precision + jacobian(mode).T @ np.diag(1 / np.array(variance)) @ jacobian(mode)
    covariance = np.linalg.inv(hessian)
    return {
        k: (base[k] * float(np.exp(mode[i])), base[k] * float(np.exp(mode[i]) * np.sqrt(covariance[i, i])))
        for i, k in enumerate(kernels)
    }


def test_posterior_is_laplaces_around_the_mode_of_the_joint_density(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cost_fit, "OUTLYING", np.inf)
    data = observations()
    model = fit_kernel_costs(data)
    expected = slow_posterior(data, model)
    for kernel, cost in zip(model.kernels, model.posterior(model.kernels), strict=True):
        mean_s, spread_s = expected[kernel]
        assert cost.mean_s == pytest.approx(mean_s, rel=2e-3)
        assert cost.spread_s == pytest.approx(spread_s, rel=2e-2)
        assert cost.in_domain


def test_the_gradient_of_the_likelihood_is_that_of_finite_differences() -> None:
    rng = np.random.default_rng(0)
    counts = rng.integers(0, 3, (12, 5)).astype(float)
    place = rng.normal(size=(3, 5, 2))
    counts[:7, 3:] = 0.0  # few observations hold the second regime, all the first: S is added to in two ways
    blocks, squares = [], []
    for members, square in (([0, 1, 2], slice(0, 9)), ([3, 4], slice(9, 13))):
        blocks.append(_Block(np.array(members), np.flatnonzero(counts[:, members].any(1)), square))
        away = place[:, members][:, :, None] - place[:, members][:, None]
        squares.append(np.square(away).sum(3).reshape(3, -1))
    latency = 1.0 + counts.sum(1) * rng.uniform(0.8, 1.2, 12)
    itself = np.array([0, 4, 8, 9, 12])
    problem = _Problem(
        latency, 1.0, counts, np.ones(5), np.full(12, 0.01), tuple(blocks), np.hstack(squares), itself
    ).linearised(np.zeros(5), rng.uniform(1.0, 4.0, 12))
    at = np.log(PRIOR_MEDIANS) + rng.normal(0, 0.3, 7)
    _, gradient = problem.loss(at)
    for i in range(7):
        step = 1e-5 * np.eye(7)[i]
        slope = (problem.loss(at + step)[0] - problem.loss(at - step)[0]) / 2e-5
        assert gradient[i] == pytest.approx(slope, rel=1e-4, abs=1e-5)


def test_a_probe_that_nothing_explains_does_not_make_the_others_uncertain(monkeypatch: pytest.MonkeyPatch) -> None:
    data = observations()
    odd = [*data, *(replace(one, latency_s=30 * one.latency_s) for one in data[:2])]
    clean, robust = fit_kernel_costs(data), fit_kernel_costs(odd)
    monkeypatch.setattr(kernel_cost_fit, "OUTLYING", np.inf)
    spoilt = fit_kernel_costs(odd)
    assert robust.hyperparameters.misfit < 2 * clean.hyperparameters.misfit + 0.01
    assert spoilt.hyperparameters.misfit > 10 * robust.hyperparameters.misfit

    def spread(model: KernelCostModel) -> float:
        kernels = sorted({kernel for one in data for kernel in one.counts})
        return float(np.median([cost.spread_s / cost.mean_s for cost in model.posterior(kernels)]))

    assert spread(robust) < 1.5 * spread(clean) + 0.005
    assert spread(spoilt) > 2 * spread(robust)


def test_a_mode_with_large_corrections_stays_positive_and_explains_the_sums() -> None:
    """Neighbouring costs six times apart, which linear corrections of one base would make negative."""
    shapes = [(1, 2**i, 8, 8) for i in range(4, 11)]
    cost = {Kernel("Add", (s, s), (s,)): 1e-6 * (6.0 if i % 2 else 1.0) for i, s in enumerate(shapes)}
    data = [Observation({k: n}, 1e-6 + n * c, 0.004) for k, c in cost.items() for n in (1, 2, 5)]
    model = fit_kernel_costs(data)
    for kernel, found in zip(cost, model.posterior(list(cost)), strict=True):
        assert found.mean_s == pytest.approx(cost[kernel], rel=0.1)


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
    assert observation_of(Counter(), Measurement("p", (1.0,), (0,)), 0.07).noise == 0.07


def masked_product(tokens: int, width: int, share: float) -> Kernel:
    """A product of attention's weights, that share of them denormal, with values."""
    shapes = ((8, tokens, tokens), (8, tokens, width)), ((8, tokens, width),)
    return Kernel("MatMul", *shapes, attributes=(("denormals", share),) if share else ())


def masked_product_s(kernel: Kernel) -> float:
    return 1e-6 + macs(kernel) * 1e-10 * (1 + 60 * float(kernel.attribute("denormals") or 0.0))


def test_products_with_denormal_numbers_are_slower_by_what_others_of_them_were() -> None:
    rng = np.random.default_rng(2)
    sizes = [(int(t), int(w)) for t, w in zip(rng.integers(16, 96, 60), rng.integers(8, 64, 60), strict=True)]
    shares = rng.choice([0.0, 0.0, 0.02, 0.06, 0.11, 0.25], 60).tolist()
    kernels = [masked_product(*size, share) for size, share in zip(sizes, shares, strict=True)]
    model = fit_kernel_costs([Observation({k: 1}, masked_product_s(k), 0.01) for k in kernels])
    asked = [masked_product(t, w, share) for t, w in ((20, 60), (49, 32), (90, 12)) for share in (0.0, 0.04, 0.2)]
    for kernel, cost in zip(asked, model.costs(asked), strict=True):
        assert cost.in_domain
        assert cost.mean_s == pytest.approx(masked_product_s(kernel), rel=0.25)
    plain = [kernel for kernel in kernels if kernel.attribute("denormals") is None]
    unaware = fit_kernel_costs([Observation({k: 1}, masked_product_s(k), 0.01) for k in plain])
    assert [cost.in_domain for cost in unaware.costs(asked[:2])] == [True, False]
