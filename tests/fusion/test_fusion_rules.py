"""What the rules make of small graphs whose answer is known by hand, and what they refuse."""

import subprocess
import sys
import time
from collections import Counter

import numpy as np
import onnx
import pytest
from engines.engine_graphs import Graph
from fusion.fusion_networks import skeleton
from onnx import TensorProto, helper

from akd_deploy.device import DeviceFingerprint
from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.fusion.onnxruntime_cpu import block_of, kernels_of, why_not


def operators(model: onnx.ModelProto, level: str, **options: int) -> list[str]:
    return [kernel.kernel.op for kernel in kernels_of(model, level, **options)]


def residual_block(channels: int) -> onnx.ModelProto:
    """Convolution, batch norm and rectifier, then a convolution whose output the first one's is added to."""
    graph = Graph()
    first = graph("Relu", graph.batch_norm(graph.conv("x", channels, channels, 3), channels))
    second = graph.conv(first, channels, channels, 3)
    return graph.model({"x": [1, channels, 8, 8]}, [graph("Relu", graph("Add", second, first))])


def test_every_level_does_more_than_the_one_before():
    model = residual_block(32)
    assert operators(model, "disabled") == ["Conv", "BatchNormalization", "Relu", "Conv", "Add", "Relu"]
    assert operators(model, "basic") == ["Conv", "Relu", "Conv", "Add", "Relu"]
    assert operators(model, "extended") == ["FusedConv", "Conv", "Add", "Relu"]
    assert operators(model, "all") == ["nchwc.ReorderInput", "nchwc.Conv", "nchwc.Conv", "nchwc.ReorderOutput"]


def test_the_last_block_of_channels_is_padded_and_reordering_takes_the_padding_away():
    first, *_, last = [kernel.kernel for kernel in kernels_of(residual_block(20), "all")]
    assert (first.inputs, first.outputs) == (((1, 20, 8, 8),), ((1, 32, 8, 8),))
    assert (last.inputs, last.outputs) == (((1, 32, 8, 8),), ((1, 20, 8, 8),))


def test_blocks_of_eight_pad_less():
    kernel = kernels_of(residual_block(20), "all", nchwc_block=8)[0].kernel
    assert kernel.outputs == ((1, 24, 8, 8),)


def test_channels_that_are_no_multiple_of_four_stay_plain_and_take_the_sum_in():
    assert operators(residual_block(18), "all") == ["FusedConv", "FusedConv"]
    assert operators(residual_block(20), "all", nchwc_block=1) == ["FusedConv", "FusedConv"]


def test_fused_kernel_names_all_its_nodes():
    kernels = kernels_of(residual_block(32), "all")
    assert [kernel.nodes for kernel in kernels[1:3]] == [
        ("Conv_0", "BatchNormalization_1", "Relu_2"),
        ("Conv_3", "Add_4", "Relu_5"),
    ]


def test_an_addition_is_not_fused_where_the_convolution_is_read_twice():
    graph = Graph()
    convolution = graph.conv("x", 32, 32, 3)
    total = graph("Add", convolution, graph.conv("x", 32, 32, 1))
    kernels = kernels_of(graph.model({"x": [1, 32, 8, 8]}, [total, graph("Softplus", convolution)]), "all")
    residual = [kernel for kernel in kernels if kernel.kernel.attribute("residual")]
    assert [kernel.kernel.attribute("kernel_size") for kernel in residual] == [(1, 1)]


def test_shape_arithmetic_is_done_before_the_network_runs():
    graph = Graph()
    x = graph("Relu", "x")
    batch = graph("Gather", graph("Shape", x), graph.constant(np.asarray(0)), axis=0)
    batch = graph("Unsqueeze", batch, graph.constant(np.asarray([0])))
    to = graph("Concat", batch, graph.constant(np.asarray([-1])), axis=0)
    model = graph.model({"x": [2, 3, 4]}, [graph("Reshape", x, to)])
    assert operators(model, "basic") == ["Relu", "Reshape"]
    assert Counter(operators(model, "disabled"))["Shape"] == 1
    assert kernels_of(model, "basic")[1].kernel.outputs == ((2, 12),)


