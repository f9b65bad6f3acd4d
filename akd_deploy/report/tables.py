"""Rows of the report's tables, shaped from the run's summary."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from akd_deploy.architecture import architecture_from_dict
from akd_deploy.errors import CorruptFileError
from akd_deploy.kernel import Kernel, kernel_from_signature
from akd_deploy.report.noise_floor import kendall_ceiling, spearman_ceiling, within_ceiling
from akd_deploy.report.quantities import (
    correlation,
    latency,
    percent,
    percentage_points,
    time_unit,
)
from akd_deploy.report.summary import Fields

NETWORKS: Mapping[str, str] = {
    "teacher": "Teacher",
    "kd": "Student, distilled (KD)",
    "ce": "Same student, labels only (CE)",
    "hand_shrunk": "Hand-shrunk network, as the student",
}
"""The closing table's rows in order; the student as other methods taught it follows under their names."""
_OTHERS: Mapping[str, str] = {
    "inherited": "Same student, from the teacher's weights",
    "shallower": "Teacher without its last blocks, as the student",
}
_ACCURACY_EXTRAS = ("per_seed", "paired", "test_images")


@dataclass(frozen=True)
class AccuracyRow:
    """One network of the closing table; every field but `name` and `label` is printed as it is."""

    name: str
    label: str
    accuracy: str
    seeds: str
    latency: str
    budget: str
    per_seed: str


@dataclass(frozen=True)
class PairedRow:
    """One paired difference, in percentage points."""

    pair: str
    difference: str
    interval: str
    seeds: str
    reading: str


def accuracy_rows(summary: Fields) -> list[AccuracyRow]:
    """Mean ± spread over seeds of every network compared."""
    part = summary["accuracy"]
    names = [*NETWORKS, *(key for key in part if key not in NETWORKS and key not in _ACCURACY_EXTRAS)]
    latencies = _latencies(summary)
    unit = time_unit([value for value, _ in latencies.values()])
    rows = []
    for name in names:
        scores = part.get(name)
        if not scores:
            rows.append(AccuracyRow(name, _label(name), "not part of this run", "", "", "", ""))
            continue
        value_s, kind = latencies.get(name, (None, ""))
        per_seed = (part.get("per_seed") or {}).get(name) or []
        rows.append(
            AccuracyRow(
                name=name,
                label=_label(name),
                accuracy=_mean_and_spread(scores),
                seeds=str(_seed_count(scores.get("seeds"))),
                latency=f"{latency(value_s, unit)} {kind}".strip() if value_s is not None else latency(None, unit),
                budget=_against_budget(name, scores, summary),
                per_seed=", ".join(percent(value, 2) for value in per_seed),
            )
        )
    return rows


def _label(name: str) -> str:
    return {**NETWORKS, **_OTHERS}.get(name, f"Student, distilled ({name})")


def _is_the_student(name: str, scores: Fields | None) -> bool:
    """Whether a row is the winner, whatever taught it; others were measured by themselves."""
    return name not in ("teacher", "hand_shrunk") and "latency_s" not in (scores or {})


def _against_budget(name: str, scores: Fields, summary: Fields) -> str:
    """What its own certificate says; nothing of networks that none was made of."""
    if _is_the_student(name, scores):
        held = ((summary.get("winner") or {}).get("certificate") or {}).get("ok")
    else:
        held = scores.get("within_budget")
    return "certified within" if held is True else "NOT certified within" if held is False else ""


def _seed_count(seeds: object) -> object:
    if isinstance(seeds, Sequence) and not isinstance(seeds, str):
        return len(seeds)
    return "not recorded" if seeds is None else seeds


def _mean_and_spread(scores: Fields) -> str:
    mean = percent(scores.get("mean"), 2)
    # one seed has no spread; "± 0" would claim a certainty that nobody measured
    if _seed_count(scores.get("seeds")) == 1 or scores.get("spread") is None:
        return mean
    bare = mean.removesuffix("\u00a0%")
    return f"{bare} ± {percent(scores['spread'], 2)}"


def _latencies(summary: Fields) -> dict[str, tuple[float | None, str]]:
    winner, accuracy = summary.get("winner") or {}, summary["accuracy"]
    measured = (winner.get("measured_s") or {}).get("median")
    student = (measured, "(measured)") if measured is not None else (winner.get("predicted_s"), "(predicted)")
    student = student if student[0] is not None else (None, "")
    found = {
        name: student if _is_the_student(name, accuracy.get(name))
        else ((accuracy.get(name) or {}).get("latency_s"), "(measured)")
        for name in (*NETWORKS, *accuracy)
        if name not in _ACCURACY_EXTRAS
    }  # fmt: skip
    return {**found, "teacher": ((summary.get("teacher") or {}).get("latency_s"), "(measured)")}


def paired_rows(accuracy: Fields) -> list[PairedRow]:
    """Differences between networks seed by seed; `reading` says what the interval allows to say."""
    rows = []
    for pair in accuracy.get("paired") or []:
        a, b = (_label(pair[key]) for key in ("a", "b"))
        low, high = pair.get("low"), pair.get("high")
        # one seed gives no interval; arithmetic on it gives NaN
        if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
            interval, reading = "none", "too few seeds for an interval"
        elif low == high:
            interval, reading = "none", "the difference is the same in every seed, which gives no interval"
        else:
            interval = f"{percentage_points(low)} to {percentage_points(high)}"
            reading = "first is better" if low > 0 else "second is better" if high < 0 else "not resolved"
        rows.append(
            PairedRow(f"{a} − {b}", percentage_points(pair.get("mean")), interval, str(pair.get("n", "")), reading)
        )
    return rows


