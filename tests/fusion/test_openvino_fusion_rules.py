"""Single rules of OpenVINO's fusion, on graphs small enough to see through."""

import numpy as np
import pytest
from engines.engine_graphs import Graph

from akd_deploy.errors import UnknownNameError, UsageError
from akd_deploy.fusion.openvino_cpu import kernels_of


def executed(graph, output, shape=(1, 16, 8, 8), precision="fp32"):
    """Operators in order, layout changes aside."""
    kernels = kernels_of(graph.model({"x": list(shape)}, [output]), precision)
    return [k.kernel for k in kernels if k.kernel.op != "Reorder"]


def test_a_convolution_takes_in_bias_and_activation():
    graph = Graph()
    (kernel,) = executed(graph, graph("Relu", graph.conv("x", 16, 32, 3)))
    assert (kernel.op, kernel.attribute("activation")) == ("Convolution", "Relu")
    assert kernel.inputs == ((1, 16, 8, 8), (32, 16, 3, 3), (32,))


def test_a_bias_of_zeros_is_left_out():
    graph = Graph()
    weight, zeros = graph.weight(32, 16, 1, 1), graph.constant(np.zeros(32, np.float32))
    (kernel,) = executed(graph, graph("Conv", "x", weight, zeros, kernel_shape=[1, 1]))
    assert kernel.inputs == ((1, 16, 8, 8), (32, 16, 1, 1))


def test_a_sum_goes_into_the_convolution_before_it():
    graph = Graph()
    first = graph("Relu", graph.conv("x", 16, 16, 3))
    body = graph.conv(graph("Relu", graph.conv(first, 16, 24, 3)), 24, 16, 3)
    *_, kernel = executed(graph, graph("Relu", graph("Add", body, first)))
    assert (kernel.op, kernel.attribute("residual"), kernel.attribute("activation")) == ("Convolution", 1, "Relu")
    assert kernel.inputs[-1] == (1, 16, 8, 8)


def test_no_convolution_adds_to_its_own_input_in_place():
    graph = Graph()
    first = graph("Relu", graph.conv("x", 16, 16, 3))
    kernels = executed(graph, graph("Add", graph.conv(first, 16, 16, 3), first))
    assert [kernel.op for kernel in kernels] == ["Convolution", "Convolution", "Eltwise"]


def test_a_sum_behind_an_activation_is_a_subgraph():
    graph = Graph()
    first = graph("Relu", graph.conv("x", 16, 16, 3))
    total = graph("Add", graph("Relu", graph.conv(first, 16, 16, 3)), first)
    assert [kernel.op for kernel in executed(graph, total)] == ["Convolution", "Convolution", "Subgraph"]


def test_elementwise_layers_are_one_subgraph():
    graph = Graph()
    y = graph("Mul", graph("Exp", "x"), graph("Relu", "x"))
    (kernel,) = executed(graph, graph("Sqrt", y))
    assert (kernel.op, kernel.attribute("operators")) == ("Subgraph", "Exp+Relu+Mul+Sqrt")


def test_a_scaled_sigmoid_of_itself_is_an_activation():
    graph = Graph()
    y = graph.conv("x", 16, 16, 3)
    (kernel,) = executed(graph, graph("Mul", y, graph("Sigmoid", y)))
    assert kernel.attribute("activation") == "Sigmoid+Mul"


def test_the_strides_of_a_point_convolution_move_to_the_convolution_before_it():
    graph = Graph()
    y = graph("Relu", graph.conv("x", 16, 16, 3))
    first, second = executed(graph, graph.conv(y, 16, 16, 1, 2))
    assert first.outputs == ((1, 16, 4, 4),)
    assert second.inputs[0] == (1, 16, 4, 4)


def test_a_factor_per_channel_goes_into_the_weights_behind_it():
    graph = Graph()
    scaled = graph("Mul", graph("MaxPool", "x", kernel_shape=[2, 2]), graph.weight(16, 1, 1))
    assert [kernel.op for kernel in executed(graph, graph.conv(scaled, 16, 16, 3))] == ["Pooling", "Convolution"]


