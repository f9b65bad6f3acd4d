"""Operators of feature maps, each with what comes after it in networks: activations, norms, resizing, moving."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from onnx import TensorProto

from akd_deploy.models.graph_builder import Graph, Recipe


def _signed(g: Graph) -> str:
    """What there is so far, of either sign at random, as what activations meet in networks: some branch on it. Runtimes
    take channels out of their blocks for it."""
    return g("Sub", g.x, g.constant(0.1))


def _activation(name: str, **attributes: Any) -> Recipe:
    return lambda g: g.conv(g(name, _signed(g), **attributes), g.width, g.width)


def _then_conv(name: str, **attributes: Any) -> Recipe:
    return lambda g: g.conv(g(name, g.x, **attributes), g.width, g.width)


def _of_positive(name: str) -> Recipe:
    return lambda g: g.conv(g(name, g("Add", g.x, g.constant(0.1))), g.width, g.width)


def _alone(name: str, *more: tuple[int, ...], **attributes: Any) -> Recipe:
    """Where no convolution has laid the channels out in blocks: as many rows and columns, fewer channels."""
    return lambda g: g(
        name, g("Mul", g.given(g.width // 4, g.extent, g.extent), g.constant(0.5)), *(g.whole(*one) for one in more),
        **attributes,
    )  # fmt: skip


def _resized_alone(g: Graph) -> str:
    half = g("Mul", g.given(g.width // 4, g.extent, g.extent), g.constant(0.5))
    return g("Resize", half, "", g.constant([1, 1, 2, 2]), mode="nearest", nearest_mode="floor",
             coordinate_transformation_mode="asymmetric")  # fmt: skip


def _normalized(name: str, **attributes: Any) -> Recipe:
    return lambda g: g.conv(
        g("Relu", g(name, g.x, g.weight(g.width), g.weight(g.width), **attributes)), g.width, g.width
    )


def _gated(gate: str, **attributes: Any) -> Recipe:
    def gated(g: Graph) -> str:
        x = _signed(g)
        return g.conv(g("Mul", x, g(gate, x, **attributes)), g.width, g.width)

    return gated


def _reduced_map(name: str) -> Recipe:
    """As squeeze-and-excite does it."""
    return lambda g: g("Mul", g.x, g("Sigmoid", g.conv(g(name, g.x, g.whole(2, 3), keepdims=1), g.width, g.width)))


def _resized(scale: float, **attributes: Any) -> Recipe:
    def resize(g: Graph) -> str:
        return g.conv(g("Resize", g.x, "", g.constant([1, 1, scale, scale]), **attributes), g.width, g.width)

    return resize


def _upsampled(window: int, padding: int, extra: int = 0) -> Recipe:
    def upsample(g: Graph) -> str:
        weight = g.weight(g.width, g.width // 2, window, window)
        return g("Relu", g("ConvTranspose", g.x, weight, g.weight(g.width // 2), kernel_shape=[window] * 2,
                           strides=[2, 2], pads=[padding] * 4, output_padding=[extra] * 2))  # fmt: skip

    return upsample


def _padded(mode: str) -> Recipe:
    def pad(g: Graph) -> str:
        wide = g("Pad", g.x, g.whole(0, 0, 2, 2, 0, 0, 2, 2), mode=mode)
        return g("Conv", wide, g.weight(g.width, g.width, 3, 3), kernel_shape=[3, 3])

    return pad


def _split_and_joined(g: Graph) -> str:
    one, other = g.all_of("Split", g.x, outputs=2, axis=1, num_outputs=2)
    return g.conv(g("Concat", g.conv(one, g.width // 2, g.width // 2, 3), other, axis=1), g.width, g.width)


def _sliced(g: Graph) -> str:
    corners = [g("Slice", g.x, g.whole(i, j), g.whole(g.extent, g.extent), g.whole(2, 3), g.whole(2, 2))
               for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))]  # fmt: skip
    return g.conv(g("Concat", *corners, axis=1), 4 * g.width, g.width)


def _spaced(name: str, factor: int, **attributes: Any) -> Recipe:
    def space(g: Graph) -> str:
        out = g.width // 4 if name == "DepthToSpace" else 4 * g.width
        return g.conv(g(name, g.x, blocksize=factor, **attributes), out, g.width)

    return space


def _shuffled(g: Graph) -> str:
    split = g("Reshape", g.x, g.whole(0, 2, g.width // 2, g.extent, g.extent))
    turned = g("Transpose", split, perm=[0, 2, 1, 3, 4])
    return g.conv(g("Reshape", turned, g.whole(0, g.width, g.extent, g.extent)), g.width, g.width)


def _dilated_transposed(order: tuple[int, ...]) -> Recipe:
    def turn(g: Graph) -> str:
        back = [order.index(i) for i in range(4)]
        inside = g("Transpose", g.x, perm=list(order))
        shape = [g.width if order[3] == 1 else g.extent]
        return g("Transpose", g("Mul", inside, g.weight(*shape)), perm=back)

    return turn


def _normalized_sum(g: Graph) -> str:
    total = g("Add", g.x, g.conv(g.x, g.width, g.width))
    statistics = *(g.weight(g.width) for _ in range(3)), g.constant(np.full(g.width, 0.5))
    return g.conv(g("Relu", g("BatchNormalization", total, *statistics)), g.width, g.width)


def _normalized_input(g: Graph) -> str:
    """Where runtimes have not laid the channels out in blocks yet."""
    statistics = *(g.weight(g.width) for _ in range(3)), g.constant(np.full(g.width, 0.5))
    first = g("Relu", g("BatchNormalization", g.given(g.width, g.extent, g.extent), *statistics))
    return g.conv(g("Add", first, g.x), g.width, g.width)


def _tiled(g: Graph) -> str:
    tiled = g("Tile", g("GlobalAveragePool", g.x), g.whole(1, 1, g.extent, g.extent))
    return g.conv(tiled, g.width, g.width)


def _activated(name: str, **attributes: Any) -> Recipe:
    """Right after a convolution with a window, into which runtimes fuse it."""
    return lambda g: g(name, g.conv(g.x, g.width, g.width, 3), **attributes)


def _convolved_silu(g: Graph) -> str:
    mapped = g.conv(g.x, g.width, g.width, 3)
    return g("Mul", mapped, g("Sigmoid", mapped))


def _branches(g: Graph, count: int) -> list[str]:
    return [g.conv(g.x, g.width, g.width), g("Relu", g.conv(g.x, g.width, g.width)), g.x][:count]


def _stacked(reduce: str, count: int) -> Recipe:
    """Branches along an axis of their own, which is then reduced."""

    def stack(g: Graph) -> str:
        parts = [g("Unsqueeze", branch, g.whole(0)) for branch in _branches(g, count)]
        return g("Relu", g(reduce, g("Concat", *parts, axis=0), g.whole(0), keepdims=0))

    return stack


def _merged(name: str, count: int) -> Recipe:
    return lambda g: g.conv(g(name, *_branches(g, count)), g.width, g.width)


def _scaled_branch(g: Graph) -> str:
    return g("Add", g.x, g("Mul", g.conv(g.x, g.width, g.width), g.weight(g.width, 1, 1)))


def _gated_positions(g: Graph) -> str:
    gate = g("Sigmoid", g.conv(g.x, g.width, 1, 7))
    return g.conv(g("Mul", g.x, gate), g.width, g.width)


def _split_attention(g: Graph) -> str:
    """Weights of two branches by a softmax over them."""
    one, other = _branches(g, 2)
    context = g("GlobalAveragePool", g("Add", one, other))
    logits = g("Reshape", g.conv(context, g.width, 2 * g.width), g.whole(0, 2, g.width, 1, 1))
    shares = g("Softmax", logits, axis=1)
    both = g("Concat", *(g("Unsqueeze", part, g.whole(1)) for part in (one, other)), axis=1)
    return g("ReduceSum", g("Mul", both, shares), g.whole(1), keepdims=0)


def _partly_convolved(g: Graph) -> str:
    quarter = g.width // 4
    first, rest = g.all_of("Split", g.x, g.whole(quarter, g.width - quarter), outputs=2, axis=1)
    return g.conv(g("Concat", g.conv(first, quarter, quarter, 3), rest, axis=1), g.width, g.width)


def _flattened(g: Graph) -> str:
    pooled = g("MaxPool", g.x, kernel_shape=[2, 2], strides=[2, 2])
    flat = g("Flatten", pooled, axis=1)
    return g("Relu", g("Gemm", flat, g.weight(g.width * (g.extent // 2) ** 2, 64), g.weight(64)))


def _volume(name: str, **attributes: Any) -> Recipe:
    """Four slices deep."""

    def convolve(g: Graph) -> str:
        channels = g.width // 4
        deep = g("Reshape", g.x, g.whole(0, channels, 4, g.extent, g.extent))
        if name == "Conv":
            weight = g.weight(2 * channels, channels, *attributes["kernel_shape"])
            return g("Relu", g(name, deep, weight, g.weight(2 * channels), **attributes))
        return g(name, g("Mul", deep, g.constant(0.5)), **attributes)

    return convolve


def _recipes() -> dict[str, Recipe]:
    def conv(window: int = 3, groups: int = 1, deep: bool = False, **attributes: Any) -> Recipe:
        return lambda g: g(
            "Relu", g.conv(g.x, g.width, g.width, window, group=g.width if deep else groups, **attributes)
        )

    linear = {"mode": "linear"}
    return {
        "GroupNormalization": _normalized("GroupNormalization", num_groups=8),
        "InstanceNormalization": _normalized("InstanceNormalization"),
        "BatchNormalization": _normalized_sum, "BatchNormalizationFirst": _normalized_input,
        "LRN": _then_conv("LRN", size=5),
        **{name: _activation(name) for name in (
            "HardSwish", "HardSigmoid", "Mish", "Elu", "Selu", "Celu", "Softplus", "Softsign", "LeakyRelu", "Sigmoid",
            "Tanh", "Gelu", "Abs", "Neg", "Exp", "Erf", "Floor")},
        **{name: _of_positive(name) for name in ("Sqrt", "Reciprocal")},
        "ThresholdedRelu": _activation("ThresholdedRelu"),
        "Relu6": lambda g: g.conv(g("Clip", g("Add", g.x, g.x), g.constant(0), g.constant(6)), g.width, g.width),
        "Silu": _gated("Sigmoid"), "HardSwishPattern": _gated("HardSigmoid", alpha=1 / 6, beta=0.5),
        "PRelu": lambda g: g.conv(g("PRelu", g.conv(g.x, g.width, g.width), g.weight(g.width, 1, 1)), g.width, g.width),
        "ConvTranspose2": _upsampled(2, 0), "ConvTranspose4": _upsampled(4, 1), "ConvTranspose3": _upsampled(3, 1, 1),
        "DilatedConv2": conv(dilation=2), "DilatedConv4": conv(dilation=4),
        "DilatedDepthwise": conv(dilation=2, deep=True),
        "DilatedConv8": conv(dilation=8), "GroupConv2": conv(groups=2), "GroupConv8": conv(groups=8),
        "GroupConv4": conv(groups=4), "GroupConv16": conv(groups=16),
        "Depthwise5": conv(window=5, deep=True), "Depthwise7": conv(window=7, deep=True),
        "Conv5": conv(window=5), "Conv7Strided": conv(window=7, strides=[2, 2]),
        "ResizeNearest": _resized(2, mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric"),
        "ResizeLinear": _resized(2, **linear),
        "ResizeAligned": _resized(2, **linear, coordinate_transformation_mode="align_corners"),
        "ResizeCubic": _resized(2, mode="cubic"), "ResizeDown": _resized(0.5, **linear),
        "MaxPool": _then_conv("MaxPool", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4),
        "MaxPool5": _then_conv("MaxPool", kernel_shape=[5, 5], strides=[1, 1], pads=[2] * 4),
        "AveragePool": _then_conv("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
        "AveragePool3": _then_conv("AveragePool", kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4),
        "MaxPool3": _then_conv("MaxPool", kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4),
        "MaxPool2": _then_conv("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        "LpPool": _then_conv("LpPool", kernel_shape=[2, 2], strides=[2, 2]),
        "GlobalAveragePool": lambda g: g.conv(g("GlobalAveragePool", g.x), g.width, g.width),
        "GlobalMaxPool": lambda g: g.conv(g("GlobalMaxPool", g.x), g.width, g.width),
        **{f"Map{name}": _reduced_map(name) for name in ("ReduceMean", "ReduceMax", "ReduceSum", "ReduceMin")},
        "ChannelMean": lambda g: g("Mul", g.x, g("Sigmoid", g("ReduceMean", g.x, g.whole(1), keepdims=1))),
        "ChannelMax": lambda g: g("Mul", g.x, g("Sigmoid", g("ReduceMax", g.x, g.whole(1), keepdims=1))),
        "ChannelSoftmax": lambda g: g("Softmax", g.conv(g.x, g.width, g.width), axis=1),
        "ChannelArgMax": lambda g: g("Cast", g("ArgMax", g.conv(g.x, g.width, g.width), axis=1), to=TensorProto.FLOAT),
        "DepthToSpace": _spaced("DepthToSpace", 2),
        "DepthToSpaceCRD": _spaced("DepthToSpace", 2, mode="CRD"),
        "SpaceToDepth": _spaced("SpaceToDepth", 2),
        "PadConstant": _padded("constant"), "PadReflect": _padded("reflect"), "PadEdge": _padded("edge"),
        "SplitConcat": _split_and_joined, "SliceSpatial": _sliced, "ChannelShuffle": _shuffled,
        "TransposeLast": _dilated_transposed((0, 2, 3, 1)), "TransposeFirst": _dilated_transposed((0, 3, 1, 2)),
        "GridSample": lambda g: g.conv(g("GridSample", g.x, g.given(g.extent, g.extent, 2)), g.width, g.width),
        "TileMap": _tiled,
        "MaxPoolAlone": _alone("MaxPool", kernel_shape=[2, 2], strides=[2, 2]),
        "MaxPool3Alone": _alone("MaxPool", kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4),
        "AveragePoolAlone": _alone("AveragePool", kernel_shape=[2, 2], strides=[2, 2]),
        "AveragePool3Alone": _alone("AveragePool", kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4),
        "GlobalAveragePoolAlone": _alone("GlobalAveragePool"), "ResizeNearestAlone": _resized_alone,
        **{f"Convolved{name}": _activated(name) for name in (
            "Tanh", "Sigmoid", "HardSwish", "HardSigmoid", "Elu", "Selu", "Gelu", "Mish", "Softplus", "LeakyRelu")},
        "ConvolvedSilu": _convolved_silu, "FlattenGemm": _flattened,
        "GroupPointwise": lambda g: g("Relu", g.conv(g.x, g.width, g.width, group=4)),
        "StackSum2": _stacked("ReduceSum", 2), "StackSum3": _stacked("ReduceSum", 3),
        "StackMean3": _stacked("ReduceMean", 3), "StackMax2": _stacked("ReduceMax", 2),
        "Sum3": _merged("Sum", 3), "Mean2": _merged("Mean", 2), "Max2": _merged("Max", 2),
        "LayerScale": _scaled_branch, "SpatialGate": _gated_positions, "SplitAttention": _split_attention,
        "PartialConv": _partly_convolved,
        "Conv3d": _volume("Conv", kernel_shape=[3, 3, 3], pads=[1] * 6),
        "Conv3dSpatial": _volume("Conv", kernel_shape=[1, 3, 3], pads=[0, 1, 1] * 2),
        "MaxPool3d": _volume("MaxPool", kernel_shape=[2, 2, 2], strides=[2, 2, 2]),
    }  # fmt: skip


MAP_OPERATORS: Mapping[str, Recipe] = MappingProxyType(_recipes())
"""Name → what comes after a convolution and its activation."""
