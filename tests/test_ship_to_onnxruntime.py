"""The commands of `docs/ship-to-onnxruntime.md` do what it says, in the order it says them."""

from __future__ import annotations

from pathlib import Path

import pytest
from documents import ROOT, Document, run_here

DOCUMENT = Document(ROOT / "docs" / "ship-to-onnxruntime.md")

pytestmark = pytest.mark.xdist_group("documents")


@pytest.mark.slow
def test_every_command_works_in_the_order_given(tmp_path: Path) -> None:
    commands = {command.split()[1] for command in DOCUMENT.commands if command.startswith("akd-deploy")}
    assert commands == {"quantize", "build", "bench", "package", "verify", "load"}
    DOCUMENT.run(tmp_path, run_here)
    told = run_here("akd-deploy load net.zip --key key.pub.pem --json", tmp_path).stdout
    assert '"authentic": true' in told
    assert '"engine": "onnxruntime"' in told
    assert "when measured" in run_here("python -B shipped/runner.py --seconds 0.01", tmp_path).stdout
