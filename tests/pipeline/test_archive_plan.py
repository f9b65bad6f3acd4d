"""Archives are planned by what their stretches tell, listed in memory as the engine lists their files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

from akd_deploy.engines.torch_engine import TorchEngine
from akd_deploy.engines.torch_graph import recorded_kernels
from akd_deploy.models.export_archive import archive_from_inputs
from akd_deploy.pipeline.archive_plan import plan_archives
from akd_deploy.pipeline.expected_error import Enough
from akd_deploy.profiling.archive_windows import archive_windows
from akd_deploy.target import Target


def test_stretches_of_archives_come_in_the_order_of_what_they_tell(tmp_path: Path) -> None:
    layers = [nn.Sequential(nn.Conv2d(4 * n, 4 * n + 4, 3), nn.ReLU(), nn.BatchNorm2d(4 * n + 4)) for n in (1, 2, 3)]
    path = archive_from_inputs(nn.Sequential(*layers), (torch.zeros(1, 4, 16, 16),), tmp_path / "net.pt2", "fp32")
    target = Target("t", "cpu", "torch")
    engine = TorchEngine(target)
    for window in archive_windows(path, 6, np.random.default_rng(0)):
        listed = recorded_kernels(window.module, window.inputs, keep_views=True)
        written = engine.executed_kernels(window.write(tmp_path))
        assert [one.kernel for one in listed] == [one.kernel for one in written]
    plan = plan_archives(target, [path], Enough(5, least_gain=None), 0, whole=[path])
    assert plan.probes == 5 == len(plan.errors)
    assert list(plan.errors) == sorted(plan.errors, reverse=True)
    assert plan.expected is not None
    names = [subject.name for subject in plan.subjects.subjects if subject.kind == "probe"]
    assert plan.expected.of(names) == plan.errors[-1]
    assert sum(subject.kind == "network" for subject in plan.subjects.subjects) == 1
