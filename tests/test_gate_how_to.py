"""The commands of the how-to on gates do what it says, in the order it says them."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from documents import ROOT, Document, run_here

HOW_TO = Document(ROOT / "docs" / "gate-in-ci.md")


@pytest.mark.slow
def test_every_command_of_the_how_to_works_in_the_order_given(tmp_path: Path) -> None:
    HOW_TO.run(tmp_path, run_here)
    baseline, candidate = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("baseline", "candidate"))
    assert baseline["correct"] == candidate["correct"]
    assert 0.5 < baseline["accuracy"] < 1
    assert candidate["detect"]["effect"] == pytest.approx(0.1)


def test_the_workflow_uses_commands_and_options_that_exist() -> None:
    from typer.main import get_command

    from akd_deploy.cli.app import app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    (workflow,) = [text for kind, _, text in HOW_TO.blocks if kind == "yml"]
    lines = [line.split("run: ", 1)[1] for line in workflow.splitlines() if "run: akd-deploy" in line]
    assert len(lines) == 3
    for line in lines:
        _, name, *words = shlex.split(line)
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known
