"""Measure what a bench record measured, by the record's own protocol: does it match, and if not, what differs?"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from dataclasses import fields as fields_of
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from akd_deploy.comparison import RatioInterval, fewest_blocks, ratio_interval
from akd_deploy.errors import AkdError, CorruptFileError, GateError, UsageError
from akd_deploy.export.gate import Bench, header_differences, read_bench
from akd_deploy.pipeline.benching import CONFIDENCE, BenchSettings, bench_models
from akd_deploy.profiling.blocks import BENCH, Protocol
from akd_deploy.target import Target, target_from_dict

MIN_BLOCKS = fewest_blocks(paired=False, confidence=CONFIDENCE)
"""From fewer there is no interval of the ratio of two benches."""

FACTORS = ("device", "engine_version", "flags", "target", "protocol", "sha256")
"""What latency depends on and a record tells."""


@dataclass(frozen=True)
class Card:
    """A bench record to reproduce."""

    bench: Bench
    target: Target
    protocol: Protocol
    fields: Mapping[str, Any]

    @property
    def model(self) -> Path:
        """Where the model was."""
        return Path(str(self.fields["model"]))


def read_card(path: Path) -> Card:
    """Read a record that `bench -o` wrote.

    Raises:
        MissingFileError, CorruptFileError: it is none.
        UsageError: too few blocks to compare with.
    """
    bench = read_bench(path)
    fields = json.loads(path.read_text(encoding="utf-8"))
    try:
        described = dict(fields["target"])
        target = target_from_dict(str(described.pop("name")), described, where=str(path))
        settings = dict(fields["protocol"])
        known = {field.name for field in fields_of(Protocol)}
        unknown = settings.keys() - known - {"clock", "reference"}
        if unknown:
            raise ValueError(f"protocol.{min(unknown)} is unknown")
        protocol = Protocol(**{key: value for key, value in settings.items() if key in known})
        if not isinstance(fields["model"], str):
            raise TypeError("the model is no path")
    except (KeyError, TypeError, ValueError) as error:
        found = f"{error.asked}: {error.found}" if isinstance(error, AkdError) else f"{type(error).__name__}: {error}"
        raise CorruptFileError(
            asked=f"a bench to reproduce in {path}", found=found, next="Write it again with `akd-deploy bench -o`."
        ) from error
    if len(bench.blocks_s) < MIN_BLOCKS:
        raise UsageError(
            asked=f"to reproduce {path}",
            found=f"{len(bench.blocks_s)} blocks in it",
            next=f"Reproduce a bench of at least {MIN_BLOCKS} processes.",
        )
    # As `bench` measures, beyond what a header tells.
    protocol = replace(protocol, blocks=max(protocol.blocks, MIN_BLOCKS), pauses_s=BENCH.pauses_s, watch=BENCH.watch)
    return Card(bench, target, protocol, fields)


def verdict_of(interval: RatioInterval, tolerance: float) -> str:
    """ "match" where the whole interval of the ratio is within 1 ± tolerance, "differs" where all of it is without,
    else "inconclusive": measure more blocks."""
    least, most = 1 / (1 + tolerance), 1 + tolerance
    if least <= interval.low and interval.high <= most:
        return "match"
    return "differs" if interval.low > most or interval.high < least else "inconclusive"


def factors_that_differ(card: Mapping[str, Any], record: Mapping[str, Any]) -> list[str]:
    """One line for each recorded factor in which two records differ, "(none)" where one does not tell it.

    The names of targets, and how many blocks there were, are no factors.
    """

    def factors(fields: Mapping[str, Any]) -> dict[str, Any]:
        told = {key: fields[key] for key in FACTORS if fields.get(key) is not None}
        told["target"] = {k: v for k, v in dict(fields["target"]).items() if k != "name"}
        told["protocol"] = {k: v for k, v in dict(fields["protocol"]).items() if k != "blocks"}
        clocks = (fields.get("clocks") or {}).get("before") or {}
        told["clocks"] = {k: clocks[k] for k in ("governor", "min_mhz", "max_mhz") if clocks.get(k) is not None}
        return told

    return header_differences(factors(card), factors(record))


def reproduce(
    card: Card,
    model: Path | None,
    target: Target | None,
    tolerance: float,
    rng: np.random.Generator,
    on_model: Callable[[int, int], None],
    instead: Mapping[Path, Path] = MappingProxyType({}),
) -> tuple[dict[str, Any], int]:
    """Bench the card's model by its protocol; returns the new record, with `reproduction` in it, and the exit code.

    Args:
        model: where it is now; None: where it was.
        target: to measure on; None: the card's own.
        tolerance: ratios within 1 ± this count as a match.
        instead: as for `bench_models`.

    The exit code is that of GateError where the latency differs, else 0.
    """
    record, _ = bench_models(
        target or card.target, model or card.model, None, BenchSettings(card.protocol), rng, on_model, instead
    )
    medians_s = np.array([np.median(samples) for samples in record["blocks"].values()])
    interval = ratio_interval(card.bench.block_medians_s, medians_s, paired=False)
    verdict = verdict_of(interval, tolerance)
    record["reproduction"] = {
        "card": str(card.bench.path),
        "card_date": card.fields.get("date"),
        "verdict": verdict,
        "ratio": interval.ratio,
        "interval": [interval.low, interval.high],
        "confidence": interval.confidence,
        "tolerance": tolerance,
        "factors": factors_that_differ(card.fields, record),
    }
    return record, GateError.exit_code if verdict == "differs" else 0
