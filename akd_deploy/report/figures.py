"""The report's figures, as plotly specifications that need nothing but the embedded plotly.js."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import pairwise

import numpy as np

from akd_deploy.errors import CorruptFileError
from akd_deploy.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    RED,
    Figure,
    add_budget_line,
    blank_figure,
    budget_of,
    in_unit,
    plain,
    rounded_value,
    spec_of,
    ticks_1_2_5,
    wants_log_axis,
)
from akd_deploy.report.kept_figure import kept_figure
from akd_deploy.report.preferences_figure import preferences_figure
from akd_deploy.report.process_figure import process_figure
from akd_deploy.report.quantities import latency, percent, rounded, time_unit
from akd_deploy.report.student_figures import distribution_figure, kernels_figure
from akd_deploy.report.summary import Fields
from akd_deploy.report.tables import short_architecture

_STRATEGY_STYLES = ((BLUE, "circle"), (ORANGE, "square"), (GREEN, "diamond"), (PURPLE, "cross"), (RED, "x"))


def figures_of(summary: Fields) -> dict[str, Figure]:
    """Every figure the summary has data for, by id.

    Raises:
        CorruptFileError: a part is there but lacks what its figure shows; the message names both.
    """
    drawn: dict[str, Figure] = {}
    for name, draw in _FIGURES.items():
        try:
            figure = draw(summary)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            if isinstance(error, CorruptFileError):
                raise
            raise CorruptFileError(
                asked=f"the data of figure {name!r} in the run's summary",
                found=f"{type(error).__name__}: {error}",
                next="Write the summary again.",
            ) from error
        if figure is not None:
            drawn[name] = figure
    return drawn


def _prediction(summary: Fields) -> Figure | None:
    points = (summary.get("predictor") or {}).get("points")
    if not points:
        return None
    unit = time_unit([p["measured_s"] for p in points])
    x, y, low, high = (in_unit(unit, [p[k] for p in points]) for k in ("measured_s", "predicted_s", "low_s", "high_s"))
    held = sum(p["low_s"] <= p["measured_s"] <= p["high_s"] for p in points)
    ends = [min(min(x), min(low)), max(max(x), max(high))]
    # a lower end of 0 has no logarithm
    log = wants_log_axis([*x, *y]) and min(low) > 0
    figure = blank_figure(f"measured at full speed ({unit.name})", f"predicted ({unit.name})")
    equal = {"color": GREY, "dash": "dot", "width": 1}
    figure.add_scatter(x=ends, y=ends, mode="lines", name="equal", line=equal, hoverinfo="skip")
    figure.add_scatter(
        x=x,
        y=y,
        error_y={
            "type": "data",
            "symmetric": False,
            "array": [h - v for h, v in zip(high, y, strict=True)],
            "arrayminus": [v - w for v, w in zip(y, low, strict=True)],
            "width": 0,
            "thickness": 1.2,
        },
        mode="markers",
        name="network and its interval",
        marker={"color": BLUE, "size": 7},
        text=[plain(p["name"]) for p in points],
        hovertemplate=f"%{{text}}<br>measured %{{x}} {unit.name}<br>predicted %{{y}} {unit.name}<extra></extra>",
    )
    if log:
        ticks = {"type": "log", "tickvals": ticks_1_2_5(*ends)}
        figure.update_layout(xaxis=ticks, yaxis=ticks)
    return Figure(
        id="prediction",
        title="Predicted against measured latency",
        alt=f"Scatter of {len(points)} networks: predicted latency with interval against the one at full speed; "
        f"{held} of {len(points)} intervals hold the measurement.",
        caption=f"{held} of {len(points)} intervals hold the measurement; factor and width were calibrated on these "
        "very networks, and the scores beside are of each without itself. On the dotted line both are equal."
        + (" Both axes are logarithmic." if log else ""),
        height_px=380,
        spec=spec_of(figure),
    )


def _feasible(summary: Fields) -> Figure | None:
    part = summary.get("feasible")
    if not part or not part.get("histogram"):
        return None
    edges_s, counts = part["histogram"]["edges_s"], part["histogram"]["counts"]
    if len(edges_s) != len(counts) + 1:
        raise ValueError(f"{len(edges_s)} edges for {len(counts)} counts")
    budget_s = budget_of(summary)
    unit = time_unit([part["median_s"]])
    edges = in_unit(unit, edges_s)
    asked = (summary.get("predictor") or {}).get("certificate_factor") or 1.0
    most_s = None if budget_s is None else budget_s / asked
    beyond = [most_s is not None and (a + b) / 2 > most_s for a, b in pairwise(edges_s)]
    figure = blank_figure(f"predicted latency ({unit.name})", "architectures in the sample", legend=False)
    figure.add_bar(
        x=[(a + b) / 2 for a, b in pairwise(edges)],
        y=list(counts),
        width=[b - a for a, b in pairwise(edges)],
        marker={"color": [GREY if b else BLUE for b in beyond], "line": {"width": 0}},
        customdata=[[a, b] for a, b in pairwise(edges)],
        hovertemplate=f"%{{customdata[0]}} to %{{customdata[1]}} {unit.name}: %{{y}}<extra></extra>",
        showlegend=False,
    )
    add_budget_line(figure, most_s, unit)
    share = percent(part.get("fraction_within_budget"))
    within = (
        f" of {latency(budget_s, unit)}: a certificate asks for {asked:.2f} times a prediction's upper end, and the "
        f"line is at {latency(most_s, unit)}."
        if budget_s is not None
        else "."
    )
    return Figure(
        id="feasible",
        title="What the space can reach, before any training",
        alt=f"Histogram of predicted latencies of {sum(counts):,} sampled architectures from "
        f"{latency(part['min_s'])} to {latency(part['max_s'])}, median {latency(part['median_s'])}; "
        f"{share} are expected to be certified within the budget.",
        caption=f"{share} of {sum(counts):,} sampled architectures are expected to be certified within the budget"
        f"{within}",
        height_px=300,
        spec=spec_of(figure),
    )


def _rewards(summary: Fields) -> Figure | None:
    trials = [t for t in (summary.get("search") or {}).get("trials") or [] if t.get("reward") is not None]
    trained = [t for t in trials if t["state"] == "done"]
    if not trained:
        return None
    figure = blank_figure("trial", "reward")
    strategies = list(dict.fromkeys(t["strategy"] for t in trained))
    for i, strategy in enumerate(strategies):
        colour, symbol = _STRATEGY_STYLES[i % len(_STRATEGY_STYLES)]
        own = sorted((t for t in trained if t["strategy"] == strategy), key=lambda t: t["id"])
        ids, rewards = [t["id"] for t in own], [rounded_value(t["reward"]) for t in own]
        figure.add_scatter(
            x=ids,
            y=rewards,
            mode="markers",
            name=plain(strategy),
            legendgroup=str(i),
            marker={"color": colour, "symbol": symbol, "size": 6, "opacity": 0.75},
            hovertemplate="trial %{x}: %{y}<extra></extra>",
        )
        figure.add_scatter(
            x=ids,
            y=np.maximum.accumulate(rewards).tolist(),
            mode="lines",
            legendgroup=str(i),
            showlegend=False,
            line={"color": colour, "width": 1.5, "shape": "hv"},
            hoverinfo="skip",
        )
    best = max(trained, key=lambda t: t["reward"])
    return Figure(
        id="rewards",
        title="Reward by trial",
        alt=f"Reward of {len(trained)} trained students by trial and strategy; the best, {rounded(best['reward'])}, "
        f"is trial {best['id']} of strategy {best['strategy']}.",
        caption="Each mark is a trained student; the line is a strategy's best so far.",
        height_px=320,
        spec=spec_of(figure),
    )


def _front(summary: Fields) -> Figure | None:
    search = summary.get("search") or {}
    trained = [t for t in search.get("trials") or [] if t["state"] == "done" and t.get("accuracy") is not None]
    front = search.get("front") or []
    if not front:
        return None
    unit = time_unit([p["latency_s"] for p in front])
    figure = blank_figure(f"predicted latency ({unit.name})", "accuracy in the search (%)")
    hover = f"%{{text}}<br>%{{x}} {unit.name}, %{{y}} %<extra></extra>"
    figure.add_scatter(
        x=in_unit(unit, [t["latency_s"] for t in trained]),
        y=[rounded_value(100 * t["accuracy"]) for t in trained],
        text=[plain(f"trial {t['id']}, {t['strategy']}") for t in trained],
        mode="markers",
        name="trained",
        marker={"color": GREY, "size": 5, "opacity": 0.7},
        hovertemplate=hover,
    )
    figure.add_scatter(
        x=in_unit(unit, [p["latency_s"] for p in front]),
        y=[rounded_value(100 * p["accuracy"]) for p in front],
        text=[plain(short_architecture(p["arch"])) for p in front],
        mode="lines+markers",
        name="front",
        marker={"color": BLUE, "size": 8, "symbol": "diamond"},
        line={"color": BLUE, "width": 1.5, "shape": "hv"},
        hovertemplate=hover,
    )
    digest = (summary.get("winner") or {}).get("digest")
    chosen = [p for p in front if digest and short_architecture(p["arch"]) == digest]
    if chosen:
        figure.add_scatter(
            x=in_unit(unit, [p["latency_s"] for p in chosen]),
            y=[rounded_value(100 * p["accuracy"]) for p in chosen],
            mode="markers",
            name="chosen",
            marker={"color": ORANGE, "size": 14, "symbol": "star"},
            hovertemplate="chosen<br>" + hover.partition("<br>")[2],
        )
    budget_s = budget_of(summary)
    add_budget_line(figure, budget_s, unit)
    return Figure(
        id="front",
        title="Latency and accuracy",
        alt=f"Predicted latency against accuracy of {len(trained)} trained students; {len(front)} of them form the "
        f"front, from {latency(front[0]['latency_s'])} at {percent(front[0]['accuracy'])} "
        f"to {latency(front[-1]['latency_s'])} at {percent(front[-1]['accuracy'])}.",
        caption="Accuracies are the search's own: the chosen student is judged anew, with other seeds, in the table "
        "above. The budget holds for a percentile, so a median may have to stay left of the line.",
        height_px=320,
        spec=spec_of(figure),
    )


_FIGURES: Mapping[str, Callable[[Fields], Figure | None]] = {
    "prediction": _prediction,
    "feasible": _feasible,
    "rewards": _rewards,
    "front": _front,
    "preferences": preferences_figure,
    "process": process_figure,
    "kept": kept_figure,
    "kernels": kernels_figure,
    "distribution": distribution_figure,
}
