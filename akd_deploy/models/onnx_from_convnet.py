"""The ONNX of our own teacher: at once, where torch's exporter takes seconds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from akd_deploy.models.convnet import ConvNet
from akd_deploy.models.onnx_from_student import BATCH_NORM, folded_batch_norm, model_of
from akd_deploy.search_space.operations import INPUT, Operation
from akd_deploy.storage import write_atomically


def onnx_from_convnet(network: ConvNet, input_shape: Sequence[int], path: Path) -> Path:
    """Write a network for inputs of exactly `input_shape` to `path`, batch norms folded, and return the path.

    Args:
        input_shape: (batch, C, H, W) with H = W.
    """
    batch, channels, size, width = input_shape
    assert size == width, f"operations are square, not {size} × {width}"
    steps: list[Operation] = []
    weights: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    source = INPUT
    convolutions = [module for module in network.features if isinstance(module, nn.Conv2d)]
    norms = [module for module in network.features if isinstance(module, nn.BatchNorm2d)]
    for i, (convolution, norm) in enumerate(zip(convolutions, norms, strict=True)):
        stride, wider = convolution.stride[0], convolution.out_channels
        out_size = (size - 1) // stride + 1
        name = f"features.{i}"
        steps.append(Operation(name, "conv", (source,), channels, wider, size, out_size, 3, stride, activation="relu"))
        state = norm.state_dict()
        weights[name] = folded_batch_norm(_array(convolution.weight), {key: _array(state[key]) for key in BATCH_NORM})
        source, channels, size = name, wider, out_size
    classifier = network.classifier
    steps += [
        Operation("pool", "global_pool", (source,), channels, channels, size, 1),
        Operation("classifier", "linear", ("pool",), channels, classifier.out_features, 1, 1, batch_norm=False),
    ]
    weights["classifier"] = (_array(classifier.weight), _array(classifier.bias))
    model = model_of(steps, lambda step: weights[step.name], batch, "convnet")
    write_atomically(path, model.SerializeToString())
    return path


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()
