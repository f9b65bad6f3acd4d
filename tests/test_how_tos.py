"""The how-tos' commands do what they say, in the order they say them."""

from __future__ import annotations

import json
import re
import shlex
from io import StringIO
from pathlib import Path

import pytest
from documents import ROOT, Document, run_command, run_here
from rich.console import Console

from akd_deploy.cli.run_commands import show_part
from akd_deploy.units import format_seconds

PROFILE = Document(ROOT / "docs" / "profile-a-device.md")
NNI = Document(ROOT / "docs" / "search-with-nni.md")
SHRINK = Document(ROOT / "docs" / "shrink-my-own-model.md")

pytestmark = pytest.mark.xdist_group("how-tos")


@pytest.mark.slow
def test_every_command_of_the_how_to_on_profiling_works_in_the_order_given(tmp_path: Path) -> None:
    assert len(PROFILE.commands) > 8
    PROFILE.run(tmp_path, run_here)
    tables = [path.parent.parent.name for path in tmp_path.glob("latency_tables/*/*/header.json")]
    assert sorted(tables) == ["cpu_onnxruntime_fp32", "two_threads"]


@pytest.mark.slow
def test_a_model_of_ones_own_is_shrunk_to_a_verified_bundle(tmp_path: Path) -> None:
    SHRINK.run(tmp_path, run_command)
    summary = json.loads((tmp_path / "runs" / "shrunk" / "summary.json").read_text(encoding="utf-8"))
    winner = summary["winner"]
    assert winner["macs"] < winner["teacher_macs"]
    assert {"teacher", "kd", "inherited", "ce"} <= set(winner["accuracy"])
    rivals = {name: scores for name, scores in winner["accuracy"].items() if "latency_s" in scores}
    assert set(winner["accuracy"]) == {"teacher", "kd", "inherited", "ce", *rivals}
    assert rivals
    console = Console(width=200, record=True, file=StringIO())
    show_part(console, summary)
    told = console.export_text()
    for scores in rivals.values():
        assert re.search(rf"teacher (narrowed|without).* by kd .*%.*, {format_seconds(scores['latency_s'])}", told)
    assert told.count("the part itself") == len(winner["by_hand"])
    assert len(re.findall(" − ", told)) == len(summary["accuracy"]["paired"])
    assert winner["predicted_s"] <= winner["budget_s"]
    assert (tmp_path / "runs" / "shrunk" / "bundle" / "manifest.json").is_file()
    page = (tmp_path / "runs" / "shrunk" / "report.html").read_text(encoding="utf-8")
    assert "What is left of each layer" in page
    assert "Same student, from the teacher&#39;s weights" in page


def test_the_configuration_of_the_how_to_on_nni_is_one() -> None:
    import tomllib

    from akd_deploy.configuration import HOW_SEARCHED, configuration_from_dict

    ((_, _, text),) = [block for block in NNI.blocks if block[0] == "toml"]
    fields = tomllib.loads(text)
    assert set(fields["search"]) == set(HOW_SEARCHED)
    configuration_from_dict({"target": "t", "budget": "1ms", **fields}, where=NNI.path.name)


@pytest.mark.parametrize("document", [PROFILE, NNI, SHRINK], ids=lambda document: document.path.stem)
def test_every_command_line_of_the_how_to_names_a_command_and_options_that_exist(document: Document) -> None:
    from typer.main import get_command

    from akd_deploy.cli.app import app

    known = get_command(app).commands  # type: ignore[attr-defined]
    shell = "\n".join(text for kind, _, text in document.blocks if kind == "sh").replace("\\\n", " ")
    lines = [line.partition("#")[0] for line in [*document.commands, *shell.splitlines()]]
    for words in (shlex.split(line.replace("$(", " ").replace(")", " ")) for line in lines):
        if words[:1] == ["akd-deploy"]:
            options = {name for parameter in known[words[1]].params for name in parameter.opts}
            given = {word for word in words[2:] if word.startswith("--") and word != "--"}
            assert {name.split()[0] for name in given} <= options, words
