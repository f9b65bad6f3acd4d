"""The events of an ONNX Runtime profile, sorted into runs and given to the nodes of the optimised graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from akd_deploy.engines.onnx_file import graph_inputs, read_onnx
from akd_deploy.engines.onnxruntime_kernels import ProfileEvent, kernels_from_profile, read_profile
from akd_deploy.errors import BuildError, MismatchError
from akd_deploy.kernel import Kernel
from akd_deploy.profiling.importers.reading import corrupt, read_json, whole_number

CPU = "CPUExecutionProvider"
_RUN, _NODE = "model_run", "_kernel_time"

EventName = tuple[str, int]
"""What a node's events are called, and the how-manieth of that name within a run."""


@dataclass(frozen=True)
class Runs:
    """The runs of one profile: `seconds` of each, and for each what its nodes were and took, in order."""

    path: Path
    seconds: tuple[float, ...]
    events: tuple[Mapping[EventName, ProfileEvent], ...]
    node_seconds: tuple[Mapping[EventName, float], ...]


def read_runs(path: Path) -> Runs:
    """Read a profile.

    Raises:
        MissingFileError, CorruptFileError: no such file, or no profile of runs one after another.
        MismatchError: a node ran on another provider than the CPU, where an event times its launch alone.
    """
    content = read_json(path, "a profile of ONNX Runtime")
    if not isinstance(content, list) or not all(isinstance(event, dict) for event in content):
        raise corrupt(path, "a profile of ONNX Runtime", "no list of events")
    try:
        events = read_profile(path)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise corrupt(path, "the node events of a profile", f"one without its parts ({error!r})") from error
    _check_providers(path, events)
    remaining = iter(events)
    windows: list[tuple[int, int]] = []
    run_events: list[dict[EventName, ProfileEvent]] = []
    node_seconds: list[dict[EventName, float]] = []
    pending: list[tuple[ProfileEvent, int, int]] = []
    for entry in content:  # a run is written down after the nodes it executed
        if entry.get("cat") == "Node" and str(entry.get("name", "")).endswith(_NODE):
            pending.append((next(remaining), *_window(path, entry)))
        elif entry.get("cat") == "Session" and entry.get("name") == _RUN:
            windows.append(_window(path, entry))
            _check_within(path, windows, pending)
            told: Counter[str] = Counter()
            run_events.append({})
            node_seconds.append({})
            for event, first, last in pending:
                name = (event.name, told[event.name])
                told[event.name] += 1
                run_events[-1][name] = event
                node_seconds[-1][name] = (last - first) / 1e6
            pending = []
    if not windows or not any(run_events) or pending:
        found = "nodes of a run that did not end" if pending else "no run" if not windows else "no executed node"
        raise corrupt(path, "a profile of ONNX Runtime", f"{found} in it", "Call session.run before end_profiling.")
    different = next((i for i, names in enumerate(node_seconds) if names.keys() != node_seconds[0].keys()), None)
    if different is not None:
        one = sorted(node_seconds[0].keys() ^ node_seconds[different].keys())[0]
        raise corrupt(
            path,
            f"the same nodes in run {different} as in run 0",
            f"{one[0]!r} in one of them alone",
            "Profile a network that does the same in every run, in a session of its own.",
        )
    seconds = tuple((end - begin) / 1e6 for begin, end in windows)
    return Runs(path, seconds, tuple(run_events), tuple(node_seconds))


def _check_within(
    path: Path, windows: Sequence[tuple[int, int]], nodes: Sequence[tuple[ProfileEvent, int, int]]
) -> None:
    """Check the last run: it took time, it began after the one before, and its nodes were executed within it."""
    begin, end = windows[-1]
    if begin == end:
        raise corrupt(path, f"run {len(windows) - 1}", "less than a microsecond")
    if len(windows) > 1 and begin < windows[-2][1]:
        found = f"run {len(windows) - 1}, which began before the one before it ended"
        raise corrupt(path, "runs one after another", found, "Profile a session that one thread runs.")
    outside = [event.name for event, first, last in nodes if first < begin or last > end]
    if outside:
        raise corrupt(path, f"node {outside[0]!r} executed within its run", f"it outside of {begin} to {end} µs")


