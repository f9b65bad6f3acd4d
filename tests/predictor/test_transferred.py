"""A predictor by transfer, on synthetic devices: as good as its probes allow, and usable like any other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from synthetic_device import SyntheticDevice, executed_by, header, row_of, table_of

from akd_deploy.errors import UncoveredOperatorError, UsageError
from akd_deploy.kernel import ExecutedKernel, Kernel
from akd_deploy.latency_table import NETWORK, PROBE, LatencyTable
from akd_deploy.predictor.cache import read_predictor, save_predictor
from akd_deploy.predictor.cold_weights import COLD_NOISE, NO_COLD_WEIGHTS, ColdWeights
from akd_deploy.predictor.fitting import fit_predictor
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.predictor.transfer_design import measure_probes
from akd_deploy.predictor.transferred import (
    LEFT_OUT_PROBES,
    Item,
    item_costs,
    items_prior,
    shared_cold_weights,
    transfer_predictor,
)
from akd_deploy.profiling.probes import Probe, space_networks, space_probes
from akd_deploy.search_space import load_space

pytestmark = pytest.mark.xdist_group("transfer-plan")  # devices are fitted once

SPACE = load_space("mobile")
KNOWN = {
    "fast": SyntheticDevice(call_s=2e-6, dense_mac_s=1.0e-11, depthwise_mac_s=3e-11, byte_s=3e-11),
    "slow": SyntheticDevice(call_s=9e-6, dense_mac_s=6.0e-11, depthwise_mac_s=3e-10, byte_s=6e-11),
}
NEW = SyntheticDevice(call_s=5e-6, dense_mac_s=2.0e-11, depthwise_mac_s=3.0e-10, byte_s=3.5e-11)
"""Its depthwise convolutions are slow beside all others: neither source, scaled, comes near it."""


@pytest.fixture(scope="module")
def sources() -> dict[str, Predictor]:
    return {
        name: fit_predictor(table_of(device, SPACE, probes=90, networks=15, seed=i))
        for i, (name, device) in enumerate(KNOWN.items())
    }


@pytest.fixture(scope="module")
def subjects() -> list[Probe]:
    rng = np.random.default_rng(7)
    return [*space_probes(SPACE, 60, rng, candidates=400), *space_networks(SPACE, 20, rng)]


def item_of(subject: Probe) -> Item:
    counts = Counter(executed.kernel for executed in executed_by(subject.layers))
    return Item(subject.name, subject.kind, subject.family, tuple(sorted(counts.items())))


@pytest.fixture(scope="module")
def items(subjects: list[Probe]) -> list[Item]:
    return [item_of(subject) for subject in subjects]


def measured_table(
    sources: dict[str, Predictor], items: list[Item], subjects: list[Probe], probes: int, seed: int = 0
) -> LatencyTable:
    rng = np.random.default_rng(seed)
    rows = {}

    def measure_s(position: int) -> float:
        rows[position] = row_of(NEW, subjects[position], 0.01, rng)
        return rows[position].measurement.median_s

    measure_probes(items_prior(sources, items), measure_s, probes, rng)
    return LatencyTable(header("new"), tuple(rows.values()))


@pytest.fixture(scope="module")
def transferred(sources: dict[str, Predictor], items: list[Item], subjects: list[Probe]) -> Predictor:
    return transfer_predictor(items_prior(sources, items), items, measured_table(sources, items, subjects, 10))


def errors_of(predictor: Predictor, seed: int = 99) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors on networks never seen, and whether the interval holds them."""
    errors, covered = [], []
    for network in space_networks(SPACE, 40, np.random.default_rng(seed)):
        executed = executed_by(network.layers)
        true = NEW.seconds(Counter(e.kernel for e in executed))
        prediction = predictor.predict(executed)
        errors.append(prediction.latency_s / true - 1)
        covered.append(prediction.interval_s[0] <= true <= prediction.interval_s[1])
    return np.abs(errors), np.array(covered)


def test_ten_probes_predict_networks_far_better_than_any_source_scaled_to_them(
    transferred: Predictor, sources: dict[str, Predictor]
) -> None:
    errors, _ = errors_of(transferred)
    assert errors.mean() < 0.06  # seen with six seeds: 3.0–5.6 %, 5.0 % on average
    for source in sources.values():
        networks = space_networks(SPACE, 40, np.random.default_rng(99))
        true = np.array([NEW.seconds(Counter(e.kernel for e in executed_by(n.layers))) for n in networks])
        guess = np.array([source.predict(executed_by(n.layers)).latency_s for n in networks])
        assert errors.mean() < 0.5 * np.abs(guess * np.median(true / guess) / true - 1).mean()


def test_its_intervals_hold_most_networks(transferred: Predictor) -> None:
    assert errors_of(transferred)[1].mean() >= 0.8


def test_it_says_what_it_was_made_of(transferred: Predictor) -> None:
    assert transferred.target == "new"
    assert transferred.calibrated_on == LEFT_OUT_PROBES
    assert transferred.scores.items + transferred.left_out == 10
    # The probes are the most unlike the rest: left out, they are harder than any network.
    assert errors_of(transferred)[0].mean() < transferred.scores.mape < 0.2


