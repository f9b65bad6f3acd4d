"""Archives run, and compute what the module does."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from random_students import SPACES, trained_like

from akd_deploy.errors import BuildError
from akd_deploy.models.export_archive import archive_from_layers, archive_from_module

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
