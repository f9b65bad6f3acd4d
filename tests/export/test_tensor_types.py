import numpy as np
import onnx
import pytest
from export_graphs import network, weight
from onnx import helper, numpy_helper

from akd_deploy.engines.tensorrt_inspect import EngineLayer, EngineTensor
from akd_deploy.export.inspect import kernel_table
from akd_deploy.export.tensor_types import (
    KernelTypes,
    traffic_bytes,
    types_from_graph,
    types_from_layer,
    unknown_types,
)
from akd_deploy.kernel import ExecutedKernel, Kernel

SHAPE = (1, 4, 8, 8)
SIZE = 256


def pair():
    """x → Q → DQ → Relu."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "quantise"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dequantise"),
        helper.make_node("Relu", ["d"], ["logits"], "relu"),
    ]
    model = network(
        nodes, [weight("s", np.array(0.1)), numpy_helper.from_array(np.array(0, np.int8), "z")], SHAPE, SHAPE
    )
    return onnx.shape_inference.infer_shapes(model)


def ran(op, inputs, outputs, *nodes, dtype="float32"):
    return ExecutedKernel(Kernel(op, inputs, outputs, dtype), op, nodes)


def test_a_quantise_kernel_reads_four_bytes_and_writes_one():
    quantise = ran("QuantizeLinear", (SHAPE, (), ()), (SHAPE,), "quantise")
    fused = ran("DequantizeLinear", (SHAPE, (), ()), (SHAPE,), "dequantise", "relu", dtype="int8")
    types = types_from_graph([quantise, fused], pair())
    assert types == (
        KernelTypes(("float32", "float32", "int8"), ("int8",)),
        KernelTypes(("int8", "float32", "int8"), ("float32",)),
    )
    assert traffic_bytes(quantise.kernel, types[0]) == 4 * SIZE + 4 + 1 + SIZE
    assert kernel_table([quantise], types[:1])[0]["traffic_bytes"] == 5 * SIZE + 5
    assert quantise.kernel.traffic_bytes != 5 * SIZE + 5


def test_what_stays_inside_a_kernel_is_none_of_its_inputs():
    fused = ran("DequantizeLinear", (SHAPE,), (SHAPE,), "relu", "dequantise", dtype="int8")
    assert types_from_graph([fused], pair()) == (KernelTypes(("int8",), ("float32",)),)


def test_tensors_of_another_layout_are_found_by_their_sizes_and_others_are_not_known():
    moved = ran("QuantizeLinear", ((1, 8, 8, 4), (2, 2)), ((1, 8, 8, 4),), "quantise")
    (types,) = types_from_graph([moved], pair())
    assert types == KernelTypes(("float32", None), ("int8",))
    assert not types.known
    assert traffic_bytes(moved.kernel, types) == 4 * SIZE + 4 * 4 + SIZE
    alone = ran("Conv", (SHAPE,), (SHAPE,))
    assert types_from_graph([alone], pair()) == (unknown_types(alone.kernel),)


def test_a_kernel_that_changes_the_layout_writes_what_it_reads():
    """Runtimes put a transposition of int8 down to the node behind it, which writes float32."""
    moved = ran("Transpose", (SHAPE,), ((1, 8, 8, 4),), "dequantise", dtype="int8")
    assert types_from_graph([moved], pair()) == (KernelTypes(("int8",), ("int8",)),)


def test_an_inspector_tells_every_type():
    tensors = [EngineTensor(SHAPE, dtype) for dtype in ("float16", "int8", "float32")]
    layer = EngineLayer("k", "kgen", (tensors[0],), (tensors[2],), (tensors[1],))
    assert types_from_layer(layer) == KernelTypes(("float16", "float32"), ("int8",))


def test_without_types_a_table_counts_the_kernels_own():
    kernel = ran("Relu", (SHAPE,), (SHAPE,), "relu", dtype="float16")
    (row,) = kernel_table([kernel])
    assert row["traffic_bytes"] == kernel.kernel.traffic_bytes
    assert row["input_types"] == [None]


def test_types_and_kernels_must_be_as_many():
    with pytest.raises(ValueError, match="zip"):
        kernel_table([ran("Relu", (SHAPE,), (SHAPE,))], [])
