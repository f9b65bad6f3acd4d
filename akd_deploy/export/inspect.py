"""What an engine runs, kernel by kernel, as a table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from akd_deploy.export.tensor_types import KernelTypes, traffic_bytes, unknown_types
from akd_deploy.kernel import ExecutedKernel


def kernel_table(
    kernels: Sequence[ExecutedKernel], types: Sequence[KernelTypes] | None = None
) -> list[dict[str, object]]:
    """One row per executed kernel in order, as JSON types; `traffic_bytes` is read and written once each.

    `input_types` and `output_types` are null where they are not known; traffic then counts the kernel's own type.
    """
    types = [unknown_types(executed.kernel) for executed in kernels] if types is None else types
    return [
        {
            "name": executed.name,
            "op": executed.kernel.op,
            "dtype": executed.kernel.dtype,
            "inputs": [list(shape) for shape in executed.kernel.inputs],
            "outputs": [list(shape) for shape in executed.kernel.outputs],
            "input_types": list(known.inputs),
            "output_types": list(known.outputs),
            "attributes": {
                name: list(value) if isinstance(value, tuple) else value for name, value in executed.kernel.attributes
            },
            "traffic_bytes": traffic_bytes(executed.kernel, known),
            "nodes": list(executed.nodes),
        }
        for executed, known in zip(kernels, types, strict=True)
    ]


def precision_counts(kernels: Iterable[ExecutedKernel]) -> dict[str, int]:
    """Number of kernels computing in each dtype, the most frequent first."""
    counts: dict[str, int] = {}
    for executed in kernels:
        counts[executed.kernel.dtype] = counts.get(executed.kernel.dtype, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
