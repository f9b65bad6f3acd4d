"""The figure of two runs' preferences: how often the better students of each chose what."""

from __future__ import annotations

from akd_deploy.report.drawing import BLUE, ORANGE, Figure, blank_figure, plain, rounded_value, spec_of
from akd_deploy.report.quantities import count, rounded
from akd_deploy.report.summary import Fields


def preferences_figure(summary: Fields) -> Figure | None:
    """Bars of both runs by option, kind after kind; None where no other run was compared with."""
    preferences = summary.get("preferences")
    if not preferences:
        return None
    runs, kinds = preferences["runs"], preferences["kinds"]
    figure = blank_figure("", "share of the better students' choices (%)")
    shown = {kind: known for kind, known in kinds.items() if len(known["options"]) > 1}
    labels = [
        [plain(kind) for kind, known in shown.items() for _ in known["options"]],
        [plain(option) for known in shown.values() for option in known["options"]],
    ]
    for side, (run, colour) in enumerate(zip(runs, (BLUE, ORANGE), strict=True)):
        figure.add_bar(
            x=labels,
            y=[rounded_value(100 * share) for known in shown.values() for share in known["shares"][side]],
            name=plain(f"{run['name']} ({run['method']})" if runs[0] != runs[1] else run["run_dir"]),
            marker={"color": colour, "line": {"width": 0}, "pattern": {"shape": "/" if side else ""}},
            hovertemplate="%{x}: %{y} %<extra></extra>",
        )
    figure.update_layout(barmode="group", bargap=0.2)
    by_choice = preferences["by_choice"]
    most = max(by_choice, key=by_choice.get)
    first, second = (f"{count(run['students'])} of {run['run_dir']} (by {run['method']})" for run in runs)
    return Figure(
        id="preferences",
        title="What the better students chose",
        alt="Bars of options by how often the better students of two runs chose them; the choice in which they differ "
        f"most is {most}.",
        caption=f"The better students: {first} and {second}. The mean Jensen–Shannon distance over choices is "
        f"{rounded(preferences['distance'])}, most in {most}, {rounded(by_choice[most])}. "
        + _told(preferences["in_common"]),
        height_px=360,
        spec=spec_of(figure),
    )


def _told(common: Fields) -> str:
    """Whether the students that both runs trained say that the runs prefer others."""
    students = count(common["students"])
    if common["p"] is None:
        return f"The runs trained {students} students in common, too few to tell whether that is chance."
    return (
        f"Of the {students} students that both runs trained, those that are better by the one run and by the other are "
        f"{rounded(common['distance'])} apart, and {rounded(common['null'])} where scores change sides at random "
        f"(p {rounded(common['p'])})."
    )
