from math import inf

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from akd_deploy.errors import MismatchError, ParityError, UnknownNameError, UsageError
from akd_deploy.export.parity import TOLERANCES, Tolerance, check_parity, compare_outputs, tolerance_for
from akd_deploy.target import PRECISIONS


def compare(reference, candidate):
    """Compare two constant outputs `y`."""
    return compare_outputs([{"y": np.asarray(reference)}], lambda _: {"y": np.asarray(candidate)}, [{}])


def test_equal_outputs_are_at_parity_in_every_sense():
    parity = compare([[1.0, -2.0], [0.0, 0.0]], [[1.0, -2.0], [0.0, 0.0]])
    assert (parity.max_abs, parity.max_rel, parity.top1_agreement) == (0, 0, 1)
    assert parity.cosine == pytest.approx(1)
    assert parity.samples == 2
    for precision in PRECISIONS:
        check_parity(parity, tolerance_for(precision))


def test_differences_by_hand():
    parity = compare([[3.0, 4.0], [0.0, 2.0]], [[4.0, 3.0], [0.0, 2.0]])
    assert parity.max_abs == 1
    assert parity.max_rel == 1 / 4
    assert parity.cosine == pytest.approx(24 / 25)
    assert parity.top1_agreement == 0.5


@pytest.mark.parametrize("shape", [(5,), (2, 1), (2, 3, 4), (2, 4, 8, 8)])
def test_outputs_whose_classes_have_no_known_axis_are_not_judged_by_decisions(shape):
    values = np.random.default_rng(0).standard_normal(shape)
    parity = compare(values, values + 1e-3 * values[..., ::-1])
    assert parity.top1_agreement is None
    check_parity(parity, tolerance_for("int8"))


def test_opposite_vectors_have_cosine_minus_one_and_zero_against_something_zero():
    assert compare([[1.0, 2.0]], [[-1.0, -2.0]]).cosine == pytest.approx(-1)
    assert compare([[0.0, 0.0]], [[1e-30, 0.0]]).cosine == 0
    assert compare([[0.0, 0.0]], [[1e-30, 0.0]]).max_rel == inf


def test_cosine_of_huge_values_does_not_overflow():
    assert compare([[1e300, 1e300]], [[1e300, 1e300]]).cosine == pytest.approx(1)


@pytest.mark.parametrize("bad", [np.nan, inf, -inf])
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_value_that_is_not_finite_on_one_side_is_never_at_parity(bad, precision):
    parity = compare([[1.0, 2.0, 3.0]], [[1.0, bad, 3.0]])
    assert parity.per_output[0].non_finite == 1
    assert parity.max_abs == inf
    with pytest.raises(ParityError, match="1 values not finite"):
        check_parity(parity, tolerance_for(precision))


def test_equal_infinities_and_nans_agree():
    parity = compare([[-inf, np.nan, 1.0]], [[-inf, np.nan, 1.0]])
    assert (parity.max_abs, parity.per_output[0].non_finite) == (0, 0)


def test_the_error_names_the_worst_output_and_exits_with_4():
    reference = {"good": np.ones((1, 2)), "bad": np.ones((1, 2)), "worse": np.ones((1, 2))}
    candidate = {"good": np.ones((1, 2)), "bad": np.full((1, 2), 1.5), "worse": np.full((1, 2), 3.0)}
    parity = compare_outputs([reference], lambda _: candidate, [{}])
    with pytest.raises(ParityError, match=r"'worse'.*and 1 more: bad") as caught:
        check_parity(parity, tolerance_for("fp32"))
    assert caught.value.exit_code == 4
    assert caught.value.as_dict()["output"] == "worse"


def test_each_bound_is_judged_alone_and_none_is_not_judged():
    parity = compare([[1.0, 0.9]], [[0.9, 1.0]])
    check_parity(parity, Tolerance(None, None, None, ""))
    for tolerance in (
        Tolerance(0.05, None, None, ""),
        Tolerance(None, 0.999, None, ""),
        Tolerance(None, None, 0.5, ""),
    ):
        with pytest.raises(ParityError):
            check_parity(parity, tolerance)


def test_every_precision_has_a_tolerance_with_its_reason_and_unknown_ones_are_refused():
    assert set(TOLERANCES) == set(PRECISIONS)
    assert all(tolerance.reason for tolerance in TOLERANCES.values())
    assert TOLERANCES["fp32"].max_rel < TOLERANCES["fp16"].max_rel < TOLERANCES["bf16"].max_rel
    with pytest.raises(UnknownNameError):
        tolerance_for("fp12")


def test_outputs_of_other_names_shapes_or_numbers_are_refused():
    with pytest.raises(MismatchError, match="outputs"):
        compare_outputs([{"a": np.ones(1)}], lambda _: {"b": np.ones(1)}, [{}])
    with pytest.raises(MismatchError, match="shape"):
        compare([[1.0, 2.0]], [[1.0], [2.0]])
    with pytest.raises(UsageError, match="no inputs"):
        compare_outputs([], lambda _: {}, [])
    with pytest.raises(UsageError, match="2 batches"):
        compare_outputs([{}], lambda _: {}, [{}, {}])


def test_a_function_and_its_outputs_computed_before_compare_alike():
    inputs = [{"x": np.arange(6.0).reshape(2, 3) + i} for i in range(3)]

    def double(feeds):
        return {"y": 2 * feeds["x"]}

    def almost(feeds):
        return {"y": 2 * feeds["x"] + 1e-3}

    assert compare_outputs(double, almost, inputs) == compare_outputs([double(i) for i in inputs], almost, inputs)
    assert compare_outputs(double, almost, inputs).samples == 6


def test_json_has_no_number_that_json_cannot_hold():
    fields = compare([[1.0]], [[np.nan]]).as_dict()
    assert fields["max_abs"] is None
    assert fields["per_output"][0]["max_abs"] is None
    assert fields["per_output"][0]["non_finite"] == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6).map(lambda v: float(np.float32(v))), min_size=2, max_size=8), st.floats(1e-3, 1e3))
def test_cosine_does_not_see_scale_and_relative_difference_does_not_change_with_it(values, scale):
    reference = np.array([values])
    candidate = reference + np.arange(len(values))
    a, b = compare(reference, candidate), compare(reference * scale, candidate * scale)
    assert b.max_rel == pytest.approx(a.max_rel, rel=1e-6)
    assert b.cosine == pytest.approx(a.cosine, abs=1e-9)
    assert compare(reference, reference * scale).cosine == pytest.approx(1)
