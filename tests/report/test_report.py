"""The report as a reader gets it: complete, offline, escaped, and honest about what is missing."""

from __future__ import annotations

import base64
import copy
import hashlib
import json
import re
from html.parser import HTMLParser
from typing import Any

import pytest
from example_summary import example_summary, minimal_summary

from akd_deploy.errors import CorruptFileError, MissingFileError, StorageError
from akd_deploy.report import read_summary, write_report

ABSENT = "not part of this run"
HOSTILE = "</script><script>alert('x')</script><img src=https://example.com/x.png onerror=alert(1)>&amp;{{ 7*7 }}"


class Page(HTMLParser):
    """Elements with their attributes, visible text, and the contents of scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.styles: list[str] = []
        self.words: list[str] = []
        self._inside: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "style":
            self.styles.append("")
        if tag in ("script", "style"):
            self._inside.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside.pop()

    def handle_data(self, data: str) -> None:
        if not self._inside:
            self.words.append(data)
        elif self._inside[-1] == "script":
            attributes, content = self.scripts[-1]
            self.scripts[-1] = (attributes, content + data)
        else:
            self.styles[-1] += data

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def figures(self) -> dict[str, dict[str, Any]]:
        return {str(a["id"]): json.loads(c) for a, c in self.scripts if a.get("type") == "application/json"}

    @property
    def code(self) -> list[str]:
        return [content for attributes, content in self.scripts if attributes.get("type") != "application/json"]


@pytest.fixture(scope="module")
def full_page(tmp_path_factory) -> Page:
    return rendered(example_summary(), tmp_path_factory.mktemp("full"))


@pytest.fixture(autouse=True)
def small_plotly(request, monkeypatch):
    """Most tests do without the five megabytes of plotly.js; those of `full_page` have them."""
    if "full_page" not in request.fixturenames:
        monkeypatch.setattr("plotly.offline.get_plotlyjs", lambda: "/* plotly.js */")


def rendered(summary: dict[str, Any], folder) -> Page:
    path = write_report(summary, folder / "report.html")
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def without(path: str) -> dict[str, Any]:
    """The example without the value at `a.b.c`."""
    summary = example_summary()
    *outer, last = path.split(".")
    place = summary
    for key in outer:
        place = place[key]
    del place[last]
    return summary


def test_full_report_leaves_nothing_out(full_page):
    assert ABSENT not in full_page.text
    assert "not recorded" not in full_page.text
    assert "not compared" not in full_page.text
    assert sorted(full_page.figures) == [
        f"{name}-spec" for name in ("distribution", "feasible", "front", "kernels", "prediction", "rewards")
    ]


def test_file_is_small_enough_to_mail(full_page):
    assert sum(len(content) for _, content in full_page.scripts) + len(full_page.text) < 6_000_000


def test_same_summary_gives_the_same_bytes(tmp_path):
    a, b = (write_report(example_summary(), tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert a == b


@pytest.mark.parametrize("summary", [example_summary(), minimal_summary()], ids=["full", "minimal"])
def test_page_loads_nothing(summary, tmp_path):
    page = rendered(summary, tmp_path)
    for tag, attributes in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base", "img", "video", "audio", "source"), tag
        for name in ("src", "srcset", "data", "action", "poster", "background"):
            assert name not in attributes, (tag, attributes)
        assert (attributes.get("href") or "#").startswith("#"), attributes
        assert "url(" not in (attributes.get("style") or "")
    for style in page.styles:
        assert "@import" not in style
        assert "url(" not in style
        assert "//" not in style


def test_page_forbids_itself_requests_and_foreign_scripts(full_page):
    policy = next(a["content"] for _, a in full_page.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    directives = [directive.strip().split(maxsplit=1) for directive in policy.split(";")]
    assert [name for name, _ in directives] == [
        "default-src", "script-src", "style-src", "img-src", "base-uri", "form-action"
    ]  # fmt: skip
    allowed = dict(directives)
    assert allowed["default-src"] == allowed["base-uri"] == allowed["form-action"] == "'none'"
    assert allowed["img-src"] == "data: blob:"
    assert "unsafe" not in allowed["script-src"]
    hashes = [base64.b64encode(hashlib.sha256(code.encode()).digest()).decode() for code in full_page.code]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes


def test_plotly_is_embedded_once_with_our_own_drawing_code(full_page):
    plotly, drawing = full_page.code
    assert len(plotly) > 1_000_000
    assert "Plotly.newPlot" in drawing
    assert "http" not in drawing


def test_figures_are_described_and_drawn_without_page_colours(full_page):
    plots = [attributes for _, attributes in full_page.elements if attributes.get("class") == "plot"]
    assert len(plots) == len(full_page.figures) == 6
    for plot in plots:
        assert plot["role"] == "img"
        assert len(str(plot["aria-label"])) > 40
        spec = full_page.figures[str(plot["data-spec"])]
        assert spec["layout"]["paper_bgcolor"] == "rgba(0,0,0,0)"
        assert spec["layout"]["xaxis"]["title"]["text"]


def test_tables_name_themselves_and_scroll_on_their_own(full_page):
    regions = [a for tag, a in full_page.elements if tag == "div" and a.get("class") == "scroll"]
    assert len(regions) == sum(tag == "table" for tag, _ in full_page.elements)
    assert all(a["aria-label"] and a["tabindex"] == "0" for a in regions)


def hostile(value: Any) -> Any:
    """Every text in the summary replaced by one that tries to break out."""
    if isinstance(value, dict):
        return {key: hostile(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner) for inner in value]
    return HOSTILE if isinstance(value, str) else value


def test_every_text_of_the_summary_is_escaped(tmp_path):
    summary = hostile(example_summary())
    for trial in summary["search"]["trials"]:
        trial["state"] = "done" if trial["reward"] is not None else "failed"
    summary["device"] = {HOSTILE: HOSTILE}
    summary["export"]["parity"] = {HOSTILE: HOSTILE}
    summary["export"]["engines"][0]["precision"] = {HOSTILE: 3}
    summary["winner"]["arch"]["choices"] = {f"{HOSTILE}.{HOSTILE}": HOSTILE}
    summary["accuracy"][HOSTILE] = {"mean": 0.5, "spread": 0.1, "seeds": 3}
    summary[HOSTILE] = "an unknown part"
    page = rendered(summary, tmp_path)
    assert len(page.code) == 2
    assert len(page.figures) == 6
    assert not any(tag == "img" for tag, _ in page.elements)
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
    # shown as it was written, and never run as a template
    assert HOSTILE in page.text
    assert "49" not in page.text.replace("{{ 7*7 }}", "").split()


def test_texts_inside_figures_cannot_become_tags(tmp_path):
    summary = example_summary()
    link = "<a href='https://example.com'>here</a>"
    summary["predictor"]["points"][0]["name"] = link
    for trial in summary["search"]["trials"]:
        trial["strategy"] = link
    summary["winner"]["layers"][0] |= {"name": link, "kernel": link}
    for figure in rendered(summary, tmp_path).figures.values():
        assert "<a" not in json.dumps(figure)


def test_minimal_summary_is_a_page_that_says_what_is_missing(tmp_path):
    page = rendered(minimal_summary(), tmp_path)
    assert "stopped early" in page.text
    assert "No student was chosen" in page.text
    assert page.figures == {}
    assert page.text.count(ABSENT) >= 15
    # a missing part is never a number: the only digits belong to headings such as "p90"
    assert re.findall(r"\d+", page.text.replace("p90", "").replace("SHA-256", "")) == []


@pytest.mark.parametrize(
    "part",
    ["target", "device", "budget", "profile", "predictor", "feasible", "teacher", "search", "winner", "accuracy",
     "export", "bundle", "stages", "limits", "engine_version", "seed", "seconds"],
)  # fmt: skip
def test_each_part_may_be_missing_or_null(part, tmp_path):
    missing = rendered(without(part), tmp_path).text
    null = rendered({**example_summary(), part: None}, tmp_path).text
    assert missing == null
    # the engine's version and the total are one value among others and simply are not there
    assert ABSENT in missing or "not recorded" in missing or part in ("engine_version", "seconds")


@pytest.mark.parametrize(
    ("path", "said"),
    [
        ("winner.certificate", "Measured, but not certified."),
        ("winner.predicted_s", "not recorded"),
        ("winner.blocks", ABSENT),
        ("winner.layers", ABSENT),
        ("winner.arch", ABSENT),
        ("predictor.points", ABSENT),
        ("predictor.scores", "not recorded"),
        ("feasible.histogram", ABSENT),
        ("search.front", ABSENT),
        ("search.strategies", "Cost of the search: 8\u00a0min\u00a033\u00a0s"),
        ("accuracy.ce", ABSENT),
        ("accuracy.paired", ABSENT),
        ("accuracy.test_images", "not recorded"),
        ("export.engines", ABSENT),
        ("export.variants", ABSENT),
        ("export.parity", ABSENT),
    ],
)  # fmt: skip
def test_a_missing_value_inside_a_part_is_said(path, said, tmp_path):
    assert " ".join(said.split()) in rendered(without(path), tmp_path).text


def test_unknown_parts_are_named(tmp_path):
    page = rendered({**example_summary(), "energy": {"joules": 3.0}}, tmp_path)
    assert "parts that this version of the report does not show: energy." in page.text


def test_every_number_of_the_closing_table_is_on_the_page(full_page):
    accuracy = example_summary()["accuracy"]
    for name in ("teacher", "kd", "ce", "hand_shrunk"):
        mean, spread, seeds = (accuracy[name][key] for key in ("mean", "spread", "seeds"))
        cell = f"{100 * mean:.2f} ± {100 * spread:.2f} % {seeds}" if seeds > 1 else f"{100 * mean:.2f} % {seeds}"
        assert cell in full_page.text
    for values in accuracy["per_seed"].values():
        assert ", ".join(f"{100 * value:.2f} %" for value in values) in full_page.text
    assert "+0.75 +0.21 to +1.29 3 first is better" in full_page.text
    assert "+0.56 −0.08 to +1.20 3 not resolved" in full_page.text
    assert "on 360 test images" in full_page.text
    for sentence in example_summary()["limits"]:
        assert sentence in full_page.text


def test_what_could_not_run_says_why(full_page):
    assert "rtx_tensorrt_fp16 no NVIDIA GPU on this machine" in full_page.text
    assert "this engine has no fp8 kernels on a CPU" in full_page.text


def test_noise_floor_stands_beside_every_score(full_page):
    assert "Mean absolute error (MAPE) 3.14 % 1.68 %" in full_page.text
    # erf(0.05 / (0.021 √2)) = 0.9827
    assert "Within ±5 % 79.2 % 98.3 %" in full_page.text
    assert re.search(r"Kendall τ 0\.942 (0\.9\d\d|1\.000)", full_page.text)


def test_failed_write_leaves_the_old_report(tmp_path, monkeypatch):
    path = write_report(minimal_summary(), tmp_path / "report.html")
    before = path.read_bytes()

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full_disk)
    with pytest.raises(StorageError, match="No space left"):
        write_report(example_summary(), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"name": None}, "'name'"),
        ({"name": 3}, "'name'"),
        ({"search": ["trials"]}, "'search'"),
        ({"winner": "b0"}, "'winner'"),
        ({"stages": {"name": "profile"}}, "'stages'"),
        ({"seconds": "12"}, "'seconds'"),
        ({"seed": True}, "'seed'"),
        ({"feasible": {"median_s": 1.0, "histogram": {"edges_s": [0, 1], "counts": [1, 2]}}}, "figure 'feasible'"),
        ({"predictor": {"points": [{"name": "a"}]}}, "measured_s"),
        ({"teacher": {"latency_s": "fast"}}, "'fast'"),
        ({"winner": {"layers": [{"name": "a", "kernel": "k", "latency_s": 1e-6}]}}, "overhead_s"),
    ],
)
def test_a_summary_of_the_wrong_shape_is_refused_by_name(change, named, tmp_path):
    with pytest.raises(CorruptFileError, match=re.escape(named)):
        write_report({**example_summary(), **change}, tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_values_that_are_not_finite_are_not_numbers(tmp_path):
    summary = copy.deepcopy(example_summary())
    summary["predictor"]["scores"]["kendall_tau"] = float("nan")
    summary["predictor"]["points"][3]["predicted_s"] = float("nan")
    page = rendered(summary, tmp_path)
    assert "Kendall τ not finite" in page.text
    assert "nan" not in page.text.split()


def test_summary_is_read_back_as_written(tmp_path):
    (tmp_path / "summary.json").write_text(json.dumps(example_summary()), encoding="utf-8")
    assert read_summary(tmp_path) == example_summary()


def test_missing_summary_names_file_and_next_step(tmp_path):
    with pytest.raises(MissingFileError, match=r"summary\.json; found no such file.*--resume"):
        read_summary(tmp_path)
    with pytest.raises(MissingFileError, match="no folder"):
        read_summary(tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("content", "named"),
    [(b'{"name": "a", ', "no JSON"), (b"\xff\xfe", "no JSON"), (b"[1, 2]", "a list"), (b'{"seed": 1}', "'name'"),
     (b"", "no JSON")],
)  # fmt: skip
def test_corrupt_summary_names_file_and_place(content, named, tmp_path):
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(CorruptFileError, match=re.escape(named)) as caught:
        read_summary(tmp_path)
    assert "summary.json" in str(caught.value)
