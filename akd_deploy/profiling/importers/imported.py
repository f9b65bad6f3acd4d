"""What an import found: rows, and an account of everything that became no row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from akd_deploy.engines.precision_audit import Layer, audited_precision
from akd_deploy.errors import BuildError, MismatchError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import NETWORK, PROBE, TableRow
from akd_deploy.measurement import Measurement
from akd_deploy.profiling.profile import counted
from akd_deploy.target import Target

AGGREGATED = "imported"
"""Families of rows that hold one number of a tool's own making (its mean, its median) for each process it ran
in begin with this: such a row says nothing of tails, and has a scatter only where several processes were given."""


@dataclass(frozen=True)
class Imported:
    """The rows of one import. What follows them is for the report: nothing a file held is left out of both.

    `protocol` says how the tool measured and is compared when tables merge. `without_latency` names what the tool
    timed at nothing (or not at all) and what therefore has no cost; `not_kernels` what runs no kernel.
    `layers_over_network` is the layers' summed time over the network's own, where both were given: what the
    profiler added, or what ran side by side.
    """

    rows: tuple[TableRow, ...]
    protocol: Mapping[str, float | int | str]
    without_latency: tuple[str, ...] = ()
    not_kernels: tuple[str, ...] = ()
    layers_over_network: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def aggregated(self) -> int:
        """How many rows hold a tool's own aggregates rather than samples."""
        return sum(row.family.startswith(AGGREGATED) for row in self.rows)


def aggregated_row(name: str, family: str, kernels: Sequence[Kernel], seconds: Sequence[float]) -> TableRow:
    """A probe known by one number for each process that measured it, all above 0; no samples are made up."""
    measurement = Measurement(name, tuple(seconds), tuple(range(len(seconds))))
    return TableRow(PROBE, f"{AGGREGATED}/{family}", counted(kernels), measurement)


def sampled_row(
    kind: str, name: str, family: str, kernels: Sequence[Kernel], blocks: Sequence[Sequence[float]]
) -> TableRow:
    """A probe or network with its samples in seconds, one block for each process."""
    samples = tuple(sample for block in blocks for sample in block)
    ids = tuple(i for i, block in enumerate(blocks) for _ in block)
    return TableRow(kind, family, counted(kernels), Measurement(name, samples, ids))


def network_row(name: str, kernels: Sequence[Kernel], blocks: Sequence[Sequence[float]]) -> TableRow:
    """A whole network with its samples in seconds."""
    return sampled_row(NETWORK, name, name, kernels, blocks)


def span_rows(network: str, kernels: Sequence[Kernel], seconds: Sequence[Sequence[float]]) -> list[TableRow]:
    """The layers' times added up: all of them, and each half.

    A profiler times kernels without the call around them, so that these sums hold by construction. Rows of one
    kernel each cannot tell what a kernel costs to launch from what a call costs, and these rows can: no matter how
    many kernels there are, a call costs nothing in such a profile.

    Args:
        seconds: per kernel one number for each process.
    """
    half = len(kernels) // 2
    spans = {"all layers": slice(None), "first half": slice(0, half), "second half": slice(half, None)}
    return [
        aggregated_row(
            f"{network} [{name}]",
            "sums",
            kernels[span],
            [sum(of_process) for of_process in zip(*seconds[span], strict=True)],
        )
        for name, span in (spans.items() if half > 1 else ())
    ]


def check_engine(target: Target, engines: Sequence[str], tool: str) -> None:
    """Check that the target runs what the tool measured: kernels are called what their engine calls them.

    Raises:
        UsageError: another engine.
    """
    if target.engine not in engines:
        raise UsageError(
            asked=f"measurements of {tool} for target {target.name}",
            found=f"a target of engine {target.engine!r}",
            next=f"Name a target of engine {' or '.join(engines)}.",
        )


def check_precision(target: Target, path: Path, layers: Sequence[Layer]) -> None:
    """Check that the layers of a file compute in the target's precision.

    Raises:
        MismatchError: they do not; the message names them.
    """
    try:
        audited_precision(target.precision, layers, asked=f"a network in {target.precision} in {path}", allowed=None)
    except BuildError as error:
        raise MismatchError(
            asked=f"{error.asked}, for target {target.name}",
            found=error.found,
            next="Name the target whose precision the network was measured in.",
        ) from error
