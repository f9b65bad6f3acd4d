"""An imported table is a table: a predictor fitted on trtexec's files alone predicts networks it has not seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from paper_trtexec import network_s, write_files

from akd_deploy.engines.tensorrt_inspect import executed_kernels_from_layers, layers_from_inspector
from akd_deploy.errors import UsageError
from akd_deploy.latency_table import LatencyTable
from akd_deploy.predictor.fitting import fit_predictor
from akd_deploy.profiling.importers.imported import AGGREGATED, Imported
from akd_deploy.profiling.importers.into_table import imported_table, stated_device
from akd_deploy.profiling.importers.once_for_all import blocks_from_lookup_table
from akd_deploy.profiling.importers.trtexec import rows_from_trtexec
from akd_deploy.profiling.probes import space_networks
from akd_deploy.search_space import Layer, load_space
from akd_deploy.target import Target

TARGET = Target("rtx4090_tensorrt_fp32", "rtx4090", "tensorrt")
NETWORKS, HELD_OUT = 14, 8
Network = tuple[Layer, ...]


def imported_of(networks: Sequence[Network], folder: Path, with_times: bool = True) -> LatencyTable:
    rng = np.random.default_rng(1)
    rows: list[object] = []
    protocol: dict[str, float | int | str] = {}
    for i, layers in enumerate(networks):
        files = write_files(folder / str(i), layers, rng)
        imported = rows_from_trtexec(files if with_times else files[:2], TARGET, network=f"net{i}")
        rows += imported.rows
        protocol = dict(imported.protocol)
    return imported_table(Imported(tuple(rows), protocol), TARGET, stated_device("RTX 4090"), "10.12.0")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def networks() -> list[Network]:
    probes = space_networks(load_space("mobile"), NETWORKS + HELD_OUT, np.random.default_rng(0))
    return [probe.layers for probe in probes]


def test_held_out_networks_are_predicted_from_imported_files(networks: list[Network], tmp_path: Path) -> None:
    table = imported_of(networks[:NETWORKS], tmp_path)
    predictor = fit_predictor(table)
    assert predictor.calibrated_on == "networks"
    # The profiler makes every layer slower than it is in the network, and the networks' own times say by how much.
    assert 0.8 < predictor.factor < 0.95
    assert predictor.model.overhead_s < 0.1e-6
    errors, within = [], []
    for i, layers in enumerate(networks[NETWORKS:]):
        files = write_files(tmp_path / f"held-out-{i}", layers, np.random.default_rng(i))
        executed = executed_kernels_from_layers(layers_from_inspector(files[0].read_text()), {})
        predicted = predictor.predict(executed)
        errors.append(abs(predicted.latency_s / network_s(layers) - 1))
        within.append(predicted.interval_s[0] <= network_s(layers) <= predicted.interval_s[1])
    assert np.median(errors) < 0.06
    assert max(errors) < 0.2
    assert np.mean(within) >= 0.7


def test_without_the_networks_times_no_tail_is_claimed(networks: list[Network], tmp_path: Path) -> None:
    predictor = fit_predictor(imported_of(networks[:4], tmp_path, with_times=False))
    assert predictor.calibrated_on == "held-out probes"
    assert (dict(predictor.tail_factors), predictor.sigma) == ({}, None)
    with pytest.raises(UsageError, match="too few samples for any"):
        predictor.tail_factor(90)


def test_tails_come_from_the_networks_samples_alone(networks: list[Network], tmp_path: Path) -> None:
    table = imported_of(networks[:4], tmp_path)
    assert 1.0 < fit_predictor(table).tail_factor(90) < 1.05
    sampled = [row for row in table.rows if len(row.measurement.samples_s) > 1]
    assert {row.kind for row in sampled} == {"network"}
    assert all(row.family.startswith(AGGREGATED) for row in table.rows if row not in sampled)


def test_without_the_sums_a_call_would_be_given_what_the_kernels_launch_costs(
    networks: list[Network], tmp_path: Path
) -> None:
    table = imported_of(networks[:4], tmp_path)
    alone = LatencyTable(table.header, tuple(row for row in table.rows if row.family != f"{AGGREGATED}/sums"))
    assert fit_predictor(alone).model.overhead_s > 0.3e-6
    assert fit_predictor(table).model.overhead_s < 0.05e-6


def test_a_lookup_table_predicts_a_block_it_does_not_hold(tmp_path: Path) -> None:
    """Blocks of a hidden additive law, in seconds per kernel and per multiply-accumulate."""
    import json

    from akd_deploy.profiling.importers.measured_blocks import imported_from_blocks, plain_kernels

    names = [
        f"expanded_conv-input:{size}x{size}x{channels}-output:{-(-size // stride)}x{-(-size // stride)}x{out}"
        f"-expand:{expand}-kernel:{kernel}-stride:{stride}-idskip:{int(stride == 1 and channels == out)}"
        for size, channels in ((56, 24), (28, 40), (14, 80), (7, 192))
        for out in (channels, channels + 16)
        for expand in (3, 6)
        for kernel, stride in ((3, 1), (5, 2), (7, 1))
    ]
    path = tmp_path / "t.json"
    path.write_text(json.dumps({name: {"mean": 1.0} for name in names}))
    blocks, _ = blocks_from_lookup_table(path, 1)

    def law_ms(kernels: Sequence[object]) -> float:
        total = 0.0
        for kernel in kernels:
            weight = kernel.inputs[1] if kernel.op == "Conv" else (0,)  # type: ignore[attr-defined]
            per_mac = 9e-7 if weight[1:2] == (1,) else 3e-7
            total += 0.02 + per_mac * kernel.output_elements * float(np.prod(weight[1:]))  # type: ignore[attr-defined]
        return total

    truth = {one.block.name: law_ms(one.block.kernels) for one in blocks}
    path.write_text(json.dumps({name: {"mean": truth[name]} for name in names[: -len(names) // 6]}))
    kept, _ = blocks_from_lookup_table(path, 1)
    imported = imported_from_blocks("once-for-all", kept, (), plain_kernels("fp32"), "onnx")
    predictor = fit_predictor(imported_table(imported, TARGET, stated_device("Pixel 1"), None))
    held_out = [one for one in blocks if one.block.name not in {k.block.name for k in kept}]
    assert len(held_out) == 8
    for one in held_out:
        predicted_s = predictor.overhead_s + sum(cost.mean_s for cost in predictor.costs(one.block.kernels))
        assert predicted_s == pytest.approx(truth[one.block.name] / 1e3, rel=0.15)
