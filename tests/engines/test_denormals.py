"""Numbers below the least normal one are found where masks make them, and told of the kernels they slow down."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from engines.engine_graphs import Graph, masked_attention

from akd_deploy.engines.denormals import denormal_share, denormal_shares, with_denormals
from akd_deploy.kernel import ExecutedKernel, Kernel


def mask_of(value: float, windows: int = 4, tokens: int = 16) -> np.ndarray:
    """One window of four is masked, half of its tokens."""
    mask = np.zeros((windows, tokens, tokens))
    mask[0, :, tokens // 2 :] = value
    return mask


@pytest.mark.parametrize(
    ("value", "share"), [(-100.0, 0.5), (-88.0, 0.5), (-87.0, 0.0), (-105.0, 0.0), (-1e4, 0.0), (-np.inf, 0.0)]
)
def test_only_exponents_between_the_least_normal_number_and_zero_count(value, share):
    assert denormal_share([np.array([0.0, value])]) == share
    with np.errstate(under="ignore"):
        exponential = float(np.exp(np.float32(value)))
    assert (0 < exponential < float(np.finfo(np.float32).tiny)) == bool(share)


def test_masks_that_are_added_up_count_by_their_sum():
    assert denormal_share([np.full((2, 1), -50.0), np.array([-50.0, 0.0])]) == 0.5
    moved = [np.zeros((2, 3)), np.array([[0.0, -100.0, 0.0, 0.0], [0.0, 0.0, 0.0, -100.0]])]
    assert denormal_share(moved) == 0.25  # moved about in between
    assert denormal_share([]) == 0.0


def test_the_softmax_and_the_sum_behind_it_work_on_them_and_nothing_else():
    assert denormal_shares(masked_attention(mask_of(-100.0)).graph) == {"softmax": 0.12, "sum": 0.12}
    assert denormal_shares(masked_attention(mask_of(-1e4)).graph) == {}


def test_masks_that_are_added_up_and_repeated_before_count_too():
    assert denormal_shares(masked_attention(mask_of(-100.0), images=2).graph) == {"softmax": 0.12, "sum": 0.12}
    assert denormal_shares(masked_attention(mask_of(-1e4), images=2).graph) == {}
    g = Graph()
    scores = g("Add", "x", g("Tile", g("Add", "y", g.constant(np.float32([[0, -100]]))), g.constant(np.array([1, 1]))))
    assert denormal_shares(g.model({"x": [3, 2], "y": [3, 2]}, [g("Softmax", scores, axis=-1)]).graph) == {}


def test_a_mask_in_a_constant_node_counts_and_one_whose_values_are_missing_does_not():
    g = Graph()
    g.nodes.append(
        onnx.helper.make_node("Constant", [], ["mask"], value=onnx.numpy_helper.from_array(np.float32([[0, -100]])))
    )
    model = g.model({"x": [3, 2]}, [g("Softmax", g("Add", "x", "mask"), axis=-1)])
    assert denormal_shares(model.graph) == {"Softmax_2": 0.5}
    bare = masked_attention(mask_of(-100.0))
    for tensor in bare.graph.initializer:
        if tensor.dims == [4, 16, 16]:
            tensor.ClearField("raw_data")
    assert denormal_shares(bare.graph) == {}


@pytest.mark.parametrize("node", [onnx.NodeProto(op_type="Softmax"), onnx.NodeProto(op_type="Softmax", input=["x"])])
def test_what_is_no_whole_softmax_is_passed_over(node):
    assert denormal_shares(onnx.GraphProto(node=[node])) == {}


def test_kernels_that_only_move_what_they_are_given_are_left_as_they_are():
    graph = masked_attention(mask_of(-100.0)).graph
    moved = ExecutedKernel(Kernel("Transpose", ((4, 4),), ((4, 4),)), "t", ("softmax",))
    fused = ExecutedKernel(Kernel("FusedMatMul", ((4, 4), (4, 4)), ((4, 4),)), "m", ("other", "sum"))
    other = ExecutedKernel(Kernel("MatMul", ((4, 4), (4, 4)), ((4, 4),)), "o", ("other",))
    found = with_denormals([moved, fused, other], graph)
    assert found[::2] == (moved, other)
    assert found[1].kernel.attributes == (("denormals", 0.12),)
