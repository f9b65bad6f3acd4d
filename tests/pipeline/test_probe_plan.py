"""What a profile of networks measures, and in which order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from engines.engine_graphs import Graph

from akd_deploy.errors import UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import NETWORK, PROBE, STACK
from akd_deploy.models.onnx_from_student import onnx_from_architecture
from akd_deploy.models.onnx_skeleton import read_skeleton, skeleton
from akd_deploy.models.published import FAMILIES, FAMILY_OF, skeleton_path
from akd_deploy.pipeline.expected_error import Enough
from akd_deploy.pipeline.probe_plan import (
    LARGEST_STACKED_BYTES,
    MOST_WEIGHTS,
    QUICK_STACKED,
    SLOW_STACKED,
    STACKED_BYTES,
    STRETCHES,
    _stacks,
    carried_networks,
    given_networks,
    plan_probes,
    stretches_plan,
)
from akd_deploy.predictor.cold_weights import CLASSES
from akd_deploy.profiling.stacks import Stack
from akd_deploy.profiling.windows import Window
from akd_deploy.search_space import load_space
from akd_deploy.target import Target, load_target
from benchmarks.networks import NETWORKS

TARGET = load_target("cpu_onnxruntime_fp32")


def student(seed: int) -> onnx.ModelProto:
    rng = np.random.default_rng(seed)
    return onnx_from_architecture(load_space("mobile").sample(rng), rng)


def exactly(count: int) -> Enough:
    return Enough(count, least_gain=None)


def test_every_published_network_has_a_skeleton_and_the_family_it_is_known_by() -> None:
    assert {name: NETWORKS[name].family for name in FAMILY_OF} == dict(FAMILY_OF)
    assert sum(map(len, FAMILIES.values())) == len(FAMILY_OF)
    on_disk = {path.name.removesuffix(".onnx.gz") for path in skeleton_path("x").parent.glob("*.onnx.gz")}
    assert on_disk == set(FAMILY_OF)


def test_the_first_probes_tell_most_and_hold_the_kernels_that_networks_spend_their_time_on() -> None:
    names = ("resnet18", "mobilenet_v2", "bert_tiny")
    plan = plan_probes(TARGET, {name: read_skeleton(skeleton_path(name)) for name in names}, exactly(60), 0)
    probes = [s for s in plan.subjects.subjects if s.kind == PROBE]
    assert len(probes) == 60 == len(plan.errors)
    assert plan.errors[-1] < 0.05 < 0.1 < plan.errors[0]
    assert {s.family for s in probes} == {"resnet", "mobilenet", "bert"}
    assert not plan.unlisted


def _weights(stack: Stack) -> float:
    """Bytes of all initializers of a stack's file."""
    initializers = stack.window.model.graph.initializer
    return stack.copies * float(sum(4 * np.prod(tensor.dims) for tensor in initializers if tensor.data_type == 1))


def test_stretches_with_many_weights_are_stacked_until_they_outgrow_caches() -> None:
    names = ("resnet18", "bert_mini", "mobilenet_v2", "efficientnet_b0")
    plan = plan_probes(TARGET, {name: read_skeleton(skeleton_path(name)) for name in names}, exactly(60), 0)
    stacks = [s for s in plan.subjects.subjects if s.kind == STACK]
    probes = {s.name for s in plan.subjects.subjects if s.kind == PROBE}
    assert {s.window.name for s in stacks} <= probes
    alone = {s.window.name: _weights(Stack(s.window, 1)) for s in stacks}
    # A class of which no stretch is small has large ones; constants that are no weights would be counted, too.
    assert sum(weights <= 1.1 * MOST_WEIGHTS for weights in alone.values()) > len(alone) / 2
    largest = [s for s in stacks if _weights(s) > 1.5 * STACKED_BYTES[-1]]
    windows = {s.window.name for s in stacks}
    # No network has a batch of constant matrices, nor large convolutions of few positions without a product's weights.
    classes = len(CLASSES) - 2
    assert classes < len(windows) <= (QUICK_STACKED + SLOW_STACKED) * classes
    assert 2 * len(windows) < len(stacks) - len(largest) <= len(STACKED_BYTES) * len(windows)
    assert len(LARGEST_STACKED_BYTES) <= len(largest) <= len(LARGEST_STACKED_BYTES) * classes
    assert max(map(_weights, stacks)) == pytest.approx(LARGEST_STACKED_BYTES[-1], rel=0.1)
    assert len({s.name for s in stacks}) == len(stacks)
    assert min(s.copies for s in stacks) > 1