def _window(path: Path, event: Mapping[str, Any]) -> tuple[int, int]:
    """Begin and end of an event in microseconds."""
    name = event.get("name")
    begin = whole_number(event.get("ts"), f"ts of event {name!r}", path, least=0)
    return begin, begin + whole_number(event.get("dur"), f"dur of event {name!r}", path, least=0)


def _check_providers(path: Path, events: Sequence[ProfileEvent]) -> None:
    elsewhere = Counter(event.provider for event in events if event.provider != CPU)
    if elsewhere:
        raise MismatchError(
            asked=f"nodes executed on the CPU in {path}",
            found=", ".join(f"{n} events of {provider or 'no provider'}" for provider, n in elsewhere.items()),
            next="Elsewhere an event times a kernel's launch, not its run: use trtexec, or `akd-deploy profile`.",
        )


def node_kernels(optimised: Path, runs: Runs, batch: int) -> dict[str, Kernel]:
    """Name of each node of the optimised graph → its kernel, in the order of the graph.

    Raises:
        MissingFileError, CorruptFileError, UsageError: no such file, or no network of that batch.
        MismatchError: the profile is of another session.
    """
    model = read_onnx(optimised, batch)
    inputs = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)
        for value in graph_inputs(model.graph)
    }
    told = {name for name, _ in runs.events[0]}
    as_profiled = onnx.GraphProto()
    as_profiled.CopyFrom(model.graph)
    for node in as_profiled.node:
        if node.name not in told:  # the file leaves it without a name of its own, and the session gave it one
            node.name = ""
    events = list(runs.events[0].values())
    try:
        executed = kernels_from_profile(model.graph, as_profiled, events, inputs)
    except BuildError as error:
        raise MismatchError(
            asked=f"{error.asked}, of {optimised} in {runs.path}",
            found=error.found,
            next="Give the model that this very session wrote (SessionOptions.optimized_model_filepath), and a target "
            "of the batch it ran.",
        ) from error
    by_node = {kernel.nodes[0]: kernel.kernel for kernel in executed if len(kernel.nodes) == 1}
    names = [node.name for node in model.graph.node]
    if len(events) != len(names) or set(by_node) != set(names):
        raise MismatchError(
            asked=f"the {len(names)} nodes of {optimised} in {runs.path}",
            found=f"{len(events)} nodes executed in a run",
            next="Give the model that this very session wrote (SessionOptions.optimized_model_filepath).",
        )
    return {name: by_node[name] for name in names}


def durations(runs: Runs, kernels: Mapping[str, Kernel]) -> dict[str, list[float]]:
    """Node → seconds in every run; 0 where it took less than a microsecond.

    Raises:
        MismatchError: the profile does not time the nodes of `node_kernels`, or leaves open which event is whose.
    """
    own: dict[str, EventName] = {name: (name, 0) for name in kernels if (name, 0) in runs.events[0]}
    unnamed = [name for name in kernels if name not in own]
    for event in (name for name in runs.events[0] if name not in own.values()):
        possible = [node for node in unnamed if _can_be(runs.events[0][event], kernels[node])]
        if not possible or any(kernels[node] != kernels[possible[0]] for node in possible):
            raise MismatchError(
                asked=f"the node that event {event[0]!r} of {runs.path} times",
                found=f"several that differ: {', '.join(possible)}" if possible else "none of its operator and shapes",
                next="Give the profile and the optimised model of one session, whose nodes have names.",
            )
        own[possible[0]] = event
        unnamed.remove(possible[0])
    if unnamed:
        raise MismatchError(
            asked=f"{len(kernels)} nodes timed in {runs.path}",
            found=f"no event of {', '.join(unnamed[:5])}",
            next="Give profiles of one model, each of a session of its own.",
        )
    return {node: [run[own[node]] for run in runs.node_seconds] for node in kernels}


def _can_be(event: ProfileEvent, kernel: Kernel) -> bool:
    """Whether an event can be this kernel's: its operator, its shapes (packed weights may be missing)."""
    inputs = Counter(shape for _, shape in event.inputs)
    return (
        kernel.op.split(".")[-1] == event.op_type
        and tuple(shape for _, shape in event.outputs) == kernel.outputs
        and inputs <= Counter(kernel.inputs)
    )
