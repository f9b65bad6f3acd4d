"""ONNX Runtime's profile: the JSON of `SessionOptions.enable_profiling`, beside the model its session optimised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from akd_deploy.engines.onnxruntime_kernels import MATRIX_OPS
from akd_deploy.engines.precision_audit import Layer
from akd_deploy.errors import UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import PROBE, TableRow
from akd_deploy.profiling.importers.imported import (
    Imported,
    aggregated_row,
    check_engine,
    check_precision,
    network_row,
    sampled_row,
    span_rows,
)
from akd_deploy.profiling.importers.onnxruntime_events import durations, node_kernels, read_runs
from akd_deploy.target import Target


def rows_from_profiles(
    profiles: Sequence[Path],
    optimised: Path,
    target: Target,
    *,
    network: str | None = None,
    warmup_runs: int = 1,
) -> Imported:
    """The rows of one network: a probe for each node, their sums, and the network, one block for each profile.

    The profile counts whole microseconds. A node that took less than one in some run has no sample there: its mean
    over the runs stands for it, as an aggregate; one that never took as much has no latency, and is named.

    Args:
        profiles: of one session each, its runs one after another and not side by side.
        optimised: the model the session wrote (`SessionOptions.optimized_model_filepath`), for what the events do
            not tell: strides, groups, fused activations.
        target: its batch is that of the runs, its precision that of the model.
        network: name of the network and prefix of its nodes' rows; by default the model's file name.
        warmup_runs: runs to leave out at the beginning of each profile.

    Raises:
        UsageError: no profile, no more runs than the warm-up, or a target that is not ONNX Runtime's on a CPU.
        MissingFileError, CorruptFileError: a file cannot be read as what it is.
        MismatchError: profile and model belong to different sessions, nodes ran elsewhere than on the CPU, or
            the model computes in another precision.
    """
    check_engine(target, ("onnxruntime",), "ONNX Runtime")
    if not profiles or target.engine_options.get("provider", "cpu") != "cpu":
        raise UsageError(
            asked="a profile of ONNX Runtime on the CPU",
            found=f"target {target.name} of another provider" if profiles else "no file",
            next="Give what SessionOptions.enable_profiling wrote, and a target of the CPU.",
        )
    name = network or optimised.stem
    recorded = [read_runs(path) for path in profiles]
    kernels = node_kernels(optimised, recorded[0], target.batch)
    check_precision(
        target, optimised, [Layer(node, kernel.dtype, kernel.op in MATRIX_OPS) for node, kernel in kernels.items()]
    )
    per_node: list[Mapping[str, Sequence[float]]] = []
    per_network: list[Sequence[float]] = []
    for runs in recorded:
        if len(runs.seconds) <= warmup_runs:
            raise UsageError(
                asked=f"runs after {warmup_runs} of warm-up in {runs.path}",
                found=f"{len(runs.seconds)} runs",
                next="Profile more runs, or give a smaller --warmup-runs.",
            )
        per_node.append({node: taken[warmup_runs:] for node, taken in durations(runs, kernels).items()})
        per_network.append(runs.seconds[warmup_runs:])
    rows, without_latency = _node_rows(name, kernels, per_node)
    rows.append(network_row(name, list(kernels.values()), per_network))
    summed = [median(sum(run) for run in zip(*nodes.values(), strict=True)) for nodes in per_node]
    return Imported(
        rows=tuple(rows),
        protocol={"source": "onnxruntime", "warmup_runs": warmup_runs, "profiler": "attached"},
        without_latency=without_latency,
        layers_over_network=fmean(summed) / fmean(median(runs) for runs in per_network),
        notes=("the network's own time was taken with the profiler attached, which slows it down",),
    )


def _node_rows(
    network: str, kernels: Mapping[str, Kernel], per_node: Sequence[Mapping[str, Sequence[float]]]
) -> tuple[list[TableRow], tuple[str, ...]]:
    """Rows of the nodes and of their sums, and the names of those that took no measurable time."""
    rows: list[TableRow] = []
    means: dict[str, list[float]] = {}
    for node, kernel in kernels.items():
        blocks = [taken[node] for taken in per_node]
        averages = [fmean(block) for block in blocks]
        if min(averages) == 0:
            continue
        means[node] = averages
        name = f"{network}/{node}"
        if min(map(min, blocks)) > 0:
            rows.append(sampled_row(PROBE, name, network, [kernel], blocks))
        else:
            rows.append(aggregated_row(name, network, [kernel], averages))
    rows += span_rows(network, [kernels[node] for node in means], list(means.values()))
    return rows, tuple(node for node in kernels if node not in means)
