"""What settings of search spaces must be: rules by key, checked one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from akd_deploy.errors import UnknownNameError, UsageError

Rules = Mapping[str, tuple[str, Callable[[Any], bool]]]
"""Setting → what it must be, and the test."""


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def is_number(value: object, least: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value < float("inf")


def are_all(value: object, is_one: Callable[[Any], bool]) -> bool:
    """Whether it is a list of such values."""
    return isinstance(value, list | tuple) and all(map(is_one, value))


def are_options(value: Any, is_option: Callable[[Any], bool]) -> bool:
    """Whether it is a list of different options, at least one."""
    return are_all(value, is_option) and 0 < len(value) == len(set(value))


def checked_settings(
    space: str, defaults: Mapping[str, Any], given: Mapping[str, Any] | None, rules: Rules, per_width: Sequence[str]
) -> dict[str, Any]:
    """The given settings over the defaults; those of `per_width` have one entry for each of `widths`, at least one.

    Raises:
        UnknownNameError: a setting that the space does not have.
        UsageError: the first one that is not what it must be.
    """
    for key in given or {}:
        if key not in defaults:
            raise UnknownNameError("setting", key, defaults, where=f"space {space}")
    settings = {**defaults, **(given or {})}
    for key, (expected, holds) in rules.items():
        if not holds(settings[key]):
            raise UsageError(
                asked=f"setting {key!r} of space {space}", found=repr(settings[key]), next=f"Write {expected}."
            )
    widths = len(settings["widths"])
    for key in per_width:
        if len(settings[key]) != widths or not widths:
            raise UsageError(
                asked=f"{max(1, widths)} entries in setting {key!r} of space {space}, one per width",
                found=str(len(settings[key])),
                next=f"Give widths, {' and '.join(per_width)} the same length, at least 1.",
            )
    return settings
