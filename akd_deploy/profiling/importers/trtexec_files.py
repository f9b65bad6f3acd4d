"""Read trtexec's JSON files: which of them is which, the layers' times in a profile, the queries' in the times."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from akd_deploy.errors import UsageError
from akd_deploy.profiling.importers.reading import corrupt, known_keys, read_json, seconds_from_ms

METRICS: Mapping[str, str] = {"compute": "computeMs", "latency": "latencyMs"}
"""What a network's latency is: GPU time alone, or with the copies to the device and back → its key in the times."""

LAYERS, PROFILE, TIMES = "layer info", "profile", "times"
_FLAGS = {LAYERS: "--exportLayerInfo", PROFILE: "--exportProfile", TIMES: "--exportTimes"}

_PROFILE_KEYS = ("name", "timeMs", "averageMs", "medianMs", "percentage")
_TIMES_KEYS = (
    "startEnqMs", "endEnqMs", "startH2dMs", "endH2dMs", "startComputeMs", "endComputeMs", "startD2hMs", "endD2hMs",
    "h2dMs", "computeMs", "d2hMs", "latencyMs", "endToEndMs", "enqMs", "enqueueMs",
)  # fmt: skip


@dataclass(frozen=True)
class LayerTime:
    """One layer in one profile, in seconds."""

    name: str
    value_s: float
    average_s: float


def files_by_kind(files: Sequence[Path]) -> dict[str, dict[Path, Any]]:
    """`LAYERS`, `PROFILE` and `TIMES` → file → its JSON.

    Raises:
        MissingFileError, CorruptFileError: a file that is not there, or is none of these.
        UsageError: a file that is named twice.
    """
    found: dict[str, dict[Path, Any]] = {LAYERS: {}, PROFILE: {}, TIMES: {}}
    for path in files:
        content = read_json(path, "a file of trtexec")
        if isinstance(content, dict) and "Layers" in content:
            kind = LAYERS
        elif isinstance(content, list) and content and all(isinstance(entry, dict) for entry in content):
            kind = PROFILE if set(content[0]) == {"count"} else TIMES if "computeMs" in content[0] else ""
        else:
            kind = ""
        if not kind:
            raise corrupt(
                path,
                "a file of trtexec",
                "neither an object with Layers, nor a list that begins with a count, nor one of queries",
                f"Give files that trtexec wrote with {', '.join(_FLAGS.values())}.",
            )
        if path in found[kind]:
            raise UsageError(asked=f"each file once: {path}", found="it twice", next="Name it once.")
        found[kind][path] = content
    return found


def has_medians(entries: Sequence[Mapping[str, Any]]) -> bool:
    """Whether every layer of a profile has a median; early versions of trtexec wrote averages alone."""
    return all("medianMs" in entry for entry in entries[1:])


def profile_times(path: Path, entries: Sequence[Mapping[str, Any]]) -> list[LayerTime]:
    """Every layer's time, in the order of execution; the median where the file has medians.

    Raises:
        CorruptFileError, UnknownNameError: an entry that lacks something, or has something nobody knows.
    """
    result = []
    medians = has_medians(entries)
    for i, entry in enumerate(entries[1:], start=1):
        where = f"entry {i} of {path}"
        known_keys(entry, _PROFILE_KEYS, "key of a profile", where)
        if not isinstance(entry.get("name"), str) or "averageMs" not in entry:
            raise corrupt(path, f"entry {i} of a profile", f"no name or no averageMs in {dict(entry)}")
        average_s = seconds_from_ms(entry["averageMs"], f"averageMs of {entry['name']!r}", path)
        value_s = seconds_from_ms(entry["medianMs"], f"medianMs of {entry['name']!r}", path) if medians else average_s
        result.append(LayerTime(entry["name"], value_s, average_s))
    if not result:
        raise corrupt(path, "a profile", "no layers in it")
    return result


def query_seconds(path: Path, entries: Sequence[Mapping[str, Any]], warmup_runs: int, key: str) -> list[float]:
    """Seconds of every query after the warm-up, in order; `key` is one of the values of `METRICS`.

    Raises:
        CorruptFileError, UnknownNameError: a query that lacks its time or has one nobody knows, or too few of them.
    """
    samples = []
    for i, entry in enumerate(entries):
        known_keys(entry, _TIMES_KEYS, "key of a query", f"query {i} of {path}")
        if key not in entry:
            raise corrupt(path, f"{key} of query {i}", f"only {', '.join(entry)}")
        seconds = seconds_from_ms(entry[key], f"{key} of query {i}", path)
        if seconds == 0:
            raise corrupt(path, f"{key} of query {i}", "0, which no query takes")
        samples.append(seconds)
    if len(samples) <= warmup_runs:
        raise corrupt(path, f"queries after {warmup_runs} of warm-up", f"{len(samples)} queries", "Leave out fewer.")
    return samples[warmup_runs:]
