"""What a kernel's cost can depend on: the one description that fitting and predicting share."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, log2
from math import prod as _prod

from akd_deploy.kernel import BYTES_PER_ELEMENT, Kernel, Shape

VECTOR_CHANNELS = 16
"""Channels are padded to this many in blocked layouts (16 floats fill an AVX-512 register); a term, not a rule."""


def prod(sizes: Sequence[int]) -> int:
    """Product of sizes; 1 for none."""
    return int(_prod(sizes))


TERMS = ("launch", "macs", "padded_macs", "traffic_bytes", "outputs", "rows")
"""Names of what `cost_terms` returns, in order."""


def _weight(kernel: Kernel) -> Shape | None:
    """The weight's shape (out, in / groups, *window) of a convolution, None for anything else.

    Quantised convolutions have scales and zero points between image and weight.
    """
    if kernel.attribute("kernel_size") is None:
        return None
    return next((shape for shape in kernel.inputs[1:] if len(shape) >= 3), None)


def groups(kernel: Kernel) -> int:
    """The convolution's group count; 1 where the operator has none."""
    value = kernel.attribute("groups")
    return value if isinstance(value, int) and value > 0 else 1


def regime(kernel: Kernel) -> str:
    """Kernels of one regime are assumed to cost alike: the operator, and for convolutions their kind."""
    weight = _weight(kernel)
    if weight is None:
        return kernel.op
    if groups(kernel) > 1:
        return f"{kernel.op}/{'depthwise' if weight[1] == 1 else 'grouped'}"
    return f"{kernel.op}/{'pointwise' if prod(weight[2:]) == 1 else 'dense'}"


def _reduced(kernel: Kernel) -> int:
    """Length of the inner product behind each output element; 0 for operators without one."""
    weight = _weight(kernel)
    if weight is not None:
        return prod(weight[1:])
    name = kernel.op.lower()
    if ("gemm" in name or "matmul" in name or "fullyconnected" in name) and kernel.inputs and kernel.inputs[0]:
        return kernel.inputs[0][-1]
    window = kernel.attribute("kernel_size")
    if isinstance(window, tuple):  # pooling: every output reads a window
        return prod(window)
    return 0


def macs(kernel: Kernel) -> int:
    """Multiply-accumulates (window reads for pooling); 0 for elementwise operators."""
    return kernel.output_elements * _reduced(kernel)


def _padded(channels: int) -> int:
    return VECTOR_CHANNELS * ceil(channels / VECTOR_CHANNELS)


def _channels(shape: Shape) -> int:
    return shape[1] if len(shape) > 1 else (shape[0] if shape else 1)


def cost_terms(kernel: Kernel) -> tuple[float, ...]:
    """Non-negative quantities that a kernel's time is a non-negative combination of; see `TERMS`.

    `padded_macs` counts channels rounded up to full vectors; `rows` are output rows, each of which costs a loop.
    """
    output = kernel.outputs[0] if kernel.outputs else ()
    out_channels = max(1, _channels(output))
    padded = macs(kernel) * _padded(out_channels) / out_channels
    weight = _weight(kernel)
    if weight is not None and groups(kernel) == 1:
        padded *= _padded(weight[1]) / max(1, weight[1])
    rows = prod(output[:-1]) * _padded(out_channels) / out_channels / VECTOR_CHANNELS if len(output) > 2 else 0.0
    return (1.0, float(macs(kernel)), padded, kernel.traffic_bytes, float(kernel.output_elements), rows)


def coordinates(kernel: Kernel) -> tuple[float, ...]:
    """Where a kernel lies among its regime's: logarithms of its sizes, one unit a doubling, then its settings.

    Every kernel has the same number of coordinates.
    """
    first = kernel.inputs[0] if kernel.inputs else ()
    output = kernel.outputs[0] if kernel.outputs else ()
    window = kernel.attribute("kernel_size")
    strides = kernel.attribute("strides")
    return (
        log2(1 + _channels(first) / groups(kernel)),
        log2(1 + _channels(output)),
        log2(1 + prod(output[2:])),
        log2(output[0]) if len(output) > 1 and output[0] else 0.0,
        log2(1 + kernel.traffic_bytes / BYTES_PER_ELEMENT[kernel.dtype]),
        log2(prod(window)) if isinstance(window, tuple) and prod(window) else 0.0,
        log2(1 + _padded(_channels(output)) / VECTOR_CHANNELS),
        log2(prod(strides)) if isinstance(strides, tuple) and prod(strides) else 0.0,
        0.5 * (kernel.attribute("activation") not in (None, "", "none")),
        0.5 * bool(kernel.attribute("residual")),
        float(len(kernel.inputs)),
    )
