"""The README's commands do what it says, in the order it says them."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    line.removeprefix("$ ")
    for kind, _, text in BLOCKS
    if kind == "console"
    for line in text.splitlines()
    if line.startswith("$ ")
]


pytestmark = pytest.mark.xdist_group("readme")  # groups begin first, and this one is long


def _run(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    program, *arguments = shlex.split(command)
    assert program == "akd-deploy"
    return subprocess.run(
        [sys.executable, "-m", "akd_deploy", *arguments],
        cwd=folder,
        env={**os.environ, "AKD_DEPLOY_HOME": str(folder / "home"), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_every_command_of_the_readme_works_in_the_order_given(tmp_path: Path) -> None:
    for kind, name, text in BLOCKS:
        if name:
            assert kind in ("toml", "json")
            (tmp_path / name).write_text(text, encoding="utf-8")
    assert len(COMMANDS) > 15
    for command in COMMANDS:
        done = _run(command, tmp_path)
        # A tiny run on a loaded machine may honestly miss its certificate; it must then say so with exit code 3.
        allowed = (0, 3) if command.startswith("akd-deploy run") and "--dry-run" not in command else (0,)
        assert done.returncode in allowed, f"{command}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "runs" / "first" / "report.html").is_file()


def test_every_command_line_names_a_command_that_exists() -> None:
    from typer.main import get_command

    from akd_deploy.cli.app import app

    known = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {shlex.split(command)[1] for command in COMMANDS} <= known
