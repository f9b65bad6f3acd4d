"""TensorRT's API is checked when types are: what a version took away fails there, and not on a customer's GPU."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STUB = ROOT / "typings" / "tensorrt_rtx" / "__init__.pyi"


def complaints(folder: Path, *lines: str) -> list[str]:
    """What mypy, configured as for the package, says of a function that is given the module."""
    snippet = folder / "snippet.py"
    head = "from akd_deploy.engines.tensorrt_api import TensorRt\n\ndef use(trt: TensorRt) -> None:\n"
    snippet.write_text(head + "".join(f"    {line}\n" for line in lines), encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml"), "--no-error-summary",
               str(snippet)]  # fmt: skip
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode in (0, 1), answer
    return [line.rpartition("snippet.py:")[2] for line in answer.stdout.splitlines()]


@pytest.mark.slow  # unless the package's types were checked just before, as `make test` does
def test_types_refuse_what_tensorrt_11_took_away_and_pass_what_it_has(tmp_path):
    found = complaints(
        tmp_path,
        "config = trt.Builder(trt.ILogger()).create_builder_config()",
        "config.set_flag(trt.BuilderFlag.TF32)",
        "config.set_flag(trt.BuilderFlag.FP16)",
        "config.int8_calibrator = None",
        "config.set_flag('TF32')",
        "config.builder_optimization_level = 3",
    )
    assert [line.partition(":")[0] for line in found] == ["6", "7", "8"]
    assert '"FP16"' in found[0]
    assert '"int8_calibrator"' in found[1]
    assert "BuilderFlag" in found[2]


def test_the_stub_is_what_the_installed_bindings_say():
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("the Python package tensorrt_rtx is not installed")
    import tensorrt_rtx

    if f"tensorrt_rtx {tensorrt_rtx.__version__};" not in STUB.read_text(encoding="utf-8"):
        pytest.skip(f"the stub describes another version than {tensorrt_rtx.__version__}")
    command = [sys.executable, str(ROOT / "typings" / "make_stub.py"), "--check"]
    assert subprocess.run(command, check=False).returncode == 0
