"""The error expected of networks: told by what is measured, and close to what comes true."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from synthetic_device import SyntheticDevice, executed_by, header, row_of

from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import LatencyTable, TableRow
from akd_deploy.pipeline.expected_error import COUNT, ERROR, GAIN, Enough, ExpectedError, LiveError, chosen_among
from akd_deploy.predictor.fitting import fit_predictor
from akd_deploy.predictor.probe_choice import Choice, beliefs, choose_probes
from akd_deploy.profiling.probes import Probe, space_networks, space_probes
from akd_deploy.search_space import load_space

SPACE = load_space("mobile", {"widths": [16, 32], "strides": [1, 2], "layers": [[1, 2], [1, 2, 3]]})
DEVICE = SyntheticDevice()


def counts(probe: Probe) -> Counter[Kernel]:
    return Counter(executed.kernel for executed in executed_by(probe.layers))


PROBES = space_probes(SPACE, 60, np.random.default_rng(0))
NAMES = [probe.name for probe in PROBES]
COUNTS = [counts(probe) for probe in PROBES]
NETWORKS = space_networks(SPACE, 40, np.random.default_rng(1))
WANTED = [counts(network) for network in NETWORKS]


def rows(probes: list[Probe]) -> list[TableRow]:
    rng = np.random.default_rng(2)
    return [row_of(DEVICE, probe, 0.01, rng) for probe in probes]


def errors_as(*errors: float) -> list[Choice]:
    return [Choice(i, error) for i, error in enumerate(errors)]


def test_what_is_measured_counts_by_name_in_any_order_and_other_names_do_not() -> None:
    expected = ExpectedError(NAMES, beliefs(COUNTS, WANTED))
    last = expected.of(NAMES[40:])
    assert last == pytest.approx(list(choose_probes(COUNTS[40:], WANTED))[-1].error)
    assert expected.of([*reversed(NAMES[40:]), "of another plan", NAMES[50]]) == pytest.approx(last)
    assert expected.of(["of another plan"]) is None
    assert expected.of(NAMES) < last < expected.of(NAMES[58:])


def test_a_profile_under_way_shows_the_error_of_what_is_measured_by_then() -> None:
    expected = ExpectedError(NAMES, beliefs(COUNTS, WANTED))
    live, shown = LiveError(expected), []
    assert live.note == ""
    for name in NAMES[:3]:
        live.measured(name)
        shown.append(live.note)
    assert shown == [f"expected error {expected.of(NAMES[: i + 1]):.1%}" for i in range(3)]
    without = LiveError(None)
    without.measured(NAMES[0])
    assert without.note == ""


def test_a_plan_ends_at_its_error_at_its_count_or_where_the_rest_hardly_helps() -> None:
    order = errors_as(0.5, 0.1, 0.0503, 0.0501, 0.05)

    def ends(enough: Enough, least: int = 0) -> tuple[int, str]:
        chosen, why = enough.of(iter(order), least)
        return len(chosen), why

    assert ends(Enough(5)) == (3, GAIN)  # (5.03 - 5) / 5.03 is below 1 %
    assert ends(Enough(2)) == (2, COUNT)
    assert ends(Enough(5, least_gain=None)) == (5, COUNT)
    assert ends(Enough(5, until_error=0.1, least_gain=None)) == (2, ERROR)
    assert ends(Enough(5, until_error=0.1, least_gain=None), least=4) == (4, ERROR)
    assert ends(Enough(5, until_error=0.01, least_gain=None)) == (5, COUNT)
    assert ends(Enough(5), least=4) == (4, GAIN)


def test_a_plan_gone_on_with_begins_with_what_is_measured_and_need_not_learn_again_what_others_told() -> None:
    enough = Enough(30, least_gain=None)
    chosen, _, _ = chosen_among(NAMES, COUNTS, WANTED, enough, rows([PROBES[7], PROBES[3]]))
    assert [choice.index for choice in chosen[:2]] == [7, 3]
    others = rows(space_probes(SPACE, 40, np.random.default_rng(9)))
    assert not {row.name for row in others} & set(NAMES[:20])
    alone, _, _ = chosen_among(NAMES[:20], COUNTS[:20], WANTED, Enough(1))
    beside, _, _ = chosen_among(NAMES[:20], COUNTS[:20], WANTED, Enough(1), others)
    assert beside[0].error < 0.5 * alone[0].error
    both = chosen_among(NAMES[:20], COUNTS[:20], WANTED, Enough(20, least_gain=None), others)[0]
    together = list(choose_probes([*COUNTS[:20], *(row.counts() for row in others)], WANTED))
    assert both[-1].error == pytest.approx(together[-1].error, rel=1e-6)


@pytest.mark.parametrize("count", [20, 40, 60])
def test_the_error_that_comes_true_is_within_a_small_factor_of_the_expected_one(count: int) -> None:
    enough = Enough(count, least_gain=None)
    chosen, expected, _ = chosen_among(NAMES, COUNTS, WANTED, enough, in_order=True)
    table = LatencyTable(header(), tuple(rows(PROBES[:count])))
    assert expected.of(row.name for row in table.rows) == pytest.approx(chosen[-1].error)
    predictor = fit_predictor(table)
    errors = []
    for network in NETWORKS:
        true = DEVICE.seconds(counts(network))
        errors.append(predictor.predict(executed_by(network.layers)).latency_s / true - 1)
    actual = float(np.sqrt(np.mean(np.square(errors))))
    assert 0.5 < actual / chosen[-1].error < 2.5, (actual, chosen[-1].error)


RARE = Kernel("Relu", ((1, 8, 2, 2),), ((1, 8, 2, 2),), "float32")
"""It costs next to nothing, so that measuring it tells next to nothing."""


@pytest.mark.parametrize("in_order", [False, True])
def test_a_plan_holds_every_kind_of_kernel_that_its_candidates_do(in_order: bool) -> None:
    candidates = [count + Counter({RARE: 1}) if i in (50, 55) else count for i, count in enumerate(COUNTS)]
    wanted = [WANTED[0] + Counter({RARE: 1}), *WANTED[1:]]
    seconds = [2.0 if i == 50 else 1.0 for i in range(len(candidates))]

    def chosen(measured: list[TableRow], networks: list[Counter[Kernel]]) -> list[int]:
        few = Enough(4, least_gain=None)
        choices, _, _ = chosen_among(NAMES, candidates, networks, few, measured, seconds, in_order=in_order)
        return [choice.index for choice in choices]

    assert 55 in chosen([], wanted)
    assert len(chosen([], wanted)) <= 5
    assert not {50, 55} & set(chosen([], WANTED))
    known = row_of(DEVICE, PROBES[0], 0.01, np.random.default_rng(0))
    known = replace(known, kernels=(*known.kernels, (RARE, 1)))
    assert RARE in known.counts()
    assert 55 not in chosen([known], wanted)


def test_every_kernel_that_a_mask_slows_down_is_in_a_plan() -> None:
    def product(tokens: int, *attributes: tuple[str, float]) -> Kernel:
        return Kernel("MatMul", ((8, tokens, tokens), (8, tokens, 32)), ((8, tokens, 32),), attributes=attributes)

    plain = [product(tokens) for tokens in range(8, 80, 2)]
    masked = [product(tokens, ("denormals", 0.25)) for tokens in (8, 10)]
    candidates = [Counter({kernel: 1}) for kernel in (*plain, *masked)]
    networks = [Counter({plain[-1]: 4, masked[0]: 1, masked[1]: 1})]
    chosen, _, _ = chosen_among([str(i) for i in range(len(candidates))], candidates, networks, Enough(4))
    assert {choice.index for choice in chosen} >= {len(plain), len(plain) + 1}
    without = [Counter({plain[-1]: 4})]
    chosen, _, _ = chosen_among([str(i) for i in range(len(candidates))], candidates, without, Enough(4))
    assert not {choice.index for choice in chosen} & {len(plain), len(plain) + 1}
