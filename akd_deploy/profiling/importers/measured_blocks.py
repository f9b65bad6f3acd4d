"""Blocks with the latency another tool gives them, as rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from akd_deploy.kernel import Kernel
from akd_deploy.profiling.importers.blocks import Block
from akd_deploy.profiling.importers.imported import Imported, aggregated_row

DTYPES = {
    "fp32": "float32", "tf32": "float32", "fp16": "float16", "bf16": "bfloat16", "int8": "int8", "fp8": "float8e4m3",
}  # fmt: skip
"""Precision of a target → what its kernels compute in."""


@dataclass(frozen=True)
class MeasuredBlock:
    """A block, what family of blocks it is of, and its mean latency in seconds for each time it was measured."""

    block: Block
    family: str
    latencies_s: tuple[float, ...]


def plain_kernels(precision: str) -> Callable[[Sequence[Block]], list[tuple[Kernel, ...]]]:
    """Blocks → their kernels as a plain runtime would execute them: each ONNX operator, its activation fused."""

    def kernels_of(blocks: Sequence[Block]) -> list[tuple[Kernel, ...]]:
        return [tuple(replace(kernel, dtype=DTYPES[precision]) for kernel in block.kernels) for block in blocks]

    return kernels_of


def imported_from_blocks(
    source: str,
    measured: Sequence[MeasuredBlock],
    without_latency: tuple[str, ...],
    kernels_of: Callable[[Sequence[Block]], list[tuple[Kernel, ...]]],
    kernels_by: str,
) -> Imported:
    """One aggregated probe for each block.

    Args:
        source: the tool, for the protocol.
        kernels_of: blocks → the kernels each of them executes.
        kernels_by: who says so, for the protocol: an engine with its version, or "onnx".
    """
    kernels = kernels_of([one.block for one in measured])
    empty = [one.block.name for one, executed in zip(measured, kernels, strict=True) if not executed]
    return Imported(
        rows=tuple(
            aggregated_row(one.block.name, one.family, executed, one.latencies_s)
            for one, executed in zip(measured, kernels, strict=True)
            if executed
        ),
        protocol={"source": source, "statistic": "mean", "kernels": kernels_by},
        without_latency=without_latency,
        not_kernels=tuple(empty),
    )
