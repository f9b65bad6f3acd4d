"""A real profile is killed at random moments and gone on with: nothing is lost, and nothing is measured twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from akd_deploy.latency_table import read_table
from akd_deploy.profiling.measured_journal import JOURNAL_NAME
from akd_deploy.profiling.subjects import space_subjects
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

TARGET = Target("here", device="cpu", engine="onnxruntime", engine_options={"threads": 1})
SPACE = load_space("mobile", {"widths": [8, 16], "strides": [1, 2], "layers": [[1], [1, 2]]})
PROBES, NETWORKS, BLOCKS = 10, 2, 3
KILLS = 4
PATIENCE_S = 120.0

# No block is taken again here, so that every line stands for samples that must be in the table.
PROFILE = """
import os, sys
from pathlib import Path
from akd_deploy.profiling.blocks import Protocol
from akd_deploy.profiling.measured_journal import MeasuredJournal
from akd_deploy.profiling.probes import space_probes
from akd_deploy.profiling.profile import ProfilePlan, measure_subjects
from akd_deploy.profiling.subjects import space_subjects
from test_killed_profile import BLOCKS, NETWORKS, PROBES, SPACE, TARGET

def append(journal, block, real=MeasuredJournal.append):
    real(journal, block)
    os.write(log, f"{block.name} {block.block}\\n".encode())

if __name__ == "__main__":
    log = os.open(sys.argv[2], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    MeasuredJournal.append = append
    space_probes.__defaults__ = (60,)
    protocol = Protocol(blocks=BLOCKS, warmup_s=0.002, seconds=0.005, min_samples=5, max_samples=20, max_remeasure=0)
    subjects = space_subjects(TARGET, SPACE, PROBES, NETWORKS, seed=0)
    measure_subjects(TARGET, subjects, ProfilePlan(protocol=protocol), Path(sys.argv[1]), resume=True)
"""


def start(script: Path, directory: Path, log: Path) -> subprocess.Popen[bytes]:
    path = f"{Path(__file__).parent}:{Path.cwd()}"
    return subprocess.Popen(
        [sys.executable, str(script), str(directory), str(log)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        stderr=subprocess.PIPE,
    )


def lines_of(path: Path) -> list[bytes]:
    """Whole lines of a file, which may not be there, or vanish."""
    try:
        return path.read_bytes().split(b"\n")[:-1]
    except FileNotFoundError:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0])
def test_whatever_was_journalled_before_a_kill_is_in_the_table_once_and_nothing_is_measured_twice(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(seed)
    script, directory, log = tmp_path / "profile.py", tmp_path / "here", tmp_path / "log"
    script.write_text(PROFILE)
    planned = (PROBES + NETWORKS) * BLOCKS
    journalled: dict[tuple[str, int], tuple[float, ...]] = {}
    kills = 0
    for moment in sorted(rng.choice(np.arange(1, planned - 2), KILLS, replace=False)):
        process = start(script, directory, log)
        end = time.monotonic() + PATIENCE_S
        while len(lines_of(log)) < moment and process.poll() is None:
            assert time.monotonic() < end
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.03))  # between two lines, in the middle of one, while a table is written
        process.kill()
        stderr = process.communicate(timeout=PATIENCE_S)[1]
        kills += process.returncode < 0
        assert b"Error" not in stderr, stderr.decode()
        for line in lines_of(directory / JOURNAL_NAME)[1:]:
            fields: dict[str, Any] = json.loads(line)
            samples = tuple(fields["samples_s"])
            assert journalled.setdefault((fields["name"], fields["block"]), samples) == samples
    process = start(script, directory, log)
    stderr = process.communicate(timeout=PATIENCE_S)[1]
    assert process.returncode == 0, stderr.decode()

    assert kills == KILLS
    table = read_table(directory)
    monkeypatch.setattr("akd_deploy.profiling.probes.space_probes.__defaults__", (60,))
    names = {subject.name for subject in space_subjects(TARGET, SPACE, PROBES, NETWORKS, seed=0).subjects}
    assert {row.name for row in table.rows} == names
    assert len(names) == PROBES + NETWORKS
    found = {
        (row.name, block): tuple(samples.tolist())
        for row in table.rows
        for block, samples in row.measurement.blocks.items()
    }
    assert {block for _, block in found} == set(range(BLOCKS))
    assert len(found) == planned
    assert journalled.items() <= found.items()
    assert len(journalled) >= KILLS
    # A line may be journalled and not logged, where the kill came in between: never the other way round, nor twice.
    measured = Counter(tuple(line.decode().split()) for line in lines_of(log))
    assert set(measured.values()) == {1}
    assert planned - KILLS <= len(measured) <= planned
    assert not (directory / JOURNAL_NAME).exists()