def test_images_are_reordered_to_channels_last_and_back():
    graph = Graph()
    kernels = kernels_of(graph.model({"x": [1, 16, 8, 8]}, [graph.conv("x", 16, 16, 3)]))
    assert [k.kernel.op for k in kernels] == ["Reorder", "Convolution", "Reorder"]
    assert [k.kernel.attribute("layout") for k in kernels] == ["acdb", "acdb", "abcd"]


def test_in_bf16_a_reorder_converts_on_its_way():
    graph = Graph()
    first, conv, last = kernels_of(graph.model({"x": [1, 16, 8, 8]}, [graph.conv("x", 16, 16, 3)]), "bf16")
    assert (first.kernel.attribute("from"), first.kernel.attribute("to")) == ("float32", "bfloat16")
    assert conv.kernel.dtype == "bfloat16"
    assert (last.kernel.attribute("from"), last.kernel.attribute("to")) == ("bfloat16", "float32")


def test_an_unknown_operator_is_named():
    graph = Graph()
    y = graph("Selu", "x")
    with pytest.raises(UsageError, match="Selu"):
        executed(graph, y)


def test_an_unknown_pattern_is_named():
    graph = Graph()
    y = graph("Transpose", graph("Exp", "x"), perm=[0, 2, 3, 1])
    with pytest.raises(UsageError, match="reduction"):
        executed(graph, graph("GlobalAveragePool", y))


def test_another_precision_is_refused():
    with pytest.raises(UnknownNameError, match="fp64"):
        kernels_of(Graph().model({"x": [1]}, ["x"]), "fp64")


@pytest.mark.parametrize(
    ("precision", "isa", "missing"),
    [("fp32", ["fma"], "avx2"), ("bf16", ["avx2"], "avx512f, avx512_bf16"), ("bf16", ["avx512f"], "avx512_bf16")],
)
def test_a_cpu_that_the_rules_are_not_for_is_refused(precision, isa, missing):
    graph = Graph()
    with pytest.raises(UsageError, match=f"CPU without {missing}"):
        kernels_of(graph.model({"x": [1, 16, 8, 8]}, [graph.conv("x", 16, 16, 3)]), precision, isa=isa)


def test_in_bf16_an_elementwise_layer_reads_the_networks_input_as_it_is_and_converts_what_it_writes():
    graph = Graph()
    y = graph.conv(graph("Exp", "x"), 16, 16, 3)
    first, reorder, *_ = kernels_of(graph.model({"x": [1, 16, 8, 8]}, [y]), "bf16")
    assert (first.kernel.op, first.kernel.dtype, first.kernel.attribute("layout")) == ("Subgraph", "float32", "abcd")
    assert (reorder.kernel.attribute("from"), reorder.kernel.attribute("to")) == ("bfloat16", "bfloat16")


@pytest.mark.parametrize(("isa", "layout"), [(["avx2"], "aBcd8b"), (["avx2", "avx512f"], "aBcd16b")])
def test_channels_are_blocked_by_the_width_of_registers(isa, layout):
    graph = Graph()
    y = graph.conv(graph("MaxPool", graph.conv("x", 16, 16, 3), kernel_shape=[2, 2]), 16, 16, 3)
    (one,) = kernels_of(graph.model({"x": [1, 3, 8, 8]}, [graph("MaxPool", "x", kernel_shape=[2, 2])]), isa=isa)[1:2]
    assert one.kernel.attribute("layout") == layout
    assert all(k.kernel.attribute("layout") != layout for k in kernels_of(graph.model({"x": [1, 16, 8, 8]}, [y])))


def test_a_constant_of_three_dimensions_is_told_and_a_convolutions_weights_are_not():
    graph = Graph()
    kernels = executed(graph, graph("MatMul", "x", graph.weight(8, 32, 64)), (8, 16, 32))
    assert [kernel.attribute("constants") for kernel in kernels] == [(1,)]
    graph = Graph()
    (kernel,) = executed(graph, graph.conv("x", 16, 64, 3))
    assert kernel.attribute("constants") is None