def test_stacks_are_of_stretches_that_have_more_weights_than_they_put_out_and_no_tables(monkeypatch) -> None:
    names = ("resnet18", "bert_mini")
    networks = {name: read_skeleton(skeleton_path(name)) for name in names}

    def stacked(plan):
        return {s.window.name: s.window for s in plan.subjects.subjects if s.kind == STACK}

    told = stacked(plan_probes(TARGET, networks, exactly(60), 0))
    monkeypatch.setattr("akd_deploy.pipeline.probe_plan.tells_of_weights", lambda counts: True)
    monkeypatch.setattr("akd_deploy.pipeline.probe_plan.MOST_STORED", 1e9)
    everything = stacked(plan_probes(TARGET, networks, exactly(60), 0))
    assert set(everything) - set(told)
    for window in told.values():
        assert "Gather" not in {node.op_type for node in window.model.graph.node}


def test_a_stretch_whose_file_is_mostly_a_table_is_not_stacked() -> None:
    def stretch(rows: int) -> tuple[Window, dict[Kernel, int]]:
        graph = Graph()
        table = graph.weight(rows, 512)
        product = graph("MatMul", "x", graph.weight(512, 512))
        model = graph.model({"x": [4, 512]}, [product, graph("ReduceSum", table, keepdims=0)])
        return Window("f", model), {Kernel("MatMul", ((4, 512), (512, 512)), ((4, 512),)): 1}

    pairs = [stretch(rows) for rows in (4_000, 1, 200)]
    stacks = _stacks([window for window, _ in pairs], [counts for _, counts in pairs])
    assert {s.window.name for s in stacks} == {pairs[1][0].name, pairs[2][0].name}


def test_a_stretch_with_a_matrix_for_each_element_of_the_batch_is_stacked_however_large_it_is() -> None:
    plan = plan_probes(TARGET, {"autoformer_tiny": read_skeleton(skeleton_path("autoformer_tiny"))}, exactly(60), 0)
    stacks = [s for s in plan.subjects.subjects if s.kind == STACK]
    # Engines fold what is picked from tables of relative positions: 197 × 64 × 197 constants of each product.
    large = [s for s in stacks if "GatherND" in {node.op_type for node in s.window.model.graph.node}]
    assert len({s.window.name for s in large}) == 2
    assert max(s.copies for s in large) == round(LARGEST_STACKED_BYTES[-1] / (4 * 197 * 64 * 197))


def test_equal_seeds_plan_alike_and_a_small_network_has_no_stacks(tmp_path: Path) -> None:
    networks = {"a": skeleton(student(1)), "b": skeleton(student(2))}
    plans = [plan_probes(TARGET, networks, exactly(30), seed) for seed in (0, 0, 1)]
    names = [[s.name for s in plan.subjects.subjects] for plan in plans]
    assert names[0] == names[1] != names[2]
    assert {s.kind for s in plans[0].subjects.subjects} == {PROBE}
    plan = stretches_plan(7, STRETCHES, 2.0, 0)
    assert plan.probes == 7
    assert plans[0].within_what_is_left(plan).within_s == pytest.approx(120 - plans[0].seconds)


def test_given_files_are_planned_and_whole_ones_are_spread_among_their_stretches(tmp_path: Path) -> None:
    paths = []
    for seed in (1, 2):
        paths.append(tmp_path / f"net{seed}.onnx")
        onnx.save_model(student(seed), paths[-1])
    plan = plan_probes(TARGET, given_networks(paths, 1), exactly(20), 0, whole=paths)
    kinds = [s.kind for s in plan.subjects.subjects]
    assert kinds.count(NETWORK) == 2
    assert kinds[-1] == PROBE
    assert {s.family for s in plan.subjects.subjects} == {"net1", "net2"}


def test_a_target_of_another_batch_gets_networks_of_it_and_is_told_which_have_no_other() -> None:
    networks, fixed = carried_networks(Target("t", "cpu", "onnxruntime", "fp32", 8))
    assert {*networks, *fixed} == set(FAMILY_OF)
    windows, transposed = ("swin_tiny", "autoformer_tiny"), ("convnext_atto", "convnext_tiny")
    assert set(fixed) == {*windows, *transposed, "shufflenet_space_0", "spos"}
    assert {model.graph.input[0].type.tensor_type.shape.dim[0].dim_value for model in networks.values()} == {8}


def test_networks_carried_as_onnx_are_none_for_torch() -> None:
    with pytest.raises(UsageError, match="engine torch"):
        carried_networks(Target("t", "cpu", "torch", "fp32"))


def test_an_operator_that_is_rare_in_a_network_is_in_a_plan_of_it(tmp_path: Path) -> None:
    graph = Graph()
    x = "x"
    for _ in range(400):
        x = graph("Mul", graph("Sin", x), "x")
    path = tmp_path / "rare.onnx"
    onnx.save(graph.model({"x": [1, 64]}, [graph("ReduceMean", x, axes=[-1])]), path)
    planned = plan_probes(TARGET, given_networks([path], 1), Enough(30), seed=0)
    operators = [{n.op_type for n in subject.model.graph.node} for subject in planned.subjects.subjects]
    assert any("ReduceMean" in one for one in operators)
