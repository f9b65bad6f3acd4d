"""The figure of a shrunk teacher: what is left of each of its layers."""

from __future__ import annotations

from akd_deploy.report.drawing import BLUE, Figure, blank_figure, plain, rounded_value, spec_of
from akd_deploy.report.quantities import count, percent
from akd_deploy.report.summary import Fields


def kept_figure(summary: Fields) -> Figure | None:
    """Bars of the share of units kept, a layer each, in order; None where the student is no part of the teacher."""
    winner = summary.get("winner") or {}
    kept = winner.get("kept")
    if not kept:
        return None
    layers = [str(name) for name in kept]
    shares = [float(share) for share in kept.values()]
    figure = blank_figure("units kept (%)", "", legend=False)
    figure.add_bar(
        y=[plain(layer) for layer in layers],
        x=[rounded_value(100 * share) for share in shares],
        orientation="h",
        marker={"color": BLUE, "line": {"width": 0}},
        hovertemplate="%{y}: %{x} %<extra></extra>",
        showlegend=False,
    )
    figure.update_xaxes(range=[0, 100])
    figure.update_yaxes(autorange="reversed", showgrid=False, tickfont={"size": 11}, type="category")
    figure.update_layout(bargap=0.25)
    least, dropped = min(range(len(shares)), key=shares.__getitem__), sum(share == 0 for share in shares)
    macs, teacher_macs = winner["macs"], winner["teacher_macs"]
    whole = ", ".join(f"{channels} channels ({why})" for why, channels in (winner.get("kept_whole") or {}).items())
    return Figure(
        id="kept",
        title="What is left of each layer",
        alt=f"Bars of {len(layers)} layers by the share of their units that are kept; the least is {layers[least]}, "
        f"{percent(shares[least], 0)}.",
        caption=f"{count(macs)} of the teacher's {count(teacher_macs)} multiply-adds. {count(dropped)} of "
        f"{count(len(layers))} groups of layers are gone altogether." + (f" Kept whole: {whole}." if whole else ""),
        height_px=64 + 20 * len(layers),
        spec=spec_of(figure),
    )
