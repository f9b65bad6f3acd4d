"""Spaces of students, and students whose batch norms have something to fold."""

from __future__ import annotations

import torch

from akd_deploy.architecture import Architecture
from akd_deploy.models.student import Student, student_from_architecture
from akd_deploy.search_space import SearchSpace, load_space

SPACES: dict[str, SearchSpace] = {
    "digits 12×12": load_space("mobile"),
    "colour 32×32": load_space(
        "mobile",
        {"resolution": 32, "in_channels": 3, "stem_width": 12, "widths": [16, 20, 28], "kernels": [3, 5, 7],
         "strides": [2, 1, 2], "activation": "hardswish"},
    ),
    "photographs 64×64": load_space(
        "mobile",
        {"resolution": 64, "in_channels": 3, "classes": 100, "stem_stride": 2, "widths": [16, 24, 32],
         "strides": [2, 2, 2]},
    ),
    "add-ons 15×15": load_space(
        "augmented", {"resolution": 15, "widths": [12, 16], "strides": [1, 2], "depths": [2, 1], "backbone": "mbconv3"}
    ),
    "odd 17×17": load_space(
        "mobile", {"resolution": 17, "widths": [12, 16], "strides": [2, 3], "layers": [[1, 2], [1, 2]]}
    ),
}  # fmt: skip


def trained_like(architecture: Architecture, seed: int) -> Student:
    """A student in evaluation mode whose batch-norm statistics, scales and biases are those of no fresh one."""
    student = student_from_architecture(architecture, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in student.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                ):
                    assert tensor is not None
                    tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
            elif getattr(module, "bias", None) is not None:
                module.bias.copy_(torch.rand(module.bias.shape, generator=generator) - 0.5)
    return student.eval()
