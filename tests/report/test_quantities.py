"""How numbers are printed: by hand-computed cases."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.errors import CorruptFileError
from akd_deploy.report import quantities


def plain(text: str) -> str:
    return text.replace("\u00a0", " ")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0123456, "0.0123"), (1.23456, "1.23"), (9.996, "10.0"), (123.4, "123"), (999.7, "1000"),
     (12345.6, "12,346"), (-0.5, "-0.500"), (3.21e-6, "3.21e-06"), (None, "not recorded"), (math.inf, "not finite")],
)  # fmt: skip
def test_numbers_have_three_significant_digits(value, text):
    assert quantities.rounded(value) == text


@given(st.floats(1e-4, 9e8))
def test_rounding_is_within_half_a_unit_of_the_third_digit(value):
    assert abs(float(quantities.rounded(value).replace(",", "")) - value) <= 0.5001 * 10 ** (
        math.floor(math.log10(value)) - 2
    )


@pytest.mark.parametrize(
    ("value_s", "text"),
    [(2e-3, "2.00 ms"), (999e-6, "999 µs"), (87.6e-6, "87.6 µs"), (1.5, "1.50 s"), (0.25, "250 ms"),
     (None, "not recorded")],
)  # fmt: skip
def test_latencies_choose_their_unit(value_s, text):
    assert plain(quantities.latency(value_s)) == text


def test_latencies_that_stand_together_share_the_unit_of_their_median():
    unit = quantities.time_unit([3e-4, 4e-4, None, 2e-2])
    assert unit == quantities.MICROSECONDS
    assert plain(quantities.latency(2e-2, unit)) == "20,000 µs"
    assert quantities.time_unit([]) == quantities.MILLISECONDS
    assert plain(quantities.latency_range([9e-4, 1.2e-3])) == "0.900 to 1.20 ms"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.41, "0.41 s"), (45.4, "45 s"), (59.6, "1 min 0 s"), (725, "12 min 5 s"), (3599.6, "1 h 0 min"),
     (12_000, "3 h 20 min"), (None, "not recorded"), (math.nan, "not finite")],
)  # fmt: skip
def test_durations_read_as_people_say_them(seconds, text):
    assert plain(quantities.duration(seconds)) == text


def test_shares_differences_sizes_and_percentiles():
    assert plain(quantities.percent(0.93456)) == "93.5 %"
    assert plain(quantities.percent(0.97225, 2)) == "97.22 %"
    assert quantities.percentage_points(-0.00081) == "−0.08"
    assert quantities.percentage_points(0.0075) == "+0.75"
    assert plain(quantities.size(161_224)) == "157 KiB"
    assert plain(quantities.size(12)) == "12 B"
    assert quantities.percentile(90.0) == "p90"
    assert quantities.percentile(99.9) == "p99.9"
    assert quantities.count(1_204_224) == "1,204,224"
    assert quantities.correlation(0.94249) == "0.942"


@pytest.mark.parametrize(
    "show", [quantities.rounded, quantities.latency, quantities.percent, quantities.duration, quantities.size,
             quantities.count, quantities.percentile, quantities.correlation, quantities.percentage_points]
)  # fmt: skip
def test_what_is_no_number_is_never_printed_as_one(show):
    assert show(None) == "not recorded"
    for wrong in ("12", True, [1]):
        with pytest.raises(CorruptFileError, match="a number"):
            show(wrong)


@pytest.mark.parametrize(
    "show", [quantities.rounded, quantities.latency, quantities.percent, quantities.duration, quantities.size,
             quantities.count, quantities.percentile, quantities.correlation, quantities.percentage_points]
)  # fmt: skip
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_says_so(show, value):
    assert show(value) == "not finite"
