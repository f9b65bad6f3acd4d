"""How a study prints: sections, rows, and differences in points with their intervals."""

from __future__ import annotations

from math import isnan

from akd_deploy.recipes.paired_seeds import Difference


def section(title: str) -> None:
    print(f"\n{title}")


def underpowered(is_quick: bool) -> str:
    """What a quick study's title says of itself."""
    return " (quick: underpowered, a check that it runs)" if is_quick else ""


def row(label: str, told: str) -> None:
    print(f"  {label}: {told}", flush=True)


def points(share: float) -> str:
    """A difference of accuracies, in percentage points."""
    return f"{100 * share:+.2f}"


def interval(difference: Difference, scale: float = 100) -> str:
    """Mean and 95 % interval, times `scale`; what no interval can be had of is said."""
    if isnan(difference.low):
        return f"{scale * difference.mean:+.3g} (no interval)"
    return f"{scale * difference.mean:+.3g} [{scale * difference.low:+.3g}, {scale * difference.high:+.3g}]"
