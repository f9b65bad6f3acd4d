import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.kernel import BYTES_PER_ELEMENT, ExecutedKernel, Kernel, kernel_from_signature

NUMBERS = st.integers(-(2**40), 2**40)
SHAPES = st.lists(st.lists(st.integers(0, 4096), max_size=5).map(tuple), max_size=4).map(tuple)
VALUES = (
    NUMBERS
    | st.booleans()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.lists(NUMBERS, max_size=4).map(tuple)
)
KERNELS = st.builds(
    Kernel,
    op=st.text(min_size=1, max_size=12),
    inputs=SHAPES,
    outputs=SHAPES,
    dtype=st.sampled_from(sorted(BYTES_PER_ELEMENT)),
    attributes=st.dictionaries(st.text(max_size=8), VALUES, max_size=4).map(lambda d: tuple(d.items())),
)
CONV = Kernel(
    op="Conv",
    inputs=((1, 8, 12, 12), (16, 8, 3, 3), (16,)),
    outputs=((1, 16, 6, 6),),
    attributes=(("strides", (2, 2)), ("kernel_size", (3, 3)), ("activation", "Relu"), ("groups", 1)),
)


@given(KERNELS)
def test_a_kernel_is_read_back_from_its_signature(kernel):
    signature = kernel.signature
    again = kernel_from_signature(signature)
    assert again == kernel
    assert hash(again) == hash(kernel)
    assert again.signature == signature
    assert "\n" not in signature


@given(KERNELS, KERNELS)
def test_signatures_are_equal_exactly_when_kernels_are(a, b):
    assert (a.signature == b.signature) == (a == b)


@pytest.mark.parametrize(("value", "same"), [(1.0, 1), (True, 1), (-0.0, 0), (0, False)])
def test_equal_numbers_give_one_signature(value, same):
    a, b = (Kernel("Clip", (), (), attributes=(("min", v),)) for v in (value, same))
    assert a == b
    assert a.signature == b.signature


def test_the_signature_is_the_text_that_tables_keep():
    assert CONV.signature == (
        '{"op":"Conv","in":[[1,8,12,12],[16,8,3,3],[16]],"out":[[1,16,6,6]],"dtype":"float32",'
        '"attr":{"activation":"Relu","groups":1,"kernel_size":[3,3],"strides":[2,2]}}'
    )


def test_the_order_in_which_attributes_are_given_does_not_matter():
    turned = Kernel(CONV.op, CONV.inputs, CONV.outputs, CONV.dtype, CONV.attributes[::-1])
    assert turned == CONV
    assert turned.attribute("kernel_size") == (3, 3)
    assert turned.attribute("dilations") is None


def test_traffic_counts_every_tensor_once_in_the_kernels_element_type():
    elements = 8 * 12 * 12 + 16 * 8 * 9 + 16 + 16 * 36
    assert CONV.traffic_bytes == 4 * elements
    assert CONV.output_elements == 16 * 36
    half = Kernel(CONV.op, CONV.inputs, CONV.outputs, "float16", CONV.attributes)
    assert half.traffic_bytes == 2 * elements
    assert Kernel("Cast", ((),), ((),)).traffic_bytes == 8


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "float31"},
        {"inputs": ((1, -1),)},
        {"inputs": ((1, 2.0),)},
        {"inputs": ((1, True),)},
        {"inputs": ((1, "N"),)},
        {"outputs": ([1, 2],)},
        {"attributes": (("a", 1), ("a", 2))},
        {"attributes": (("a", float("nan")),)},
        {"attributes": (("a", float("inf")),)},
        {"attributes": (("a", None),)},
        {"attributes": (("a", {"b": 1}),)},
    ],
)
def test_what_is_no_shape_dtype_or_attribute_is_refused(arguments):
    with pytest.raises(ValueError, match=r"Clip|not a number"):
        Kernel(**{"op": "Clip", "inputs": (), "outputs": ()} | arguments)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Conv-1x3x224x224",
        "[]",
        "null",
        '{"op":"Conv"}',
        '{"op":5,"in":[],"out":[],"dtype":"float32","attr":{}}',
        '{"op":"Conv","in":5,"out":[],"dtype":"float32","attr":{}}',
        '{"op":"Conv","in":["12"],"out":[],"dtype":"float32","attr":{}}',
        '{"op":"Conv","in":[],"out":[],"dtype":"float32","attr":[]}',
        '{"op":"Conv","in":[],"out":[],"dtype":["float32"],"attr":{}}',
        CONV.signature[:-5],
    ],
)
def test_a_text_that_is_no_signature_is_refused(text):
    with pytest.raises(ValueError, match=r"signature|shape"):
        kernel_from_signature(text)


def test_kernels_of_one_engine_sort_and_count():
    narrow = Kernel("Conv", ((1, 4, 12, 12),), ((1, 16, 6, 6),))
    assert sorted([CONV, narrow])[0] == narrow
    assert len({CONV, narrow, kernel_from_signature(CONV.signature)}) == 2
    assert ExecutedKernel(CONV, "/conv").kernel is CONV
