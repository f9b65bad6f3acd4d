"""What all figures share: axes, colours, the budget line, and rounding for the page."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import plotly.graph_objects as go

from akd_deploy.report.quantities import TimeUnit
from akd_deploy.report.summary import Fields

# Legible on white and on near-black, and told apart without colour vision by symbol or dash as well.
BLUE, ORANGE, GREEN, PURPLE, RED, GREY = "#3b82c4", "#d97706", "#2e9e6b", "#8b6fc9", "#d1495b", "#7f8794"
LOG_FROM_RATIO = 8
"""Axes are logarithmic where the largest value is this many times the smallest (picked by eye)."""


@dataclass(frozen=True)
class Figure:
    """`alt` says in words what the figure shows; `spec` is plotly's `{data, layout}` without colours of the page."""

    id: str
    title: str
    alt: str
    caption: str
    height_px: int
    spec: Mapping[str, Any]


def blank_figure(x_title: str, y_title: str, legend: bool = True) -> go.Figure:
    """Labelled axes on a transparent ground; the page gives grid and text their colours."""
    axis = {"automargin": True, "ticks": "outside", "ticklen": 4, "zeroline": False, "showline": True}
    return go.Figure(
        layout={
            # An empty template: plotly's own would add kilobytes, and colours that only suit a white page.
            "template": {},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "margin": {"l": 8, "r": 12, "t": 36 if legend else 10, "b": 8},
            "font": {"family": "system-ui, sans-serif", "size": 12},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
            "xaxis": {**axis, "title": {"text": x_title}},
            "yaxis": {**axis, "title": {"text": y_title}},
            "dragmode": False,
        }
    )


def add_budget_line(figure: go.Figure, budget_s: float | None, unit: TimeUnit, label_height: float = 1.0) -> None:
    """A dashed vertical line at the budget, where there is one; its label stands at a share of the height."""
    if budget_s is not None:
        figure.add_vline(x=rounded_value(budget_s * unit.per_second), line={"color": RED, "width": 2, "dash": "dash"})
        figure.add_annotation(
            x=rounded_value(budget_s * unit.per_second),
            y=label_height,
            yref="paper",
            text="budget",
            showarrow=False,
            xanchor="right",
            xshift=-4,
            yanchor="top",
            font={"color": RED},
        )


def budget_of(summary: Fields) -> float | None:
    """The budget in seconds, None where the run has none."""
    return (summary.get("budget") or {}).get("budget_s")


def wants_log_axis(values: Sequence[float]) -> bool:
    """Whether a linear axis would crowd the small values."""
    return min(values) > 0 and max(values) / min(values) >= LOG_FROM_RATIO


def ticks_1_2_5(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten around an interval of positive numbers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [step * 10.0**power for power in powers for step in (1, 2, 5)]


def in_unit(unit: TimeUnit, values_s: Sequence[float] | np.ndarray) -> list[float]:
    """Seconds as numbers of the unit, rounded for drawing."""
    return [rounded_value(value * unit.per_second) for value in values_s]


def rounded_value(value: float) -> float:
    """Five significant digits: finer than a screen, and a third of the bytes."""
    return float(f"{value:.5g}")


def plain(text: object) -> str:
    """Plotly reads tags in its texts; a name is only ever a name."""
    return html.escape(str(text), quote=False)


def spec_of(figure: go.Figure) -> Mapping[str, Any]:
    """Plotly's `{data, layout}` as JSON types; what is not finite becomes null."""
    return json.loads(figure.to_json())
