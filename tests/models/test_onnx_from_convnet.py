"""The ONNX of our own teacher computes what its module does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from akd_deploy.models.convnet import ConvNetSettings, convnet
from akd_deploy.models.onnx_from_convnet import onnx_from_convnet


@pytest.mark.parametrize("size", [12, 17, 32])
@pytest.mark.parametrize("settings", [ConvNetSettings(), ConvNetSettings(3, 7, (8, 16, 16, 24), depth=3)])
def test_the_onnx_of_a_convnet_computes_what_it_does(settings: ConvNetSettings, size: int, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    network = convnet(settings, generator)
    for parameter in network.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, 0.5, 0.2, generator=generator)
    shape = (2, settings.in_channels, size, size)
    network.train()(torch.randn((64, *shape[1:]), generator=generator))  # running statistics like a trained one's
    images = torch.randn(shape, generator=generator)
    path = onnx_from_convnet(network.eval(), shape, tmp_path / "teacher.onnx")
    onnx.checker.check_model(path, full_check=True)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert [(value.name, tuple(value.shape)) for value in session.get_inputs()] == [("input", shape)]
    with torch.no_grad():
        expected = network(images).numpy()
    np.testing.assert_allclose(session.run(["logits"], {"input": images.numpy()})[0], expected, rtol=1e-4, atol=1e-5)
