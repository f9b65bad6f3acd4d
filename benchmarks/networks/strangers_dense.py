"""Networks of images to maps and images: YOLOX, poses, Fast-SCNN, style transfer, DCGAN, FSRCNN, RCAN."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.networks.blocks import ConvNorm, InvertedResidual, SqueezeExcite
from benchmarks.networks.resnets import Residual


def _step(in_channels: int, out_channels: int, stride: int = 1) -> nn.Module:
    """YOLOX-Nano's 3×3 convolution: depthwise, then 1×1; SiLU after both."""
    return nn.Sequential(
        ConvNorm(in_channels, in_channels, 3, stride, groups=in_channels, activation=nn.SiLU),
        ConvNorm(in_channels, out_channels, activation=nn.SiLU),
    )


class Shortened(nn.Module):
    """Bottleneck: 1×1, 3×3, (added to its input)."""

    def __init__(self, width: int, residual: bool) -> None:
        super().__init__()
        self.layers = nn.Sequential(ConvNorm(width, width, activation=nn.SiLU), _step(width, width))
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class CrossStage(nn.Module):
    """Half of the channels through bottlenecks, half around them (Wang et al. 2019, arXiv:1911.11929)."""

    def __init__(self, in_channels: int, out_channels: int, depth: int, residual: bool = True) -> None:
        super().__init__()
        half = out_channels // 2
        self.through = nn.Sequential(
            ConvNorm(in_channels, half, activation=nn.SiLU), *(Shortened(half, residual) for _ in range(depth))
        )
        self.around = ConvNorm(in_channels, half, activation=nn.SiLU)
        self.fuse = ConvNorm(out_channels, out_channels, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        return self.fuse(torch.cat([self.through(x), self.around(x)], dim=1))


class PooledPyramid(nn.Module):
    """Maxima of windows of 5, 9 and 13 beside the features themselves (arXiv:1406.4729, as detectors have it)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.reduce = ConvNorm(channels, channels // 2, activation=nn.SiLU)
        self.pools = nn.ModuleList(nn.MaxPool2d(size, 1, size // 2) for size in (5, 9, 13))
        self.fuse = ConvNorm(2 * channels, channels, activation=nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return self.fuse(torch.cat([x, *(pool(x) for pool in self.pools)], dim=1))


class DecoupledHead(nn.Module):
    """Classes apart from boxes and objectness; no anchors."""

    def __init__(self, channels: int, width: int, classes: int) -> None:
        super().__init__()
        self.stem = ConvNorm(channels, width, activation=nn.SiLU)
        self.class_steps = nn.Sequential(_step(width, width), _step(width, width))
        self.box_steps = nn.Sequential(_step(width, width), _step(width, width))
        self.scores, self.boxes, self.objects = (nn.Conv2d(width, out, 1) for out in (classes, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        boxes = self.box_steps(x)
        scores = torch.sigmoid(self.scores(self.class_steps(x)))
        return torch.cat([self.boxes(boxes), torch.sigmoid(self.objects(boxes)), scores], dim=1).flatten(2)


class Yolox(nn.Module):
    """Ge et al. 2021, arXiv:2107.08430: cross-stage trunk, paths down and up again, decoupled heads.

    Image → (batch, places, 5 + classes). The stem takes every second pixel (four images of half the side).
    """

    def __init__(self, width: int = 16, classes: int = 80) -> None:
        super().__init__()
        w2, w4, w8, w16 = (width * factor for factor in (2, 4, 8, 16))
        self.stem = ConvNorm(12, width, 3, activation=nn.SiLU)
        self.low = nn.Sequential(*(_step(width, w2, 2), CrossStage(w2, w2, 1), _step(w2, w4, 2), CrossStage(w4, w4, 3)))
        self.middle = nn.Sequential(_step(w4, w8, 2), CrossStage(w8, w8, 3))
        self.high = nn.Sequential(_step(w8, w16, 2), PooledPyramid(w16), CrossStage(w16, w16, 1, residual=False))
        self.lateral = nn.ModuleList([ConvNorm(w16, w8, activation=nn.SiLU), ConvNorm(w8, w4, activation=nn.SiLU)])
        self.down = nn.ModuleList([CrossStage(w16, w8, 1, residual=False), CrossStage(w8, w4, 1, residual=False)])
        self.strided = nn.ModuleList([_step(w4, w4, 2), _step(w8, w8, 2)])
        self.up = nn.ModuleList([CrossStage(w8, w8, 1, residual=False), CrossStage(w16, w16, 1, residual=False)])
        self.heads = nn.ModuleList(DecoupledHead(channels, w4, classes) for channels in (w4, w8, w16))

    def forward(self, image: Tensor) -> Tensor:
        corners = [image[..., row::2, column::2] for column in (0, 1) for row in (0, 1)]
        low = self.low(self.stem(torch.cat(corners, dim=1)))
        middle = self.middle(low)
        high = self.lateral[0](self.high(middle))
        enlarged = F.interpolate(high, scale_factor=2.0, mode="nearest")
        middle = self.lateral[1](self.down[0](torch.cat([enlarged, middle], dim=1)))
        enlarged = F.interpolate(middle, scale_factor=2.0, mode="nearest")
        fine = self.down[1](torch.cat([enlarged, low], dim=1))
        middle = self.up[0](torch.cat([self.strided[0](fine), middle], dim=1))
        coarse = self.up[1](torch.cat([self.strided[1](middle), high], dim=1))
        found = [head(level) for head, level in zip(self.heads, (fine, middle, coarse), strict=True)]
        return torch.cat(found, dim=2).transpose(1, 2)


def yolox_nano() -> nn.Module:
    return Yolox()


def pose_short() -> nn.Module:
    """Xiao et al. 2018, arXiv:1804.06208: a ResNet, three deconvolutions, a heat map for each of 17 joints.

    The trunk has one basic block a stage, and the deconvolutions 128 channels, not 256.
    """
    layers: list[nn.Module] = [ConvNorm(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    channels = 64
    for width in (64, 128, 256, 512):
        stride = 1 if width == 64 else 2
        body = nn.Sequential(ConvNorm(channels, width, 3, stride), ConvNorm(width, width, 3, activation=None))
        layers.append(Residual(body, channels, width, stride))
        channels = width
    for _ in range(3):
        layers += [nn.ConvTranspose2d(channels, 128, 4, 2, 1, bias=False), nn.BatchNorm2d(128), nn.ReLU()]
        channels = 128
    return nn.Sequential(*layers, nn.Conv2d(channels, 17, 1))


class PyramidPooling(nn.Module):
    """Means of 1, 4, 9 and 36 parts of the image, enlarged, beside it (Zhao et al. 2017, arXiv:1612.01105)."""

    def __init__(self, channels: int, sides: tuple[int, int]) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Sequential(nn.AvgPool2d((sides[0] // parts, sides[1] // parts)), ConvNorm(channels, channels // 4))
            for parts in (1, 2, 3, 6)
        )
        self.fuse = ConvNorm(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        means = [F.interpolate(branch(x), x.shape[2:], mode="bilinear") for branch in self.branches]
        return self.fuse(torch.cat([x, *means], dim=1))


def _separable(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    depthwise = ConvNorm(in_channels, in_channels, 3, stride, groups=in_channels)
    return nn.Sequential(depthwise, ConvNorm(in_channels, out_channels))


class FastScnn(nn.Module):
    """Poudel et al. 2019, arXiv:1902.04502, table 1."""

    def __init__(self, sides: tuple[int, int], classes: int = 19) -> None:
        super().__init__()
        self.first = nn.Sequential(ConvNorm(3, 32, 3, 2), _separable(32, 48, 2), _separable(48, 64, 2))
        layers: list[nn.Module] = []
        channels = 64
        for width, stride in ((64, 2), (96, 2), (128, 1)):
            for block in range(3):
                first = stride if block == 0 else 1
                layers.append(InvertedResidual(channels, width, 6 * channels, 3, first, nn.ReLU))
                channels = width
        self.context = nn.Sequential(*layers, PyramidPooling(128, (sides[0] // 32, sides[1] // 32)))
        self.dilated = nn.Sequential(
            nn.Conv2d(128, 128, 3, padding=4, dilation=4, groups=128, bias=False), nn.BatchNorm2d(128), nn.ReLU()
        )
        self.coarse = nn.Conv2d(128, 128, 1)
        self.fine = nn.Conv2d(64, 128, 1)
        self.classify = nn.Sequential(_separable(128, 128, 1), _separable(128, 128, 1), nn.Conv2d(128, classes, 1))

    def forward(self, image: Tensor) -> Tensor:
        fine = self.first(image)
        context = F.interpolate(self.context(fine), fine.shape[2:], mode="bilinear")
        fused = F.relu(self.coarse(self.dilated(context)) + self.fine(fine))
        return F.interpolate(self.classify(fused), image.shape[2:], mode="bilinear")


def fast_scnn() -> nn.Module:
    return FastScnn((192, 384))


def _styled(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    """Reflected borders, convolution, instance norm."""
    return [
        nn.ReflectionPad2d(kernel_size // 2),
        nn.Conv2d(in_channels, out_channels, kernel_size, stride),
        nn.InstanceNorm2d(out_channels, affine=True),
    ]


class StyleBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*_styled(width, width, 3), nn.ReLU(), *_styled(width, width, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


def style_transfer() -> nn.Module:
    """Johnson et al. 2016, arXiv:1603.08155, with instance norms (arXiv:1607.08022) and enlarging by neighbours."""
    enlarge = nn.Upsample(scale_factor=2.0, mode="nearest")
    return nn.Sequential(
        *(*_styled(3, 32, 9), nn.ReLU(), *_styled(32, 64, 3, 2), nn.ReLU(), *_styled(64, 128, 3, 2), nn.ReLU()),
        *(StyleBlock(128) for _ in range(5)),
        *(enlarge, *_styled(128, 64, 3), nn.ReLU(), enlarge, *_styled(64, 32, 3), nn.ReLU()),
        *(nn.ReflectionPad2d(4), nn.Conv2d(32, 3, 9)),
    )


def dcgan_generator() -> nn.Module:
    """Radford et al. 2016, arXiv:1511.06434, figure 1, with 4×4 kernels and half of its width: 100 numbers → 64×64."""
    layers: list[nn.Module] = [nn.Linear(100, 512 * 16), nn.Unflatten(1, (512, 4, 4)), nn.BatchNorm2d(512), nn.ReLU()]
    channels = 512
    for width in (256, 128, 64):
        layers += [nn.ConvTranspose2d(channels, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers, nn.ConvTranspose2d(channels, 3, 4, 2, 1), nn.Tanh())


def fsrcnn_x3() -> nn.Module:
    """Dong et al. 2016, arXiv:1608.00367, FSRCNN(56, 12, 4): a deconvolution of 9×9 enlarges by 3."""
    layers: list[nn.Module] = [nn.Conv2d(1, 56, 5, padding=2), nn.PReLU(56), nn.Conv2d(56, 12, 1), nn.PReLU(12)]
    for _ in range(4):
        layers += [nn.Conv2d(12, 12, 3, padding=1), nn.PReLU(12)]
    layers += [nn.Conv2d(12, 56, 1), nn.PReLU(56)]
    return nn.Sequential(*layers, nn.ConvTranspose2d(56, 1, 9, 3, padding=4, output_padding=2))


class Added(nn.Sequential):
    """The layers' output added to their input."""

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for layer in self:
            y = layer(y)
        return x + y


def _attending(width: int) -> nn.Module:
    convolutions = [nn.Conv2d(width, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)]
    return Added(*convolutions, SqueezeExcite(width, width // 16))


def rcan_short_x2(groups: int = 2, depth: int = 4, width: int = 64) -> nn.Module:
    """Zhang et al. 2018, arXiv:1807.02758: two groups of four blocks, not ten of twenty."""

    def group() -> nn.Module:
        return Added(*(_attending(width) for _ in range(depth)), nn.Conv2d(width, width, 3, padding=1))

    body = Added(*(group() for _ in range(groups)), nn.Conv2d(width, width, 3, padding=1))
    enlarge = [nn.Conv2d(width, 4 * width, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(width, 3, 3, padding=1)]
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), body, *enlarge)


def rcan_x2() -> nn.Module:
    """At its published depth; here for its parameter count."""
    return rcan_short_x2(10, 20)
