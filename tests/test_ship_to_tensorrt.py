"""The how-to for TensorRT does what it says, on a machine without a GPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from documents import ROOT, Document, run_here

HOW_TO = Document(ROOT / "docs" / "ship-to-tensorrt.md")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="the Python package tensorrt_rtx is not installed"
)
def test_every_command_of_the_how_to_works_in_the_order_given(tmp_path: Path) -> None:
    assert len(HOW_TO.commands) > 12
    HOW_TO.run(tmp_path, run_here)
    plans = sorted(path.name for path in (tmp_path / "engines").glob("*.plan"))
    assert plans == ["dynamic.plan", "network.fp16.plan", "network.fp8.plan", "network.int8.plan"]
    assert (tmp_path / "network.zip").is_file()
