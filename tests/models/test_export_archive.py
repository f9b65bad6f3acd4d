"""Archives run, and compute what the module does."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from random_students import SPACES, trained_like

from akd_deploy.engines.torch_engine import TorchEngine
from akd_deploy.errors import BuildError
from akd_deploy.models.export_archive import archive_from_layers, archive_from_module
from akd_deploy.target import Target

SPACE = SPACES["digits 12×12"]


def run(path: Path, images: torch.Tensor) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's own use of pytree.LeafSpec
        warnings.simplefilter("ignore", DeprecationWarning)
        module = torch.export.load(path).module()
    with torch.inference_mode():
        return module(images)


def test_an_archive_computes_what_its_module_does(tmp_path: Path) -> None:
    student = trained_like(SPACE.sample(np.random.default_rng(6)), 0)
    images = torch.randn(2, *SPACE.input_shape, generator=torch.Generator().manual_seed(0))
    path = archive_from_module(student, tuple(images.shape), tmp_path / "folder" / "student.pt2")
    with torch.inference_mode():
        assert torch.allclose(run(path, images), student(images), rtol=1e-5, atol=1e-6)


def test_a_stretch_of_layers_is_a_function_of_its_seed(tmp_path: Path) -> None:
    stretch = SPACE.layers(SPACE.sample(np.random.default_rng(2)))[1:3]
    images = torch.ones(1, stretch[0].in_channels, stretch[0].in_size, stretch[0].in_size)
    before = torch.random.get_rng_state()
    results = [
        run(archive_from_layers(stretch, tmp_path / f"{i}.pt2", 1, seed), images) for i, seed in enumerate((1, 1, 2))
    ]
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])
    assert results[0].shape[1] == stretch[-1].out_channels


class _Undecided(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if float(x.sum()) > 0 else x - 1


def test_what_torch_cannot_export_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="_Undecided"):
        archive_from_module(_Undecided(), (1, 3), tmp_path / "never.pt2")
    assert not (tmp_path / "never.pt2").exists()


@pytest.mark.parametrize(("precision", "bits"), [("fp16", 11), ("bf16", 8)])
def test_a_16_bit_archive_computes_in_its_type_between_float32_ends(tmp_path: Path, precision: str, bits: int) -> None:
    student = trained_like(SPACE.sample(np.random.default_rng(6)), 0)
    images = torch.randn(2, *SPACE.input_shape, generator=torch.Generator().manual_seed(0))
    path = archive_from_module(student, tuple(images.shape), tmp_path / "student.pt2", precision)
    kernels = TorchEngine(Target("t", "cpu", "torch", precision, 2)).executed_kernels(path)
    convolutions = [k.kernel for k in kernels if "conv" in k.kernel.op]
    assert {k.dtype for k in convolutions} == {{"fp16": "float16", "bf16": "bfloat16"}[precision]}
    result = run(path, images)
    assert result.dtype == torch.float32
    with torch.inference_mode():
        expected = student(images)
    assert 0 < (result - expected).abs().max() < 2 ** (4 - bits) * expected.abs().max()
    assert {p.dtype for p in student.parameters()} == {torch.float32}  # the student itself stays as it was


def test_an_archive_has_its_batch_norms_folded(tmp_path: Path) -> None:
    student = trained_like(SPACE.sample(np.random.default_rng(6)), 0)
    path = archive_from_module(student, (1, *SPACE.input_shape), tmp_path / "student.pt2")
    operators = {k.kernel.op for k in TorchEngine(Target("t", "cpu", "torch")).executed_kernels(path)}
    assert any("conv" in op for op in operators)
    assert not any("norm" in op for op in operators)


def test_a_module_that_no_trace_follows_keeps_its_batch_norms(tmp_path: Path) -> None:
    class Counted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = torch.nn.Conv2d(1, 2, 3), torch.nn.BatchNorm2d(2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(self.norm(self.conv(x)) for _ in range(x.shape[0]))

    path = archive_from_module(Counted(), (2, 1, 5, 5), tmp_path / "m.pt2")
    operators = [k.kernel.op for k in TorchEngine(Target("t", "cpu", "torch", batch=2)).executed_kernels(path)]
    assert sum("norm" in op for op in operators) == 2


def test_a_precision_torch_does_not_ship_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="int8"):
        archive_from_module(torch.nn.ReLU(), (1, 3), tmp_path / "never.pt2", "int8")
