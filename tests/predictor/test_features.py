"""Counts are the textbook's, and any kernel at all has finite features."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from akd_deploy.kernel import BYTES_PER_ELEMENT, Kernel
from akd_deploy.predictor.features import (
    TERMS,
    coordinates,
    cost_terms,
    dimensions,
    macs,
    regime,
    setting,
    window_and_width,
    with_window_and_type,
)


def conv(out_shape, weight, in_shape=(1, 1, 1, 1), groups=1, strides=(1, 1)) -> Kernel:
    attributes = (("kernel_size", weight[2:]), ("groups", groups), ("strides", strides))
    return Kernel("Conv", (in_shape, weight, (weight[0],)), (out_shape,), attributes=attributes)


@pytest.mark.parametrize(
    ("kernel", "expected"),
    [
        # 12·12 positions × 8 outputs × 3 inputs × 3·3 window
        pytest.param(conv((1, 8, 12, 12), (8, 3, 3, 3)), 144 * 8 * 3 * 9, id="dense"),
        pytest.param(conv((4, 8, 12, 12), (8, 3, 3, 3)), 4 * 144 * 8 * 3 * 9, id="batch of four"),
        pytest.param(conv((1, 24, 6, 6), (24, 16, 1, 1)), 36 * 24 * 16, id="pointwise"),
        pytest.param(conv((1, 32, 6, 6), (32, 1, 5, 5), groups=32), 36 * 32 * 25, id="depthwise"),
        # 4 groups of 8 inputs and 4 outputs each
        pytest.param(conv((1, 16, 5, 5), (16, 8, 3, 3), groups=4), 25 * 16 * 8 * 9, id="grouped"),
        pytest.param(Kernel("Gemm", ((2, 48), (10, 48), (10,)), ((2, 10),)), 2 * 48 * 10, id="gemm"),
        pytest.param(Kernel("MatMul", ((3, 7, 5), (5, 11)), ((3, 7, 11),)), 3 * 7 * 5 * 11, id="matmul"),
        pytest.param(Kernel("Gemm", ((48, 2), (48, 10)), ((2, 10),)), 2 * 48 * 10, id="gemm, both transposed"),
        pytest.param(
            Kernel("aten.linear", ((1, 128, 64), (256, 64), (256,)), ((1, 128, 256),)), 128 * 64 * 256, id="linear"
        ),
        pytest.param(Kernel("MatMul", ((2, 3, 7, 5), (2, 3, 5, 11)), ((2, 3, 7, 11),)), 6 * 7 * 5 * 11, id="batched"),
        pytest.param(
            Kernel("QLinearMatMul", ((7, 5), (), (), (5, 11), (), (), (), ()), ((7, 11),), "int8"),
            7 * 5 * 11,
            id="quantised, scales between",
        ),
        pytest.param(
            Kernel(
                "aten.scaled_dot_product_attention", ((1, 4, 10, 8), (1, 4, 12, 8), (1, 4, 12, 8)), ((1, 4, 10, 8),)
            ),
            2 * 4 * 10 * 12 * 8,
            id="attention",
        ),
        # both products of a fused head, whatever elementwise operators are around them
        pytest.param(
            Kernel(
                "Subgraph",
                ((1, 4, 10, 8), (1, 4, 12, 8), (1, 4, 12, 8)),
                ((1, 10, 4, 8),),
                attributes=(("operators", "Transpose+MatMul+Softmax+MatMul+Transpose"),),
            ),
            2 * 4 * 10 * 12 * 8,
            id="fused attention",
        ),
        pytest.param(
            Kernel("Subgraph", ((1, 4, 10, 8),) * 3, ((1, 4, 10, 8),), attributes=(("operators", "Mul+Add"),)),
            0,
            id="fused, without a product",
        ),
        # 7 steps of 2 samples, 4 gates of 5 units, from 3 inputs and 5 units
        pytest.param(
            Kernel(
                "LSTM",
                ((7, 2, 3), (1, 20, 3), (1, 20, 5), (1, 40)),
                ((7, 1, 2, 5),),
                attributes=(("constants", (1, 2)),),
            ),
            7 * 2 * 4 * 5 * (3 + 5),
            id="recurrent",
        ),
        # every one of 5·5 positions × 8 inputs meets 6 outputs' 2·2 windows
        pytest.param(
            Kernel(
                "ConvTranspose", ((1, 8, 5, 5), (8, 6, 2, 2)), ((1, 6, 10, 10),), attributes=(("kernel_size", (2, 2)),)
            ),
            25 * 8 * 6 * 4,
            id="transposed",
        ),
        pytest.param(
            Kernel(
                "Deconvolution",
                ((1, 16, 6, 6), (16, 8, 4, 4), (8,)),
                ((1, 8, 12, 12),),
                attributes=(("kernel_size", (4, 4)), ("groups", 1), ("strides", (2, 2))),
            ),
            36 * 16 * 8 * 16,
            id="transposed, as OpenVINO calls it",
        ),
        pytest.param(
            Kernel(
                "QLinearConv",
                ((1, 6, 6, 16), (), (), (24, 16, 1, 1)),
                ((1, 6, 6, 24),),
                "uint8",
                (("kernel_size", (1, 1)),),
            ),
            36 * 24 * 16,
            id="channels last",
        ),
        pytest.param(
            Kernel("aten.upsample_bilinear2d", ((1, 8, 4, 4),), ((1, 8, 8, 8),)), 0, id="resize is no product"
        ),
        pytest.param(Kernel("Add", ((1, 8, 4, 4), (1, 8, 4, 4)), ((1, 8, 4, 4),)), 0, id="addition"),
        pytest.param(
            Kernel("AveragePool", ((1, 8, 4, 4),), ((1, 8, 2, 2),), attributes=(("kernel_size", (3, 3)),)),
            32 * 9,
            id="pooling reads its window",
        ),
    ],
)
def test_multiply_accumulates_are_those_counted_by_hand(kernel: Kernel, expected: int) -> None:
    assert macs(kernel) == expected


def test_padded_multiply_accumulates_round_channels_up_to_full_vectors() -> None:
    terms = dict(zip(TERMS, cost_terms(conv((1, 24, 2, 2), (24, 20, 1, 1))), strict=True))
    assert terms["macs"] == 4 * 24 * 20
    assert terms["padded_macs"] == 4 * 32 * 32


def test_padded_multiply_accumulates_of_a_depthwise_convolution_pad_its_channels_once() -> None:
    terms = dict(zip(TERMS, cost_terms(conv((1, 24, 2, 2), (24, 1, 3, 3), groups=24)), strict=True))
    assert terms["padded_macs"] == 4 * 32 * 9


def test_traffic_counts_every_tensor_once_in_its_own_width() -> None:
    kernel = Kernel("Add", ((1, 8, 4, 4), (1, 8, 4, 4)), ((1, 8, 4, 4),), dtype="float16")
    assert dict(zip(TERMS, cost_terms(kernel), strict=True))["traffic_bytes"] == 3 * 128 * 2


def test_convolutions_of_different_kinds_are_different_regimes() -> None:
    kinds = [
        conv((1, 8, 4, 4), (8, 8, 3, 3)),
        conv((1, 8, 4, 4), (8, 8, 1, 1)),
        conv((1, 8, 4, 4), (8, 1, 3, 3), groups=8),
        conv((1, 8, 4, 4), (8, 4, 3, 3), groups=2),
        Kernel("Add", ((1, 8, 4, 4),) * 2, ((1, 8, 4, 4),)),
    ]
    assert len({regime(kernel) for kernel in kinds}) == len(kinds)


def test_a_dilated_convolution_lies_elsewhere_than_a_plain_one() -> None:
    plain = conv((1, 8, 4, 4), (8, 8, 3, 3))
    dilated = Kernel(plain.op, plain.inputs, plain.outputs, attributes=(*plain.attributes, ("dilations", (2, 2))))
    assert sum(abs(a - b) for a, b in zip(coordinates(plain), coordinates(dilated), strict=True)) == 2.0
    assert macs(plain) == macs(dilated)


def test_one_doubling_of_channels_is_one_unit_of_distance() -> None:
    narrow = coordinates(conv((1, 15, 4, 4), (15, 8, 1, 1)))
    wide = coordinates(conv((1, 31, 4, 4), (31, 8, 1, 1)))
    assert wide[1] - narrow[1] == pytest.approx(1.0)


SHAPES = st.lists(st.integers(0, 2048), max_size=5).map(tuple)
WINDOWS = st.lists(st.integers(0, 9), max_size=3).map(tuple)
KERNELS = st.builds(
    lambda op, inputs, outputs, dtype, attributes: Kernel(op, inputs, outputs, dtype, tuple(attributes.items())),
    st.sampled_from(["Conv", "nchwc.Conv", "QLinearConv", "Gemm", "FusedMatMul", "AveragePool", "Shape", "Никто", ""]),
    st.lists(SHAPES, max_size=4).map(tuple),
    st.lists(SHAPES, max_size=3).map(tuple),
    st.sampled_from(sorted(BYTES_PER_ELEMENT)),
    st.fixed_dictionaries(
        {},
        optional={
            "kernel_size": WINDOWS,
            "strides": WINDOWS,
            "groups": st.integers(0, 64) | st.just("many"),
            "activation": st.sampled_from(["", "Relu"]),
            "residual": st.integers(0, 1),
        },
    ),
)


@given(KERNELS)
@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_features_of_any_kernel_are_finite_and_as_many_as_of_any_other(kernel: Kernel) -> None:
    terms, place = cost_terms(kernel), coordinates(kernel)
    assert len(terms) == len(TERMS)
    assert len(place) == len(coordinates(Kernel("Add", (), ())))
    assert all(math.isfinite(value) and value >= 0 for value in (*terms, *place))
    assert terms[0] == 1.0  # no kernel is without a launch
    assert regime(kernel).startswith(kernel.op)


def test_a_fused_operator_is_of_the_regime_of_the_plain_one_and_another_setting() -> None:
    image = (1, 16, 32)
    for op in ("Conv", "Gemm"):
        window = (("kernel_size", (3,)),) if op == "Conv" else ()
        inputs = (image, (16, 16, 3), (16,)) if op == "Conv" else ((1, 16), (16, 32), (32,))
        output = image if op == "Conv" else (1, 32)
        plain = Kernel(op, inputs, (output,), attributes=window)
        fused = Kernel(f"Fused{op}", inputs, (output,), attributes=(("activation", "Relu"), *window))
        assert regime(fused) == regime(plain)
        assert setting(fused) != setting(plain)
        assert coordinates(fused) != coordinates(plain)


def test_reorders_between_other_layouts_are_other_regimes_and_a_kernels_own_layout_is_a_coordinate() -> None:
    def reorder(source: str, target: str) -> Kernel:
        return Kernel(
            "Reorder", ((1, 8, 4, 4),), ((1, 8, 4, 4),), attributes=(("from_layout", source), ("layout", target))
        )

    found = [regime(reorder(*pair)) for pair in (("abcd", "acdb"), ("acdb", "abcd"), ("abcd", "aBcd16b"))]
    assert found == ["Reorder/plain-last", "Reorder/last-plain", "Reorder/plain-blocked"]
    plain, last = (
        Kernel("Concat", ((1, 8, 4, 4),) * 2, ((1, 16, 4, 4),), attributes=(("layout", layout),))
        for layout in ("abcd", "acdb")
    )
    assert regime(plain) == regime(last) == "Concat"
    assert coordinates(plain) != coordinates(last)


@pytest.mark.parametrize(
    ("shape", "run"), [((), 256), ((8,), 8), ((1, 1, 8), 8), ((4, 1, 1), 64), ((2, 4, 1, 8), 8), ((1, 4, 8, 8), 256)]
)
def test_a_broadcast_input_is_walked_along_or_stood_still_on_for_a_run_of_outputs(shape, run) -> None:
    added = Kernel("Add", ((2, 4, 8, 8), shape), ((2, 4, 8, 8),))
    whole = 2 * 4 * 8 * 8
    assert dimensions(added).run == (whole if shape == () else run)
    assert dimensions(Kernel("Add", ((2, 4, 8, 8),) * 2, ((2, 4, 8, 8),))).run == whole


def test_transpositions_that_keep_rows_are_another_regime() -> None:
    def transpose(*order: int) -> Kernel:
        return Kernel("Transpose", ((2, 3, 4),), ((2, 3, 4),), attributes=(("perm", order),))

    assert regime(transpose(1, 0, 2)) == "Transpose/rows"
    assert regime(transpose(0, 2, 1)) == "Transpose/elements"


def test_interpolations_of_another_mode_and_a_softmax_along_columns_are_other_regimes() -> None:
    def resize(mode: str) -> Kernel:
        return Kernel("Resize", ((1, 8, 4, 4),), ((1, 8, 8, 8),), attributes=(("mode", mode),))

    def softmax(axis: int) -> Kernel:
        return Kernel("Softmax", ((1, 8, 4, 4),), ((1, 8, 4, 4),), attributes=(("axis", axis),))

    assert len({regime(resize(mode)) for mode in ("nearest", "linear", "cubic")}) == 3
    assert regime(softmax(-1)) == regime(softmax(3)) != regime(softmax(1))


def test_a_reduction_along_rows_lies_elsewhere_than_one_along_columns() -> None:
    def reduce(axes: tuple[int, ...]) -> Kernel:
        return Kernel("ReduceMean", ((1, 8, 8),), ((1, 8, 1),), attributes=(("axes", axes),))

    assert coordinates(reduce((-1,))) == coordinates(reduce((2,))) != coordinates(reduce((1,)))


@pytest.mark.parametrize(
    ("fused", "times"),
    [
        (None, 0),
        ("Relu", 0),
        ("HardSwish", 0),
        ("Clip", 0),
        ("Sigmoid", 1),
        ("Sigmoid+Mul", 1),
        ("Div+Erf+Mul+Mul", 1),
        ("QuickGelu", 1),
        ("Exp+Log", 2),
    ],
)
def test_exponentials_fused_into_a_kernel_are_counted_for_every_output(fused: str | None, times: int) -> None:
    plain = conv((1, 8, 12, 12), (8, 3, 3, 3))
    kernel = Kernel(plain.op, plain.inputs, plain.outputs, attributes=(*plain.attributes, ("activation", fused or "")))
    assert cost_terms(kernel)[TERMS.index("transcendental")] == times * 8 * 144


@pytest.mark.parametrize(
    ("shape", "aliased"),
    [((1, 8, 32, 32), 1.0), ((1, 8, 64, 64), 1.0), ((1, 8, 16, 32), 2 / 3), ((1, 8, 31, 33), 0.0), ((1, 8, 7, 7), 0.0)],
)
def test_a_change_of_layout_whose_strides_meet_in_one_set_of_a_cache_is_told(shape, aliased) -> None:
    layouts = (("from_layout", "abcd"), ("layout", "acdb"))
    bytes_ = 2 * 4 * math.prod(shape)
    for attributes in (layouts, (("perm", (0, 2, 3, 1)),)):
        kernel = Kernel("Reorder", (shape,), (shape,), attributes=attributes)
        assert cost_terms(kernel)[TERMS.index("aliased_bytes")] == pytest.approx(aliased * bytes_)
    for attributes in ((("from_layout", "abcd"), ("layout", "aBcd16b")), (("perm", (0, 2, 1, 3)),)):
        kernel = Kernel("Reorder", (shape,), (shape,), attributes=attributes)
        assert cost_terms(kernel)[TERMS.index("aliased_bytes")] == 0.0


def test_what_elements_are_picked_from_is_not_read_whole() -> None:
    table = Kernel("Gather", ((30_522, 128), (1, 16)), ((1, 16, 128),))
    first = Kernel("Slice", ((128, 512), (2,), (2,)), ((1, 1),))
    assert cost_terms(table)[TERMS.index("traffic_bytes")] == 4 * (2 * 16 * 128 + 16)
    assert cost_terms(first)[TERMS.index("traffic_bytes")] == 4 * (1 + 1 + 1 + 1)


def test_operations_on_numbers_below_the_least_normal_one_are_counted() -> None:
    shapes = ((3, 8, 8), (3, 8, 4)), ((3, 8, 4),)
    product = Kernel("MatMul", *shapes, attributes=(("denormals", 0.25),))
    softmax = Kernel("Softmax", ((3, 8, 8),), ((3, 8, 8),), attributes=(("axis", -1), ("denormals", 0.5)))
    plain = Kernel("MatMul", *shapes)
    at = TERMS.index("denormals")
    assert [cost_terms(kernel)[at] for kernel in (product, softmax, plain)] == [0.25 * 3 * 8 * 8 * 4, 96.0, 0.0]
    assert regime(product) == regime(plain)
    assert coordinates(product) != coordinates(plain)
    slower = with_window_and_type(np.array([cost_terms(plain)]), np.array([window_and_width(plain)]), product)
    assert slower[0, at] == cost_terms(product)[at]


def test_terms_as_if_another_window_and_type_are_those_of_the_same_sizes_with_them() -> None:
    def convolution(window: int, dtype: str) -> Kernel:
        image = (1, 32, 14, 14)
        weight = (64, 32, window, window)
        return Kernel(
            "Conv", (image, weight), ((1, 64, 14, 14),), dtype, (("groups", 1), ("kernel_size", (window, window)))
        )

    others = [convolution(1, "float32"), convolution(3, "float32")]
    terms, own = np.array([cost_terms(k) for k in others]), np.array([window_and_width(k) for k in others])
    assert (terms[:, TERMS.index("macs")] == np.array([1, 9]) * 32 * 64 * 14 * 14).all()
    before = terms.copy()
    found = with_window_and_type(terms, own, convolution(5, "float32"))
    np.testing.assert_array_equal(terms, before)
    for name in ("launch", "macs", "padded_macs", "outputs", "rows", "filling_macs", "transcendental", "denormals"):
        at = TERMS.index(name)
        expected = cost_terms(convolution(5, "float32"))[at]
        np.testing.assert_allclose(found[1, at], expected, err_msg=name)
    halves = with_window_and_type(terms, own, convolution(3, "float16"))
    at = TERMS.index("traffic_bytes")
    np.testing.assert_allclose(halves[:, at], terms[:, at] / 2)
    np.testing.assert_allclose(halves[1], np.array(cost_terms(convolution(3, "float16"))))
