"""The graph that rules rewrite keeps its indices true, and permutations are what numpy makes of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto

from akd_deploy.fusion.graph import Graph
from akd_deploy.fusion.node import Node, TensorType
from akd_deploy.fusion.permutations import (
    as_permutation,
    compose,
    inverse,
    is_identity,
    refinement,
    squeezed,
    unsqueezed,
)

VECTOR = TensorType(TensorProto.FLOAT, (3,))
ranks = st.integers(1, 5)
permutations = ranks.flatmap(lambda rank: st.permutations(range(rank))).map(tuple)


def chain(*ops: str, outputs: tuple[str, ...] = ()) -> Graph:
    """x → t0 → t1 …"""
    graph = Graph({"x": VECTOR}, outputs or (f"t{len(ops) - 1}",), opset=20)
    source = "x"
    for i, op in enumerate(ops):
        graph.add(Node(op, [source], [f"t{i}"], f"n{i}"), [VECTOR])
        source = f"t{i}"
    return graph


def test_absorbing_moves_the_later_output():
    graph = chain("Conv", "Relu", "Exp")
    conv, relu, exp = graph.nodes
    graph.absorb(conv, relu)
    assert conv.outputs == ["t1"]
    assert graph.writer("t1") is conv
    assert graph.only_reader(conv) is exp
    assert [node.op for node in graph.nodes] == ["Conv", "Exp"]


def test_a_node_before_an_output_hands_its_name_on():
    graph = chain("Exp", "Identity")
    assert graph.bypass(graph.nodes[1])
    assert graph.nodes[0].outputs == ["t1"]


def test_an_output_that_is_read_elsewhere_keeps_its_copy():
    graph = chain("Exp", "Identity")
    graph.add(Node("Relu", ["t0"], ["other"], "relu"), [VECTOR])
    assert not graph.bypass(graph.writer("t1"))


def test_equal_tensor_stands_for_a_node_even_where_both_are_outputs():
    graph = chain("Exp", "Transpose", "Transpose", outputs=("t0", "t2"))
    last = graph.writer("t2")
    graph.replace_by_equal(last, "t0")
    assert last.op == "Identity"
    assert last.inputs == ["t0"]
    inner = chain("Exp", "Transpose", "Transpose", outputs=("t2",))
    inner.replace_by_equal(inner.writer("t2"), "t0")
    assert inner.writer("t2").op == "Exp"
    assert inner.writer("t2") is inner.writer(inner.nodes[-1].inputs[0])


def test_unread_nodes_go_with_what_they_alone_read():
    graph = chain("Exp", "Relu", outputs=("t0",))
    graph.drop_unread(graph.nodes[1])
    assert [node.op for node in graph.nodes] == ["Exp"]


def test_nodes_come_after_what_they_read_whatever_the_order_of_editing():
    graph = chain("Exp", "Relu")
    graph.add(Node("Neg", ["x"], ["late"], "late"), [VECTOR])
    graph.set_input(graph.writer("t0"), 0, "late")
    order = [node.op for node in graph.nodes]
    assert order == ["Neg", "Exp", "Relu"]


def test_a_cycle_is_our_own_mistake():
    graph = chain("Exp", "Relu")
    graph.set_input(graph.writer("t0"), 0, "t1")
    with pytest.raises(AssertionError, match="cycle"):
        _ = graph.nodes


@given(perm=permutations)
def test_a_permutation_and_its_inverse_cancel(perm):
    assert is_identity(compose(perm, inverse(perm)))
    assert is_identity(compose(inverse(perm), perm))


@given(data=st.data(), rank=ranks)
def test_composing_is_transposing_twice(data, rank):
    first, then = (tuple(data.draw(st.permutations(range(rank)))) for _ in range(2))
    array = np.arange(np.prod(range(2, rank + 2))).reshape(tuple(range(2, rank + 2)))
    twice = np.transpose(np.transpose(array, first), then)
    assert np.array_equal(np.transpose(array, compose(first, then)), twice)


@given(data=st.data(), perm=permutations)
def test_squeezing_before_or_after_is_the_same(data, perm):
    axes = data.draw(st.sets(st.integers(0, len(perm) - 1)))
    shape = [1 if i in axes else i + 2 for i in range(len(perm))]
    array = np.arange(np.prod(shape)).reshape(shape)
    after = np.squeeze(np.transpose(array, perm), tuple(i for i, source in enumerate(perm) if source in axes))
    before = np.transpose(np.squeeze(array, tuple(axes)), squeezed(perm, sorted(axes)))
    assert np.array_equal(after, before)


@given(data=st.data(), perm=permutations)
def test_unsqueezing_before_or_after_is_the_same(data, perm):
    rank = len(perm) + 2
    axes = sorted(data.draw(st.sets(st.integers(0, rank - 1), min_size=2, max_size=2)))
    array = np.arange(np.prod([i + 2 for i in range(len(perm))])).reshape([i + 2 for i in range(len(perm))])
    after = np.expand_dims(np.transpose(array, perm), tuple(axes))
    before = np.transpose(np.expand_dims(array, tuple(axes)), unsqueezed(perm, axes))
    assert np.array_equal(after, before)


@given(shape=st.lists(st.sampled_from((1, 1, 2, 3)), min_size=1, max_size=5), data=st.data())
def test_a_reshape_that_is_a_transpose_gives_the_same_values(shape, data):
    after = data.draw(st.permutations(shape))
    perm = as_permutation(tuple(shape), tuple(after))
    array = np.arange(np.prod(shape)).reshape(shape)
    if perm is not None:
        assert np.array_equal(np.transpose(array, perm), array.reshape(after))
    elif [n for n in shape if n != 1] == [n for n in after if n != 1]:
        pytest.fail(f"{shape} → {after} only moves dimensions of 1")


@given(parts=st.lists(st.lists(st.integers(1, 4), min_size=1, max_size=3), min_size=1, max_size=3))
def test_a_refinement_multiplies_to_what_it_splits(parts):
    before = tuple(int(np.prod(part)) for part in parts)
    after = tuple(n for part in parts for n in part)
    found = refinement(before, after)
    if found is not None:
        assert tuple(n for part in found for n in part) == after
        assert tuple(int(np.prod(part)) for part in found) == before


def test_joining_dimensions_is_no_refinement():
    assert refinement((2, 3, 4), (6, 4)) is None
    assert refinement((6, 4), (2, 3, 4)) == [(2, 3), (4,)]
