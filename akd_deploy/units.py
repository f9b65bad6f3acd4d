"""Quantities as people write them: `2ms`, `30MiB`, `60%`."""

from __future__ import annotations

import math
import re

from akd_deploy.errors import UsageError

_SECONDS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "μs": 1e-6, "ms": 1e-3, "s": 1.0}
_BYTES = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+)\s*([a-zA-Zµμ%]+)\s*")


def _split(text: str, what: str, example: str) -> tuple[float, str]:
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise UsageError(asked=what, found=repr(text), next=f"Write a number with its unit, like {example}.")
    return float(match[1]), match[2]


def _positive(value: float, what: str, text: str) -> float:
    if not (math.isfinite(value) and value > 0):
        raise UsageError(asked=what, found=repr(text), next="It must be above 0.")
    return value


def parse_seconds(text: str) -> float:
    """`"2ms"` → 0.002. Units: ns, us (µs), ms, s.

    Raises:
        UsageError: no number, an unknown unit, or not above 0.
    """
    value, unit = _split(text, "a duration", "2ms")
    if unit not in _SECONDS:
        raise UsageError(asked="a duration", found=f"unit {unit!r} in {text!r}", next="Use ns, us, ms or s.")
    return _positive(value * _SECONDS[unit], "a duration", text)


def parse_bytes(text: str) -> int:
    """`"30MiB"` → 31457280. Units: B, KB, MB, GB (powers of 1000), KiB, MiB, GiB (of 1024).

    Raises:
        UsageError: no number, an unknown unit, or less than one byte.
    """
    value, unit = _split(text, "a size", "30MiB")
    if unit not in _BYTES:
        raise UsageError(asked="a size", found=f"unit {unit!r} in {text!r}", next=f"Use {', '.join(_BYTES)}.")
    count = _positive(value * _BYTES[unit], "a size", text)
    if count < 1:
        raise UsageError(asked="a size", found=repr(text), next="It must be at least one byte.")
    return round(count)


def parse_fraction(text: str) -> float:
    """`"60%"` → 0.6.

    Raises:
        UsageError: not a percentage above 0.
    """
    value, unit = _split(text, "a percentage", "60%")
    if unit != "%":
        raise UsageError(asked="a percentage", found=repr(text), next="Write it like 60%.")
    return _positive(value / 100, "a percentage", text)


def parse_latency_budget(text: str, teacher_s: float | None) -> float:
    """A duration, or a percentage of the teacher's latency, in seconds.

    Raises:
        UsageError: neither, or a percentage where the teacher's latency is unknown.
    """
    if not text.strip().endswith("%"):
        return parse_seconds(text)
    if teacher_s is None:
        raise UsageError(
            asked=f"a budget of {text.strip()} of the teacher's latency",
            found="no teacher measured on this target",
            next="Give the budget as a duration, like 2ms.",
        )
    return parse_fraction(text) * teacher_s


def _three_digits(value: float) -> str:
    """Three significant digits, whole from 1000 on: `.3g` would write 1e+03."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:.0f}"


def format_seconds(seconds: float) -> str:
    """Three significant digits in the unit people read: `1.23 ms`, `45.6 µs`, `12.3 s`."""
    if not math.isfinite(seconds):
        return str(seconds)
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if abs(seconds) >= scale:
            return f"{_three_digits(seconds / scale)} {unit}"
    return f"{_three_digits(seconds / 1e-9)} ns"


def format_bytes(count: float) -> str:
    """Three significant digits in binary units: `1.5 MiB`."""
    for unit in ("GiB", "MiB", "KiB"):
        if count >= _BYTES[unit]:
            return f"{_three_digits(count / _BYTES[unit])} {unit}"
    return f"{int(count)} B"


def format_sigma(sigma: float | None) -> str:
    """Relative scatter between processes in percent: `0.5%`; that one process each tells none is said."""
    return "unknown (one block each)" if sigma is None else f"{sigma:.1%}"


def format_share(share: float | None, of: int) -> str:
    """A share of so many draws in percent: `12.3%`; what too few draws found to say so, as a bound: `<0.1%`."""
    if share is None:
        return "an unknown share"
    if share < 0.001:
        return f"<{max(0.001, 3 / of):.1%}"  # none of n draws: below 3 / n with 95 % confidence
    return f"{share:.1%}"
