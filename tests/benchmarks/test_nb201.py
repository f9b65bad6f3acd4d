"""What is left of a cell once it runs, by hand; the intervals and the ceiling against slow ones."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.nb201_additive import additive_scores, ceiling, cv_plus, fit_additive
from benchmarks.nb201_cells import (
    CONV_1X1,
    CONV_3X3,
    NONE,
    POOL,
    SKIP,
    as_written,
    counts_of,
    folded,
    folded_edges,
    live,
    live_edges,
    merged,
)

C1, C3, P, S, Z = CONV_1X1, CONV_3X3, POOL, SKIP, NONE


@pytest.mark.parametrize(
    ("cell", "edges"),
    [
        ([C3, C3, C3, C3, C3, C3], [0, 1, 2, 3, 4, 5]),
        ([C3, C3, C3, C3, Z, Z], [3]),  # nodes 1 and 2 lead nowhere
        ([Z, C1, C3, Z, P, C3], [1, 5]),  # node 1 holds zeros: what reads it is dead too
        ([C3, Z, Z, Z, Z, C3], []),
        ([C3, Z, P, Z, Z, C1], [0, 2, 5]),
        ([S, Z, Z, Z, C3, Z], [0, 4]),
    ],
)
def test_edges_off_every_way_from_input_to_output_are_dead(cell: list[int], edges: list[int]) -> None:
    assert live_edges(cell) == edges


def test_as_written_counts_every_edge() -> None:
    assert as_written([C3, C1, C1, P, Z, S]).tolist() == [1, 2, 1, 1, 1]


def test_live_counts_no_none() -> None:
    assert live([C3, C3, C3, C1, Z, Z]).tolist() == [1, 1, 0, 0, 0]


def test_equal_pooling_of_one_tensor_runs_once_and_skips_name_the_same_tensor() -> None:
    assert merged([P, P, S, P, S, S]).tolist() == [1, 0, 0, 1, 0]
    # node 1 is the input itself, so that edge 4 pools what edge 3 pools
    assert merged([S, Z, Z, P, P, Z]).tolist() == [1, 0, 0, 1, 0]
    assert merged([C3, Z, Z, P, P, Z]).tolist() == [1, 0, 1, 2, 0]


def test_convolutions_merge_only_with_weights_in_common() -> None:
    assert merged([C3, C3, Z, Z, S, S]).tolist() == [1, 0, 2, 0, 0]
    assert merged([C3, C3, Z, Z, S, S], shared_weights=True).tolist() == [1, 0, 1, 0, 0]


@pytest.mark.parametrize(
    ("cell", "edges"),
    [
        ([C3, Z, Z, C3, Z, Z], [0, 3]),  # node 1, one convolution, is multiplied by zero: it stays with zero weights
        ([P, Z, Z, C3, Z, Z], [3]),  # pooling times zero is a constant
        ([C3, C3, C3, C3, Z, Z], [3]),  # node 2 is a sum, and node 1 is needed for it: neither is folded
        ([S, C3, Z, S, Z, Z], [1, 3]),  # node 2 is one convolution beside zeros
        ([C3, S, Z, S, Z, Z], [3]),  # node 2 is a sum with node 1's product: both vanish
        ([C3, Z, S, S, Z, Z], [0, 2, 3]),
        ([C3, Z, C3, S, Z, Z], [0, 2, 3]),
        ([Z, Z, C3, C3, Z, Z], [2, 3]),  # a convolution of zeros still runs
        ([Z, C3, S, Z, S, C3], [1, 5]),  # zeros skipped and added are nothing
    ],
)
def test_a_convolution_multiplied_by_zero_runs_with_zero_weights(cell: list[int], edges: list[int]) -> None:
    operators = [e for e in folded_edges(cell)[0] if cell[e] != SKIP]
    assert operators == [e for e in edges if cell[e] != SKIP]


def test_a_constant_network_keeps_its_last_cell() -> None:
    assert folded_edges([Z, Z, C3, Z, Z, C3]) == ([2, 5], False)
    assert folded([Z, Z, C3, Z, Z, C3]) == pytest.approx([1 / 15, 0, 2 / 15, 0, 0])
    assert not folded_edges([C3, C3, C3, Z, Z, Z])[1]


def test_all_accounts_agree_on_a_cell_without_zeros_or_duplicates() -> None:
    cell = [[C3, C1, C3, P, C3, C1]]
    first, *others = (counts_of(np.array(cell), account) for account in ("as written", "live", "merged", "folded"))
    assert first.tolist() == [[1, 2, 3, 1, 0]]
    assert all(np.array_equal(first, other) for other in others)


def test_an_additive_device_is_recovered_despite_a_tenth_of_disturbed_labels() -> None:
    rng = np.random.default_rng(0)
    counts = np.column_stack([np.ones(80), rng.integers(0, 4, (80, 3)), np.zeros(80)])
    true = np.array([2.0, 1.0, 0.5, 3.0, 0.0])
    latency = counts @ true * np.where(np.arange(80) % 10 == 0, 1.5, 1.0)
    found = fit_additive(counts, latency)
    assert found == pytest.approx(true, abs=0.01)


def test_cv_plus_takes_the_ranks_of_its_definition() -> None:
    rng = np.random.default_rng(1)
    n, items, folds = 30, 7, 5
    predictions, fold, scores = rng.uniform(1, 2, (items, folds)), np.arange(n) % folds, rng.exponential(0.1, n)
    low, high = cv_plus(predictions, fold, scores, 0.9)
    for i in range(items):
        ends = [predictions[i, f] * (1 + s) for f, s in zip(fold, scores, strict=True)]
        starts = [predictions[i, f] * (1 - s) for f, s in zip(fold, scores, strict=True)]
        assert high[i] == pytest.approx(sorted(ends)[28 - 1])  # ⌈31 · 0.9⌉ = 28
        assert low[i] == pytest.approx(sorted(starts)[30 - 28])  # ⌊31 · 0.1⌋ = 3rd smallest


def test_ceiling_predicts_each_cell_by_the_median_of_its_like() -> None:
    rng = np.random.default_rng(2)
    counts = rng.integers(0, 3, (40, 2)).astype(float)
    counts[0] = [9, 9]
    latency = np.round(rng.uniform(1, 2, 40), 1)
    found = ceiling(counts, latency)
    assert np.isnan(found[0])
    for i in range(1, 40):
        others = [latency[j] for j in range(40) if j != i and np.array_equal(counts[i], counts[j])]
        if others:
            assert found[i] == pytest.approx(abs(np.median(others) / latency[i] - 1))


def test_intervals_from_fifty_cells_cover_nine_in_ten_on_average() -> None:
    rng = np.random.default_rng(3)
    cells = rng.integers(0, 5, (3_000, 6))
    counts = {account: counts_of(cells, account) for account in ("as written", "live")}
    latency = counts["as written"] @ np.array([3.0, 1.0, 2.0, 0.5, 0.1]) * np.exp(rng.normal(0, 0.05, 3_000))
    fifty, three_hundred = additive_scores(counts, {"paper": latency}, draws=20, seed=0)
    assert fifty["account"] == three_hundred["account"] == "as written"
    assert 0.86 < fifty["coverage"] < 0.95
    assert 0.87 < three_hundred["coverage"] < 0.93
    # 0.8 σ is what a perfect model scores
    assert fifty["mape"] < 0.05
    assert three_hundred["mape"] < 0.043
    assert three_hundred["ceiling_mape"] == pytest.approx(0.04, abs=0.004)
