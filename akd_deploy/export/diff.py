"""What differs between the kernels that two engines run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from akd_deploy.kernel import ExecutedKernel, Kernel


@dataclass(frozen=True)
class KernelCount:
    """A kernel and how often each engine runs it."""

    kernel: Kernel
    in_a: int
    in_b: int

    def as_dict(self) -> dict[str, object]:
        return {
            "op": self.kernel.op,
            "dtype": self.kernel.dtype,
            "inputs": [list(shape) for shape in self.kernel.inputs],
            "outputs": [list(shape) for shape in self.kernel.outputs],
            "signature": self.kernel.signature,
            "in_a": self.in_a,
            "in_b": self.in_b,
            "traffic_bytes": self.kernel.traffic_bytes,
        }


@dataclass(frozen=True)
class KernelDiff:
    """Kernels whose counts differ, counts per operator where those differ, and the totals.

    `shared` counts kernels that both run, each as often as both do.
    """

    differing: tuple[KernelCount, ...]
    op_counts: dict[str, tuple[int, int]]
    shared: int
    kernels_a: int
    kernels_b: int
    traffic_bytes_a: float
    traffic_bytes_b: float

    @property
    def identical(self) -> bool:
        """Whether both run the same kernels equally often; their order is not compared."""
        return not self.differing

    @property
    def only_in_a(self) -> tuple[KernelCount, ...]:
        return tuple(count for count in self.differing if count.in_b == 0)

    @property
    def only_in_b(self) -> tuple[KernelCount, ...]:
        return tuple(count for count in self.differing if count.in_a == 0)

    def as_dict(self) -> dict[str, object]:
        return {
            "identical": self.identical,
            "kernels": [count.as_dict() for count in self.differing],
            "ops": {op: list(counts) for op, counts in self.op_counts.items()},
            "shared": self.shared,
            "kernels_a": self.kernels_a,
            "kernels_b": self.kernels_b,
            "traffic_bytes_a": self.traffic_bytes_a,
            "traffic_bytes_b": self.traffic_bytes_b,
        }


def diff_kernels(a: Sequence[ExecutedKernel], b: Sequence[ExecutedKernel]) -> KernelDiff:
    """Compare two engines' kernels as multisets: same operator, shapes, dtype and attributes are the same kernel.

    The largest difference in traffic comes first.
    """
    count_a, count_b = Counter(k.kernel for k in a), Counter(k.kernel for k in b)
    differing = [
        KernelCount(kernel, count_a[kernel], count_b[kernel])
        for kernel in count_a | count_b
        if count_a[kernel] != count_b[kernel]
    ]
    differing.sort(key=lambda c: (-abs(c.in_a - c.in_b) * c.kernel.traffic_bytes, c.kernel.signature))
    ops_a, ops_b = Counter(k.kernel.op for k in a), Counter(k.kernel.op for k in b)
    return KernelDiff(
        differing=tuple(differing),
        op_counts={op: (ops_a[op], ops_b[op]) for op in sorted(ops_a | ops_b) if ops_a[op] != ops_b[op]},
        shared=(count_a & count_b).total(),
        kernels_a=len(a),
        kernels_b=len(b),
        traffic_bytes_a=sum(k.kernel.traffic_bytes for k in a),
        traffic_bytes_b=sum(k.kernel.traffic_bytes for k in b),
    )
