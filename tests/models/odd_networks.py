"""What people write between two convolutions: each a function of features and a module that holds what it needs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INPUT_SHAPE, WIDTH, CLASSES = (3, 8, 8), 8, 5
Between = Callable[["Odd", Tensor], Tensor]


class Odd(nn.Module):
    """A convolution with a norm, what is odd, a convolution, a classifier."""

    def __init__(self, between: Between, inside: int = WIDTH, **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(3, WIDTH, 3, padding=1), nn.BatchNorm2d(WIDTH)
        self.second, self.classifier = nn.Conv2d(inside, 12, 3, padding=1), nn.Linear(12, CLASSES)
        for name, part in parts.items():
            setattr(self, name, nn.Parameter(part) if isinstance(part, Tensor) else part)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        x = self.between(self, F.relu(self.norm(self.first(x))))
        return self.classifier(F.relu(self.second(x)).mean((2, 3)))


def _conv(inside: int = WIDTH, outside: int = WIDTH, **more: int) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, padding=1, **more)


def _scale(*shape: int) -> Tensor:
    return torch.rand(*shape) + 0.5


def _tokens(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def _maps(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).reshape(-1, WIDTH, 8, 8)


def _twice(net: Odd, x: Tensor) -> Tensor:
    for _ in range(2):
        x = x + net.inner_norm(net.inner(F.relu(x)))
    return x


def _twice_without_norm(net: Odd, x: Tensor) -> Tensor:
    for _ in range(2):
        x = x + net.inner(F.relu(x))
    return x


def _plus(x: Tensor, y: Tensor) -> Tensor:
    return x + y


def _viewed(net: Odd, x: Tensor) -> Tensor:
    x = net.outer(x)
    return x + net.inner(torch.relu_(x.view(-1, WIDTH, 8, 8)))


def _attended(net: Odd, x: Tensor) -> Tensor:
    tokens = _tokens(x)
    return x + _maps(net.attention(tokens, tokens, tokens)[0])


def _classed(net: Odd, x: Tensor) -> Tensor:
    tokens = _tokens(x)
    tokens = torch.cat((net.token.expand(tokens.shape[0], -1, -1), tokens), 1)
    return _maps((tokens + net.narrow(F.gelu(net.wide(tokens))))[:, 1:])


def _squeezed(net: Odd, x: Tensor) -> Tensor:
    batch, channels, _, _ = x.shape
    weights = torch.sigmoid(net.up(F.relu(net.down(F.adaptive_avg_pool2d(x, 1).view(batch, channels)))))
    return x * weights.view(batch, channels, 1, 1).expand_as(x)


def _halves(net: Odd, x: Tensor) -> Tensor:
    a, b = torch.chunk(x, chunks=2, dim=1)
    return a * torch.sigmoid(b)


ODD: dict[str, Callable[[], Odd]] = {
    # Scales of channels, however they are brought to shape.
    "scale": lambda: Odd(lambda net, x: x * net.scale, scale=_scale(WIDTH, 1, 1)),
    "scale viewed": lambda: Odd(lambda net, x: x * net.scale.view(1, -1, 1, 1), scale=_scale(WIDTH)),
    "scale reshaped": lambda: Odd(lambda net, x: x.mul(net.scale.reshape((1, -1, 1, 1))), scale=_scale(WIDTH)),
    "scale unsqueezed": lambda: Odd(lambda net, x: net.scale.unsqueeze(-1).unsqueeze(-1) * x, scale=_scale(WIDTH)),
    "scale indexed": lambda: Odd(lambda net, x: x * net.scale[None, :, None, None], scale=_scale(WIDTH)),
    "scale bounded": lambda: Odd(lambda net, x: x * torch.sigmoid(net.scale), scale=_scale(1, WIDTH, 1, 1)),
    "scale twice": lambda: Odd(lambda net, x: x * net.scale + net.scale, scale=_scale(WIDTH, 1, 1)),
    "scale in numbers": lambda: Odd(lambda net, x: x * net.scale.view(1, WIDTH, 1, 1), scale=_scale(WIDTH)),
    "scale of positions": lambda: Odd(lambda net, x: x * net.scale, scale=_scale(8, 8)),
    "scale of the whole map": lambda: Odd(lambda net, x: x + net.scale, scale=_scale(1, WIDTH, 8, 8)),
    # Arguments by name.
    "permuted by name": lambda: Odd(lambda net, x: x.permute(dims=(0, 2, 3, 1)).permute(0, 3, 1, 2)),
    "transposed by name": lambda: Odd(lambda net, x: x.transpose(dim0=2, dim1=3)),
    "joined by axis": lambda: Odd(lambda net, x: torch.cat((x, net.inner(x)), axis=1), 16, inner=_conv()),
    "split by name": lambda: Odd(_halves, 4),
    # Modules that run twice.
    "block twice": lambda: Odd(_twice, inner=_conv(), inner_norm=nn.BatchNorm2d(WIDTH)),
    "convolution twice": lambda: Odd(_twice_without_norm, inner=_conv()),
    "plain norm twice": lambda: Odd(
        lambda net, x: net.plain(net.inner(net.plain(x))), inner=_conv(), plain=nn.BatchNorm2d(WIDTH, affine=False)
    ),
    # Channels that are not the second dimension.
    "norm of tokens": lambda: Odd(
        lambda net, x: _maps(net.narrow(F.relu(net.tokens(net.wide(_tokens(x)))))),
        wide=nn.Linear(WIDTH, 16), tokens=nn.BatchNorm1d(64), narrow=nn.Linear(16, WIDTH),
    ),
    "pooled across channels": lambda: Odd(
        lambda net, x: net.narrow(net.pool(net.wide(x.permute(0, 2, 3, 1)))).permute(0, 3, 1, 2),
        wide=nn.Linear(WIDTH, 16), pool=nn.AvgPool2d((1, 2)), narrow=nn.Linear(8, WIDTH),
    ),
    "linear over positions": lambda: Odd(
        lambda net, x: net.mixing(x.flatten(2)).reshape(-1, WIDTH, 8, 8), mixing=nn.Linear(64, 64)
    ),
    "attention": lambda: Odd(_attended, attention=nn.MultiheadAttention(WIDTH, 2, batch_first=True)),
    "a class token": lambda: Odd(
        _classed, token=torch.zeros(1, 1, WIDTH), wide=nn.Linear(WIDTH, 16), narrow=nn.Linear(16, WIDTH)
    ),
    # What else there is.
    "squeeze and excitation": lambda: Odd(_squeezed, down=nn.Linear(WIDTH, 4), up=nn.Linear(4, WIDTH)),
    "prelu": lambda: Odd(lambda net, x: net.act(x), act=nn.PReLU(WIDTH)),
    "a group norm": lambda: Odd(lambda net, x: net.groups(x), groups=nn.GroupNorm(2, WIDTH)),
    "depthwise, twice as wide": lambda: Odd(lambda net, x: net.inner(x), 16, inner=_conv(outside=16, groups=WIDTH)),
    "groups": lambda: Odd(lambda net, x: net.inner(x), 16, inner=_conv(outside=16, groups=4)),
    "transposed, each channel alone": lambda: Odd(
        lambda net, x: net.inner(x), inner=nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2, groups=WIDTH)
    ),
    "transposed in groups": lambda: Odd(
        lambda net, x: net.inner(x), inner=nn.ConvTranspose2d(WIDTH, WIDTH, 2, 2, groups=2)
    ),
    # Sums that are not what goes around them, and tensors that are changed where they are.
    "half of what goes around": lambda: Odd(lambda net, x: torch.add(net.inner(x), x, alpha=0.5), inner=_conv()),
    "half of a branch": lambda: Odd(lambda net, x: torch.add(x, net.inner(x), alpha=0.5), inner=_conv()),
    "rectified in place": lambda: Odd(
        lambda net, x: _plus(x := net.outer(x), net.inner(net.act(x))),
        outer=_conv(), inner=_conv(), act=nn.ReLU(inplace=True),
    ),
    "rectified in place by a method": lambda: Odd(
        lambda net, x: _plus(x := net.outer(x), net.inner(x.relu_())), outer=_conv(), inner=_conv()
    ),
    "a view rectified in place": lambda: Odd(_viewed, outer=_conv(), inner=_conv()),
    "less its mean": lambda: Odd(lambda net, x: x - x.mean(1, keepdim=True)),
    "a power": lambda: Odd(lambda net, x: x**2 + x),
}  # fmt: skip


def odd(kind: str) -> Odd:
    """One of a kind with statistics that are those of no fresh one, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = ODD[kind]()
        with torch.no_grad():
            for module in made.modules():
                if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
                    assert module.running_mean is not None
                    assert module.running_var is not None
                    module.running_mean.uniform_(-0.5, 0.5)
                    module.running_var.uniform_(0.5, 2.0)
    return made.eval()
