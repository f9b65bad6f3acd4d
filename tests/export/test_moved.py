import json

from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.export.moved import conversions, moved_nodes
from akd_deploy.kernel import ExecutedKernel, Kernel

SHAPE = (1, 8, 4, 4)


def ran(op, *nodes, dtype="float32"):
    return ExecutedKernel(Kernel(op, (SHAPE,), (SHAPE,), dtype), "+".join(nodes) or op, nodes)


FUSED = [ran("Conv", "conv", "relu", "add"), ran("Pool", "pool")]
APART = [ran("Conv", "conv"), ran("Relu", "relu"), ran("Add", "add"), ran("Pool", "pool")]


def test_a_fused_kernel_that_fell_apart_is_told_with_its_traffic():
    (moved,) = moved_nodes(FUSED, APART)
    assert moved.nodes == ("conv", "relu", "add")
    assert moved.text == "was one kernel Conv in float32, now three: Conv, Relu, Add in float32"
    assert moved.traffic_bytes_b - moved.traffic_bytes_a == 2 * FUSED[0].kernel.traffic_bytes
    assert json.loads(json.dumps(moved.as_dict()))["kernels_b"][1] == {"name": "relu", "op": "Relu", "dtype": "float32"}


def test_another_type_is_a_move_and_the_same_kernels_are_none():
    (moved,) = moved_nodes([ran("Conv", "conv", dtype="int8")], [ran("Conv", "conv")])
    assert moved.text == "was one kernel Conv in int8, now one kernel Conv in float32"
    assert moved_nodes(APART, list(reversed(APART))) == ()


def test_nodes_that_only_one_of_the_two_runs_are_told_too():
    (moved,) = moved_nodes(APART, APART[:-1])
    assert moved.text == "was one kernel Pool in float32, now no kernel"
    (mixed,) = moved_nodes([ran("Conv", "conv", "add")], [ran("Conv", "conv", dtype="int8"), ran("Add", "add")])
    assert mixed.text == "was one kernel Conv in float32, now two: Conv in int8, Add in float32"


def test_conversions_that_came_or_went_are_counted():
    assert conversions(FUSED, [*FUSED, ran("nchwc.ReorderInput"), ran("QuantizeLinear", "q")]) == {
        "QuantizeLinear": (0, 1),
        "nchwc.ReorderInput": (0, 1),
    }
    assert conversions(FUSED, APART) == {}, "these compute something"
    assert conversions([ran("Cast", "a")], [ran("Cast", "b")]) == {}, "as many"


groups = st.lists(st.sampled_from("abcdef"), min_size=1, max_size=3, unique=True)
engines = st.lists(groups.map(lambda nodes: ran("Op", *nodes)), max_size=6)


@given(engines, engines)
def test_no_node_is_in_two_groups_and_turning_the_engines_around_turns_the_groups_around(a, b):
    moved, back = moved_nodes(a, b), moved_nodes(b, a)
    nodes = [node for group in moved for node in group.nodes]
    assert len(nodes) == len(set(nodes))
    assert {frozenset(m.nodes) for m in moved} == {frozenset(m.nodes) for m in back}
    everywhere = {node for kernel in (*a, *b) for node in kernel.nodes}
    assert set(nodes) <= everywhere
    # A node outside all groups runs in the same kernels on both sides.
    for node in everywhere - set(nodes):
        sides = [sorted(k.kernel for k in kernels if node in k.nodes) for kernels in (a, b)]
        assert sides[0] == sides[1]
