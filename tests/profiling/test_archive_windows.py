"""Windows of archives run on their own, and compute what their stretch of the network does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from akd_deploy.engines.torch_engine import TorchEngine
from akd_deploy.latency_table import NETWORK, PROBE
from akd_deploy.models.export_archive import archive_from_inputs
from akd_deploy.profiling.archive_windows import MAX_NODES, archive_windows
from akd_deploy.profiling.blocks import Protocol
from akd_deploy.profiling.profile import ProfilePlan, profile_models
from akd_deploy.target import Target


class Small(nn.Module):
    """An embedding, attention, a convolution, views and a functional sum: what windows may run across."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(20, 16)
        self.attention = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.convolution = nn.Sequential(nn.Conv1d(16, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU())

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.attention(self.embedding(tokens)).transpose(1, 2)
        return (x + self.convolution(x)).flatten(1)[:, ::2]


TOKENS = torch.arange(2 * 12).reshape(2, 12) % 20


def archive(folder: Path, precision: str = "fp32") -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return archive_from_inputs(Small(), (TOKENS,), folder / f"small-{precision}.pt2", precision)


def test_every_operator_is_in_a_window_that_the_engine_runs(tmp_path: Path) -> None:
    engine = TorchEngine(Target("t", "cpu", "torch", "fp16", 2))
    path = archive(tmp_path, "fp16")
    windows = archive_windows(path, 30, np.random.default_rng(0))
    assert len({window.name for window in windows}) == len(windows) > 10
    assert {(window.kind, window.family) for window in windows} == {(PROBE, path.stem)}
    whole = {executed.kernel for executed in engine.executed_kernels(path)}
    found = set()
    for window in windows:
        file = window.write(tmp_path)
        with engine.load(file) as session:
            result = session.run({s.name: np.zeros(s.shape, s.dtype) for s in session.inputs})
        assert all(np.isfinite(value).all() for value in result.values())
        kernels = [executed.kernel for executed in engine.executed_kernels(file)]
        assert 1 <= len(kernels) <= MAX_NODES
        found |= set(kernels)
    assert found <= whole
    assert {k.op for k in found} == {k.op for k in whole}


def test_a_window_computes_what_its_stretch_does(tmp_path: Path) -> None:
    windows = archive_windows(archive(tmp_path), 60, np.random.default_rng(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Small().eval()
    first = next(w for w in windows if [tuple(x.shape) for x in w.inputs] == [(2, 12)])
    assert torch.equal(first.module(TOKENS)[0].reshape(-1, 16)[0], network.embedding(TOKENS)[0, 0])


def test_equal_seeds_give_equal_windows(tmp_path: Path) -> None:
    path = archive(tmp_path)
    names = [[w.name for w in archive_windows(path, 15, np.random.default_rng(seed))] for seed in (1, 1, 2)]
    assert names[0] == names[1] != names[2]


def test_a_profile_of_archives_has_their_windows_and_the_whole_ones_for_calibration(tmp_path: Path) -> None:
    path = archive(tmp_path)
    target = Target("t", "cpu", "torch", "fp32", 2, engine_options={"mode": "eager", "device": "cpu", "threads": 1})
    plan = ProfilePlan(probes=6, networks=0, protocol=Protocol(blocks=1))
    table, _ = profile_models(target, [path], plan, tmp_path / "table", whole=[path])
    assert [row.family for row in table.of_kind(NETWORK)] == [path.stem]
    assert len(table.of_kind(PROBE)) == 6
    assert all(row.measurement.median_s > 0 for row in table.rows)
