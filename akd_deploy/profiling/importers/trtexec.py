"""trtexec's JSON files: --exportLayerInfo, --exportProfile and --exportTimes, of TensorRT 10.x, 11.x and RTX.

The layer info says which kernels an engine runs, the profile what each took (an average and a median over a run, no
samples), the times what the whole network took, query by query and without a profiler.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

from akd_deploy.engines.precision_audit import Layer
from akd_deploy.engines.tensorrt_inspect import (
    EngineLayer,
    NodeSettings,
    executed_kernels_from_layers,
    layers_from_inspector,
)
from akd_deploy.errors import BuildError, MismatchError, UsageError
from akd_deploy.kernel import Kernel
from akd_deploy.latency_table import TableRow
from akd_deploy.profiling.importers.imported import (
    Imported,
    aggregated_row,
    check_engine,
    check_precision,
    network_row,
    span_rows,
)
from akd_deploy.profiling.importers.reading import corrupt, known_keys, read_text
from akd_deploy.profiling.importers.trtexec_files import (
    LAYERS,
    METRICS,
    PROFILE,
    TIMES,
    LayerTime,
    files_by_kind,
    has_medians,
    profile_times,
    query_seconds,
)
from akd_deploy.target import Target

_MATRIX = ("conv", "correlation", "gemm", "matmul", "matrixmultiply", "fullyconnected")


def rows_from_trtexec(
    files: Sequence[Path],
    target: Target,
    *,
    network: str | None = None,
    nodes: Mapping[str, NodeSettings] | None = None,
    warmup_runs: int = 0,
    metric: str = "compute",
) -> Imported:
    """The rows of one network's engine.

    Each layer that runs a kernel becomes a probe of that kernel (one number for each profile given), their sums
    three more, and the network a row with its samples (one block for each file of times).

    Args:
        files: one layer info, and profiles or times or both, each of a run of its own; told apart by what is in them.
        target: its precision must be the engine's.
        network: name of the network and prefix of its layers' rows; by default the layer info's file name.
        nodes: settings of the ONNX nodes the engine was built from, by name; needed where layers do not tell theirs.
        warmup_runs: queries to leave out at the beginning of each file of times. That of TensorRT 10
            and later exports none of its warm-up.
        metric: what counts as the network's latency; see `trtexec_files.METRICS`.

    Raises:
        UsageError: a file is missing among them, or one is of no known kind.
        MissingFileError, CorruptFileError, UnknownNameError: a file cannot be read as what it is.
        MismatchError: the files belong to different engines, or the engine computes in another precision.
    """
    check_engine(target, ("tensorrt", "tensorrt-rtx"), "trtexec")
    known_keys([metric], METRICS, "metric", "trtexec's times")
    contents = files_by_kind(files)
    if len(contents[LAYERS]) != 1 or not (contents[PROFILE] or contents[TIMES]):
        found = ", ".join(f"{len(paths)} {kind}" for kind, paths in contents.items())
        raise UsageError(
            asked="one layer info of trtexec, and at least one profile or times file of that engine",
            found=found,
            next="Run trtexec --profilingVerbosity=detailed --exportLayerInfo=l.json --exportProfile=p.json "
            "--exportTimes=t.json --separateProfileRun.",
        )
    (layer_path,) = contents[LAYERS]
    layers = _layers(layer_path)
    kernels = _kernels(layer_path, layers, nodes or {})
    check_precision(
        target,
        layer_path,
        [Layer(layers[i].name, k.dtype, any(word in k.op.lower() for word in _MATRIX)) for i, k in kernels.items()],
    )
    name = network or layer_path.stem
    profiles = [profile_times(path, told) for path, told in contents[PROFILE].items()]
    medians = {path: has_medians(told) for path, told in contents[PROFILE].items()}
    if len(set(medians.values())) > 1:
        raise MismatchError(
            asked="profiles of one kind",
            found=f"some with medians and some without: {', '.join(str(path) for path in medians)}",
            next="Import those of one TensorRT version at a time.",
        )
    imported, dropped = _layer_rows(name, layers, kernels, dict(zip(medians, profiles, strict=True)))
    queries = [query_seconds(path, told, warmup_runs, METRICS[metric]) for path, told in contents[TIMES].items()]
    rows = list(imported)
    ratio = None
    if queries:
        rows.append(network_row(name, list(kernels.values()), queries))
        if profiles:
            alone_s = fmean(
                s
                for path in contents[TIMES]
                for s in query_seconds(path, contents[TIMES][path], warmup_runs, "computeMs")
            )
            ratio = fmean(sum(layer.average_s for layer in profile) for profile in profiles) / alone_s
    statistic = "median" if all(medians.values()) else "mean"
    return Imported(
        rows=tuple(rows),
        protocol={"source": "trtexec", "layer_statistic": statistic, "network_latency": metric},
        without_latency=dropped,
        not_kernels=tuple(layer.name for i, layer in enumerate(layers) if i not in kernels),
        layers_over_network=ratio,
        notes=() if profiles else ("no profile: the network alone, and no kernel's cost",),
    )


# --- the layer info ------------------------------------------------------------------------------------------------


def _layers(path: Path) -> tuple[EngineLayer, ...]:
    try:
        return layers_from_inspector(read_text(path, "a layer info of trtexec"))
    except BuildError as error:
        raise corrupt(
            path, error.asked, error.found, "Run trtexec with --profilingVerbosity=detailed and export it again."
        ) from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise corrupt(path, "the layers of an engine", f"a layer that cannot be read ({error!r})") from error


def _kernels(path: Path, layers: Sequence[EngineLayer], nodes: Mapping[str, NodeSettings]) -> dict[int, Kernel]:
    """Position of a layer → the kernel it runs; layers that run none are left out."""
    for layer in layers:
        silent = layer.op == "correlation" and "Kernel" not in layer.settings
        if silent and layer.nodes and not any(name in nodes for name in layer.nodes):
            raise UsageError(
                asked=f"the window and strides of layer {layer.name!r} in {path}",
                found=f"a layer that does not tell them; it runs {', '.join(layer.nodes)}"
                + (", which the ONNX file given does not have" if nodes else ""),
                next="Give the ONNX file that the engine was built from: --onnx MODEL.",
            )
    result: dict[int, Kernel] = {}
    try:
        executed_kernels_from_layers(layers, nodes)
        for i, layer in enumerate(layers):
            for executed in executed_kernels_from_layers([layer], nodes):
                result[i] = executed.kernel
    except BuildError as error:
        raise corrupt(path, error.asked, error.found, error.next) from error
    if not result:
        raise corrupt(path, "the layers of an engine", "none that runs a kernel")
    return result


# --- the profile ---------------------------------------------------------------------------------------------------


def _layer_rows(
    network: str,
    layers: Sequence[EngineLayer],
    kernels: Mapping[int, Kernel],
    profiles: Mapping[Path, Sequence[LayerTime]],
) -> tuple[list[TableRow], tuple[str, ...]]:
    """Rows of the layers and of their sums, and the names of kernels that a profile timed at nothing."""
    positions: dict[tuple[str, int], int] = {}
    seen: Counter[str] = Counter()
    for i, layer in enumerate(layers):
        positions[layer.name, seen[layer.name]] = i
        seen[layer.name] += 1
    timed: dict[int, list[float]] = {i: [] for i in kernels}
    for path, profile in profiles.items():
        told: Counter[str] = Counter()
        for timing in profile:
            position = positions.get((timing.name, told[timing.name]))
            told[timing.name] += 1
            if position is None:
                raise MismatchError(
                    asked=f"layer {timing.name!r} of the profile {path} in the layer info",
                    found=f"no such layer among its {len(layers)}" if told[timing.name] == 1 else "it less often",
                    next="Give the layer info and the profile of one engine.",
                )
            if position in timed and timing.value_s > 0:
                timed[position].append(timing.value_s)
    # A layer that some process timed at nothing has no latency that all of them agree on.
    whole = {i: seconds for i, seconds in timed.items() if profiles and len(seconds) == len(profiles)}
    names = _row_names(network, layers)
    rows = [aggregated_row(names[i], network, [kernels[i]], seconds) for i, seconds in whole.items()]
    rows += span_rows(network, [kernels[i] for i in whole], list(whole.values()))
    return rows, tuple(layers[i].name for i in kernels if profiles and i not in whole)


def _row_names(network: str, layers: Sequence[EngineLayer]) -> list[str]:
    """One name per layer, all different: the second of a name is numbered 2, and so on."""
    names: dict[str, None] = {}
    for layer in layers:
        name, number = f"{network}/{layer.name}", 1
        while name in names:
            number += 1
            name = f"{network}/{layer.name}#{number}"
        names[name] = None
    return list(names)
