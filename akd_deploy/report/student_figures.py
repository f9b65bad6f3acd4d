"""Figures of the chosen student: where its predicted latency goes, and every call that was measured."""

from __future__ import annotations

from typing import Any

import numpy as np

from akd_deploy.report.drawing import (
    BLUE,
    GREY,
    ORANGE,
    RED,
    Figure,
    add_budget_line,
    blank_figure,
    budget_of,
    in_unit,
    plain,
    rounded_value,
    spec_of,
)
from akd_deploy.report.quantities import TimeUnit, latency, percent, time_unit
from akd_deploy.report.summary import Fields
from akd_deploy.report.tables import kernel_label, short_kernel, sum_of_layers_s

_BARS = 30
"""More kernels than this are summed in one bar, so that labels stay legible."""
_LABEL_LENGTH = 26
_CURVE_POINTS, _TAIL_POINTS = 300, 60
"""A distribution curve is drawn through so many evenly spaced samples, and through each of the slowest."""


def kernels_figure(summary: Fields) -> Figure | None:
    winner = summary.get("winner") or {}
    layers = winner.get("layers")
    if not layers:
        return None
    total_s = sum_of_layers_s(winner)
    shown = set(sorted(range(len(layers)), key=lambda i: -layers[i]["latency_s"])[:_BARS])
    bars = []  # label, seconds, hover text
    for i, layer in enumerate(layers):
        if i in shown:
            signature = str(layer["kernel"])
            label = f"{i + 1} {_cut(kernel_label(signature))}"
            bars.append((label, layer["latency_s"], f"{plain(layer['name'])}<br>{plain(short_kernel(signature))}"))
    rest_s = [layer["latency_s"] for i, layer in enumerate(layers) if i not in shown]
    if rest_s:
        bars.append((f"{len(rest_s)} smaller kernels", sum(rest_s), "summed"))
    bars.append(("overhead per call", winner["overhead_s"], "what a call costs beside its kernels"))
    unit = time_unit([value_s for _, value_s, _ in bars])
    figure = blank_figure(f"predicted latency ({unit.name})", "", legend=False)
    figure.add_bar(
        y=[plain(label) for label, _, _ in bars],
        x=in_unit(unit, [value_s for _, value_s, _ in bars]),
        text=[hover for _, _, hover in bars],
        textposition="none",
        orientation="h",
        marker={"color": [*[BLUE] * (len(bars) - 1), GREY], "line": {"width": 0}},
        hovertemplate=f"%{{text}}<br>%{{x}} {unit.name}<extra></extra>",
        showlegend=False,
    )
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont={"size": 11}, type="category")
    figure.update_layout(bargap=0.25)
    slowest = max(range(len(layers)), key=lambda i: layers[i]["latency_s"])
    return Figure(
        id="kernels",
        title="Where the predicted latency goes",
        alt=f"Bars of {len(layers)} kernels in order of execution, then the overhead; the slowest is kernel "
        f"{slowest + 1}, {short_kernel(str(layers[slowest]['kernel']))}, at {latency(layers[slowest]['latency_s'])}.",
        caption=_sum_in_words(total_s, winner.get("predicted_s")),
        height_px=64 + 20 * len(bars),
        spec=spec_of(figure),
    )


def _sum_in_words(total_s: float, predicted_s: float | None) -> str:
    if predicted_s is None:
        return f"Kernels and overhead add up to {latency(total_s)}."
    unit = time_unit([predicted_s])
    if abs(total_s - predicted_s) <= 1e-3 * predicted_s:
        return f"Kernels and overhead add up to the prediction, {latency(predicted_s, unit)}."
    return (
        f"Kernels and overhead add up to {latency(total_s, unit)}, NOT to the prediction, {latency(predicted_s, unit)}."
    )


def distribution_figure(summary: Fields) -> Figure | None:
    winner = summary.get("winner") or {}
    blocks = {name: np.sort(np.array(samples, float)) for name, samples in (winner.get("blocks") or {}).items()}
    if not blocks:
        return None
    pooled = np.sort(np.concatenate(list(blocks.values())))
    if pooled.size == 0 or any(samples.size == 0 for samples in blocks.values()):
        raise ValueError("a block without samples")
    budget_s = winner.get("budget_s", budget_of(summary))
    unit = time_unit([float(np.median(pooled))])
    worst = max(blocks, key=lambda name: float(np.percentile(blocks[name], 90)))
    figure = blank_figure(f"measured latency ({unit.name})", "share of calls (%)")
    others = [name for name in blocks if name != worst]
    for i, name in enumerate(others):
        figure.add_scatter(
            **_curve(blocks[name], unit),
            name="each process",
            legendgroup="each",
            showlegend=i == 0,
            line={"color": BLUE, "width": 1, "shape": "hv"},
            opacity=0.6,
            hoverinfo="skip",
        )
    style = {"color": ORANGE, "width": 1.5, "shape": "hv", "dash": "dash"}
    figure.add_scatter(**_curve(blocks[worst], unit), name="slowest process", line=style, hoverinfo="skip")
    figure.add_scatter(
        **_curve(pooled, unit),
        name="all together",
        line={"color": GREY, "width": 3, "shape": "hv"},
        hovertemplate=f"%{{y:.1f}} % within %{{x}} {unit.name}<extra></extra>",
    )
    right_s = 1.05 * max(float(np.percentile(pooled, 99)), budget_s or 0.0)
    left_s = 0.97 * float(pooled[0])
    beyond = int((pooled > right_s).sum())
    figure.update_xaxes(range=in_unit(unit, [left_s, right_s]))
    figure.update_yaxes(range=[0, 103])
    add_budget_line(figure, budget_s, unit, label_height=0.5)
    percentile = (winner.get("certificate") or {}).get("percentile") or (summary.get("budget") or {}).get("percentile")
    if percentile is not None:
        figure.add_hline(y=percentile, line={"color": RED, "width": 1, "dash": "dot"})
    within = "" if budget_s is None else f"; {percent(float((pooled <= budget_s).mean()))} are within the budget"
    return Figure(
        id="distribution",
        title="Every measured call",
        alt=f"Cumulative distribution of {len(pooled):,} measured latencies in {len(blocks)} processes, median "
        f"{latency(float(np.median(pooled)))}, p90 {latency(float(np.percentile(pooled, 90)))}{within}.",
        caption=f"{len(pooled):,} samples of {len(blocks)} fresh processes{within}."
        + (f" The dotted line is the budget's share, {percentile:g}\u00a0%." if percentile is not None else "")
        + (f" {beyond} slower samples lie beyond the edge, up to {latency(float(pooled[-1]))}." if beyond else ""),
        height_px=340,
        spec=spec_of(figure),
    )


def _curve(samples_s: np.ndarray, unit: TimeUnit) -> dict[str, Any]:
    """The empirical distribution of sorted samples, thinned for drawing except among the slowest."""
    n = len(samples_s)
    even = np.linspace(0, n - 1, min(n, _CURVE_POINTS)).round().astype(int)
    at = np.unique(np.concatenate([even, np.arange(max(0, n - _TAIL_POINTS), n)]))
    return {
        "x": [rounded_value(samples_s[0] * unit.per_second), *in_unit(unit, samples_s[at])],
        "y": [0.0, *(rounded_value(100 * (i + 1) / n) for i in at)],
        "mode": "lines",
    }


def _cut(text: str, length: int = _LABEL_LENGTH) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"
