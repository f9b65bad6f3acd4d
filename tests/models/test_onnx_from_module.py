"""torch's exporter and our writer make the same network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from random_students import SPACES, trained_like

from akd_deploy.errors import BuildError
from akd_deploy.models.onnx_from_module import onnx_from_module, quick_onnx
from akd_deploy.models.onnx_from_student import onnx_from_student

SPACE = SPACES["colour 32×32"]


def test_torchs_export_of_a_student_computes_what_ours_does(tmp_path: Path) -> None:
    student = trained_like(SPACE.sample(np.random.default_rng(5)), 0)
    shape = (2, *SPACE.input_shape)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    results = []
    for path in (
        onnx_from_module(student, shape, tmp_path / "folder" / "torch.onnx"),
        onnx_from_student(student, tmp_path / "ours.onnx", batch=2),
    ):
        onnx.checker.check_model(path, full_check=True)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [(value.name, tuple(value.shape)) for value in session.get_inputs()] == [("input", shape)]
        results.append(session.run(["logits"], {"input": images})[0])
    np.testing.assert_allclose(results[0], results[1], rtol=1e-4, atol=1e-4 * np.abs(results[1]).max())


def test_the_quick_export_computes_the_same_and_never_freezes_what_depends_on_the_data(tmp_path: Path) -> None:
    student = trained_like(SPACE.sample(np.random.default_rng(5)), 0)
    shape = (2, *SPACE.input_shape)
    images = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    path = quick_onnx(student, shape, tmp_path / "folder" / "quick.onnx")
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(["logits"], {"input": images})
    expected = student(torch.tensor(images)).detach().numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    with pytest.raises(BuildError):
        quick_onnx(_Undecided(), (1, 3), tmp_path / "undecided.onnx")


class _Undecided(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if float(x.sum()) > 0 else x - 1


def test_what_torch_cannot_export_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="_Undecided"):
        onnx_from_module(_Undecided(), (1, 3), tmp_path / "never.onnx")
    assert not (tmp_path / "never.onnx").exists()