def test_transposes_that_undo_each_other_are_gone():
    graph = Graph()
    y = graph("Relu", graph("Transpose", graph("Softplus", "x"), perm=[0, 2, 3, 1]))
    model = graph.model({"x": [1, 3, 4, 5]}, [graph("Exp", graph("Transpose", y, perm=[0, 3, 1, 2]))])
    kernels = kernels_of(model, "basic")
    assert [kernel.kernel.op for kernel in kernels] == ["Softplus", "Relu", "Exp"]
    assert {kernel.kernel.inputs for kernel in kernels} == {((1, 3, 4, 5),)}


def test_repeated_nodes_are_executed_once_unless_both_are_outputs():
    graph = Graph()
    twins = [graph("Exp", "x"), graph("Exp", "x")]
    read = graph.model({"x": [2, 3]}, [graph("Relu", twins[0]), graph("Tanh", twins[1])])
    assert operators(read, "basic").count("Exp") == 1
    shown = graph.model({"x": [2, 3]}, twins)
    assert operators(shown, "basic").count("Exp") == 2


def test_nothing_is_asked_of_weights_but_their_shapes():
    model = skeleton("resnet18")
    assert operators(model, "all").count("nchwc.Conv") == 20


def test_nodes_without_names_are_named_by_their_outputs():
    model = residual_block(32)
    for node in model.graph.node:
        node.name = ""
    assert kernels_of(model, "extended")[0].nodes == ("Conv_0_out", "BatchNormalization_1_out", "Relu_2_out")
    assert [node.name for node in model.graph.node] == [""] * 6


# --- quantised networks ------------------------------------------------------------------------------------------


def quantised_block(element: type = np.uint8, same: bool = True) -> onnx.ModelProto:
    """Quantised input, convolution with float weights, rectifier, pooling, quantised output."""
    graph = Graph()
    x = pair(graph, "x", 0.02, element)
    x = pair(graph, graph("Relu", graph.conv(x, 8, 16, 3)), 0.02, element)
    x = pair(graph, graph("MaxPool", x, kernel_shape=[2, 2]), 0.02 if same else 0.03, element)
    return graph.model({"x": [1, 8, 8, 8]}, [x])


def pair(graph: Graph, x: str, scale: float, element: type = np.uint8) -> str:
    lowest = graph.constant(np.asarray(np.iinfo(element).min, element))
    around = graph.constant(np.asarray(scale, np.float32)), lowest
    return graph("DequantizeLinear", graph("QuantizeLinear", x, *around), *around)


def test_what_stands_between_a_pair_is_done_on_integers():
    operators_of = operators(quantised_block(), "extended")
    assert operators_of == ["QuantizeLinear", "QLinearConv", "MaxPool", "DequantizeLinear"]
    convolution, pool = [kernel.kernel for kernel in kernels_of(quantised_block(), "extended")][1:3]
    assert pool.dtype == "uint8"
    assert convolution.inputs == ((1, 8, 8, 8), (), (), (16, 8, 3, 3), (), (), (), (), (16,))


def test_integer_convolutions_have_channels_last():
    kernels = kernels_of(quantised_block(), "all")
    assert [kernel.kernel.op for kernel in kernels] == [
        "QuantizeLinear", "Transpose", "QLinearConv", "NhwcMaxPool", "Transpose", "DequantizeLinear",
    ]  # fmt: skip
    assert kernels[2].kernel.inputs[0] == (1, 8, 8, 8)
    assert kernels[2].kernel.attribute("channels_last") == 1
    assert kernels[3].kernel.outputs == ((1, 7, 7, 16),)


def test_values_that_change_their_scale_are_no_longer_only_moved():
    assert operators(quantised_block(same=False), "extended")[2:] == [
        "DequantizeLinear", "MaxPool", "QuantizeLinear", "DequantizeLinear",
    ]  # fmt: skip


def test_signed_activations_become_unsigned():
    assert {kernel.kernel.dtype for kernel in kernels_of(quantised_block(np.int8), "extended")[2:3]} == {"uint8"}


