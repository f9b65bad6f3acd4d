"""What the baselines see of a kernel and of a network; nothing of it is our predictor's but the count of MACs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from akd_deploy.kernel import AttributeValue, Kernel
from akd_deploy.predictor.features import macs

KERNEL_FEATURES = (
    "size", "in_channels", "out_channels", "window", "stride", "groups", "macs", "parameters", "in_elements",
    "out_elements",
)  # fmt: skip
"""Names of what `kernel_features` returns, in order."""
TYPE_TOTALS = ("kernels", "macs", "traffic_bytes")
"""What `GraphFeatures` sums up for every type of kernel, in order."""


def _first(value: AttributeValue | None) -> float:
    """The first of an attribute's numbers; 0 where the operator does not have it."""
    if isinstance(value, tuple):
        return float(value[0]) if value else 0.0
    return float(value) if isinstance(value, int | float) else 0.0


def kernel_type(kernel: Kernel) -> str:
    """Kernels that one regressor serves: the operator, depthwise convolutions apart."""
    channels = kernel.inputs[0][1] if kernel.inputs and len(kernel.inputs[0]) > 2 else 0
    depthwise = channels > 1 and kernel.attribute("groups") == channels
    return f"{kernel.op}/depthwise" if depthwise else kernel.op


def _extent(shape: Sequence[int]) -> tuple[int, int]:
    """(channels, size): of an image its channels and first side, of anything else its last and all other axes."""
    if len(shape) == 4:
        return shape[1], shape[2]
    return (shape[-1], prod(shape[:-1])) if shape else (1, 1)


def kernel_features(kernel: Kernel) -> tuple[float, ...]:
    """The features of nn-Meter (Zhang et al. 2021, MobiSys, section 5): see `KERNEL_FEATURES`.

    To its size, channels, window, stride, FLOPs and parameters come groups, and elements read and written, which
    tell operators apart that have no window. `parameters` are all elements of inputs but the first.
    """
    first = kernel.inputs[0] if kernel.inputs else ()
    output = kernel.outputs[0] if kernel.outputs else ()
    in_channels, size = _extent(first)
    return (
        float(size),
        float(in_channels),
        float(_extent(output)[0]),
        _first(kernel.attribute("kernel_size")),
        _first(kernel.attribute("strides")),
        _first(kernel.attribute("groups")),
        float(macs(kernel)),
        float(sum(prod(shape) for shape in kernel.inputs[1:])),
        float(prod(first)),
        float(kernel.output_elements),
    )


def network_macs(counts: Mapping[Kernel, int]) -> float:
    """Multiply-accumulates of one call."""
    return float(sum(count * macs(kernel) for kernel, count in counts.items()))


@dataclass(frozen=True)
class GraphFeatures:
    """Totals of a network: MACs, traffic, depth (kernels executed), distinct kernels, and `TYPE_TOTALS` of each type.

    `types` are those met while fitting; others count in the totals alone.
    """

    types: tuple[str, ...]

    @staticmethod
    def fitted(networks: Iterable[Mapping[Kernel, int]]) -> GraphFeatures:
        """With the types of kernels that these networks have."""
        return GraphFeatures(tuple(sorted({kernel_type(kernel) for counts in networks for kernel in counts})))

    def of(self, counts: Mapping[Kernel, int]) -> np.ndarray:
        """(features,) logarithms of 1 + every total: trees split at ratios, not differences."""
        position = {name: i for i, name in enumerate(self.types)}
        by_type = np.zeros((len(self.types), len(TYPE_TOTALS)))
        total = np.zeros(len(TYPE_TOTALS))
        for kernel, count in counts.items():
            amounts = count * np.array([1.0, macs(kernel), kernel.traffic_bytes])
            total += amounts
            if kernel_type(kernel) in position:
                by_type[position[kernel_type(kernel)]] += amounts
        return np.log1p(np.concatenate([total, [len(counts)], by_type.ravel()]))
