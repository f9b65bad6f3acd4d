import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from akd_deploy.errors import UsageError
from akd_deploy.units import (
    format_bytes,
    format_seconds,
    format_share,
    format_sigma,
    parse_bytes,
    parse_fraction,
    parse_latency_budget,
    parse_seconds,
)

DURATIONS = st.floats(1e-8, 1e5)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2ms", 2e-3),
        (" 2 ms ", 2e-3),
        ("1.5s", 1.5),
        (".5us", 5e-7),
        ("3µs", 3e-6),
        ("3μs", 3e-6),
        ("7ns", 7e-9),
        ("1e3ms", 1),
    ],
)
def test_durations_are_read_in_seconds(text, seconds):
    assert parse_seconds(text) == pytest.approx(seconds, rel=1e-12)


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("30MiB", 30 * 2**20),
        ("1B", 1),
        ("1KB", 1000),
        ("1.001KB", 1001),
        ("2GiB", 2**31),
        ("1.5 KiB", 1536),
        ("2.3MB", 2_300_000),
    ],
)
def test_sizes_are_read_in_whole_bytes(text, count):
    assert parse_bytes(text) == count


def test_percentages_are_read_as_fractions():
    assert parse_fraction("60%") == 0.6
    assert parse_fraction(" 0.5 % ") == 0.005
    assert parse_fraction("150%") == 1.5


NONSENSE = [
    "",
    " ",
    "2",
    "ms",
    "-2ms",
    "+2ms",
    "2 m s",
    "2ms3",
    "two ms",
    "1,5ms",
    "nanms",
    "infs",
    "0x2ms",
    "2..5ms",
    "٣ms",
]


@pytest.mark.parametrize("parse", [parse_seconds, parse_bytes, parse_fraction])
@pytest.mark.parametrize("text", NONSENSE)
def test_nonsense_is_refused_and_quoted(parse, text):
    with pytest.raises(UsageError) as error:
        parse(text)
    assert repr(text) in str(error.value)


@pytest.mark.parametrize(
    ("parse", "texts"),
    [
        (parse_seconds, ["0ms", "2MS", "2h", "2m", "2%", "2MiB", "1e999s", "1e-400s"]),
        (parse_bytes, ["0B", "0.5B", "2mb", "2ms", "2b", "1e999GB"]),
        (parse_fraction, ["0%", "2ms", "0.6B", "1e999%"]),
    ],
)
def test_wrong_units_and_quantities_not_above_zero_are_refused(parse, texts):
    for text in texts:
        with pytest.raises(UsageError):
            parse(text)


@given(st.text(max_size=12))
def test_any_text_gives_a_positive_number_or_a_usage_error(text):
    for parse in (parse_seconds, parse_bytes, parse_fraction):
        try:
            value = parse(text)
        except UsageError:
            continue
        assert math.isfinite(value)
        assert value > 0


@given(st.integers(1, 2**50), st.sampled_from([("B", 1), ("KiB", 2**10), ("MB", 10**6)]))
def test_whole_sizes_are_exact(count, unit):
    assert parse_bytes(f"{count}{unit[0]}") == pytest.approx(count * unit[1], rel=1e-15)


@given(st.floats(1e-6, 1e6), st.sampled_from([("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0)]))
def test_durations_scale_with_their_unit(number, unit):
    assert parse_seconds(f"{number!r}{unit[0]}") == pytest.approx(number * unit[1], rel=1e-12)


@given(DURATIONS)
def test_printed_durations_read_back_to_three_digits(seconds):
    text = format_seconds(seconds)
    assert parse_seconds(text) == pytest.approx(seconds, rel=0.0051)
    assert "e" not in text


@given(st.integers(1, 2**40))
def test_printed_sizes_read_back_to_three_digits(count):
    text = format_bytes(count)
    assert parse_bytes(text) == pytest.approx(count, rel=0.0051)
    assert "e" not in text


def test_quantities_are_printed_in_the_unit_people_read():
    assert format_seconds(0.00123) == "1.23 ms"
    assert format_seconds(45.6e-6) == "45.6 µs"
    assert format_seconds(12.34) == "12.3 s"
    assert format_seconds(3.2e-9) == "3.2 ns"
    assert format_seconds(0.9999) == "1000 ms"
    assert format_seconds(-0.0012) == "-1.2 ms"
    assert format_seconds(math.inf) == "inf"
    assert format_bytes(1.5 * 2**20) == "1.5 MiB"
    assert format_bytes(1010 * 2**10) == "1010 KiB"
    assert format_bytes(12) == "12 B"


def test_a_budget_is_a_duration_or_a_share_of_the_teacher():
    assert parse_latency_budget("2ms", None) == 2e-3
    assert parse_latency_budget("2ms", 5e-3) == 2e-3
    assert parse_latency_budget(" 60% ", 5e-3) == pytest.approx(3e-3)


def test_a_share_of_a_teacher_nobody_measured_is_refused():
    with pytest.raises(UsageError, match="no teacher measured"):
        parse_latency_budget("60%", None)


def test_a_share_too_small_for_its_draws_is_printed_as_a_bound_and_never_as_zero():
    assert format_share(0.1234, 50_000) == "12.3%"
    assert format_share(0.0, 50_000) == "<0.1%"
    assert format_share(0.0, 100) == "<3.0%"
    assert format_share(None, 100) == "an unknown share"


def test_a_scatter_that_one_process_cannot_tell_is_unknown_and_not_nothing() -> None:
    assert format_sigma(0.0054) == "0.5%"
    assert format_sigma(0.0) == "0.0%"
    assert format_sigma(None) == "unknown (one block each)"
