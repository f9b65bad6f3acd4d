"""What a bundle promises of its latency, held against itself: needs neither numbers' libraries nor a runtime."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from typing import Any

from akd_deploy.binomial import binomial_cdf, share_upper_bound

MOST_SAMPLES, MOST_BLOCKS = 10_000_000, 10_000
"""More than anybody takes; what says it has more is not believed, and costs nothing to refuse."""


def contradiction(fields: Mapping[str, Any]) -> str | None:
    """What a certificate that was read from a file says against itself, in words; None where nothing does.

    Numbers are looked at that are there: earlier versions wrote fewer.
    """
    for name, most in _MOST.items():
        value = fields.get(name)
        if value is None:
            continue
        is_count = isinstance(most, int)
        is_number = isinstance(value, int if is_count else int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= most:
            return f"{name} {str(value)[:40]!r} is no {'whole ' if is_count else ''}number from 0 to {most:g}"
    for name in ("ok", "pooled_ok", "clustered_ok"):
        if not isinstance(fields.get(name, False), bool):
            return f"{name} {str(fields[name])[:40]!r} is neither true nor false"
    for part, whole in (("exceeding", "samples"), ("failing_blocks", "blocks"), ("blocks", "samples")):
        if (fields.get(part) or 0) > fields.get(whole, inf):
            return f"{part} {fields[part]} of {fields[whole]} {whole}"
    levels = [
        fields[name] for name in ("samples", "allowed", "percentile", "confidence") if fields.get(name) is not None
    ]
    if len(levels) == 4 and not _is_allowed(*levels):
        return f"{levels[1]} of {levels[0]} samples allowed over p{levels[2]:g} at {levels[3]:.4%}"
    shares = ("failing_blocks", "blocks", "confidence", "failing_share_upper")
    failing = [fields[name] for name in shares if fields.get(name) is not None]
    if len(failing) == 4 and abs(share_upper_bound(*failing[:3]) - failing[3]) > 1e-6:
        return f"failing_share_upper {failing[3]}, with {failing[0]} of {failing[1]} blocks at {failing[2]:.4%}"
    held = {
        "pooled_ok": ("exceeding", "allowed"),
        "clustered_ok": ("clustered_upper_s", "budget_s"),
    }
    for name, (found, limit) in held.items():
        if {name, found, limit} <= fields.keys() and fields[limit] is not None:
            holds = fields[found] is not None and fields[found] <= fields[limit]
            if fields[name] != holds:
                return f"{name} {fields[name]}, with {found} {fields[found]} and {limit} {fields[limit]}"
    over, allowed = fields.get("exceeding"), fields.get("allowed")
    if fields.get("ok") and over is not None and allowed is not None and over > allowed:
        return f"it holds, with {over} samples over and {allowed} allowed"
    if {"ok", "pooled_ok", "clustered_ok"} <= fields.keys():
        both = fields["pooled_ok"] and fields["clustered_ok"]
        if fields["ok"] != both:
            return f"ok {fields['ok']}, with pooled_ok {fields['pooled_ok']} and clustered_ok {fields['clustered_ok']}"
    return None


_MOST: Mapping[str, int | float] = {
    "samples": MOST_SAMPLES,
    "blocks": MOST_BLOCKS,
    "exceeding": MOST_SAMPLES,
    "allowed": MOST_SAMPLES,
    "failing_blocks": MOST_BLOCKS,
    "worst_block_exceeding": 1.0,
    "failing_share_upper": 1.0,
    "clustered_upper_s": inf,
}
"""The largest value of what is a number in a certificate; whole ones where it is a whole number."""


def _is_allowed(samples: int, allowed: int, percentile: float, confidence: float) -> bool:
    """Whether this is what `allowed_exceedances` gives, without searching for it."""
    over = 1 - percentile / 100
    if not 0 < over < 1:  # a percentile that rounds to none or all
        return False
    shares = [binomial_cdf(count, samples, over) for count in (allowed, allowed + 1)]
    return shares[0] <= 1 - confidence < shares[1]
