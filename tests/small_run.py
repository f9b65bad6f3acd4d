"""A run that is past its training: what `export` and `bundle` ask of it, around one small untrained student."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from akd_deploy.configuration import ExportTable
from akd_deploy.data import Split
from akd_deploy.models.student import load_student, save_student, student_from_architecture
from akd_deploy.pipeline import deliver
from akd_deploy.search_space import load_space
from akd_deploy.target import Target

CPU_FP32 = Target("cpu_fp32", "cpu", "onnxruntime")
CPU_INT8 = Target("cpu_int8", "cpu", "onnxruntime", "int8")
OPENVINO_FP32 = Target("openvino_fp32", "cpu", "openvino")


def small_run(folder: Path, *targets: Target) -> tuple[Any, dict[str, Any]]:
    """The run, whose own target is the first, and the results its `bundle` stage reads; it was really exported."""
    space = load_space("mobile", {"widths": [8, 8], "strides": [1, 2], "layers": [[1], [1]], "stem_width": 8})
    architecture = space.sample(np.random.default_rng(0))
    (folder / "students").mkdir(parents=True)
    save_student(student_from_architecture(architecture, seed=1), folder / "students" / "s.safetensors")
    (folder / "run.toml").write_text('target = "t"\n', encoding="utf-8")
    images = np.random.default_rng(1).standard_normal((8, *space.input_shape), dtype=np.float32)
    split = Split(images, np.zeros(8, np.int64), np.arange(8))
    run = SimpleNamespace(
        directory=folder,
        target=targets[0],
        targets={target.name: target for target in targets},
        configuration=SimpleNamespace(export=ExportTable()),
        bed=SimpleNamespace(
            dataset=SimpleNamespace(tuning_val=split, test=split, provenance={"name": "noise"}),
            calibration_images=lambda count: images[:count],
        ),
        student=load_student,
        prediction=lambda _: SimpleNamespace(latency_s=1e-3, interval_s=(0.9e-3, 1.1e-3)),
        on_progress=lambda what, done, total: None,
    )
    distilled = {"student": "s.safetensors", "accuracy": 0.5, "seed": 1}
    results: dict[str, Any] = {"distill": {"chosen": distilled}}
    results["export"] = deliver.export(run, results)
    statistics = {"median": 1e-3, "p90": 1.1e-3, "p99": 1.2e-3}
    results |= {
        "confirm": {"winner": {"arch": architecture.as_dict()}},
        "budget": {"budget_s": 2e-3},
        "teacher": {"source": "module", "sha256": "0" * 64, "parameters": 1},
        "measure": {
            "measured": {targets[0].name: {"latency_stats_s": statistics, "blocks": {"0": [1e-3]}}},
            "certificate": {"percentile": 90, "confidence": 0.99, "samples": 1000, "exceeding": 2, "ok": True},
        },
    }
    return run, results


def small_bundle(folder: Path, *targets: Target) -> Path:
    """The bundle of such a run."""
    run, results = small_run(folder, *targets)
    made = deliver.bundle(run, results)
    assert made["ok"]
    return folder / str(made["path"])
