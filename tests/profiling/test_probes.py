"""Probes cover what a space can hold, and are named by what they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from akd_deploy.latency_table import NETWORK, PROBE
from akd_deploy.profiling.probes import MAX_LAYERS, _kinds, _shapes, probe_writer, space_networks, space_probes
from akd_deploy.search_space import load_space
from akd_deploy.search_space.operations import operations
from akd_deploy.target import Target

SPACE = load_space("mobile")
TINY = load_space("mobile", {"widths": [8], "strides": [1], "layers": [[1]], "kernels": [3], "operators": ["conv"],
                             "se_ratios": [0.0], "skips": ["none"], "width_multipliers": [0.5, 1.0]})  # fmt: skip


def probes(count: int = 60, seed: int = 0, candidates: int = 400):
    return space_probes(SPACE, count, np.random.default_rng(seed), candidates)


def test_probes_are_short_chains_of_layers_that_fit_together() -> None:
    for probe in probes():
        assert probe.kind == PROBE
        assert 1 <= len(probe.layers) <= MAX_LAYERS
        assert [layer.name for layer in probe.layers] == [f"l{i}" for i in range(len(probe.layers))]
        for before, after in zip(probe.layers, probe.layers[1:], strict=False):
            assert (before.out_channels, before.out_size) == (after.in_channels, after.in_size)


def test_every_operation_drawn_is_covered_before_any_is_covered_twice_for_nothing() -> None:
    everything = frozenset().union(*(_shapes(p.layers) for p in probes(count=10**6)))
    covered: set[object] = set()
    for n, probe in enumerate(probes(count=10**6)):
        if covered == everything:
            break
        assert not _shapes(probe.layers) <= covered, f"probe {n} adds nothing"
        covered |= _shapes(probe.layers)
    assert covered == everything


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("mobile", {}),
        ("mobile", {"activation": "hardswish"}),
        ("mobile", {"kernels": [1, 3, 5, 7], "se_ratios": [0.5, 0.25, 0.0]}),
        ("mobilenet", {}),
    ],
)
def test_twenty_probes_hold_every_kind_of_operation_that_architectures_do(name: str, settings: dict) -> None:
    space, rng = load_space(name, settings), np.random.default_rng(10)
    present = frozenset().union(*(_kinds(space.layers(space.sample(rng))) for _ in range(500)))
    for seed in (0, 1):
        chosen = space_probes(space, 20, np.random.default_rng(seed), candidates=1_000)
        assert frozenset().union(*(_kinds(probe.layers) for probe in chosen)) == present
    assert {("linear", "", "none"), ("conv", "depthwise", space.settings["activation"])} < present


def test_few_chosen_probes_cover_more_than_as_many_random_ones() -> None:
    chosen = frozenset().union(*(_shapes(p.layers) for p in probes(40)))
    pool = probes(count=10**6)
    rng = np.random.default_rng(1)
    luckiest = max(
        len(frozenset().union(*(_shapes(pool[i].layers) for i in rng.choice(len(pool), 40, replace=False))))
        for _ in range(20)
    )
    assert len(chosen) > 1.2 * luckiest


def test_one_seed_gives_one_plan_and_a_longer_plan_begins_like_a_shorter_one() -> None:
    assert probes(20) == probes(20)
    assert probes(20) != probes(20, seed=1)
    assert probes(40)[:20] == probes(20)
    networks = [space_networks(SPACE, n, np.random.default_rng(0)) for n in (5, 9)]
    assert networks[1][:5] == networks[0]


def test_names_tell_different_chains_apart_and_no_others() -> None:
    everything = [*probes(10**6), *probes(10**6, seed=1), *space_networks(SPACE, 50, np.random.default_rng(0))]
    by_name = {}
    for probe in everything:
        assert by_name.setdefault(probe.name, probe.layers) == probe.layers
    assert len(by_name) == len({(p.kind, p.layers) for p in everything})


def test_networks_are_whole_and_different() -> None:
    networks = space_networks(SPACE, 50, np.random.default_rng(0))
    assert len({network.layers for network in networks}) == len(networks) == 50
    for network in networks:
        assert network.kind == NETWORK
        assert (network.layers[0].op, network.layers[-1].op) == ("stem", "head")
        assert network.family == "mobile-network"


def test_a_space_too_small_for_the_plan_gives_what_it_has() -> None:
    assert len(space_networks(TINY, 10, np.random.default_rng(0))) == 2
    # stem; block of either width; head after either; stem and block; block and head
    assert len(space_probes(TINY, 100, np.random.default_rng(0), candidates=500)) == 1 + 2 + 2 + 2 + 2


@pytest.mark.parametrize("engine", ["onnxruntime", "torch"])
def test_probes_are_written_as_files_the_engine_reads(engine: str, tmp_path: Path) -> None:
    probe = probes(1)[0]
    path = probe_writer(Target("t", "cpu", engine, batch=2), np.random.default_rng(0))(probe, tmp_path)
    assert path.stem == probe.name
    assert path.suffix == {"onnxruntime": ".onnx", "torch": ".pt2"}[engine]
    if engine == "onnxruntime":
        model = onnx.load(path)
        assert {step.name for step in operations(probe.layers)} <= {node.name for node in model.graph.node}
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_value == 2
