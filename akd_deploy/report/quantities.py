"""Numbers as a reader wants them: rounded to what they mean, with their unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from statistics import median
from typing import Any, Concatenate, ParamSpec

from akd_deploy.errors import CorruptFileError

NOT_RECORDED = "not recorded"
"""What stands where a value is missing; never a number."""
NOT_FINITE = "not finite"

_SPACE = "\u00a0"
"""Between a number and its unit, so that no line breaks there."""
_Options = ParamSpec("_Options")
_BYTE_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_THOUSANDS_FROM = 1000


@dataclass(frozen=True)
class TimeUnit:
    """A unit that latencies are printed in; `per_second` of them are one second."""

    name: str
    per_second: float


MICROSECONDS = TimeUnit("µs", 1e6)
MILLISECONDS = TimeUnit("ms", 1e3)
SECONDS = TimeUnit("s", 1.0)


def is_missing(value: object) -> bool:
    """None, or what jinja2 makes of a key that is not there."""
    return value is None or type(value).__name__.endswith("Undefined")


def number(value: Any) -> float:
    """The value as a float.

    Raises:
        CorruptFileError: it is a text, a truth value, a list …
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise CorruptFileError(
            asked="a number in the run's summary", found=repr(value)[:80], next="Write the summary again."
        )
    return float(value)


def time_unit(values_s: Iterable[float | None]) -> TimeUnit:
    """One unit for latencies that stand together, so that they can be compared at a glance: by their median."""
    present = [number(value) for value in values_s if not is_missing(value)]
    positive = [value for value in present if math.isfinite(value) and value > 0]
    middle = median(positive) if positive else 1e-3
    return SECONDS if middle >= 1 else MILLISECONDS if middle >= 1e-3 else MICROSECONDS


def _of_a_number(show: Callable[Concatenate[float, _Options], str]) -> Callable[Concatenate[Any, _Options], str]:
    """Let `show` see finite numbers alone; what is missing or not finite says so, and what is no number is refused."""

    @wraps(show)
    def printed(value: Any, *args: _Options.args, **kwargs: _Options.kwargs) -> str:
        if is_missing(value):
            return NOT_RECORDED
        value = number(value)
        return show(value, *args, **kwargs) if math.isfinite(value) else NOT_FINITE

    return printed


@_of_a_number
def rounded(value: float, digits: int = 3) -> str:
    """A number to `digits` significant digits: 0.0123, 1.23, 123, 12,346; never fewer than its whole part has."""
    if value == 0:
        return "0"
    if abs(value) >= _THOUSANDS_FROM:
        return f"{value:,.0f}"
    if abs(value) < 1e-4:
        return f"{value:.{digits - 1}e}"
    # the exponent after rounding: 9.996 to three digits is 10.0
    exponent = int(f"{value:.{digits - 1}e}".partition("e")[2])
    return f"{value:.{max(0, digits - 1 - exponent)}f}"


@_of_a_number
def latency(value_s: float, unit: TimeUnit | None = None) -> str:
    """Seconds as "1.23 ms"; the unit is the value's own unless several stand together."""
    unit = unit or time_unit([value_s])
    return f"{rounded(value_s * unit.per_second)}{_SPACE}{unit.name}"


def latency_range(ends_s: Any, unit: TimeUnit | None = None) -> str:
    """`[low, high]` in seconds as "1.10 to 1.42 ms"."""
    if is_missing(ends_s) or any(is_missing(end) for end in ends_s):
        return NOT_RECORDED
    low_s, high_s = map(number, ends_s)
    unit = unit or time_unit([low_s, high_s])
    return f"{rounded(low_s * unit.per_second)} to {latency(high_s, unit)}"


@_of_a_number
def percent(fraction: float, decimals: int = 1) -> str:
    """A fraction as "93.4 %"."""
    return f"{100 * fraction:.{decimals}f}{_SPACE}%"


@_of_a_number
def percentage_points(fraction: float) -> str:
    """A difference of fractions with its sign, in percentage points: "+0.42"."""
    return f"{100 * fraction:+.2f}".replace("-", "−")


@_of_a_number
def percentile(value: float) -> str:
    """90 as "p90", 99.9 as "p99.9"."""
    return f"p{value:g}"


@_of_a_number
def correlation(value: float) -> str:
    """A rank correlation to three decimals."""
    return f"{value:.3f}"


@_of_a_number
def duration(seconds: float) -> str:
    """What something took: "0.84 s", "45 s", "12 min 5 s", "3 h 20 min"."""
    if seconds < 10:
        return f"{rounded(seconds, 2)}{_SPACE}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{_SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{_SPACE}min{_SPACE}{whole % 60}{_SPACE}s"
    minutes = round(seconds / 60)
    return f"{minutes // 60:,}{_SPACE}h{_SPACE}{minutes % 60}{_SPACE}min"


@_of_a_number
def size(size_bytes: float) -> str:
    """Bytes as "1.21 MiB"."""
    if size_bytes < 1024:
        return f"{size_bytes:.0f}{_SPACE}B"
    power = min(int(math.log2(size_bytes) // 10), len(_BYTE_UNITS) - 1)
    return f"{rounded(size_bytes / 1024**power)}{_SPACE}{_BYTE_UNITS[power]}"


@_of_a_number
def count(value: float) -> str:
    """A whole number with thousands separated."""
    return f"{value:,.0f}"
