"""Networks as users bring them, one of each kind, small: no line here knows of gates."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CLASSES = 7


def _conv(inside: int, outside: int, stride: int = 1, window: int = 3, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inside, outside, window, stride, window // 2, groups=groups, bias=False), nn.BatchNorm2d(outside)
    )


class BasicBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first, self.second = _conv(inside, outside, stride), _conv(outside, outside)
        self.around = nn.Identity() if inside == outside and stride == 1 else _conv(inside, outside, stride, 1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.around(x))


class ResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 8)
        self.blocks = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 12, 2), BasicBlock(12, 12, 1))
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class PreActivation(nn.Module):
    """A block of a wide ResNet."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(inside), nn.BatchNorm2d(outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.around = nn.Conv2d(inside, outside, 1, stride, bias=False) if inside != outside else None

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        out = self.conv2(F.relu(self.norm2(self.conv1(active))))
        return out + (x if self.around is None else self.around(active))


class WideResNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(PreActivation(8, 12, 1), PreActivation(12, 12, 1), PreActivation(12, 16, 2))
        self.norm, self.classifier = nn.BatchNorm2d(16), nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1))


class Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(8, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        )  # fmt: skip
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Linear(12 * 16, 20), nn.ReLU(), nn.Dropout(0.5), nn.Linear(20, CLASSES)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


class InvertedResidual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        hidden = 3 * inside
        self.body = nn.Sequential(
            _conv(inside, hidden, window=1), nn.ReLU6(), _conv(hidden, hidden, stride, groups=hidden), nn.ReLU6()
        )
        self.squeeze = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(hidden, 6, 1), nn.ReLU(), nn.Conv2d(6, hidden, 1), nn.Hardsigmoid()
        )
        self.project = _conv(hidden, outside, window=1)
        self.around = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        y = self.project(y * self.squeeze(y))
        return x + y if self.around else y


class MobileNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 8, 2), nn.Hardswish())
        self.blocks = nn.Sequential(InvertedResidual(8, 8, 1), InvertedResidual(8, 12, 2), InvertedResidual(12, 12, 1))
        self.classifier = nn.Linear(12, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(F.adaptive_avg_pool2d(self.blocks(self.stem(x)), 1), 1))


class DenseNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(8 + 4 * i), nn.ReLU(), nn.Conv2d(8 + 4 * i, 4, 3, padding=1, bias=False))
            for i in range(3)
        )
        self.transition = nn.Sequential(
            nn.BatchNorm2d(20), nn.ReLU(), nn.Conv2d(20, 10, 1, bias=False), nn.AvgPool2d(2)
        )
        self.classifier = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return self.classifier(self.transition(x).mean([2, 3]))


class ConvNextBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.expand, self.project = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(0.5 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        y = self.gamma * self.project(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class ConvNext(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 4, 4)
        self.blocks = nn.Sequential(ConvNextBlock(8), ConvNextBlock(8))
        self.classifier = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.blocks(self.stem(x)).mean((-2, -1)))


class ResNext(nn.Module):
    """Grouped convolutions, a transposed one, a module called twice, and a scale of channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = _conv(3, 12)
        self.grouped = _conv(12, 18, groups=3)
        self.again = _conv(18, 18)
        self.up = nn.ConvTranspose2d(18, 10, 2, 2)
        self.scale = nn.Parameter(torch.rand(1, 10, 1, 1) + 0.5)
        self.classifier = nn.Linear(10, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.grouped(torch.relu(self.stem(x))).relu()
        x = self.again(F.relu(self.again(x)))
        return self.classifier(torch.mean(F.silu(self.up(x) * self.scale), dim=(2, 3)))


KINDS: dict[str, Callable[[], nn.Module]] = {
    "ResNet": ResNet, "WideResNet": WideResNet, "VGG": Vgg, "MobileNet": MobileNet, "DenseNet": DenseNet,
    "ConvNeXt": ConvNext, "ResNeXt": ResNext,
}  # fmt: skip
INPUT_SHAPE = (3, 16, 16)


def network(kind: str, seed: int) -> nn.Module:
    """One of a kind with weights, statistics and scales that are those of no fresh one, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = KINDS[kind]()
        with torch.no_grad():
            for module in made.modules():
                if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                    module.weight.uniform_(0.5, 1.5)
                    module.bias.uniform_(-0.5, 0.5)
                if isinstance(module, nn.BatchNorm2d):
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 2.0)
    return made.eval()