def test_weights_alone_are_dequantised_inside_the_product():
    graph = Graph()
    weights = graph.constant(np.ones((40, 6), np.int8))
    around = graph.constant(np.full(6, 0.5, np.float32)), graph.constant(np.zeros(6, np.int8))
    y = graph("MatMul", "x", graph("DequantizeLinear", weights, *around, axis=1))
    (kernel,) = kernels_of(graph.model({"x": [3, 40]}, [y]), "extended")
    assert kernel.kernel.op == "MatMulNBits"
    assert kernel.kernel.inputs == ((3, 40), (6, 2, 32), (12,), (12,))


def test_two_pairs_in_a_row_are_one():
    graph = Graph()
    y = pair(graph, pair(graph, graph("Exp", "x"), 0.02), 0.03)
    assert operators(graph.model({"x": [2, 3]}, [y]), "basic") == ["Exp", "QuantizeLinear", "DequantizeLinear"]


def test_integers_known_beforehand_stay_so_through_one_operator():
    graph = Graph()
    y = graph("Add", "x", pair(graph, graph("Exp", pair(graph, graph.weight(2, 3), 0.02)), 0.03))
    assert operators(graph.model({"x": [2, 3]}, [y]), "basic") == ["DequantizeLinear", "Add"]


@pytest.mark.parametrize(("opset", "expected"), [(12, ["Slice", "Slice"]), (13, ["Split"])])
def test_slices_become_a_split_since_there_are_splits_by_tensors(opset, expected):
    graph = Graph()
    bounds = [graph.constant(np.asarray([n])) for n in (0, 4, 8, 1)]
    parts = [graph("Slice", "x", start, end, bounds[3]) for start, end in (bounds[:2], bounds[1:3])]
    model = graph.model({"x": [1, 8, 4, 4]}, [graph("Concat", *parts[::-1], axis=1)], opset=opset)
    assert operators(model, "extended") == [*expected, "Concat"]


# --- what is refused --------------------------------------------------------------------------------------------


def test_unknown_level_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="extended"):
        kernels_of(residual_block(8), "full")


def test_dynamic_input_is_refused_by_name():
    with pytest.raises(UsageError, match="'x' with a fixed shape"):
        kernels_of(Graph().model({"x": ["batch", 3]}, []), "all")


def test_control_flow_is_refused_by_node():
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])], "b", [], [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])]
    )
    graph = Graph()
    condition = graph.constant(np.asarray(True))
    graph("If", condition, then_branch=branch, else_branch=branch)
    with pytest.raises(UsageError, match="control flow: node 'If_0'"):
        kernels_of(graph.model({"x": [2]}, []), "all")


def test_shape_that_only_a_run_tells_is_refused_by_node():
    graph = Graph()
    graph("NonZero", "x")
    with pytest.raises(UsageError, match="only a run tells: node 'NonZero_0'"):
        kernels_of(graph.model({"x": [2, 3]}, []), "all")


def test_operator_of_another_domain_is_refused_by_node():
    graph = Graph()
    graph("Fancy", "x", domain="my.own")
    with pytest.raises(UsageError, match=r"does not have .*: node 'Fancy_0' \(Fancy\)"):
        kernels_of(graph.model({"x": [2, 3]}, []), "all")


def test_another_precision_is_refused_by_node():
    graph = Graph()
    graph("Relu", graph("Cast", "x", to=TensorProto.FLOAT16))
    with pytest.raises(UsageError, match=r"float16 numbers.*'Cast_0'"):
        kernels_of(graph.model({"x": [2, 3]}, []), "all")


def test_weights_that_a_caller_may_override_are_no_constants():
    model = residual_block(32)
    for tensor in list(model.graph.initializer):
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    model.ir_version = 9
    assert operators(model, "all")[:3] == ["Conv", "BatchNormalization", "Relu"]


def test_a_missing_value_that_decides_something_is_refused_by_name():
    graph = Graph()
    repeats = graph.constant(np.asarray([1, 2]))
    model = graph.model({"x": [1, 8]}, [graph("Relu", graph("Tile", "x", repeats))])
    assert kernels_of(model, "all")[-1].kernel.outputs == ((1, 16),)
    (tensor,) = model.graph.initializer
    tensor.ClearField("raw_data")
    with pytest.raises(UsageError, match=f"{tensor.name!r}, whose values decide something"):
        kernels_of(model, "all")


