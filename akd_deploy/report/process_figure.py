"""The figure of a process of distillation: which pathways taught how much, and when."""

from __future__ import annotations

import numpy as np

from akd_deploy.report.drawing import BLUE, Figure, blank_figure, plain, rounded_value, spec_of
from akd_deploy.report.quantities import count, percent, rounded
from akd_deploy.report.summary import Fields


def process_figure(summary: Fields) -> Figure | None:
    """A map of weights, pathways by moments; None where the run has no process."""
    process = summary.get("process")
    if not process:
        return None
    weights, names = np.array(process["weights"], float), [str(name) for name in process["pathways"]]
    if weights.ndim != 2 or weights.shape[1] != len(names):
        raise ValueError(f"weights {weights.shape} of {len(names)} pathways")
    moments = [100 * (i + 0.5) / len(weights) for i in range(len(weights))]
    figure = blank_figure("of the training (%)", "", legend=False)
    figure.add_heatmap(
        x=moments,
        y=[plain(name) for name in names],
        z=[[rounded_value(value) for value in row] for row in weights.T.tolist()],
        zmin=0,
        colorscale=[[0, "rgba(127,135,148,0.08)"], [1, BLUE]],
        colorbar={"title": {"text": "weight"}, "thickness": 12},
        hovertemplate="%{y}<br>%{x:.0f} % of the training: %{z}<extra></extra>",
    )
    figure.update_xaxes(range=[0, 100])
    figure.update_yaxes(autorange="reversed", showgrid=False, type="category")
    mean = weights.mean(axis=0)
    heaviest = int(np.argmax(mean))
    if "file" in process:
        source = f"read from {process['file']}"
    else:
        source = f"the mean of {count(process['searches'])} searches of {count(process['steps'])} steps on this student"
    return Figure(
        id="process",
        title="Which pathways taught, and when",
        alt=f"Weights of {len(names)} pathways over a training; on average {names[heaviest]} has the largest, "
        f"{rounded(float(mean[heaviest]))}, {percent(float(mean[heaviest] / mean.sum())) if mean.sum() else 'none'} of "
        "all.",
        caption=f"Weights of the pathways beside a cross-entropy of weight 1: {source}. On average they add up to "
        f"{rounded(float(weights.sum(axis=1).mean()))}.",
        height_px=110 + 26 * len(names),
        spec=spec_of(figure),
    )
