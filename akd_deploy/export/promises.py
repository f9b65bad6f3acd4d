"""What a bundle promises of its latency, held against itself: needs neither numbers' libraries nor a runtime."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import inf
from typing import Any

from akd_deploy.binomial import most_hits, share_upper_bound

MOST_SAMPLES, MOST_BLOCKS = 10_000_000, 10_000
"""More than anybody takes; what says it has more is not believed, and costs nothing to refuse."""
FEWEST_BLOCKS = 10
"""A certificate of fewer processes is none."""
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
NEEDED = ("budget_s", "percentile", "confidence", "samples", "exceeding", "ok")
"""Without these nothing is promised, nor told to be missed."""


def contradiction(certificate: Mapping[str, Any], latency: Mapping[str, Any]) -> str | None:
    """What a certificate that was read from a file says against itself or the latency beside it, in words; None where
    nothing does.

    What earlier versions did not write may be missing, and is then worked out from the rest; only the upper bound may
    be null, where it is infinite. The budget, percentile and confidence are numbers in their range already.
    """
    told = {"budget_s": latency.get("budget_s"), **certificate}
    if told["budget_s"] is None:
        told["budget_s"] = latency.get("budget_s")
    return next(_contradictions(told, latency), None)


def _contradictions(told: dict[str, Any], latency: Mapping[str, Any]) -> Iterator[str]:
    missing = [name for name in NEEDED if told.get(name) is None]
    if missing:
        yield f"no {', '.join(missing)}"
        return
    wrong = list(_wrong_kinds(told))
    if wrong:  # nothing can be computed from them
        yield wrong[0]
        return
    if told.get("blocks", FEWEST_BLOCKS) < FEWEST_BLOCKS:
        yield f"blocks {told['blocks']}, of at least {FEWEST_BLOCKS}"
    for part, whole in (("exceeding", "samples"), ("failing_blocks", "blocks"), ("blocks", "samples")):
        if told.get(part, 0) > told.get(whole, inf):
            yield f"{part} {told[part]} of {told[whole]} {whole}"
            return
    yield from _miscounted(told)
    yield from _misjudged(told)
    measured = latency.get("measured_s")
    at_percentile = measured.get(f"p{told['percentile']:g}") if isinstance(measured, Mapping) else None
    if told["ok"] and isinstance(at_percentile, int | float) and at_percentile > told["budget_s"]:
        yield f"it holds, with p{told['percentile']:g} {at_percentile} s measured and a budget of {told['budget_s']} s"


def _wrong_kinds(told: Mapping[str, Any]) -> Iterator[str]:
    for name, most in _MOST.items():
        if name not in told or (name == "clustered_upper_s" and told[name] is None):
            continue
        value, is_count = told[name], isinstance(most, int)
        is_number = isinstance(value, int if is_count else int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= most:
            yield f"{name} {str(value)[:40]!r} is no {'whole ' if is_count else ''}number from 0 to {most:g}"
    for name in ("ok", "pooled_ok", "clustered_ok"):
        if not isinstance(told.get(name, False), bool):
            yield f"{name} {str(told[name])[:40]!r} is neither true nor false"


def _miscounted(told: dict[str, Any]) -> Iterator[str]:
    """Counts and shares that cannot be of the same samples; adds how many may be over where that is not told."""
    samples, percentile, confidence = (told[name] for name in ("samples", "percentile", "confidence"))
    allowed = _allowed(samples, percentile, confidence)
    if allowed < 0 or told.setdefault("allowed", allowed) != allowed:
        told_allowed = told.get("allowed", "no")
        yield f"{told_allowed} of {samples} samples allowed over p{percentile:g} at {confidence:.4%}"
    if {"failing_blocks", "blocks", "failing_share_upper"} <= told.keys():
        upper = share_upper_bound(told["failing_blocks"], told["blocks"], confidence)
        if abs(upper - told["failing_share_upper"]) > 1e-6:
            counts = f"{told['failing_blocks']} of {told['blocks']} blocks at {confidence:.4%}"
            yield f"failing_share_upper {told['failing_share_upper']}, with {counts}"
    over, worst, failing = told["exceeding"] / samples, told.get("worst_block_exceeding"), told.get("failing_blocks")
    if worst is not None and (worst < over - 1e-9 or (worst > 0) != (over > 0)):
        yield f"worst_block_exceeding {worst}, with {told['exceeding']} of {samples} samples over"
    if failing is not None and (failing > 0 and over == 0):
        yield f"failing_blocks {failing}, with none of {samples} samples over"
    if worst is not None and failing is not None and (failing > 0) != (worst > 1 - percentile / 100 + 1e-9):
        yield f"failing_blocks {failing}, with worst_block_exceeding {worst}"


def _misjudged(told: Mapping[str, Any]) -> Iterator[str]:
    """Verdicts that are not what the numbers say."""
    holds: dict[str, bool] = {"pooled_ok": told["exceeding"] <= told["allowed"]}
    against = {"pooled_ok": f"exceeding {told['exceeding']} and allowed {told['allowed']}"}
    if "clustered_upper_s" in told:
        upper_s = told["clustered_upper_s"]
        holds["clustered_ok"] = upper_s is not None and upper_s <= told["budget_s"]
        against["clustered_ok"] = f"clustered_upper_s {upper_s} and budget_s {told['budget_s']}"
    for name, one in holds.items():
        if told.get(name, one) != one:
            yield f"{name} {told[name]}, with {against[name]}"
        if told["ok"] and not one:
            yield f"it holds, with {against[name]}"
    flags = {name: told.get(name, holds.get(name)) for name in ("pooled_ok", "clustered_ok")}
    both = None if None in flags.values() and False not in flags.values() else all(flags.values())
    if (told["ok"] and both is False) or (not told["ok"] and both is True):
        yield f"ok {told['ok']}, with " + " and ".join(f"{name} {flag}" for name, flag in flags.items())


def _allowed(samples: int, percentile: float, confidence: float) -> int:
    """How many samples may be over; −1 where no number is enough, or the percentile rounds to none or all."""
    over = 1 - percentile / 100
    return most_hits(samples, over, 1 - confidence) if 0 < over < 1 else -1
