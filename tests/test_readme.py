"""The README's commands do what it says, in the order it says them."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from documents import ROOT, Document, run_command

README = Document(ROOT / "README.md")

pytestmark = pytest.mark.xdist_group("readme")  # groups begin first, and this one is long


@pytest.mark.slow
def test_every_command_of_the_readme_works_in_the_order_given(tmp_path: Path) -> None:
    assert len(README.commands) > 15
    README.run(tmp_path, run_command)  # each in a process of its own, as the reader's are
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def test_every_command_line_names_a_command_that_exists() -> None:
    from typer.main import get_command

    from akd_deploy.cli.app import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {shlex.split(command)[1] for command in README.commands} <= known
