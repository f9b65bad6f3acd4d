"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout; logs go to stderr.")]
TargetName = Annotated[str, typer.Option("--target", help="A target's name, or the path of its TOML file.")]
Seed = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random choice.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would be done and written; do nothing.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue what an earlier call has begun.")]
Space = Annotated[str | None, typer.Option("--space", help="A search space's name, or a run.toml that has one.")]
Onnx = Annotated[Path | None, typer.Option("--onnx", help="A model file the target's engine reads.")]
Table = Annotated[Path | None, typer.Option("--table", help="Folder of the latency table to use.")]
Config = Annotated[Path, typer.Option("--config", help="A run.toml.")]
TrustEngine = Annotated[
    bool, typer.Option("--trust-engine", help="Load an engine of unknown origin; it can run code of its own.")
]