def test_it_is_kept_on_disk_like_any_other(transferred: Predictor, tmp_path) -> None:
    again = read_predictor(save_predictor(transferred, tmp_path))
    network = executed_by(space_networks(SPACE, 1, np.random.default_rng(1))[0].layers)
    assert again.predict(network) == transferred.predict(network)


def test_a_source_meets_a_probe_without_its_in_place_factor(sources: dict[str, Predictor], items: list[Item]) -> None:
    one = {"fast": sources["fast"]}
    doubled = {"fast": replace(sources["fast"], factor=2 * sources["fast"].factor)}
    networks = np.array([item.kind == NETWORK for item in items])
    ratio = items_prior(doubled, items).bases[0][:, 0] / items_prior(one, items).bases[0][:, 0]
    assert np.ptp(ratio[networks]) < 1e-9
    assert np.ptp(ratio[~networks]) < 1e-9
    assert ratio[networks][0] == pytest.approx(2 * ratio[~networks][0])


def test_an_operator_that_a_source_never_measured_is_named(sources: dict[str, Predictor], items: list[Item]) -> None:
    strange = Item("strange", PROBE, "x", ((Kernel("Erf", ((1, 8),), ((1, 8),)), 1),))
    with pytest.raises(UncoveredOperatorError, match="Erf"):
        items_prior(sources, [*items, strange])


def test_too_few_probes_and_strangers_are_refused(
    sources: dict[str, Predictor], items: list[Item], subjects: list[Probe]
) -> None:
    with pytest.raises(UsageError, match="4 measured items"):
        transfer_predictor(items_prior(sources, items), items, measured_table(sources, items, subjects, 4))
    table = measured_table(sources, items, subjects, 6)
    known = [item for item in items if item.name != table.rows[0].name]
    with pytest.raises(UsageError, match="1 of them unknown"):
        transfer_predictor(items_prior(sources, known), known, table)
    with pytest.raises(UsageError, match="0 sources"):
        items_prior({}, items)
    with pytest.raises(UsageError, match="0 kernels"):
        items_prior(sources, [])


def test_what_weights_cost_far_from_the_cache_is_transferred_at_the_new_devices_scale(
    sources: dict[str, Predictor], items: list[Item], subjects: list[Probe], transferred: Predictor
) -> None:
    rising = ColdWeights(np.array([1e3, 1e6]), np.array([0.0, 1e9]), np.array([[1e-12] * 5, [4e-11] * 5]))
    cold_sources = {name: replace(source, cold_weights=rising) for name, source in sources.items()}
    shared = shared_cold_weights(cold_sources, items)
    assert shared_cold_weights(sources, items) is None
    assert transferred.cold_weights is NO_COLD_WEIGHTS
    table = measured_table(sources, items, subjects, 10)
    cold = transfer_predictor(items_prior(sources, items), items, table, cold_weights=shared)
    kernels = [kernel for kernel, _ in max(items, key=lambda item: len(item.kernels)).kernels] * 50
    added = float(cold.cold_s(kernels, 1e-3).sum())
    plain = {name: float(source.cold_s(kernels, 1e-3).sum()) for name, source in cold_sources.items()}
    # The new device is slower than one source and quicker than the other: so are its far weights, relatively.
    assert min(plain.values()) * 0.3 < added < max(plain.values()) * 3
    speeds = {
        name: source.predict([ExecutedKernel(k, "") for k in kernels]).latency_s for name, source in sources.items()
    }
    share = added / transferred.predict([ExecutedKernel(k, "") for k in kernels]).latency_s
    shares = [plain[name] / speeds[name] for name in sources]
    assert min(shares) * 0.7 < share < max(shares) * 1.4


def test_what_a_transfer_is_calibrated_on_knows_how_uncertain_cold_weights_are(
    sources: dict[str, Predictor], items: list[Item]
) -> None:
    rising = ColdWeights(np.array([1e2, 1e4]), np.array([0.0, 1e9]), np.array([[1e-12] * 5, [4e-11] * 5]))
    latency_s = 1e-6 * np.array([sum(count for _, count in item.kernels) for item in items], float)
    warm, cold = item_costs(items, latency_s), item_costs(items, latency_s, rising)
    place = np.where([items[i].kind == NETWORK for i in cold.covered], cold.factor, 1.0)
    before = np.where([items[i].kind == NETWORK for i in warm.covered], warm.factor, 1.0)
    added_s = cold.predicted_s - place * warm.predicted_s / before
    assert added_s.max() > 0
    np.testing.assert_allclose(cold.spread_s - place * warm.spread_s / before, COLD_NOISE * added_s, atol=1e-15)


def test_items_are_as_unsure_as_a_predictor_says_of_networks(sources: dict[str, Predictor], items: list[Item]) -> None:
    latency_s = np.array([1e-4 + 1e-6 * i for i in range(len(items))])
    costs = item_costs(items, latency_s)
    predictor = replace(
        next(iter(sources.values())), model=costs.model, factor=costs.factor, cold_weights=NO_COLD_WEIGHTS
    )
    for place, spread_s in zip(costs.covered.tolist(), costs.spread_s.tolist(), strict=True):
        if items[place].kind == NETWORK:
            kernels_s = sum(n * predictor.costs([kernel])[0].told_spread_s for kernel, n in items[place].kernels)
            assert spread_s == pytest.approx(float(predictor.spread_s(np.array(kernels_s), np.zeros(()))))
