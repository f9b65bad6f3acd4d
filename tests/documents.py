"""Documents whose commands are run: their fenced blocks, and the commands in them in the order given."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from command_line import call
from own_cpu import ONCE, on_own_cpu

ROOT = Path(__file__).parent.parent
MISSED = 3
JUDGE_TIMES = {
    "akd-deploy run ": "does NOT hold",
    "akd-deploy shrink ": "does NOT hold",
    "akd-deploy bench --reproduce ": "DIFFERS",
    "akd-deploy bench ": "does NOT hold",
    "akd-deploy gate ": "regressed",
}
"""Beginnings of commands that judge times measured here and now → what they say on stdout where they exit with
`MISSED`. An error, which may have that exit code too, is said on stderr alone."""

MEASURE = ("profile", "search", "run", "shrink", "bench")
"""Commands that would measure again what a busy machine disturbs, for as long as it takes."""

_BLOCK = re.compile(r"^```(\w+)(?: (\S+))?\n(.*?)^```$", flags=re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Document:
    """A Markdown file. A block ```` ```toml NAME ```` (or json, python, yaml) is a file of that name, and every line of
    a `console` block that begins with `$ ` is a command; blocks of other kinds are for reading."""

    path: Path

    @cached_property
    def blocks(self) -> list[tuple[str, str, str]]:
        """(kind, name or "", text) of every fenced block."""
        return _BLOCK.findall(self.path.read_text(encoding="utf-8"))

    @cached_property
    def commands(self) -> list[str]:
        """What the console blocks tell to type, in order."""
        lines = [line for kind, _, text in self.blocks if kind == "console" for line in text.splitlines()]
        return [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]

    def write_files(self, folder: Path) -> None:
        """Every named block as a file."""
        for kind, name, text in self.blocks:
            if name:
                assert kind in ("toml", "json", "python", "yaml"), f"a file of kind {kind} in {self.path.name}"
                (folder / name).write_text(text, encoding="utf-8")

    def run(self, folder: Path, run: Callable[[str, Path], subprocess.CompletedProcess[str]]) -> None:
        """Write its files into the folder and run its commands there, one after the other; fail at the first that does
        not do what it should."""
        self.write_files(folder)
        for command in self.commands:
            done = run(command, folder)
            assert does_its_job(command, done.returncode, done.stdout), f"{command}\n{done.stdout}\n{done.stderr}"


def does_its_job(command: str, code: int, stdout: str) -> bool:
    """Whether a command succeeded, or did all it does and found, as it may on any machine that is not quiet, that times
    measured here and now are not what they should be."""
    if code != MISSED:
        return code == 0
    words = next((word for beginning, word in JUDGE_TIMES.items() if command.startswith(beginning)), None)
    return words is not None and words in re.sub(r"\W+", " ", stdout)  # whatever frames and wraps them


def run_here(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`akd-deploy …` in this process, which has loaded most of what it needs; `python …` in one of its own."""
    program, *arguments = shlex.split(command)
    if program != "akd-deploy":
        return run_command(command, folder)
    answer = call(folder, *arguments)
    return subprocess.CompletedProcess(command, answer.code, answer.stdout, answer.stderr)


def run_command(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """`akd-deploy …` or `python …` in a folder, with a user's data directory of its own and warnings as errors."""
    program, *arguments = shlex.split(command)
    assert program in ("akd-deploy", "python"), command
    module = ["-m", "akd_deploy"] if program == "akd-deploy" else []
    if arguments[0] in MEASURE and module:
        module = [str(ONCE)]
    return subprocess.run(
        [sys.executable, *module, *arguments],
        cwd=folder,
        env={**os.environ, "AKD_DEPLOY_HOME": str(folder / "home"), "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=on_own_cpu,
    )
