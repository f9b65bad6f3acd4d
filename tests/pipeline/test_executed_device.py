"""From published networks to their latencies, on a device on paper: planned, measured, fitted, predicted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from executed_device import ExecutedDevice, ThrottledBench
from synthetic_device import header

from akd_deploy.fusion import onnxruntime_cpu
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import LatencyTable, TableRow
from akd_deploy.models.onnx_skeleton import read_skeleton
from akd_deploy.models.published import FAMILY_OF, skeleton_path
from akd_deploy.pipeline.expected_error import Enough
from akd_deploy.pipeline.probe_plan import STRETCHES, plan_probes
from akd_deploy.predictor.fitting import fit_predictor
from akd_deploy.predictor.predictor import Predictor
from akd_deploy.profiling import blocks
from akd_deploy.profiling.blocks import measure_blocks
from akd_deploy.profiling.stacks import Stack
from akd_deploy.target import load_target

pytestmark = pytest.mark.xdist_group("executed-device")  # the table is made once

TARGET = load_target("cpu_onnxruntime_fp32")
NAMES = (
    "resnet18", "resnet34", "mobilenet_v1", "mobilenet_v2", "squeezenet1_1", "shufflenet_v2_x1_0", "googlenet",
    "densenet121", "efficientnet_lite0", "mnasnet_b1", "regnetx_400mf", "repvgg_a0", "ghostnet", "proxylessnas_mobile",
)  # fmt: skip
DEVICE = ExecutedDevice()
PROBES = 220


def executed(name: str) -> Counter[Kernel]:
    model = read_skeleton(skeleton_path(name))
    return Counter(e.kernel for e in onnxruntime_cpu.kernels_of(model, level="all"))


@pytest.fixture(scope="module")
def networks() -> dict[str, Counter[Kernel]]:
    return {name: executed(name) for name in NAMES}


@pytest.fixture(scope="module")
def profiled() -> tuple[LatencyTable, ThrottledBench, int]:
    """The table, the bench that filled it, and how many blocks were measured again."""
    plan = plan_probes(
        TARGET, {name: read_skeleton(skeleton_path(name)) for name in NAMES}, Enough(PROBES, least_gain=None), 0
    )
    subjects = {subject.name: subject for subject in plan.subjects.subjects}
    counts: dict[str, Counter[Kernel]] = {}
    for name, subject in subjects.items():
        window, copies = (subject.window, subject.copies) if isinstance(subject, Stack) else (subject, 1)
        once = Counter(e.kernel for e in onnxruntime_cpu.kernels_of(window.model, level="all"))
        counts[name] = Counter({kernel: n * copies for kernel, n in once.items()})
    bench = ThrottledBench(DEVICE, counts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blocks, "_run_block", bench.run_block)
        measured = measure_blocks(TARGET, {name: Path(name) for name in subjects}, STRETCHES, np.random.default_rng(1))
    rows = [
        TableRow(subjects[name].kind, subjects[name].family, tuple(sorted(counts[name].items())), one.measurement)
        for name, one in measured.items()
    ]
    return LatencyTable(header(), tuple(rows)), bench, sum(one.remeasured for one in measured.values())


def judged(
    predictor: Predictor, networks: dict[str, Counter[Kernel]], names: list[str]
) -> tuple[np.ndarray, np.ndarray]:
    """Relative errors, and whether the intervals hold."""
    errors, held = [], []
    for name in names:
        kernels = [kernel for kernel, n in networks[name].items() for _ in range(n)]
        costs = predictor.costs(kernels)
        warm_s = predictor.overhead_s + sum(c.mean_s for c in costs)
        latency_s = warm_s + float(predictor.cold_s(kernels, warm_s).sum())
        low, high = predictor.interval_s(np.array(latency_s), np.array(sum(c.spread_s for c in costs)))
        true_s = DEVICE.seconds(networks[name])
        errors.append(abs(latency_s / true_s - 1))
        held.append(low <= true_s <= high)
    return np.array(errors), np.array(held)


@pytest.mark.slow
def test_slow_spells_are_found_and_measured_again(profiled: tuple[LatencyTable, ThrottledBench, int]) -> None:
    table, bench, again = profiled
    assert bench.taken_slow > 50
    assert again >= 0.8 * bench.taken_slow
    ratios = [row.measurement.median_s / DEVICE.seconds(row.counts()) for row in table.rows]
    assert np.mean(np.abs(np.array(ratios) - 1) < 0.05) > 0.98


@pytest.mark.slow
def test_whole_networks_are_predicted_from_stretches_of_them(
    profiled: tuple[LatencyTable, ThrottledBench, int], networks: dict[str, Counter[Kernel]]
) -> None:
    errors, held = judged(fit_predictor(profiled[0]), networks, list(NAMES))
    assert errors.mean() < 0.02  # seen: 0.7 %
    assert np.mean(errors < 0.1) == 1.0
    assert held.mean() >= 0.85


@pytest.mark.slow
def test_families_left_out_are_predicted_and_their_intervals_hold(
    profiled: tuple[LatencyTable, ThrottledBench, int], networks: dict[str, Counter[Kernel]]
) -> None:
    table, _, _ = profiled
    families = sorted({FAMILY_OF[name] for name in NAMES})
    errors, held = [], []
    for start in range(5):
        out = set(families[start::5])
        kept = tuple(row for row in table.rows if row.family not in out)
        predictor = fit_predictor(LatencyTable(table.header, kept))
        names = [n for n in NAMES if FAMILY_OF[n] in out and all(map(predictor.model.covered, networks[n]))]
        found = judged(predictor, networks, names)
        errors += found[0].tolist()
        held += found[1].tolist()
    assert len(errors) >= 10
    assert np.mean(errors) < 0.04  # seen: 1.2 %
    assert np.mean(held) >= 0.85
