"""Layers spelled out as operations: what the torch module, the ONNX and the counts are all made from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from akd_deploy.search_space.base import Layer

INPUT = "input"
"""Name of the network's input tensor."""

SQUEEZE_MULTIPLE = 4
"""Squeeze-excite bottlenecks are rounded to this many channels."""


@dataclass(frozen=True)
class Operation:
    """One operation; its output tensor carries its name.

    `kind`: "conv" (convolution, batch norm, activation), "linear", "pool" (3×3 average, padding counted),
    "max_pool" (3×3), "global_pool", "add", "concat" (along channels), or "scale" (first input times the second, one
    factor per channel). `inputs` are names of earlier operations, or `INPUT`. Sizes are height = width. `batch_norm` is
    False where a bias stands instead.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    kernel_size: int = 1
    stride: int = 1
    groups: int = 1
    activation: str = "none"
    batch_norm: bool = True

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image; 0 for operations without weights."""
        if self.kind not in ("conv", "linear"):
            return 0
        return self.out_size**2 * self.out_channels * (self.in_channels // self.groups) * self.kernel_size**2

    @property
    def parameters(self) -> int:
        """Weights and biases once the batch norm is folded, as they are shipped."""
        if self.kind not in ("conv", "linear"):
            return 0
        return self.out_channels * (self.in_channels // self.groups) * self.kernel_size**2 + self.out_channels


def _squeeze_excite(layer: Layer, source: str, channels: int) -> list[Operation]:
    """Hu et al. 2018 (arXiv:1709.01507) with MobileNetV3's hard sigmoid (arXiv:1905.02244)."""
    squeezed = max(
        SQUEEZE_MULTIPLE, SQUEEZE_MULTIPLE * int(layer.in_channels * layer.se_ratio / SQUEEZE_MULTIPLE + 0.5)
    )
    name, size = f"{layer.name}.se", layer.out_size
    return [
        Operation(f"{name}.squeeze", "global_pool", (source,), channels, channels, size, 1),
        Operation(f"{name}.reduce", "conv", (f"{name}.squeeze",), channels, squeezed, 1, 1, activation="relu",
                  batch_norm=False),
        Operation(f"{name}.expand", "conv", (f"{name}.reduce",), squeezed, channels, 1, 1, activation="hardsigmoid",
                  batch_norm=False),
        Operation(f"{name}.scale", "scale", (source, f"{name}.expand"), channels, channels, size, size),
    ]  # fmt: skip


def _layer_operations(layer: Layer, source: str) -> list[Operation]:
    name, size, out_size = layer.name, layer.in_size, layer.out_size
    if layer.op == "head":
        return [
            Operation(f"{name}.pool", "global_pool", (source,), layer.in_channels, layer.in_channels, size, 1),
            Operation(f"{name}.classifier", "linear", (f"{name}.pool",), layer.in_channels, layer.out_channels, 1, 1,
                      batch_norm=False),
        ]  # fmt: skip
    result: list[Operation] = []
    spatial: dict[str, Any] = {
        "in_size": size,
        "out_size": out_size,
        "kernel_size": layer.kernel_size,
        "stride": layer.stride,
    }
    hidden = layer.in_channels * layer.expansion
    if layer.op in ("stem", "conv"):
        result.append(Operation(f"{name}.conv", "conv", (source,), layer.in_channels, layer.out_channels, **spatial,
                                activation=layer.activation))  # fmt: skip
    elif layer.op in ("dw_separable", "mbconv"):
        inner = source
        if layer.op == "mbconv":
            inner = f"{name}.expand"
            result.append(Operation(inner, "conv", (source,), layer.in_channels, hidden, size, size,
                                    activation=layer.activation))  # fmt: skip
        result.append(Operation(f"{name}.depthwise", "conv", (inner,), hidden, hidden, **spatial, groups=hidden,
                                activation=layer.activation))  # fmt: skip
    elif layer.op in ("max_pool", "avg_pool"):
        kind = "max_pool" if layer.op == "max_pool" else "pool"
        result.append(Operation(f"{name}.pool", kind, (source,), layer.in_channels, layer.in_channels, **spatial))
    else:
        raise ValueError(f"layer {name}: unknown op {layer.op!r}")
    if layer.se_ratio:
        result += _squeeze_excite(layer, result[-1].name, result[-1].out_channels)
    if layer.op in ("dw_separable", "mbconv"):
        result.append(Operation(f"{name}.project", "conv", (result[-1].name,), hidden, layer.out_channels, out_size,
                                out_size))  # fmt: skip
    if layer.skip.startswith("dense"):
        joined, width = f"{name}.concat", layer.in_channels + layer.out_channels
        result += [
            Operation(joined, "concat", (source, result[-1].name), layer.in_channels, width, out_size, out_size),
            Operation(f"{name}.join", "conv", (joined,), width, layer.out_channels, out_size, out_size),
        ]
    if layer.skip not in ("none", "dense"):
        skipped = source
        if layer.skip == "pool":
            skipped = f"{name}.skip"
            result.append(Operation(skipped, "pool", (source,), layer.in_channels, layer.in_channels, size, out_size,
                                    kernel_size=3, stride=layer.stride))  # fmt: skip
            main = result[-2].name
        else:
            main = result[-1].name
        result.append(Operation(f"{name}.add", "add", (main, skipped), layer.out_channels, layer.out_channels,
                                out_size, out_size))  # fmt: skip
    return result


def operations(layers: Iterable[Layer], source: str = INPUT) -> tuple[Operation, ...]:
    """The operations of a chain of layers in an order that can be executed; the last one is the output."""
    result: list[Operation] = []
    for layer in layers:
        steps = _layer_operations(layer, source)
        result += steps
        source = steps[-1].name
    return tuple(result)