def test_an_output_that_is_known_beforehand_is_refused_by_name():
    graph = Graph()
    y = graph("Shape", "x")
    with pytest.raises(UsageError, match=f"output {y!r} that is known"):
        kernels_of(graph.model({"x": [2, 3]}, [y]), "all")


def test_numbers_of_other_kinds_are_refused_by_node():
    graph = Graph()
    y = graph("Cast", graph("Relu", "x"), to=TensorProto.UINT16)
    with pytest.raises(UsageError, match="uint16 numbers: node Cast_1"):
        kernels_of(graph.model({"x": [2, 3]}, [y]), "all")


def test_a_node_that_is_no_node_is_refused_and_not_stumbled_over():
    model = residual_block(8)
    del model.graph.node[0].input[:]
    with pytest.raises(UsageError, match="Check"):
        kernels_of(model, "all")


# --- where they hold --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "facts", "why"),
    [
        ("1.31.0", {"machine": "x86_64", "isa": "avx2"}, None),
        ("1.31", {"machine": "AMD64", "isa": "avx2 avx512f"}, None),
        ("1.310.0", {"machine": "x86_64", "isa": "avx2"}, "ONNX Runtime 1.31, not of 1.310.0"),
        ("2.0", {"machine": "x86_64", "isa": "avx2"}, "ONNX Runtime 1.31, not of 2.0"),
        ("1.31.0", {"machine": "aarch64", "isa": "asimd"}, "not of aarch64"),
        ("1.31.0", {"isa": "avx2"}, "an unknown one"),
        ("1.31.0", {"machine": "x86_64"}, "which instructions"),
    ],
)
def test_the_rules_hold_for_one_version_on_x86(version, facts, why):
    found = why_not(version, DeviceFingerprint(facts))
    assert found is None if why is None else why in found


@pytest.mark.parametrize(("isa", "block"), [("avx2 fma", 8), ("avx2 avx512f fma", 16), ("avx2 avx512_vnni", 8)])
def test_channels_come_in_blocks_of_as_many_as_a_register_holds(isa, block):
    assert block_of(DeviceFingerprint({"machine": "x86_64", "isa": isa})) == block


# --- what a hot path needs --------------------------------------------------------------------------------------


def test_no_runtime_is_loaded():
    code = "import sys, akd_deploy.fusion.onnxruntime_cpu; sys.exit(bool({'onnxruntime', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_time_grows_no_faster_than_the_network():
    """Ten times the blocks take less than thirty times as long: nothing looks through all nodes for every node."""

    def seconds(blocks: int) -> float:
        graph = Graph()
        x = "x"
        for _ in range(blocks):
            x = graph("Relu", graph("Add", graph.conv(x, 16, 16, 1), x))
        model = graph.model({"x": [1, 16, 4, 4]}, [x])
        begin = time.process_time()
        kernels_of(model, "all")
        return time.process_time() - begin

    seconds(5)
    assert min(seconds(200) for _ in range(3)) < 30 * min(seconds(20) for _ in range(3))


def test_a_constant_in_a_batched_product_or_a_sum_is_told_and_obvious_weights_are_not():
    graph = Graph()
    product = graph("MatMul", "x", graph.weight(8, 32, 64))
    total = graph("Add", graph("MatMul", product, graph.weight(64, 32)), graph.weight(8, 16, 32))
    small = graph("Mul", total, graph.weight(1, 1, 32))
    model = graph.model({"x": [8, 16, 32]}, [small])
    told = [(kernel.kernel.op, kernel.kernel.attribute("constants")) for kernel in kernels_of(model, "all")]
    assert told == [("MatMul", (1,)), ("MatMul", None), ("Add", (1,)), ("Mul", None)]
    between = graph.model({"x": [8, 16, 32], "y": [8, 32, 64]}, [graph("MatMul", "x", "y")])
    assert kernels_of(between, "all")[-1].kernel.attribute("constants") is None