@dataclass(frozen=True)
class ScoreRow:
    """One score of the predictor beside what a perfect predictor would score on labels this noisy."""

    score: str
    value: str
    perfect: str


def score_rows(predictor: Fields) -> list[ScoreRow]:
    """Scores beside their noise floor or ceiling; rank ceilings need the scored items' points."""
    scores = predictor.get("scores") or {}
    sigma = scores.get("sigma")
    unknown = "σ not recorded"
    floor = scores.get("floor_mape")
    points = predictor.get("points") or []
    kendall = spearman = unknown if sigma is None else "needs the scored points"
    if sigma is not None and len(points) > 1 and len(points) == scores.get("items"):
        measured_s = np.array([point["measured_s"] for point in points], float)
        kendall = correlation(kendall_ceiling(measured_s, sigma))
        spearman = correlation(spearman_ceiling(measured_s, sigma))
    within = [unknown if sigma is None else percent(within_ceiling(t, sigma)) for t in (0.05, 0.10)]
    mape_floor = unknown if floor is None else percent(floor, 2)
    promised = f"{percent(predictor.get('coverage'))} promised"
    return [
        ScoreRow("Mean absolute error (MAPE)", percent(scores.get("mape"), 2), mape_floor),
        ScoreRow("Within ±5 %", percent(scores.get("within_5")), within[0]),
        ScoreRow("Within ±10 %", percent(scores.get("within_10")), within[1]),
        ScoreRow("Worst error", percent(scores.get("worst")), ""),
        ScoreRow("Kendall τ", correlation(scores.get("kendall_tau")), kendall),
        ScoreRow("Spearman ρ", correlation(scores.get("spearman")), spearman),
        ScoreRow("Intervals that hold the measurement", percent(scores.get("coverage")), promised),
    ]


def architecture_table(arch: Fields) -> tuple[list[str], list[list[str]]]:
    """Column names, and one row per block: choice `b0.kernel` is column `kernel` of row `b0`.

    Choices without a dot are the whole network's.
    """
    blocks: dict[str, dict[str, str]] = {}
    for key, value in (arch.get("choices") or {}).items():
        block, _, choice = key.rpartition(".")
        blocks.setdefault(block or "network", {})[choice] = str(value)
    columns = list(dict.fromkeys(choice for values in blocks.values() for choice in values))
    ordered = sorted(blocks.items(), key=lambda item: _natural(item[0]))
    rows = [[block, *(values.get(column, "") for column in columns)] for block, values in ordered]
    return ["block", *columns], rows


def _natural(name: str) -> tuple[str, int, str]:
    """Sorts b2 before b10."""
    head = name.rstrip("0123456789")
    return (head, int(name[len(head) :] or -1), name)


def short_kernel(signature: str) -> str:
    """A kernel's signature for people: "Conv 3×3 /2, 1×8×12×12 → 1×16×6×6"; other texts stay as they are."""
    try:
        kernel = kernel_from_signature(signature)
    except ValueError:
        return signature
    shapes = ["×".join(map(str, shapes[0])) or "scalar" for shapes in (kernel.inputs, kernel.outputs) if shapes]
    return ", ".join(filter(None, (_operator(kernel), " → ".join(shapes))))


def kernel_label(signature: str) -> str:
    """What fits beside a bar: operator and output, "Conv 3×3 /2 → 16×6×6"; other texts stay as they are."""
    try:
        kernel = kernel_from_signature(signature)
    except ValueError:
        return signature
    if not kernel.outputs:
        return _operator(kernel)
    batch, *rest = kernel.outputs[0] or (1,)
    return f"{_operator(kernel)} → {'×'.join(map(str, rest or [batch]))}"


def _operator(kernel: Kernel) -> str:
    """The operator with what tells it from others of its kind: window, strides, groups."""
    window, strides, groups = (kernel.attribute(name) for name in ("kernel_size", "strides", "groups"))
    words = [kernel.op]
    if isinstance(window, tuple):
        words.append("×".join(map(str, window)))
    if isinstance(strides, tuple) and set(strides) != {1}:
        words.append("/" + "×".join(map(str, dict.fromkeys(strides))))
    if isinstance(groups, int) and groups > 1:
        words.append(f"in {groups} groups")
    return " ".join(words)


def short_architecture(arch: object) -> str:
    """An architecture's digest, given the digest or the architecture itself."""
    return architecture_from_dict(dict(arch), "the summary").digest[:12] if isinstance(arch, Mapping) else str(arch)


def sum_of_layers_s(winner: Fields) -> float:
    """Kernels and overhead together; the prediction, if the summary is consistent."""
    try:
        return float(sum(layer["latency_s"] for layer in winner["layers"]) + winner["overhead_s"])
    except (KeyError, TypeError) as error:
        raise CorruptFileError(
            asked="winner.layers[].latency_s and winner.overhead_s in the run's summary",
            found=f"{type(error).__name__}: {error}",
            next="Write the summary again.",
        ) from error


def medians_s(rows: Sequence[Fields]) -> list[float | None]:
    """The median latencies of engines or variants; None where one was not measured."""
    return [(row.get("latency_stats_s") or {}).get("median") for row in rows]


def plain_facts(fields: Fields, **more: object) -> list[tuple[str, str]]:
    """Names and values for a two-column table; nested settings are spelt `outer: inner`."""
    facts = []
    for name, value in {**fields, **more}.items():
        words = name.replace("_", " ")
        if isinstance(value, Mapping):
            facts += [(f"{words}: {inner}", text) for inner, text in plain_facts(value)]
        elif isinstance(value, float):
            facts.append((words, f"{value:.8g}"))
        elif isinstance(value, list):
            facts.append((words, ", ".join(map(str, value))))
        elif value is not None:
            facts.append((words, str(value)))
    return facts
