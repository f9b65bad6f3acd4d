"""Commands run in this process, with what they print and the code they exit with."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from own_cpu import measure_on_own_cpu, measure_once

from akd_deploy.cli.app import run

TARGET = "cpu_onnxruntime_fp32"


@dataclass(frozen=True)
class Answer:
    """What a command printed, and its exit code."""

    code: int
    stdout: str
    stderr: str

    @property
    def data(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        assert self.stdout.count("\n") == 1, f"not one line: {self.stdout!r} {self.stderr!r}"
        value = json.loads(self.stdout, parse_constant=_no_number)
        assert isinstance(value, dict)
        return value

    @property
    def error(self) -> dict[str, Any]:
        """The error object, with the parts every error has."""
        error = self.data["error"]
        assert all(isinstance(error[part], str) and error[part] for part in ("kind", "asked", "found", "next")), error
        return error


def _no_number(text: str) -> None:
    raise AssertionError(f"{text} is no JSON")


def call(folder: Path, *arguments: object, environment: Mapping[str, str] = MappingProxyType({})) -> Answer:
    """`akd-deploy ARGUMENTS` with `folder` as working directory; nothing outside it is found but what we carry."""
    stdout, stderr = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AKD_DEPLOY_HOME", str(folder / "home"))
        for name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
            patch.delenv(name, raising=False)
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.chdir(folder)
        measure_on_own_cpu(patch)
        measure_once(patch.setattr)
        with (
            contextlib.redirect_stdout(stdout),
            contextlib.redirect_stderr(stderr),
            pytest.raises(SystemExit) as left,
        ):
            run([str(argument) for argument in arguments])
    assert isinstance(left.value.code, int)
    return Answer(left.value.code, stdout.getvalue(), stderr.getvalue())


def written(path: Path, text: str) -> Path:
    """Write a text file whose folder may be missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path
