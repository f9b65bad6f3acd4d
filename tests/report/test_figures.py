"""What the figures draw is what the summary says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from example_summary import BUDGET_S, example_summary

from akd_deploy.kernel import Kernel
from akd_deploy.report.figures import figures_of


def budget_lines(spec) -> list[float]:
    return [shape["x0"] for shape in spec["layout"].get("shapes", []) if shape["x0"] == shape["x1"]]


@pytest.mark.parametrize("name", ["feasible", "front", "distribution"])
def test_the_budget_is_a_line_where_latency_is_an_axis(name):
    figure = figures_of(example_summary())[name]
    assert "(µs)" in figure.spec["layout"]["xaxis"]["title"]["text"]
    # Of predictions the budget allows what is left of it by what its certificate asks for.
    asked = example_summary()["predictor"]["certificate_factor"] if name == "feasible" else 1
    assert budget_lines(figure.spec) == [pytest.approx(BUDGET_S * 1e6 / asked, rel=1e-4)]


def test_kernel_bars_and_overhead_add_up_to_the_prediction():
    summary = example_summary()
    figure = figures_of(summary)["kernels"]
    assert sum(figure.spec["data"][0]["x"]) == pytest.approx(1e6 * summary["winner"]["predicted_s"], rel=1e-4)
    assert "add up to the prediction" in figure.caption
    summary["winner"]["predicted_s"] *= 1.1
    assert "NOT to the prediction" in figures_of(summary)["kernels"].caption


def test_many_kernels_are_drawn_as_the_largest_and_a_sum_of_the_rest():
    summary = example_summary()
    kernel = Kernel(op="Relu", inputs=((1, 8, 4, 4),), outputs=((1, 8, 4, 4),)).signature
    layers = [{"name": f"relu {i}", "kernel": kernel, "latency_s": 1e-6 * (i + 1)} for i in range(100)]
    summary["winner"] |= {"layers": layers, "overhead_s": 2e-6, "predicted_s": 5052e-6}
    bars = figures_of(summary)["kernels"].spec["data"][0]
    assert len(bars["x"]) == 32
    assert len(set(bars["y"])) == 32  # equal labels would be stacked into one bar
    assert bars["y"][30] == "70 smaller kernels"
    assert bars["x"][30] == pytest.approx(sum(range(1, 71)))
    assert sum(bars["x"]) == pytest.approx(5052)


def test_distribution_is_thinned_but_keeps_its_slowest_samples():
    summary = example_summary()
    rng = np.random.default_rng(1)
    samples = {str(i): rng.gamma(100, 3e-6, 20_000).tolist() for i in range(10)}
    summary["winner"]["blocks"] = samples
    figure = figures_of(summary)["distribution"]
    pooled = np.sort(np.concatenate(list(samples.values())))
    curve = next(trace for trace in figure.spec["data"] if trace["name"] == "all together")
    assert len(curve["x"]) < 400
    assert curve["x"][-60:] == pytest.approx(1e6 * pooled[-60:], rel=1e-4)
    assert curve["y"][-1] == 100
    for x, y in zip(curve["x"][1:], curve["y"][1:], strict=True):
        assert np.mean(pooled <= x * 1e-6 * (1 + 1e-5)) * 100 == pytest.approx(y, abs=0.2)
    assert len(json.dumps(figure.spec)) < 200_000


def test_wide_ranges_are_drawn_on_logarithmic_axes_only_where_all_ends_are_positive():
    summary = example_summary()
    assert figures_of(summary)["prediction"].spec["layout"]["xaxis"]["type"] == "log"
    summary["predictor"]["points"][0]["low_s"] = 0.0
    assert "type" not in figures_of(summary)["prediction"].spec["layout"]["xaxis"]


def test_intervals_held_are_counted():
    summary = example_summary()
    points = summary["predictor"]["points"] = summary["predictor"]["points"][:2]
    points[0] |= {"low_s": 1e-4, "high_s": 2e-4, "measured_s": 2.1e-4}
    points[1] |= {"low_s": 1e-4, "high_s": 2e-4, "measured_s": 2e-4}
    assert figures_of(summary)["prediction"].caption.startswith("1 of 2 intervals hold the measurement")


def test_only_trained_students_have_a_reward_and_each_strategy_its_best_so_far():
    summary = example_summary()
    figure = figures_of(summary)["rewards"]
    trained = [t for t in summary["search"]["trials"] if t["state"] == "done"]
    marks = [trace for trace in figure.spec["data"] if trace["mode"] == "markers"]
    lines = [trace for trace in figure.spec["data"] if trace["mode"] == "lines"]
    assert sum(len(trace["x"]) for trace in marks) == len(trained)
    for mark, line in zip(marks, lines, strict=True):
        assert line["y"] == sorted(line["y"])
        assert line["y"][-1] == max(mark["y"])


def test_the_chosen_student_is_marked_on_the_front():
    summary = example_summary()
    traces = {trace["name"]: trace for trace in figures_of(summary)["front"].spec["data"]}
    chosen = summary["search"]["front"][1]
    assert traces["chosen"]["x"] == [pytest.approx(1e6 * chosen["latency_s"], rel=1e-4)]
    summary["winner"]["digest"] = "elsewhere"
    assert "chosen" not in {trace["name"] for trace in figures_of(summary)["front"].spec["data"]}


def test_what_is_left_of_each_layer_of_a_shrunk_teacher_is_drawn_in_percent():
    summary = example_summary()
    assert "kept" not in figures_of(summary)
    winner = {"kept": {"stem": 1.0, "block1 + skip": 0.25, "branch": 0.0}, "macs": 250, "teacher_macs": 1000}
    figure = figures_of({**summary, "winner": {**summary["winner"], **winner, "kept_whole": {"the logits": 10}}})[
        "kept"
    ]
    (bars,) = figure.spec["data"]
    assert bars["x"] == [100.0, 25.0, 0.0]
    assert bars["y"] == ["stem", "block1 + skip", "branch"]
    assert "the least is branch, 0" in figure.alt
    assert figure.caption.startswith("250 of the teacher's 1,000 multiply-adds. 1 of 3 groups")
    assert figure.caption.endswith("Kept whole: 10 channels (the logits).")
