"""A plain convolutional network, sized by resolution and classes: the teacher we train where none is given."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from akd_deploy.errors import CorruptFileError, MismatchError, UsageError
from akd_deploy.models.weights import read_weights
from akd_deploy.storage import write_atomically

_METADATA_KEY = "convnet"


@dataclass(frozen=True)
class ConvNetSettings:
    """`widths[k]` channels in stage k, each of `depth` 3×3 convolutions with batch norm and ReLU.

    Each stage but the first starts with stride 2. The default is a teacher for 12×12 digits.
    """

    in_channels: int = 1
    classes: int = 10
    widths: tuple[int, ...] = (24, 48, 96)
    depth: int = 2

    def __post_init__(self) -> None:
        object.__setattr__(self, "widths", tuple(self.widths))
        if min((self.in_channels, self.depth, *self.widths), default=0) < 1 or self.classes < 2 or not self.widths:
            raise UsageError(
                asked=f"a convolutional network of {self.as_dict()}",
                found="a number that is too low",
                next="Give at least 2 classes, and 1 channel, convolution and stage.",
            )

    def as_dict(self) -> dict[str, object]:
        return {**asdict(self), "widths": list(self.widths)}


class ConvNet(nn.Module):
    """(batch, in_channels, H, W) float32 → (batch, classes) logits, for any H and W."""

    def __init__(self, settings: ConvNetSettings) -> None:
        super().__init__()
        self.settings = settings
        layers: list[nn.Module] = []
        channels = settings.in_channels
        for stage, width in enumerate(settings.widths):
            for layer in range(settings.depth):
                stride = 2 if stage and layer == 0 else 1
                layers += [
                    nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(channels, settings.classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.features(images).mean(dim=(2, 3)))


def convnet(settings: ConvNetSettings, generator: torch.Generator) -> ConvNet:
    """A network with fresh weights: He normal for convolutions, small normal for the classifier."""
    network = ConvNet(settings)
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5, generator=generator)
            nn.init.zeros_(module.bias)
    return network


def default_widths(resolution: int) -> tuple[int, ...]:
    """Stage widths of our teacher: 24, 48, 96 up to 16 pixels, and one doubled stage more each time that doubles."""
    widths, size = [24, 48, 96], 16
    while size < resolution and len(widths) < 5:
        widths.append(widths[-1] * 2)
        size *= 2
    return tuple(widths)


def save_convnet(network: ConvNet, path: Path) -> Path:
    """Write weights and settings to one `.safetensors` file (the settings as JSON in its metadata), atomically.

    Raises:
        StorageError: the place cannot be written.
    """
    from safetensors.torch import save

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    metadata = {_METADATA_KEY: json.dumps({"format": 1, **network.settings.as_dict()}, sort_keys=True)}
    write_atomically(path, save(tensors, metadata=metadata))
    return path


def load_convnet(path: Path) -> ConvNet:
    """Read what `save_convnet` wrote; the network is in evaluation mode.

    Raises:
        MissingFileError, CorruptFileError: the file is not there, or not such a file.
        MismatchError: its weights do not belong to its settings.
    """
    from safetensors import safe_open

    state = read_weights(path)
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_METADATA_KEY)
    if text is None:
        raise CorruptFileError(
            asked=f"a convolutional teacher of ours in {path}",
            found="weights without its settings",
            next='Give other networks as factory = "package.module:function" with weights, or as ONNX.',
        )
    fields = json.loads(text)
    version = fields.pop("format", None)
    if version != 1:
        raise CorruptFileError(
            asked=f"a convolutional teacher of format 1 in {path}",
            found=f"format {version}",
            next="Read it with the version of akd-deploy that wrote it, or train it again.",
        )
    network = ConvNet(ConvNetSettings(**fields))
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise MismatchError(
            asked=f"the weights of {fields} in {path}", found=str(error), next="Train or copy it again."
        ) from error
    return network.eval()
