"""A run that measures more into a table goes on as the table was begun."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from synthetic_device import header

from akd_deploy.latency_table import LatencyTable, write_table
from akd_deploy.pipeline import prepare, shrink
from akd_deploy.pipeline.probe_plan import STRETCHES
from akd_deploy.profiling.profile import PROFILE
from akd_deploy.target import Target

OTHER = replace(PROFILE, warmup_s=0.007, seconds=0.02, min_samples=33, max_samples=77)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """As far as profiling looks at one; its table's folder is `tables`."""
    monkeypatch.setattr(prepare, "used_or_measured", lambda run, share, least, measure: measure(run.tables))
    configuration = SimpleNamespace(profile=SimpleNamespace(probes=8, networks=2, blocks=4), seed=5)
    return SimpleNamespace(
        configuration=configuration,
        target=Target("cpu_onnxruntime_fp32", "cpu", "onnxruntime"),
        space=None,
        tables=tmp_path / "table",
        rng=lambda name: np.random.default_rng(0),
        on_progress=lambda *told: None,
    )


@pytest.mark.parametrize("begun", [None, OTHER])
@pytest.mark.parametrize(("module", "own"), [(prepare, PROFILE), (shrink, STRETCHES)])
def test_samples_are_taken_as_the_table_there_has_them(monkeypatch, run, module, own, begun):
    """Tables of spaces and of given networks are begun with other settings, and one device has one table."""
    asked = []
    if begun is not None:
        write_table(LatencyTable(replace(header(), protocol=begun.header()), ()), run.tables)
    if module is prepare:
        monkeypatch.setattr(prepare, "profile_target", lambda target, space, plan, *_, **__: (asked.append(plan), 1.0))
    else:
        profiled = SimpleNamespace(seconds=1.0)
        monkeypatch.setattr(shrink, "_examples", lambda run: [])
        monkeypatch.setattr(shrink, "_whole_parts", lambda run: [])
        monkeypatch.setattr(shrink, "given_networks", lambda paths, batch: [])
        planned = SimpleNamespace(subjects=None, seconds=0.0)
        monkeypatch.setattr(shrink, "plan_probes", lambda *_, **__: planned)
        monkeypatch.setattr(
            shrink, "measure_subjects", lambda target, subjects, plan, *_, **__: (asked.append(plan), profiled)[1]
        )
    module.profile(run, {})
    (plan,) = asked
    expected = replace(own if begun is None else begun, blocks=4)
    assert plan.protocol.header() == expected.header()
    assert plan.protocol.blocks == 4
