"""Base costs: what regimes that hardly any probe tells apart are taken to cost."""

from __future__ import annotations

import numpy as np
import pytest

from akd_deploy.kernel import Kernel
from akd_deploy.predictor.base_cost import fit_base
from akd_deploy.predictor.features import TERMS, cost_terms, regime


def elementwise(operator: str, elements: int) -> Kernel:
    return Kernel(operator, ((1, elements), (1, elements)), ((1, elements),))


def matmul(size: int) -> Kernel:
    return Kernel("MatMul", ((size, size), (size, size)), ((size, size),))


def fitted(probes: list[dict[Kernel, int]], latency_s: list[float]) -> tuple[float, dict[Kernel, float]]:
    kernels = sorted({kernel for probe in probes for kernel in probe})
    regimes = sorted({regime(kernel) for kernel in kernels})
    counts = np.array([[probe.get(kernel, 0) for kernel in kernels] for probe in probes], float)
    terms = np.array([cost_terms(kernel) for kernel in kernels])
    own = np.array([regimes.index(regime(kernel)) for kernel in kernels])
    overhead_s, terms_s = fit_base(np.array(latency_s), kernels, counts, own, terms)
    assert terms_s.shape == (len(regimes), len(TERMS))
    assert (terms_s >= 0).all()
    return overhead_s, dict(zip(kernels, (terms_s[own] * terms).sum(1).tolist(), strict=True))


def law(kernel: Kernel) -> float:
    size = kernel.output_elements
    return 2e-6 + size * (1e-9 if kernel.op != "MatMul" else 1e-10 * kernel.inputs[0][0])


def test_a_law_of_terms_is_found() -> None:
    kernels = [elementwise("Add", 2**i) for i in range(8, 18)] + [matmul(2**i) for i in range(4, 10)]
    overhead_s, costs = fitted(
        [{k: n} for k in kernels for n in (1, 3)], [5e-6 + n * law(k) for k in kernels for n in (1, 3)]
    )
    assert overhead_s == pytest.approx(5e-6, rel=0.2)
    for kernel in kernels:
        assert costs[kernel] == pytest.approx(law(kernel), rel=0.1)


def test_an_operator_seen_once_beside_a_costly_one_costs_about_what_its_class_does() -> None:
    # Alone, least squares would give the Sub whatever the product beside it takes more than the law says.
    adds, products = [elementwise("Add", 2**i) for i in range(8, 18)], [matmul(2**i) for i in range(4, 10)]
    sub = elementwise("Sub", 2**12)
    probes = [{k: 1} for k in (*adds, *products)] + [{sub: 1, matmul(300): 1}]
    latency_s = [law(k) for k in (*adds, *products)] + [law(matmul(300)) * 1.3]
    _, costs = fitted(probes, latency_s)
    assert law(matmul(300)) * 0.3 > 100 * law(sub)
    assert law(sub) / 3 < costs[sub] < 6 * law(sub)


def test_an_operator_measured_often_costs_what_it_was_measured_to_whatever_its_class_does() -> None:
    adds = [elementwise("Add", 2**i) for i in range(8, 18)]
    slow = [elementwise("Erf", 2**i) for i in range(8, 18)]
    _, costs = fitted([{k: 1} for k in (*adds, *slow)], [law(k) for k in adds] + [8 * law(k) for k in slow])
    for kernel in slow:
        assert costs[kernel] == pytest.approx(8 * law(kernel), rel=0.15)
