import json

from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.export.diff import diff_kernels
from akd_deploy.export.inspect import kernel_table, precision_counts
from akd_deploy.kernel import ExecutedKernel, Kernel

CONV = Kernel("Conv", ((1, 8, 4, 4), (8, 8, 1, 1)), ((1, 8, 4, 4),), "float32", (("kernel_size", (1, 1)),))
RELU = Kernel("Relu", ((1, 8, 4, 4),), ((1, 8, 4, 4),))
HALF = Kernel("Conv", CONV.inputs, CONV.outputs, "float16", CONV.attributes)


def run(*kernels):
    return [ExecutedKernel(kernel, f"k{i}", (f"node{i}",)) for i, kernel in enumerate(kernels)]


def test_a_table_has_a_row_of_json_per_kernel_in_order():
    rows = kernel_table(run(CONV, RELU))
    assert [row["op"] for row in rows] == ["Conv", "Relu"]
    assert rows[0]["traffic_bytes"] == 4 * (128 + 64 + 128)
    assert rows[0]["attributes"] == {"kernel_size": [1, 1]}
    assert rows[1]["nodes"] == ["node1"]
    assert json.loads(json.dumps(rows)) == rows
    assert precision_counts(run(CONV, HALF, RELU)) == {"float32": 2, "float16": 1}


def test_a_fused_activation_is_one_kernel_less_and_its_traffic():
    diff = diff_kernels(run(CONV, RELU, CONV, RELU), run(CONV, CONV, RELU))
    assert not diff.identical
    assert [(count.kernel, count.in_a, count.in_b) for count in diff.differing] == [(RELU, 2, 1)]
    assert diff.only_in_a == diff.only_in_b == ()
    assert diff.op_counts == {"Relu": (2, 1)}
    assert (diff.shared, diff.kernels_a, diff.kernels_b) == (3, 4, 3)
    assert diff.traffic_bytes_a - diff.traffic_bytes_b == RELU.traffic_bytes


def test_kernels_of_another_dtype_are_in_one_engine_only():
    diff = diff_kernels(run(CONV, RELU), run(HALF, RELU))
    assert [count.kernel for count in diff.only_in_a] == [CONV]
    assert [count.kernel for count in diff.only_in_b] == [HALF]
    assert diff.op_counts == {}
    assert json.loads(json.dumps(diff.as_dict()))["kernels"][0]["op"] == "Conv"


kernels = st.lists(st.sampled_from([CONV, RELU, HALF]), max_size=8)


@given(kernels, kernels)
def test_counts_add_up_and_turning_the_two_around_turns_the_diff_around(a, b):
    diff, back = diff_kernels(run(*a), run(*b)), diff_kernels(run(*b), run(*a))
    assert {(c.kernel, c.in_a, c.in_b) for c in diff.differing} == {(c.kernel, c.in_b, c.in_a) for c in back.differing}
    for count in diff.differing:
        assert (count.in_a, count.in_b) == (a.count(count.kernel), b.count(count.kernel))
        assert count.in_a != count.in_b
    assert diff.shared == sum(min(a.count(k), b.count(k)) for k in (CONV, RELU, HALF))
    assert diff.identical == (sorted(a) == sorted(b))
