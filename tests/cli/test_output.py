"""What commands print: whole names, progress that ends, and one line where nothing can be printed."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import call
from rich.console import Console

from akd_deploy.cli import output


def _process(stdout, *arguments):
    command = [sys.executable, "-m", "akd_deploy", *arguments]
    return subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, check=False)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize(
    "arguments",
    [("targets", "list", "--json"), ("targets", "list"), ("targets", "show", "gone", "--json"), ("--version",)],
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_stdout_is_one_line_on_stderr(arguments, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        answer = _process(full, *arguments)
    assert answer.returncode == 5
    assert answer.stderr.count("\n") == 1
    assert "standard output cannot be written" in answer.stderr
    assert "No space left" in answer.stderr


def test_a_closed_stdout_is_refused_before_anything_is_done(tmp_path):
    command = ["/bin/sh", "-c", 'exec "$0" -m akd_deploy targets list --json >&-', sys.executable]
    answer = subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert (answer.returncode, answer.stderr.count("\n")) == (5, 1)
    assert "closed" in answer.stderr


@pytest.mark.parametrize("arguments", [(), ("targets",)])
def test_a_command_without_arguments_shows_its_help_and_no_error(tmp_path, arguments):
    answer = call(tmp_path, *arguments)
    assert answer.code == 2
    assert "Usage: akd-deploy" in answer.stdout
    assert answer.stderr == ""


@pytest.mark.parametrize("width", [20, 80])
def test_a_table_cuts_no_cell(monkeypatch, width):
    console = Console(file=io.StringIO(), width=width)
    monkeypatch.setattr(output, "stdout", console)
    name, engine, why = "cpu_onnxruntime_extended_fp32", "onnxruntime", "no driver here, which it needs " * 4
    console.print(output.table("Targets", ("target", "engine", "why not"), [(name, engine, why)]))
    text = console.file.getvalue()
    assert "…" not in text
    columns = zip(*(line.split("│")[1:-1] for line in text.splitlines() if "│" in line), strict=True)
    said = ["".join("".join(column).split()) for column in columns]
    assert said == [name, engine, "".join(why.split())]
    if width == 80:
        assert name in text


def _progress(monkeypatch, as_json=False, terminal=False):
    console = Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None)
    monkeypatch.setattr(output, "stderr", console)
    with output.progress_bars(as_json) as on_progress:
        for done in range(3):
            on_progress("profiling", done, 4)
        on_progress("compiling", 0, 0)
        on_progress("exporting", 1, 2)
    return console.file.getvalue()


def test_progress_that_nobody_watches_is_a_line_for_each_stage(monkeypatch):
    assert _progress(monkeypatch) == "profiling\ncompiling\nexporting\n"
    assert _progress(monkeypatch, as_json=True) == ""


def test_every_bar_is_full_in_the_end(monkeypatch):
    last = _progress(monkeypatch, terminal=True)[-600:]
    assert [shown in last for shown in ("4/4", "1/1", "2/2", "2/4", "1/2")] == [True, True, True, False, False]


def test_a_bar_that_fails_stays_where_it_was(monkeypatch):
    console = Console(file=io.StringIO(), force_terminal=True, width=100, color_system=None)
    monkeypatch.setattr(output, "stderr", console)

    def fail():
        with output.progress_bars(False) as on_progress:
            on_progress("profiling", 1, 4)
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert "1/4" in console.file.getvalue()
    assert "4/4" not in console.file.getvalue()


def test_phases_are_bars_while_they_are_under_way_and_lines_where_nothing_draws(monkeypatch):
    def shown(terminal: bool, as_json: bool = False) -> str:
        text = io.StringIO()
        console = Console(file=text, force_terminal=terminal, width=80, _environ={"TERM": "xterm"})
        monkeypatch.setattr(output, "stderr", console)
        with output.phase_bars(as_json) as on_progress:
            for phase, fraction in (("outer", 0.0), ("inner", 0.5), ("inner", 1.0), ("outer", 0.5), ("outer", 1.0)):
                on_progress(phase, fraction)
        return text.getvalue()

    assert shown(False) == "outer\ninner\n"
    assert shown(True, as_json=True) == shown(False, as_json=True) == ""
    assert "%" in shown(True)


def test_the_commands_said_to_resume_are_those_that_have_the_option() -> None:
    from typer.main import get_command

    from akd_deploy.cli.app import RESUMABLE, app

    commands = get_command(app).commands  # type: ignore[attr-defined]
    assert sorted(RESUMABLE) == sorted(n for n, c in commands.items() if any(p.name == "resume" for p in c.params))
